"""What is the outcome of one evaluation, and how is it kept?

A result is one JSON file that stands alone: numbers, where each came from, the points of the embedding plot
and a few thumbnails, so that a report needs neither images nor weights. It is written atomically and carries
a `format_version`; a newer one is refused by name. Before: evaluate. After: report.
"""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from fm_eval.errors import ResultError
from fm_eval.intervals import Intervals
from fm_eval.scores import Scores
from fm_eval.simpleshot import FewShot
from fm_eval.unsupervised import UnsupervisedMetric

FORMAT = "fm-eval-result"
# 2 added further heads and metrics, intervals, learning rates; 3 predictions of single rows and calibration by bin. A
# file of an earlier version reads as one without them.
FORMAT_VERSION = 3

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeResult:
    """One protocol's outcome.

    Attributes:
        protocol: every field of the protocol.
        seed: of heads and orders.
        selected_on: the split that chose the epochs, `inner train` for a group-disjoint part of train. Where it is
            also the reported split, the numbers are optimistic.
        scores: by split.
        runs: how each run went.
        seconds: wall time.
        trials: how each run went at each learning rate of a sweep; empty where there was one rate.
        predicted: packed (R, n) class that each run predicts for each row of the reported split.
    """

    protocol: dict[str, Any]
    seed: int
    selected_on: str
    scores: dict[str, Scores]
    runs: list[dict[str, Any]]
    seconds: float
    trials: list[dict[str, Any]] = field(default_factory=list)
    predicted: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class KnnResult:
    """k-NN outcome, or the reason why it is undefined.

    Attributes:
        k: neighbours used.
        temperature: of the weighted vote.
        majority: one-run scores by split.
        softmax: one-run scores by split.
        undefined: why there are none; None if there are.
    """

    k: int
    temperature: float
    majority: dict[str, Scores]
    softmax: dict[str, Scores]
    undefined: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadResult:
    """Outcome of a head that has one run, or the reason why it is undefined.

    Attributes:
        name: `simpleshot` or `logistic`.
        selected_on: the split that chose a setting; None where there is none to choose.
        settings: the chosen ones, with how each one tried went.
        scores: one-run scores by split.
        seconds: wall time.
        undefined: why there are no scores; None if there are.
    """

    name: str
    selected_on: str | None
    settings: dict[str, Any]
    scores: dict[str, Scores]
    seconds: float
    undefined: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FewShotResult:
    """SimpleShot with few training rows a class.

    Attributes:
        split: that was scored.
        seed: of the drawings.
        shots: balanced accuracy of each episode by number of rows a class.
        seconds: wall time.
        undefined: why there are none; None if there are.
    """

    split: str
    seed: int
    shots: list[FewShot]
    seconds: float
    undefined: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class UnsupervisedResult:
    """Label-free metrics of one split's embeddings (N, K); a None value has its reason beside it.

    `odcorr` and `rankme` (uncentred) are the headline ones; `metrics` holds all of them by variant.
    """

    split: str
    rows: int
    dim: int
    odcorr: float | None
    odcorr_undefined: str | None
    odcorr_dropped_rows: int
    odcorr_noise_floor: float | None
    rankme: float | None
    rankme_undefined: str | None
    metrics: list[UnsupervisedMetric] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Projection:
    """First two principal components of one split's embeddings, for the plot."""

    split: str
    x: list[float]
    y: list[float]
    labels: list[int]
    rows: int
    explained: list[float]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportedRows:
    """The rows of the reported split in order: what a paired comparison needs beside the predictions.

    Attributes:
        labels: packed (n,) true classes.
        groups: packed (n,) numbers of patients, slides or other groups; without known groups each row is its own.
    """

    labels: str
    groups: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalResult:
    """Everything that one evaluation of one backbone on one dataset found.

    Attributes:
        name: shown in reports.
        role: what reports compare: `trained`, `random`, `colour` or any other word.
        created: UTC time, ISO 8601.
        dataset: sha256, classes, rows by split and class, where the split comes from.
        backbone: weights_sha256 and the provenance of the weights.
        reported_split: the split of the headline number, test if there is one.
        probes: the first one is the headline.
        knn: nearest neighbours.
        unsupervised: label-free metrics.
        projection: points for the plot.
        examples: class name to base64 JPEG thumbnails.
        settings: seed, transform, batch size, device, precision.
        versions: of the packages that the numbers depend on.
        seconds: wall time by stage.
        heads: further heads that were asked for.
        few_shot: SimpleShot on few rows, where it was asked for.
        reported_rows: labels and groups behind `ProbeResult.predicted`; None in files of format version 1 and 2.
    """

    name: str
    role: str
    created: str
    dataset: dict[str, Any]
    backbone: dict[str, Any]
    reported_split: str
    probes: list[ProbeResult]
    knn: KnnResult
    unsupervised: UnsupervisedResult
    projection: Projection
    examples: dict[str, list[str]]
    settings: dict[str, Any]
    versions: dict[str, str]
    seconds: dict[str, float]
    heads: list[HeadResult] = field(default_factory=list)
    few_shot: FewShotResult | None = None
    reported_rows: ReportedRows | None = None

    @property
    def classes(self) -> list[str]:
        """Class names; their position is the class number."""
        return [str(name) for name in self.dataset["classes"]]

    def probe(self, protocol: str) -> ProbeResult | None:
        """The outcome of one protocol, None if it was not run."""
        return next((probe for probe in self.probes if probe.protocol["name"] == protocol), None)


