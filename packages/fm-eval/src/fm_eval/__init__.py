"""Evaluate frozen pathology foundation models: probes, k-NN, unsupervised metrics, one HTML report."""

from __future__ import annotations

from fm_eval.backbone import Backbone, ColourHistogram, LoadedBackbone, TimmBackbone, load_backbone
from fm_eval.compare import summarise, write_summary
from fm_eval.datasets import PatchDataset, load_dataset
from fm_eval.embed import embed_images
from fm_eval.errors import (
    BackboneError,
    DatasetError,
    FmEvalError,
    MetricError,
    ProbeError,
    ReportError,
    ResultError,
)
from fm_eval.evaluate import EvalSettings, evaluate
from fm_eval.knn import KnnPrediction, knn_predict
from fm_eval.metrics import Metric, ODCorr, accuracy, balanced_accuracy, confusion_matrix, odcorr, rankme
from fm_eval.probe import LinearProbe, ProbeRun
from fm_eval.protocol import PROTOCOLS, ProbeProtocol, get_protocol
from fm_eval.report import render_report, write_report
from fm_eval.result import EvalResult, read_result, write_result

__all__ = [
    "load_dataset",
    "PatchDataset",
    "load_backbone",
    "Backbone",
    "LoadedBackbone",
    "TimmBackbone",
    "ColourHistogram",
    "embed_images",
    "evaluate",
    "EvalSettings",
    "EvalResult",
    "read_result",
    "write_result",
    "render_report",
    "write_report",
    "summarise",
    "write_summary",
    "LinearProbe",
    "ProbeRun",
    "ProbeProtocol",
    "PROTOCOLS",
    "get_protocol",
    "knn_predict",
    "KnnPrediction",
    "confusion_matrix",
    "accuracy",
    "balanced_accuracy",
    "odcorr",
    "ODCorr",
    "rankme",
    "Metric",
    "FmEvalError",
    "DatasetError",
    "BackboneError",
    "ProbeError",
    "MetricError",
    "ResultError",
    "ReportError",
]
