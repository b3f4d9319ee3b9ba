"""What did one model predict on the images of one segmentation task?

Results of one model on the same images are its training seeds; only runs that converged count, as in the mean that is
reported. Before: result. After: comparison.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fm_eval.errors import ReportError
from fm_eval.metrics import IntArray
from fm_eval.packing import unpack
from fm_eval.segmentation.result import SegmentationResult

# Settings that two results may differ in: how many runs there are and which, where they ran, and what is shown.
_FREE_SETTINGS = {"runs", "max_runs", "seed", "device", "pictures", "progress"}


@dataclass(frozen=True, slots=True)
class TaskImages:
    """What one model predicted on one task.

    Attributes:
        groups: (N,) group of each image.
        seeds: (R, N, 3, C) counts of the converged runs of each training seed (`image_counts`).
        groups_known: False where each image had to stand for its own group.
        fingerprint: hash of dataset and split: equal ones have the same images in the same order.
    """

    groups: IntArray
    seeds: list[IntArray]
    groups_known: bool
    fingerprint: tuple[str, ...]


def not_comparable(result: SegmentationResult) -> str | None:
    """Why a result cannot be compared image by image; None if it can."""
    if result.groups is None or any(run.counts is None for run in result.runs):
        return (
            "holds no counts of single images (format version 1); run `fm-eval segment` again, which trains nothing "
            "where the runs in its output folder are still there"
        )
    return None if result.converged else "has no run that converged"


def images_of(results: Sequence[SegmentationResult]) -> TaskImages:
    """Put together what one model predicted on one task.

    Raises:
        ReportError: a result that cannot be compared, or results on several splits of one dataset.
    """
    first = results[0]
    if len({result.dataset["sha256"] for result in results}) > 1:
        raise ReportError(
            f"compare: {first.name} has results on several splits of {first.dataset['name']}; give those of one split"
        )
    decoded = [_decoded(result) for result in results]
    return TaskImages(
        groups=decoded[0][0],
        seeds=[counts for _, counts in decoded],
        groups_known=all(bool(result.dataset["groups_known"]) for result in results),
        fingerprint=(first.dataset["sha256"],),
    )


def settings_of(result: SegmentationResult) -> dict[str, str]:
    """The settings that have to be alike for two results to be compared."""
    return {name: str(value) for name, value in result.settings.items() if name not in _FREE_SETTINGS}


def _decoded(result: SegmentationResult) -> tuple[IntArray, IntArray]:
    """Groups (N,) and counts (R, N, 3, C) of the converged runs."""
    reason = not_comparable(result)
    if reason is not None:
        raise ReportError(f"compare: the segmentation {result.name} on {result.dataset['name']} {reason}")
    groups = unpack(result.groups or "")
    of_runs = [unpack(run.counts or "") for run in result.converged]
    shape = (*groups.shape, 3, len(result.dataset["classes"]))
    if groups.ndim != 1 or any(counts.shape != shape for counts in of_runs):
        raise ReportError(f"compare: the counts in segmentation {result.name} do not fit its images; run it again")
    return groups, np.stack(of_runs)
