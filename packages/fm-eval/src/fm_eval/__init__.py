"""Evaluate frozen pathology foundation models: probes, k-NN, unsupervised metrics, one HTML report."""

from __future__ import annotations

from fm_eval.alignment import CKA, CKAStream, cka
from fm_eval.backbone import Backbone, ColourHistogram, LoadedBackbone, TensorBackbone, TimmBackbone
from fm_eval.compare import summarise, write_summary
from fm_eval.comparison import Comparison, compare_results, write_comparison
from fm_eval.correlation import ODCorr, ODCorrStream, odcorr
from fm_eval.curves import CurvePoint, read_curves
from fm_eval.datasets import LAYOUTS, PatchDataset, load_dataset, load_folds, read_dataset
from fm_eval.doctor import Finding, examine
from fm_eval.eigenvalues import PowerLaw, Spectrum, SpectrumStream, rankme, spectrum
from fm_eval.embed import EmbedSettings, embed_batches, embed_images
from fm_eval.errors import (
    BackboneError,
    DatasetError,
    DatasetNotFoundError,
    FmEvalError,
    MetricError,
    ProbeError,
    ReportError,
    ResultError,
    SegmentationError,
    StoreError,
)
from fm_eval.evaluate import EvalSettings, evaluate
from fm_eval.gate import TaskGate, gate
from fm_eval.hypersphere import uniformity
from fm_eval.intervals import Intervals, bootstrap
from fm_eval.knn import KnnPrediction, knn_predict
from fm_eval.loading import load_backbone
from fm_eval.logistic import LogisticProbe
from fm_eval.metrics import (
    Metric,
    accuracy,
    auroc,
    balanced_accuracy,
    calibration_error,
    confusion_matrix,
    f1,
    log_loss,
)
from fm_eval.probe import LinearProbe
from fm_eval.protocol import PROTOCOLS, ProbeProtocol, get_protocol
from fm_eval.report import ReportContent, render_report, write_report
from fm_eval.result import EvalResult, read_result, write_result
from fm_eval.run_heads import EmbeddedDataset, run_few_shot, run_knn, run_logistic, run_probe, run_simpleshot
from fm_eval.scores import Scores, score
from fm_eval.significance import PairedDifference, paired_difference
from fm_eval.simpleshot import FewShot, SimpleShot, few_shot
from fm_eval.store import StoredEmbeddings, embed_dataset
from fm_eval.training import ProbeRun
from fm_eval.unsupervised import UnsupervisedMetric, UnsupervisedStream, unsupervised_metrics

__all__ = [
    "load_dataset",
    "read_dataset",
    "load_folds",
    "PatchDataset",
    "LAYOUTS",
    "examine",
    "Finding",
    "load_backbone",
    "Backbone",
    "LoadedBackbone",
    "TimmBackbone",
    "TensorBackbone",
    "ColourHistogram",
    "embed_images",
    "embed_batches",
    "EmbedSettings",
    "embed_dataset",
    "StoredEmbeddings",
    "evaluate",
    "EvalSettings",
    "EvalResult",
    "read_result",
    "write_result",
    "render_report",
    "write_report",
    "ReportContent",
    "read_curves",
    "CurvePoint",
    "compare_results",
    "Comparison",
    "write_comparison",
    "paired_difference",
    "PairedDifference",
    "gate",
    "TaskGate",
    "summarise",
    "write_summary",
    "LinearProbe",
    "ProbeRun",
    "ProbeProtocol",
    "PROTOCOLS",
    "get_protocol",
    "knn_predict",
    "KnnPrediction",
    "LogisticProbe",
    "SimpleShot",
    "few_shot",
    "FewShot",
    "EmbeddedDataset",
    "run_probe",
    "run_knn",
    "run_logistic",
    "run_simpleshot",
    "run_few_shot",
    "score",
    "Scores",
    "bootstrap",
    "Intervals",
    "confusion_matrix",
    "accuracy",
    "balanced_accuracy",
    "f1",
    "auroc",
    "log_loss",
    "calibration_error",
    "unsupervised_metrics",
    "UnsupervisedStream",
    "UnsupervisedMetric",
    "odcorr",
    "ODCorr",
    "ODCorrStream",
    "spectrum",
    "Spectrum",
    "SpectrumStream",
    "PowerLaw",
    "rankme",
    "uniformity",
    "cka",
    "CKA",
    "CKAStream",
    "Metric",
    "FmEvalError",
    "DatasetError",
    "DatasetNotFoundError",
    "StoreError",
    "BackboneError",
    "ProbeError",
    "MetricError",
    "ResultError",
    "ReportError",
    "SegmentationError",
]
