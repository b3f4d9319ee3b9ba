from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from fm_eval import MetricError, Scores, auroc, bootstrap, calibration_error, confusion_matrix, f1, score
from fm_eval.metrics import FloatArray, IntArray, accuracy, balanced_accuracy


def _runs(classes: int, *, rows: int = 120, runs: int = 2, signal: float = 1.0) -> tuple[IntArray, FloatArray]:
    random = np.random.default_rng(classes)
    labels = random.integers(0, classes, rows)
    weights = np.exp(random.normal(size=(runs, rows, classes)) + signal * np.eye(classes)[labels])
    return labels, np.round(weights / weights.sum(axis=2, keepdims=True), 2)  # with ties


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("grouped", [True, False])
def test_intervals_are_those_of_metrics_on_copied_rows(
    classes: int, grouped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels, probabilities = _runs(classes)
    groups = np.array([f"patient {row // 3 % 25}" for row in range(len(labels))]) if grouped else None
    monkeypatch.setattr("fm_eval.intervals._COUNTS", 25 * 17)  # drawn in parts
    found = bootstrap(labels, probabilities, groups=groups, resamples=60, seed=5)
    units = np.unique(groups, return_inverse=True)[1] if groups is not None else np.arange(len(labels))
    count = units.max() + 1
    assert (found.unit, found.units) == ("group" if grouped else "row", count)
    by_confusion: dict[str, Callable[[IntArray], object]] = {
        "balanced_accuracy": balanced_accuracy,
        "accuracy": accuracy,
        "f1": f1,
    }
    values: dict[str, list[float]] = {name: [] for name in (*by_confusion, "auroc", "calibration_error")}
    random = np.random.default_rng(5)
    for _ in range(60):
        times = random.multinomial(count, np.full(count, 1 / count))
        rows = np.repeat(np.arange(len(labels)), times[units])
        drawn = labels[rows]
        means: dict[str, list[float]] = {name: [] for name in values}
        for one in probabilities[:, rows]:
            confusion = confusion_matrix(drawn, one.argmax(axis=1), classes=classes)
            for name, metric in by_confusion.items():
                means[name].append(metric(confusion).value)  # type: ignore[attr-defined]
            means["auroc"].append(auroc(drawn, one).value or 0.0)
            means["calibration_error"].append(calibration_error(drawn, one).value or 0.0)
        for name, of_runs in means.items():
            values[name].append(float(np.mean(of_runs)))
    for name, all_values in values.items():
        assert found.bounds[name] == pytest.approx(np.quantile(all_values, [0.025, 0.975]), rel=1e-9), name


def test_whole_patients_are_drawn_so_intervals_are_as_wide_as_few_patients_make_them() -> None:
    # 40 rows a patient, all right or all wrong: 400 rows are no more evidence than 10 patients
    labels = np.tile([0, 1], 200)
    right = np.repeat(np.arange(10) % 3 > 0, 40)
    probabilities = np.where(right[:, None], np.eye(2)[labels], np.eye(2)[1 - labels])[None]
    by_row = bootstrap(labels, probabilities).bounds["accuracy"]
    by_patient = bootstrap(labels, probabilities, groups=np.repeat(np.arange(10), 40).astype(str)).bounds["accuracy"]
    assert by_patient[1] - by_patient[0] > 4 * (by_row[1] - by_row[0])


def test_95_of_100_intervals_hold_the_true_value() -> None:
    random = np.random.default_rng(0)
    held = 0
    for _ in range(200):
        labels = random.integers(0, 2, 150)
        right = random.random(150) < 0.8
        probabilities = np.eye(2)[np.where(right, labels, 1 - labels)][None]
        low, high = bootstrap(labels, probabilities, resamples=300).bounds["accuracy"]
        held += low <= 0.8 <= high
    assert 180 <= held <= 199


def test_a_metric_that_some_resample_leaves_undefined_has_no_interval() -> None:
    labels = np.array([0, 0, 0, 0, 1])
    found = bootstrap(labels, np.full((1, 5, 2), 0.5), resamples=200)
    assert "auroc" not in found.bounds
    assert found.bounds["accuracy"][0] < 0.8
    with pytest.raises(MetricError, match="0 rows"):
        bootstrap(labels[:0], np.zeros((1, 0, 2)))
    with pytest.raises(MetricError, match="a group a row"):
        bootstrap(labels, np.full((1, 5, 2), 0.5), groups=["a"])


def test_scores_hold_every_run_and_say_what_is_undefined() -> None:
    labels, probabilities = _runs(3, runs=4)
    scores = score(labels, probabilities)
    assert isinstance(scores, Scores)
    assert len(scores.balanced_accuracy) == len(scores.confusion) == 4
    assert set(scores.metrics) == {"f1", "auroc", "log_loss", "calibration_error"}
    assert scores.std == pytest.approx(np.std(scores.balanced_accuracy, ddof=1))
    assert scores.intervals is None
    one_class = score(np.zeros(3, np.int64), np.array([[[1.0, 0.0], [0.3, 0.7], [0.0, 1.0]]]))
    assert one_class.metrics["auroc"] == [None]
    assert set(one_class.undefined) == {"auroc", "log_loss"}
