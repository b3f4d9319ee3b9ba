from __future__ import annotations

import numpy as np
import pytest
from fm_eval import MetricError, knn_predict
from sklearn.neighbors import KNeighborsClassifier


def test_majority_vote_agrees_with_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fm_eval.knn._CHUNK_VALUES", 5000)  # several chunks
    random = np.random.default_rng(0)
    train, labels, queries = (
        random.normal(size=(300, 16)),
        random.integers(0, 4, 300),
        random.normal(size=(90, 16)),
    )
    oracle = KNeighborsClassifier(20, metric="cosine", algorithm="brute").fit(train, labels)
    found = knn_predict(train, labels, queries, classes=4)
    assert np.array_equal(found.majority, oracle.predict(queries))


@pytest.mark.parametrize("rows", [3, 90, 700, 6000])
def test_neighbours_are_those_of_float64_with_near_and_exact_ties(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fm_eval.knn._CHUNK_VALUES", 7 * rows)
    random = np.random.default_rng(rows)
    train = np.repeat(random.normal(size=(-(-rows // 3), 24)), 3, axis=0)[:rows]
    train[1::3] *= 4  # the same direction
    train[2::3] += 1e-9 * random.normal(size=train[2::3].shape)  # float32 cannot tell
    labels, queries = random.integers(0, 5, rows), random.normal(size=(40, 24))
    unit_train, unit_queries = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (train, queries))
    similarity = np.round(unit_queries @ unit_train.T, 12)
    nearest = np.argsort(-similarity, axis=1, kind="stable")[:, :20]
    votes = np.stack([np.bincount(labels[row], minlength=5) for row in nearest])
    found = knn_predict(train, labels, queries, classes=5)
    np.testing.assert_allclose(found.majority_votes, votes / min(rows, 20), rtol=1e-12)
    weights = np.exp((np.take_along_axis(similarity, nearest, axis=1) - 1) / 0.07)
    sums = np.stack([np.bincount(labels[row], w, minlength=5) for row, w in zip(nearest, weights, strict=True)])
    np.testing.assert_allclose(found.softmax_votes, sums / sums.sum(axis=1, keepdims=True), rtol=1e-9)


def test_ties_go_to_the_earlier_row_and_the_smaller_class() -> None:
    train = np.array([[1.0, 0.0]] * 4)
    found = knn_predict(train, np.array([2, 1, 0, 0]), np.array([[2.0, 0.0]]), classes=3, k=2)
    assert found.majority.tolist() == [1]
    assert found.softmax.tolist() == [1]


def test_the_weighted_vote_prefers_near_neighbours() -> None:
    train = np.array([[1.0, 0.0], [0.0, 1.0], [0.1, 1.0]])
    found = knn_predict(train, np.array([1, 0, 0]), np.array([[1.0, 0.1]]), classes=2, k=3)
    assert found.majority.tolist() == [0]
    assert found.softmax.tolist() == [1]


def test_more_neighbours_than_rows_uses_all_rows() -> None:
    assert knn_predict(np.eye(3), np.array([0, 1, 1]), np.eye(3), classes=2, k=20).k == 3


def test_rows_without_direction_are_refused() -> None:
    with pytest.raises(MetricError, match="query row 1 is all zero"):
        knn_predict(np.eye(2), np.array([0, 1]), np.array([[1.0, 0], [0, 0]]), classes=2)
    with pytest.raises(MetricError, match="training rows: row 0 holds NaN"):
        knn_predict(np.full((2, 2), np.nan), np.array([0, 1]), np.eye(2), classes=2)
    with pytest.raises(MetricError, match="k=0"):
        knn_predict(np.eye(2), np.array([0, 1]), np.eye(2), classes=2, k=0)