def write_result(result: EvalResult, path: str | Path) -> None:
    """Write a result as JSON: all of it or, if anything fails, nothing.

    Raises:
        ResultError: the path cannot be written.
    """
    content = {"format": FORMAT, "format_version": FORMAT_VERSION, **asdict(result)}
    write_atomically(Path(path), json.dumps(content, indent=1, allow_nan=False) + "\n")


def read_result(path: str | Path) -> EvalResult:
    """Read a result that `write_result` wrote.

    Raises:
        ResultError: no such file, not a result, a newer format version, or a missing field.
    """
    path = Path(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ResultError(f"result {path}: not a readable JSON file ({error})") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ResultError(f"result {path}: not written by `fm-eval run` (no format {FORMAT!r})")
    version = content.get("format_version")
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise ResultError(f"result {path}: format_version {version} is newer than {FORMAT_VERSION}; update fm-eval")
    try:
        return _result(content)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ResultError(f"result {path}: damaged, field {error}; run the evaluation again") from error


def write_atomically(path: Path, text: str) -> None:
    """Write a text file through a temporary file in the same folder.

    Raises:
        ResultError: the path cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
            os.chmod(temporary, 0o644)  # noqa: PTH101  mkstemp makes it private
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise ResultError(f"output {path}: cannot be written ({error.strerror or error})") from error


def _result(content: dict[str, Any]) -> EvalResult:
    known = {key: value for key, value in content.items() if key not in ("format", "format_version")}
    known["probes"] = [_build(ProbeResult, {**p, "scores": _scores(p["scores"])}) for p in content["probes"]]
    knn = content["knn"]
    known["knn"] = _build(KnnResult, {**knn, **{vote: _scores(knn[vote]) for vote in ("majority", "softmax")}})
    unsupervised = content["unsupervised"]
    metrics = [_build(UnsupervisedMetric, metric) for metric in unsupervised.get("metrics", [])]
    known["unsupervised"] = _build(UnsupervisedResult, {**unsupervised, "metrics": metrics})
    known["projection"] = _build(Projection, content["projection"])
    known["heads"] = [_build(HeadResult, {**h, "scores": _scores(h["scores"])}) for h in content.get("heads", [])]
    if content.get("few_shot") is not None:
        shots = [_build(FewShot, one) for one in content["few_shot"]["shots"]]
        known["few_shot"] = _build(FewShotResult, {**content["few_shot"], "shots": shots})
    if content.get("reported_rows") is not None:
        known["reported_rows"] = _build(ReportedRows, content["reported_rows"])
    for part, key in (("dataset", "sha256"), ("dataset", "classes"), ("backbone", "weights_sha256")):
        known[part][key]
    if not known["probes"] or known["reported_split"] not in known["probes"][0].scores:
        raise ValueError("probes has no scores of the reported split")
    return _build(EvalResult, known)


def _scores(by_split: dict[str, Any]) -> dict[str, Scores]:
    return {
        split: _build(Scores, {**one, "intervals": _intervals(one), "reliability": _reliability(one)})
        for split, one in by_split.items()
    }


def _reliability(scores: dict[str, Any]) -> list[tuple[int, float, float]]:
    return [(int(rows), float(confidence), float(right)) for rows, confidence, right in scores.get("reliability", [])]


def _intervals(scores: dict[str, Any]) -> Intervals | None:
    found = scores.get("intervals")
    if found is None:
        return None
    return _build(Intervals, {**found, "bounds": {name: tuple(pair) for name, pair in found["bounds"].items()}})


def _build(kind: type[_T], content: dict[str, Any]) -> _T:
    return kind(**content)
