from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from fm_eval import LinearProbe, ProbeError, ProbeProtocol, get_protocol
from fm_eval.head import Head
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
        assert torch.equal(alone.heads_[0].weight_CK, together.heads_[run].weight_CK)
        assert torch.equal(alone.heads_[0].bias_C, together.heads_[run].bias_C)
        assert alone.runs_[0] == together.runs_[run]


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
    head = Head(linear.weight.detach(), linear.bias.detach(), protocol=protocol)
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
        assert head.loss(features[rows], labels[rows]) == pytest.approx(loss.item(), rel=1e-9)
        head.step(features[rows], labels[rows], lr=0.02)
    torch.testing.assert_close(head.weight_CK, linear.weight.detach(), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(head.bias_C, linear.bias.detach(), rtol=1e-9, atol=1e-12)


def test_separable_classes_are_separated_and_runs_differ() -> None:
    train, labels, selection, selection_labels = _data(3, dim=60)
    protocol = dataclasses.replace(_SHORT, max_steps=2000)
    probe = LinearProbe(protocol, classes=3).fit(train, labels, selection, selection_labels)
    assert (probe.predict(selection) == selection_labels).mean() > 0.95
    assert not torch.equal(probe.heads_[0].weight_CK, probe.heads_[1].weight_CK)


def test_the_best_epoch_is_kept_and_patience_ends_a_run() -> None:
    train, labels, selection, selection_labels = _data(3)
    probe = LinearProbe(_SHORT, classes=3).fit(train, labels, selection, selection_labels)
    patience = _SHORT.patience_epochs(len(train))
    assert patience == 6
    for run, predicted in zip(probe.runs_, probe.predict(selection), strict=True):
        recall = [(predicted[selection_labels == c] == c).mean() for c in range(3)]
        assert np.mean(recall) == pytest.approx(run.best_score, rel=1e-12)
        assert run.epochs - run.best_epoch == patience or run.steps == _SHORT.max_steps


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
    with pytest.raises(ProbeError, match=r"allowed are 0\.\.2"):
        probe.fit(train, labels + 1, selection, selection_labels)
    with pytest.raises(ProbeError, match="at least 2"):
        LinearProbe(_SHORT, classes=1)
    with pytest.raises(ProbeError, match="allowed are paper"):
        get_protocol("papers")
    with pytest.raises(ProbeError, match="runs 0"):
        ProbeProtocol(name="x", runs=0)
