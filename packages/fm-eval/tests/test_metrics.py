from __future__ import annotations

import numpy as np
import pytest
from fm_eval import MetricError, accuracy, balanced_accuracy, confusion_matrix, odcorr, rankme
from sklearn.metrics import balanced_accuracy_score
from sklearn.metrics import confusion_matrix as sklearn_confusion


@pytest.mark.parametrize("seed", range(20))
def test_supervised_metrics_agree_with_scikit_learn(seed: int) -> None:
    random = np.random.default_rng(seed)
    classes = int(random.integers(2, 9))
    labels = random.integers(0, classes, 200)
    predicted = np.where(random.random(200) < 0.6, labels, random.integers(0, classes, 200))
    matrix = confusion_matrix(labels, predicted, classes=classes)
    assert np.array_equal(matrix, sklearn_confusion(labels, predicted, labels=range(classes)))
    assert balanced_accuracy(matrix).value == pytest.approx(balanced_accuracy_score(labels, predicted), rel=1e-12)
    assert accuracy(matrix).value == pytest.approx((labels == predicted).mean(), rel=1e-12)


def test_an_absent_class_does_not_count() -> None:
    matrix = confusion_matrix(np.array([0, 0, 2]), np.array([0, 1, 2]), classes=4)
    assert balanced_accuracy(matrix).value == pytest.approx((0.5 + 1.0) / 2)


def test_no_rows_is_undefined_with_a_reason() -> None:
    for metric in (balanced_accuracy, accuracy):
        found = metric(np.zeros((3, 3), np.int64))
        assert found.value is None
        assert found.undefined == "no rows"


def test_odcorr_is_equation_1_over_all_pairs_across_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fm_eval.metrics._CHUNK_ROWS", 37)
    embeddings = np.random.default_rng(0).normal(size=(150, 40)) + np.linspace(0, 2, 40)
    rho = np.corrcoef(embeddings)
    pairs = rho[~np.eye(150, dtype=bool)]
    found = odcorr(embeddings)
    assert found.metric.value == pytest.approx(np.sqrt((pairs**2).mean()), rel=1e-12)
    assert found.noise_floor == pytest.approx(1 / np.sqrt(39))


def test_rankme_is_its_definition_across_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fm_eval.metrics._CHUNK_ROWS", 37)
    embeddings = np.random.default_rng(1).normal(size=(150, 40)) * np.geomspace(1, 1e-5, 40)
    singular = np.linalg.svd(embeddings, compute_uv=False)
    p = singular / singular.sum() + 1e-7
    assert rankme(embeddings).value == pytest.approx(np.exp(-(p * np.log(p)).sum()), rel=1e-10)


def test_what_is_not_defined_says_why() -> None:
    found = odcorr(np.ones((5, 3)))
    assert found.metric.value is None
    assert found.dropped_rows == 5
    assert "at least 2" in str(found.metric.undefined)
    assert odcorr(np.random.default_rng(0).normal(size=(4, 1))).noise_floor is None
    assert rankme(np.zeros((5, 3))).undefined == "all embeddings are zero"


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused_by_row(bad: float) -> None:
    embeddings = np.ones((6, 4))
    embeddings[4, 2] = bad
    for metric in (odcorr, rankme):
        with pytest.raises(MetricError, match="row 4"):
            metric(embeddings)  # type: ignore[operator]
