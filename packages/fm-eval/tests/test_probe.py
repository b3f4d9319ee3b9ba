from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from fm_eval import LinearProbe, ProbeError, ProbeProtocol, get_protocol
from fm_eval.linear_heads import HeadStack, LinearHead
from fm_eval.metrics import FloatArray, IntArray
from torch import nn

_SHORT = ProbeProtocol(name="short", max_steps=120, patience_fraction=0.1)


def _data(classes: int, *, rows: int = 300, dim: int = 20) -> tuple[FloatArray, IntArray, FloatArray, IntArray]:
    random = np.random.default_rng(classes)
    centres = random.normal(size=(classes, dim))
    labels, selection = random.integers(0, classes, rows), random.integers(0, classes, 90)
    return (
        centres[labels] + random.normal(size=(rows, dim)),
        labels,
        centres[selection] + random.normal(size=(90, dim)),
        selection,
    )


@pytest.mark.parametrize("classes", [2, 3, 9])
@pytest.mark.parametrize("preset", ["paper", "paper-standardized", "eva-0.0.2", "eva-0.4"])
def test_a_run_is_bit_identical_alone_and_with_others(classes: int, preset: str) -> None:
    data = _data(classes, rows=301, dim=19)  # neither a multiple of a cache line
    protocol = dataclasses.replace(get_protocol(preset), max_steps=150)
    together = LinearProbe(protocol, classes=classes, seed=3).fit(*data)
    for run in range(protocol.runs):
        alone = LinearProbe(protocol, classes=classes, seed=3, run_ids=[run]).fit(*data)
        assert torch.equal(alone.heads_[0].weight, together.heads_[run].weight)
        assert torch.equal(alone.heads_[0].bias, together.heads_[run].bias)
        assert alone.runs_[0] == together.runs_[run]


