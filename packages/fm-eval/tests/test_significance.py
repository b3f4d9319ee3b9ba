from __future__ import annotations

import importlib.util
import itertools
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from fm_eval import MetricError, bootstrap
from fm_eval.significance import holm, paired_difference, smallest_visible


@pytest.fixture(scope="module")
def simulated() -> ModuleType:
    """The benchmark of the same name, which simulates pairs of models."""
    path = Path(__file__).parents[1] / "benchmarks" / "significance.py"
    spec = importlib.util.spec_from_file_location("significance_benchmark", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look it up
    spec.loader.exec_module(module)
    return module


def _drawn(seed: int, *, rows: int = 60, groups: int = 9, runs: int = 1) -> tuple[np.ndarray, ...]:
    random = np.random.default_rng(seed)
    right = [random.random((runs, rows)) < share for share in (0.8, 0.6)]
    return random.integers(0, 3, rows), random.integers(0, groups, rows), *right


def test_the_difference_is_that_of_the_balanced_accuracies() -> None:
    labels, groups, one, other = _drawn(0, runs=4)
    found = paired_difference(labels, groups, one, other)
    expected = [np.mean([[run[labels == c].mean() for c in range(3)] for run in model]) for model in (one, other)]
    assert (found.one, found.other) == pytest.approx(expected)
    assert found.difference == pytest.approx(expected[0] - expected[1])
    assert (found.rows, found.groups, found.runs) == (60, 9, (4, 4))


def test_the_p_value_is_that_of_all_sign_flips() -> None:
    labels, groups, one, other = _drawn(1)
    weight = 1 / (3 * np.bincount(labels)[labels])
    sums = np.bincount(groups, weight * (one[0].astype(float) - other[0]))
    signs = np.array(list(itertools.product((-1, 1), repeat=9)))
    exact = np.mean(np.abs(signs @ sums) >= abs(sums.sum()) - 1e-12)
    worse = np.mean(signs @ sums <= sums.sum() + 1e-12)
    found = paired_difference(labels, groups, one, other, permutations=40_000)
    assert found.p_value == pytest.approx(exact, abs=4 * np.sqrt(exact * (1 - exact) / 40_000))
    assert found.p_lower == pytest.approx(worse, abs=4 * np.sqrt(worse * (1 - worse) / 40_000) + 1e-4)


def test_against_a_model_that_is_always_wrong_the_interval_is_that_of_the_score() -> None:
    labels, groups, one, _ = _drawn(2, rows=200, groups=40)
    found = paired_difference(labels, groups, one, np.zeros((1, 200)), resamples=500, seed=3)
    probabilities = np.eye(3)[np.where(one[0], labels, (labels + 1) % 3)][None]
    known = bootstrap(labels, probabilities, groups=np.char.zfill(groups.astype(str), 2), resamples=500, seed=3)
    assert known.bounds["balanced_accuracy"] == pytest.approx((found.low, found.high))


def test_equal_models_differ_in_nothing() -> None:
    labels, groups, one, _ = _drawn(3, runs=2)
    found = paired_difference(labels, groups, one, one.copy())
    assert (found.difference, found.p_value, found.p_lower, found.low, found.high) == (0, 1, 1, 0, 0)


def test_what_runs_have_in_common_widens_everything() -> None:
    random = np.random.default_rng(4)
    labels, groups = random.integers(0, 2, 2000), np.arange(2000) // 10
    shares = np.array([0.70, 0.74, 0.78, 0.82, 0.86])
    off = [random.random((5, 2000)) < (shares + shift)[:, None] for shift in (0.0, 0.02)]
    wide = paired_difference(labels, groups, *off)
    alike = [random.random((5, 2000)) < 0.78 + shift for shift in (0.0, 0.02)]
    narrow = paired_difference(labels, groups, *alike)
    # five runs whose standard deviation is 0.063, in two models
    assert wide.run_std_error == pytest.approx(np.std(shares, ddof=1) * np.sqrt(2 / 5), rel=0.1)
    assert wide.p_value > 0.2
    assert narrow.p_value < 0.01
    assert wide.low is not None
    assert narrow.low is not None
    assert wide.low < narrow.low
    single = paired_difference(labels, groups, off[0][:1], off[1][:1])
    assert single.run_std_error is None
    borrowed = paired_difference(labels, groups, off[0], off[1][:1])
    assert borrowed.run_std_error == pytest.approx(np.std(shares, ddof=1) * np.sqrt(1 / 5 + 1), rel=0.1)


def test_one_group_shows_nothing() -> None:
    labels, _, one, other = _drawn(5)
    found = paired_difference(labels, np.zeros(60, dtype=np.int64), one, other)
    assert (found.p_value, found.low, found.high, found.groups) == (1, None, None, 1)


@pytest.mark.parametrize(
    ("p_values", "adjusted"),
    [
        ([0.01, 0.04, 0.03], [0.03, 0.06, 0.06]),  # 3 x 0.01, then 2 x 0.03, and never less than the one before
        ([0.5, 0.6], [1.0, 1.0]),
        ([0.02], [0.02]),
        ([], []),
    ],
)
def test_holm(p_values: list[float], adjusted: list[float]) -> None:
    assert holm(p_values) == pytest.approx(adjusted)


def test_arrays_that_do_not_fit_are_refused() -> None:
    labels, groups, one, other = _drawn(6)
    with pytest.raises(MetricError, match="1 of each needed"):
        paired_difference(labels, groups, one[:0], other)
    with pytest.raises(MetricError, match="60 labels, but 59 groups"):
        paired_difference(labels, groups[1:], one, other)


def test_a_thousand_clustered_nulls_keep_the_level(simulated: ModuleType) -> None:
    """At most 66, the 99 % point of a binomial; rows taken for independent show how much there is to get wrong."""
    assert simulated.shown(simulated.SETTINGS["as the gate is judged"], 1000, seed=2) <= 66
    clusters = simulated.SETTINGS["strong clusters, 40 patients"]
    assert simulated.shown(clusters, 200, seed=2) <= 20
    assert simulated.shown(clusters, 200, seed=2, clustered=False) > 60


def test_the_gate_catches_four_points_and_passes_alike_models(simulated: ModuleType) -> None:
    pairs = simulated.SETTINGS["as the gate is judged"]
    assert (pairs.groups * pairs.rows, pairs.groups, pairs.runs) == (2000, 200, 5)
    fails, visible = simulated.failed(pairs, 100, seed=2)
    assert fails <= 5
    assert visible < 0.04
    caught, visible = simulated.failed(pairs, 100, seed=2, drop=0.04)
    assert caught >= 95
    # what it says it can see, it sees: 95 of 100 are promised, and three standard errors are allowed
    assert simulated.failed(pairs, 100, seed=3, drop=visible)[0] >= 88


def test_the_smallest_visible_drop_is_where_the_power_is() -> None:
    random = np.random.default_rng(0)
    drop = smallest_visible(0.01, alpha=0.05, beyond=0.02)
    estimates = drop + 0.01 * random.standard_normal(100_000)
    assert np.mean(estimates > max(0.02, 1.645 * 0.01)) == pytest.approx(0.95, abs=0.005)
