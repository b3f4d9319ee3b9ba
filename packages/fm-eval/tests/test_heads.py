"""Heads beside the linear probe, and how a task's heads are run on embeddings in memory."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from fm_eval import (
    EmbeddedDataset,
    LogisticProbe,
    ProbeError,
    ProbeProtocol,
    SimpleShot,
    few_shot,
    get_protocol,
    run_few_shot,
    run_knn,
    run_logistic,
    run_probe,
    run_simpleshot,
)
from fm_eval.metrics import FloatArray, IntArray
from fm_eval.selection import inner_selection


def _data(classes: int, *, rows: int = 240, dim: int = 12, seed: int = 0) -> tuple[FloatArray, IntArray]:
    centres = 1.2 * np.random.default_rng(classes).normal(size=(classes, dim))
    random = np.random.default_rng(seed)
    labels = np.arange(rows) % classes
    return centres[labels] + random.normal(size=(rows, dim)) + 5, labels


def _dataset(classes: int = 3, *, splits: tuple[str, ...] = ("train", "val", "test")) -> EmbeddedDataset:
    embeddings, labels = _data(classes, rows=300)
    split = np.array(splits)[np.arange(300) // 3 % len(splits)]
    return EmbeddedDataset(
        embeddings=embeddings.astype(np.float32),
        labels=labels,
        groups=np.array([f"{name}{row // 6}" for row, name in enumerate(split)]),
        rows={name: np.flatnonzero(split == name) for name in splits},
        classes=classes,
    )


_SHORT = ProbeProtocol(name="short", max_steps=40, runs=2)


@pytest.mark.parametrize("classes", [2, 4])
def test_logistic_regression_is_at_its_optimum_and_the_selection_split_chooses(classes: int) -> None:
    train, labels = _data(classes)
    held, held_labels = _data(classes, seed=1)
    strengths = (1e-4, 1e-2, 1.0)
    probe = LogisticProbe(classes=classes, inverse_strengths=strengths).fit(train, labels, held, held_labels)
    assert [fit.inverse_strength for fit in probe.fits_] == list(strengths)
    assert all(fit.converged for fit in probe.fits_)
    scores = [fit.selection_balanced_accuracy for fit in probe.fits_]
    assert probe.best_ == probe.fits_[int(np.argmax(scores))]
    # the gradient of the objective, in the parameters that predictions show, is zero
    probabilities = probe.predict_proba(train)
    features = (train - train.mean(axis=0)) / train.std(axis=0)
    logits = np.log(probabilities)
    design = np.column_stack([features, np.ones(len(features))])
    weights = np.linalg.lstsq(design, logits - logits.mean(axis=1, keepdims=True), rcond=None)[0][:-1]
    factor = 2 if classes == 2 else 1  # one weight for two classes: w = 2 (+-w/2)
    error = (probabilities - np.eye(classes)[labels]).T @ features * probe.best_.inverse_strength
    np.testing.assert_allclose(error + factor * weights.T, 0, atol=3e-3 * np.abs(error).max() + 2e-3)


def test_logistic_regression_says_when_it_did_not_converge() -> None:
    train, labels = _data(3)
    probe = LogisticProbe(classes=3, inverse_strengths=[1e3], max_iterations=2).fit(train, labels, train, labels)
    assert not probe.best_.converged
    with pytest.raises(ProbeError, match="max_iterations 0"):
        LogisticProbe(classes=3, max_iterations=0)
    with pytest.raises(ProbeError, match="all rows are of class 0"):
        LogisticProbe(classes=3).fit(train, 0 * labels, train, labels)


def test_simpleshot_is_the_nearest_mean_of_centred_unit_embeddings() -> None:
    train, labels = _data(4)
    queries, _ = _data(4, seed=1)
    probabilities = SimpleShot(classes=4).fit(train, labels).predict_proba(queries)
    mean = train.mean(axis=0)
    unit = [(x - mean) / np.linalg.norm(x - mean, axis=1, keepdims=True) for x in (train, queries)]
    means = np.stack([unit[0][labels == one].mean(axis=0) for one in range(4)])
    distances = ((unit[1][:, None] - means) ** 2).sum(axis=2)
    expected = np.exp(-distances) / np.exp(-distances).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(probabilities, expected, rtol=1e-5)
    with pytest.raises(ProbeError, match="no row of class 3"):
        SimpleShot(classes=4).fit(train[labels < 3], labels[labels < 3])


def test_more_shots_are_better_and_all_rows_are_simpleshot(monkeypatch: pytest.MonkeyPatch) -> None:
    train, labels = _data(3, rows=120)
    queries, query_labels = _data(3, seed=1)
    data = train, labels, queries, query_labels
    found = few_shot(*data, classes=3, shots=(1, 8, 40, 41), episodes=20)
    assert [one.shots for one in found] == [1, 8, 40]  # of 41 no class has as many
    means = [np.mean(one.balanced_accuracy) for one in found]
    assert means == sorted(means)
    predicted = SimpleShot(classes=3).fit(train, labels).predict_proba(queries).argmax(axis=1)
    recall = np.mean([(predicted[query_labels == one] == one).mean() for one in range(3)])
    assert found[2].balanced_accuracy == pytest.approx([recall] * 20)
    monkeypatch.setattr("fm_eval.simpleshot._DISTANCES", 1)  # episode by episode
    assert few_shot(*data, classes=3, shots=(1, 8, 40, 41), episodes=20) == found
    with pytest.raises(ProbeError, match="0 episodes"):
        few_shot(*data, classes=3, episodes=0)


def test_an_inner_selection_keeps_groups_whole_and_has_every_class_on_both_sides() -> None:
    labels = np.repeat([0, 1, 2], 40)
    groups = np.array([f"{label}-{row % 7}" for row, label in enumerate(labels)])
    kept, held = inner_selection(labels, groups, seed=3)
    assert sorted([*kept, *held]) == list(range(120))
    assert not set(groups[kept]) & set(groups[held])
    assert set(labels[kept]) == set(labels[held]) == {0, 1, 2}
    assert 15 <= len(held) <= 35
    assert np.array_equal(inner_selection(labels, groups, seed=3)[1], held)
    with pytest.raises(ProbeError, match=r"class 2 is in 1 groups of train.*without -honest"):
        inner_selection(labels, np.where(labels == 2, "one", groups), seed=3)


def test_honest_selection_never_sees_val_or_test() -> None:
    data = _dataset()
    honest = dataclasses.replace(_SHORT, selection="inner")
    found = run_probe(honest, data, seed=0, resamples=50)
    assert found.selected_on == "inner train"
    intervals = found.scores["test"].intervals
    assert intervals is not None
    assert (intervals.unit, found.scores["train"].intervals) == ("group", None)
    spoiled = data.embeddings.copy()
    for split in ("val", "test"):
        spoiled[data.rows[split]] = 0
    again = run_probe(honest, dataclasses.replace(data, embeddings=spoiled), seed=0)
    assert again.runs == found.runs
    assert run_probe(_SHORT, data, seed=0).selected_on == "val"
    assert run_probe(_SHORT, _dataset(splits=("train", "test")), seed=0).selected_on == "test"


def test_a_sweep_keeps_all_its_trials() -> None:
    found = run_probe(dataclasses.replace(_SHORT, learning_rates=(0.01, 0.1)), _dataset(), seed=0)
    assert len(found.trials) == 4
    assert len(found.runs) == 2
    assert not run_probe(_SHORT, _dataset(), seed=0).trials
    assert get_protocol("sweep-honest").learning_rates


def test_every_head_scores_the_splits_or_says_why_not() -> None:
    data = _dataset()
    knn, shot = run_knn(data, k=5, temperature=0.07, seed=0), run_simpleshot(data, seed=0, resamples=20)
    logistic, few = run_logistic(data, seed=0), run_few_shot(data, seed=0)
    for scores in (knn.majority, knn.softmax, shot.scores, logistic.scores):
        assert scores["test"].mean > 0.7
        assert scores["test"].metrics["auroc"][0] is not None
    assert "train" not in shot.scores
    assert logistic.selected_on == "val"
    assert run_logistic(_dataset(splits=("train", "test")), seed=0).selected_on == "inner train"
    assert logistic.settings["inverse_strength"] in [fit["inverse_strength"] for fit in logistic.settings["tried"]]
    assert few.split == "test"
    assert [one.shots for one in few.shots] == [1, 2, 4, 8, 16]

    zero = data.embeddings.copy()
    zero[data.rows["test"][0]] = 0
    undefined = run_knn(dataclasses.replace(data, embeddings=zero), k=5, temperature=0.07, seed=0)
    assert undefined.majority == {}
    assert "all zero" in str(undefined.undefined)
    no_third = dataclasses.replace(
        data, rows={**data.rows, "train": data.rows["train"][data.labels[data.rows["train"]] < 2]}
    )
    for head in (run_simpleshot(no_third, seed=0), run_few_shot(no_third, seed=0)):
        assert "no row of class 2" in str(head.undefined)
    one_class = dataclasses.replace(
        data, rows={**data.rows, "train": data.rows["train"][data.labels[data.rows["train"]] < 1]}
    )
    assert "all rows are of class 0" in str(run_logistic(one_class, seed=0).undefined)
    with pytest.raises(ProbeError, match="all rows are of class 0"):
        run_probe(_SHORT, one_class, seed=0)
