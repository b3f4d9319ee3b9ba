from __future__ import annotations

import numpy as np
import pytest
from fm_eval import accuracy, auroc, balanced_accuracy, calibration_error, confusion_matrix, f1, log_loss
from fm_eval.metrics import FloatArray, IntArray
from sklearn import metrics as sklearn


def _predictions(seed: int, *, classes: int, rows: int = 200) -> tuple[IntArray, FloatArray]:
    """Labels and probabilities with many ties."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, classes, rows)
    logits = np.round(2 * random.normal(size=(rows, classes)) + 2 * np.eye(classes)[labels])
    probabilities = np.exp(logits)
    return labels, probabilities / probabilities.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("seed", range(20))
def test_metrics_agree_with_scikit_learn(seed: int) -> None:
    classes = 2 + seed % 7
    labels, probabilities = _predictions(seed, classes=classes)
    predicted = probabilities.argmax(axis=1)
    matrix = confusion_matrix(labels, predicted, classes=classes)
    assert np.array_equal(matrix, sklearn.confusion_matrix(labels, predicted, labels=range(classes)))
    scores = probabilities[:, 1] if classes == 2 else probabilities
    expected = {
        balanced_accuracy(matrix): sklearn.balanced_accuracy_score(labels, predicted),
        accuracy(matrix): sklearn.accuracy_score(labels, predicted),
        f1(matrix): sklearn.f1_score(labels, predicted, average="binary" if classes == 2 else "macro"),
        auroc(labels, probabilities): sklearn.roc_auc_score(labels, scores, multi_class="ovr"),
        log_loss(labels, probabilities): sklearn.log_loss(labels, probabilities),
    }
    assert [found.value for found in expected] == pytest.approx(list(expected.values()), rel=1e-12)


def test_calibration_error_is_its_definition() -> None:
    # confidences 0.9, 0.9 (one right) and 0.6 (right): |0.9 - 0.5| * 2/3 + |0.6 - 1| * 1/3
    probabilities = np.array([[0.9, 0.1], [0.1, 0.9], [0.6, 0.4]])
    assert calibration_error(np.array([0, 0, 0]), probabilities).value == pytest.approx(0.4)
    assert calibration_error(np.array([0, 1]), np.eye(2)).value == 0


def test_an_absent_class_does_not_count() -> None:
    matrix = confusion_matrix(np.array([0, 0, 2]), np.array([0, 1, 2]), classes=4)
    assert balanced_accuracy(matrix).value == pytest.approx((0.5 + 1.0) / 2)
    assert f1(matrix).value == pytest.approx((2 / 3 + 0 + 1) / 3)
    labels, probabilities = _predictions(0, classes=3)
    some = labels != 2
    found = auroc(labels[some], probabilities[some])
    areas = [sklearn.roc_auc_score(labels[some] == one, probabilities[some, one]) for one in (0, 1)]
    assert found.value == pytest.approx(np.mean(areas))


def test_what_is_not_defined_says_why() -> None:
    for metric in (balanced_accuracy, accuracy, f1):
        assert metric(np.zeros((3, 3), np.int64)).undefined == "no rows"
    nothing = np.zeros(0, np.int64), np.zeros((0, 2))
    assert {metric(*nothing).undefined for metric in (auroc, log_loss, calibration_error)} == {"no rows"}
    certain = np.array([[1.0, 0.0], [1.0, 0.0]])
    one_class = auroc(np.array([1, 1]), certain)
    assert (one_class.value, one_class.undefined) == (None, "1 classes among the labels, at least 2 needed")
    assert f1(np.array([[3, 0], [0, 0]])).undefined == "no row is of class 1 or predicted as it"
    assert log_loss(np.array([0, 1]), certain).undefined == "1 rows give their own class a probability of 0"
