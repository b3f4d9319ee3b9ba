"""What are the points of a learning curve, and how are they kept?

A point is one metric of one checkpoint on one split of one task. `curves.csv` is for people and spreadsheets,
`curves.json` for the report; both hold the numbers of the evaluations and nothing of when they were computed, so that
two ways to the same checkpoints give the same bytes. Before: result. After: watch, curves_page.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from statistics import fmean, stdev

from fm_eval.errors import ResultError
from fm_eval.result import EvalResult, write_atomically
from fm_eval.scores import Scores

FORMAT = "fm-eval-curves"
FORMAT_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class CurvePoint:
    """One metric of one checkpoint.

    Attributes:
        name: of the curve.
        checkpoint: folder name.
        step: optimizer steps.
        task: name of the task.
        split: that was measured.
        metric: `balanced_accuracy`, `knn_balanced_accuracy`, `simpleshot_balanced_accuracy`, `odcorr`,
            `rankme_uncentred`.
        value: mean over probe runs or folds; None where undefined.
        std: over probe runs, or over folds where there are several; None where there is one of them.
        runs: how many values the mean is over.
        low: lower bound of the 95 % bootstrap interval over groups; None where there is none.
        high: its upper bound.
        weights_sha256: of the checkpoint.
    """

    name: str
    checkpoint: str
    step: int
    task: str
    split: str
    metric: str
    value: float | None
    std: float | None
    runs: int
    low: float | None
    high: float | None
    weights_sha256: str


COLUMNS = tuple(field.name for field in fields(CurvePoint))


def points_of(results: Sequence[EvalResult], *, name: str, checkpoint: str, step: int, task: str) -> list[CurvePoint]:
    """The points that one checkpoint has on one task.

    Args:
        results: of the checkpoint on the task: one, or one for each fold.
        name: of the curve.
        checkpoint: folder name.
        step: optimizer steps.
        task: name of the task.
    """
    first = results[0]

    def point(metric: str, split: str, values: Sequence[float | None], scores: Scores | None = None) -> CurvePoint:
        defined = [value for value in values if value is not None]
        whole = len(defined) == len(values)
        bounds = scores.intervals.bounds.get("balanced_accuracy") if scores and scores.intervals else None
        return CurvePoint(
            name=name,
            checkpoint=checkpoint,
            step=step,
            task=task,
            split=split,
            metric=metric,
            value=fmean(defined) if whole else None,
            std=stdev(defined) if whole and len(defined) > 1 else None,
            runs=len(values),
            low=bounds[0] if bounds and len(results) == 1 else None,
            high=bounds[1] if bounds and len(results) == 1 else None,
            weights_sha256=first.backbone["weights_sha256"],
        )

    def scored(metric: str, by_split: Callable[[EvalResult], dict[str, Scores]]) -> list[CurvePoint]:
        points = []
        for split in ("val", "test"):
            scores = [by_split(result).get(split) for result in results]
            found = [one for one in scores if one is not None]
            if found and len(found) == len(results):
                values = found[0].balanced_accuracy if len(found) == 1 else [one.mean for one in found]
                points.append(point(metric, split, values, found[0]))
        return points

    points = scored("balanced_accuracy", lambda result: result.probes[0].scores)
    points += scored("knn_balanced_accuracy", lambda result: result.knn.majority)
    for head in first.heads:
        points += scored(f"{head.name}_balanced_accuracy", partial(_scores_of_head, name=head.name))
    split = first.reported_split
    points.append(point("odcorr", split, [result.unsupervised.odcorr for result in results]))
    points.append(point("rankme_uncentred", split, [result.unsupervised.rankme for result in results]))
    return points


def write_curves(points: Sequence[CurvePoint], folder: Path) -> None:
    """Write `curves.csv` and `curves.json`, each whole or not at all.

    Raises:
        ResultError: the folder cannot be written.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    rows = [asdict(point) for point in points]
    writer.writerows({key: "" if value is None else value for key, value in row.items()} for row in rows)
    write_atomically(folder / "curves.csv", text.getvalue())
    content = {"format": FORMAT, "format_version": FORMAT_VERSION, "points": rows}
    write_atomically(folder / "curves.json", json.dumps(content, indent=1, allow_nan=False) + "\n")


def read_curves(path: str | Path) -> list[CurvePoint]:
    """Read a `curves.json` that `write_curves` wrote.

    Raises:
        ResultError: no such file, none of this format, a newer version, or a damaged point.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ResultError(f"curves {path}: not a readable JSON file ({error})") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ResultError(f"curves {path}: not written by `fm-eval watch` (no format {FORMAT!r})")
    version = content.get("format_version")
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise ResultError(f"curves {path}: format_version {version} is newer than {FORMAT_VERSION}; update fm-eval")
    try:
        return [_checked(CurvePoint(**point)) for point in content["points"]]
    except (KeyError, TypeError, ValueError) as error:
        raise ResultError(f"curves {path}: damaged ({error}); let the watch write it again") from error


def is_curves(path: str | Path) -> bool:
    """Whether a file says that it holds curves."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError):
        return False
    return isinstance(content, dict) and content.get("format") == FORMAT


def _checked(point: CurvePoint) -> CurvePoint:
    numbers = (point.value, point.std, point.low, point.high)
    if not isinstance(point.step, int) or any(not isinstance(one, float | int | None) for one in numbers):
        raise ValueError(f"a point of {point.checkpoint} holds what is no number")
    return point


def _scores_of_head(result: EvalResult, *, name: str) -> dict[str, Scores]:
    return next((head.scores for head in result.heads if head.name == name), {})
