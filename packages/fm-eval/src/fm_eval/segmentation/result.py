"""What is the outcome of one segmentation evaluation, and how is it kept?

One JSON file with a `format_version`, like the results of probes: numbers of every run, which runs converged and
why the others did not, means over those that did, and a few pictures. Before: evaluate. After: report.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from fm_eval.errors import ResultError
from fm_eval.result import write_atomically
from fm_eval.segmentation.dice import SegmentationScores

FORMAT = "fm-eval-segmentation"
# 2 added counts of each test image, which a paired comparison needs. A file of version 1 reads as one without them.
FORMAT_VERSION = 2

METRICS = ("dice_pooled", "dice_image", "dice_patch", "miou", "miou_with_background")
_BY_CLASS = ("dice_pooled_by_class", "dice_image_by_class", "dice_patch_by_class", "iou_by_class")


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentationRun:
    """One trained decoder.

    Attributes:
        run: its number; with the seed it keys every random choice.
        not_converged: why it is left out of the mean; None if it converged.
        steps: optimizer steps.
        losses: mean training loss between checks.
        checks: pooled training DICE at each check.
        scores: by split.
        train_seconds: wall time of the training.
        test_seconds: wall time of prediction, stitching and counting.
        counts: packed (N, 3, C) overlap, true and predicted pixels of each class in each image of the reported split;
            None in files of format version 1.
    """

    run: int
    not_converged: str | None
    steps: int
    losses: list[float]
    checks: list[float | None]
    scores: dict[str, SegmentationScores]
    train_seconds: float
    test_seconds: float
    counts: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """Image, label and prediction of one run side by side, as base64 PNG."""

    image_id: str
    run: int
    png: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentationResult:
    """Everything that one evaluation of one backbone and decoder on one data set found.

    Attributes:
        name: shown in reports.
        role: `trained`, `random` or any other word.
        created: UTC time, ISO 8601.
        dataset: name, sha256, classes, images by split, where the split comes from.
        backbone: weights_sha256 and the provenance of the weights.
        decoder: name, parameters, and how it was built.
        reported_split: `test`.
        wanted_runs: converged runs that were asked for.
        runs: all runs, in order.
        pictures: of the first converged run, or of the first.
        settings: of windows, training and device.
        versions: of the packages that the numbers depend on.
        seconds: wall time by stage.
        groups: packed (N,) numbers of the groups of the reported split's images, each its own where none are known;
            None in files of format version 1.
    """

    name: str
    role: str
    created: str
    dataset: dict[str, Any]
    backbone: dict[str, Any]
    decoder: dict[str, Any]
    reported_split: str
    wanted_runs: int
    runs: list[SegmentationRun]
    pictures: list[Picture]
    settings: dict[str, Any]
    versions: dict[str, str]
    seconds: dict[str, float]
    groups: str | None = None

    @property
    def converged(self) -> list[SegmentationRun]:
        """The runs that count."""
        return [run for run in self.runs if run.not_converged is None]

    def values(self, metric: str, split: str | None = None) -> list[float]:
        """One metric of each converged run that defines it."""
        found = [getattr(run.scores[split or self.reported_split], metric) for run in self.converged]
        return [value for value in found if value is not None]

    def by_class(self, metric: str) -> dict[str, float | None]:
        """Mean over converged runs of a metric that is kept by class."""
        of_runs = [getattr(run.scores[self.reported_split], metric) for run in self.converged]
        return {name: _mean([scores[name] for scores in of_runs]) for name in self.dataset["classes"]}

    def summary(self) -> dict[str, Any]:
        """Mean and standard deviation (n - 1) over converged runs of each metric, and means by class."""
        overall = {
            metric: {"mean": _mean(values), "std": stdev(values) if len(values) > 1 else None, "runs": len(values)}
            for metric in METRICS
            for values in [self.values(metric)]
        }
        return {**overall, **{metric: self.by_class(metric) for metric in _BY_CLASS}}


def write_segmentation(result: SegmentationResult, path: str | Path) -> None:
    """Write a result as JSON, with its summary: all of it or, if anything fails, nothing.

    Raises:
        ResultError: the path cannot be written.
    """
    head = {"format": FORMAT, "format_version": FORMAT_VERSION, "summary": result.summary()}
    write_atomically(Path(path), json.dumps({**head, **asdict(result)}, indent=1, allow_nan=False) + "\n")


def read_segmentation(path: str | Path) -> SegmentationResult:
    """Read a result that `write_segmentation` wrote.

    Raises:
        ResultError: no such file, not a result of segmentation, a newer format version, or a damaged field.
    """
    content = _content(Path(path))
    if content is None or content.get("format") != FORMAT:
        raise ResultError(f"result {path}: not written by `fm-eval segment` (no format {FORMAT!r})")
    version = content.get("format_version")
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise ResultError(f"result {path}: format_version {version} is newer than {FORMAT_VERSION}; update fm-eval")
    try:
        known = {name: content[name] for name in SegmentationResult.__slots__ if name != "groups"}
        known["groups"] = content.get("groups")
        known["runs"] = [
            SegmentationRun(**{**run, "scores": {k: SegmentationScores(**v) for k, v in run["scores"].items()}})
            for run in content["runs"]
        ]
        known["pictures"] = [Picture(**picture) for picture in content["pictures"]]
        result = SegmentationResult(**known)
        result.summary()
        return result
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ResultError(f"result {path}: damaged, field {error}; run the evaluation again") from error


def is_segmentation(path: str | Path) -> bool:
    """Whether a file says that it is a result of segmentation."""
    content = _content(Path(path))
    return content is not None and content.get("format") == FORMAT


def _content(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError):
        return None
    return content if isinstance(content, dict) else None


def _mean(values: Sequence[float | None]) -> float | None:
    defined = [value for value in values if value is not None]
    return fmean(defined) if defined else None