@pytest.mark.parametrize("classes", [2, 5])
def test_threads_and_blocks_of_rows_change_no_bit(classes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    data = _data(classes, rows=700, dim=21)
    protocol = ProbeProtocol(name="x", runs=3, max_steps=40, base_batch_size=600, learning_rates=(0.01, 0.1))
    one = LinearProbe(protocol, classes=classes).fit(*data)
    monkeypatch.setattr("fm_eval.probe._VALUES_FOR_THREADS", 1)
    several = LinearProbe(protocol, classes=classes).fit(*data)
    assert one.trials_ == several.trials_
    assert all(torch.equal(a.weight, b.weight) for a, b in zip(one.heads_, several.heads_, strict=True))
    # a batch in blocks is the same sum in another order
    monkeypatch.setattr("fm_eval.linear_heads._BLOCK_BYTES", 64 * 21 * 4)
    blocks = LinearProbe(protocol, classes=classes).fit(*data)
    for a, b in zip(one.heads_, blocks.heads_, strict=True):
        torch.testing.assert_close(a.weight, b.weight, rtol=0, atol=1e-5)


@pytest.mark.parametrize("classes", [2, 4])
def test_a_learning_rate_of_a_sweep_gives_the_same_bits_alone(classes: int) -> None:
    data = _data(classes)
    protocol = dataclasses.replace(_SHORT, learning_rates=(0.001, 0.05, 0.3), base_lr=0.01)
    sweep = LinearProbe(protocol, classes=classes).fit(*data)
    means = {}
    for rate in protocol.learning_rates:
        alone = LinearProbe(dataclasses.replace(_SHORT, base_lr=rate), classes=classes).fit(*data)
        of_rate = [run for run in sweep.trials_ if run.learning_rate == pytest.approx(alone.runs_[0].learning_rate)]
        assert [(run.best_epoch, run.best_score, run.steps) for run in of_rate] == [
            (run.best_epoch, run.best_score, run.steps) for run in alone.runs_
        ]
        means[rate] = np.mean([run.best_score for run in alone.runs_])
        if of_rate == sweep.runs_:
            chosen, heads = rate, alone.heads_
    assert means[chosen] == max(means.values())
    for ours, theirs in zip(sweep.heads_, heads, strict=True):
        torch.testing.assert_close(ours.weight, theirs.weight, rtol=1e-6, atol=1e-7)


def test_a_rate_that_diverges_is_said_and_never_chosen() -> None:
    train, labels, selection, selection_labels = _data(3)
    protocol = dataclasses.replace(_SHORT, learning_rates=(0.01, 1e39), weight_decay=1.0)
    probe = LinearProbe(protocol, classes=3).fit(train, labels, selection, selection_labels)
    assert {run.diverged for run in probe.trials_ if run.learning_rate > 1} == {True}
    assert {run.diverged for run in probe.runs_} == {False}
    with pytest.raises(ProbeError, match="diverged"):
        LinearProbe(dataclasses.replace(_SHORT, base_lr=1e39, weight_decay=1.0), classes=3).fit(
            train, labels, selection, selection_labels
        )


@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize(
    ("protocol", "optimizer"),
    [
        (ProbeProtocol(name="a"), lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9, nesterov=True)),
        (
            ProbeProtocol(name="b", nesterov=False, weight_decay=0.1),
            lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9, weight_decay=0.1),
        ),
        (
            ProbeProtocol(name="c", optimizer="adamw", weight_decay=0.1),
            lambda p: torch.optim.AdamW(p, lr=0.02, weight_decay=0.1),
        ),
    ],
)
def test_steps_are_those_of_torch(classes: int, protocol: ProbeProtocol, optimizer: object) -> None:
    features, labels = (torch.from_numpy(array) for array in _data(classes)[:2])
    outputs = 1 if classes == 2 else classes
    linear = nn.Linear(20, outputs).double()
    stack = HeadStack([LinearHead(linear.weight.detach(), linear.bias.detach())], protocol=protocol)
    stepper = optimizer(linear.parameters())  # type: ignore[operator]
    for rows in torch.randperm(300).reshape(10, 30):
        logits = linear(features[rows])
        if outputs == 1:
            loss = nn.functional.binary_cross_entropy_with_logits(logits[:, 0], labels[rows].double())
        else:
            loss = nn.functional.cross_entropy(logits, labels[rows])
        stepper.zero_grad()
        loss.backward()
        stepper.step()
        assert stack.head(0).loss(features[rows], labels[rows]) == pytest.approx(loss.item(), rel=1e-9)
        stack.step(features, labels, rows[None], lr=0.02)
    torch.testing.assert_close(stack.head(0).weight, linear.weight.detach(), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(stack.head(0).bias, linear.bias.detach(), rtol=1e-9, atol=1e-12)


def test_separable_classes_are_separated_and_runs_differ() -> None:
    train, labels, selection, selection_labels = _data(3, dim=60)
    protocol = dataclasses.replace(_SHORT, max_steps=2000)
    probe = LinearProbe(protocol, classes=3).fit(train, labels, selection, selection_labels)
    assert (probe.predict(selection) == selection_labels).mean() > 0.95
    assert not torch.equal(probe.heads_[0].weight, probe.heads_[1].weight)
    probabilities = probe.predict_proba(selection)
    assert probabilities.shape == (5, 90, 3)
    assert np.array_equal(probabilities.argmax(axis=2), probe.predict(selection))
    np.testing.assert_allclose(probabilities.sum(axis=2), 1, rtol=1e-12)


def test_the_best_epoch_is_kept_and_patience_ends_a_run() -> None:
    train, labels, selection, selection_labels = _data(3)
    probe = LinearProbe(_SHORT, classes=3).fit(train, labels, selection, selection_labels)
    patience = _SHORT.patience_epochs(len(train))
    assert patience == 6
    for run, predicted in zip(probe.runs_, probe.predict(selection), strict=True):
        recall = [(predicted[selection_labels == c] == c).mean() for c in range(3)]
        assert np.mean(recall) == pytest.approx(run.best_score, rel=1e-12)
        assert run.epochs - run.best_epoch == patience or run.steps == _SHORT.max_steps


def test_an_epoch_cut_short_selects_nothing_unless_it_is_the_only_one() -> None:
    data = _data(3)  # two batches an epoch
    for steps, best in ((1, 1), (3, 1)):
        probe = LinearProbe(ProbeProtocol(name="x", max_steps=steps, runs=8, patience=9), classes=3).fit(*data)
        assert {(run.best_epoch, run.steps) for run in probe.runs_} == {(best, steps)}


def test_standardising_makes_scale_and_offset_irrelevant() -> None:
    train, labels, selection, selection_labels = _data(3)
    protocol = dataclasses.replace(_SHORT, standardize=True)
    plain = LinearProbe(protocol, classes=3).fit(train, labels, selection, selection_labels)
    scaled = LinearProbe(protocol, classes=3).fit(train * 64 + 512, labels, selection * 64 + 512, selection_labels)
    assert np.array_equal(plain.predict(selection), scaled.predict(selection * 64 + 512))
    constant = np.concatenate([train, np.full((len(train), 1), 1.1)], axis=1)
    held = np.concatenate([selection, np.full((len(selection), 1), 1.1)], axis=1)
    assert LinearProbe(protocol, classes=3).fit(constant, labels, held, selection_labels).predict(held).shape == (5, 90)


def test_paper_preset_is_table_vi() -> None:
    paper = get_protocol("paper")
    assert (paper.max_steps, paper.runs, paper.momentum, paper.nesterov, paper.weight_decay) == (
        12_500,
        5,
        0.9,
        True,
        0,
    )
    assert (paper.batch_size(262_144), paper.peak_lr(262_144)) == (4096, 0.01)
    assert (paper.batch_size(268), paper.peak_lr(268)) == (256, 0.000625)
    assert paper.lr(step=0, epoch=0, train_rows=268) == 0.000625
    assert paper.lr(step=12_500, epoch=0, train_rows=268) == pytest.approx(0, abs=1e-12)
    assert paper.lr(step=6250, epoch=3, train_rows=268) == pytest.approx(0.000625 / 2)


def test_bad_arrays_and_settings_are_refused() -> None:
    train, labels, selection, selection_labels = _data(3)
    probe = LinearProbe(_SHORT, classes=3)
    bad = train.copy()
    bad[7, 1] = np.nan
    with pytest.raises(ProbeError, match="row 7"):
        probe.fit(bad, labels, selection, selection_labels)
    with pytest.raises(ProbeError, match=r"expected \(N, K\)"):
        probe.fit(train, labels[:-1], selection, selection_labels)
    with pytest.raises(ProbeError, match="all rows are of class 1, at least 2"):
        probe.fit(train, np.ones_like(labels), selection, selection_labels)
    with pytest.raises(ProbeError, match="selection: got shape"):
        probe.fit(train, labels, selection[:0], selection_labels[:0])
    with pytest.raises(ProbeError, match="19 features, expected 20"):
        probe.fit(train, labels, selection[:, 1:], selection_labels)
    with pytest.raises(ProbeError, match=r"allowed are 0\.\.2"):
        probe.fit(train, labels + 1, selection, selection_labels)
    with pytest.raises(ProbeError, match="at least 2"):
        LinearProbe(_SHORT, classes=1)
    with pytest.raises(ProbeError, match="allowed are paper"):
        get_protocol("papers")
    with pytest.raises(ProbeError, match="runs 0"):
        ProbeProtocol(name="x", runs=0)
    with pytest.raises(ProbeError, match=r"rates \(0\.1, 0\.0\)"):
        ProbeProtocol(name="x", learning_rates=(0.1, 0.0))


def test_honest_is_a_preset_with_another_selection() -> None:
    honest, paper = get_protocol("paper-honest"), get_protocol("paper")
    assert dataclasses.replace(honest, name="paper", selection="split") == paper
    assert (honest.selection, paper.selection) == ("inner", "split")
    assert dataclasses.replace(paper, patience=400).patience_epochs(268) == 400
