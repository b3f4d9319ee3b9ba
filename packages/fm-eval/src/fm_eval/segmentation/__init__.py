"""Segmentation by light decoders on the patch tokens of a frozen backbone."""

from __future__ import annotations

from fm_eval.segmentation.decoder import MaskDecoder
from fm_eval.segmentation.dice import SegmentationScores
from fm_eval.segmentation.evaluate import segment
from fm_eval.segmentation.labels import ClassMap
from fm_eval.segmentation.layouts import SegmentationDataset, load_segmentation_dataset
from fm_eval.segmentation.result import SegmentationResult, read_segmentation, write_segmentation
from fm_eval.segmentation.settings import SegmentSettings

__all__ = [
    "load_segmentation_dataset",
    "SegmentationDataset",
    "ClassMap",
    "segment",
    "SegmentSettings",
    "SegmentationResult",
    "SegmentationScores",
    "MaskDecoder",
    "read_segmentation",
    "write_segmentation",
]
