"""How are all heads of a probe trained, each until its own end?

One loop serves every run and learning rate: an epoch of steps, then the selection split is predicted by all heads at
once; a head keeps the parameters of its best epoch and leaves the loop after the protocol's patience or when it
diverges. Before: protocol, linear_heads. After: probe.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from fm_eval.linear_heads import HeadStack, LinearHead
from fm_eval.metrics import FloatArray, IntArray, accuracies, balanced_accuracies, confusion_matrices
from fm_eval.protocol import ProbeProtocol


@dataclass(slots=True)
class ProbeRun:
    """How one run at one learning rate went.

    Attributes:
        run: its number, which with the seed fixes everything random.
        learning_rate: peak rate at the batch of the training.
        best_epoch: 1-based epoch whose head was kept; 0 when the first epoch diverged.
        best_score: the monitored value of that epoch on the selection split.
        epochs: epochs trained.
        steps: optimizer steps trained.
        diverged: the parameters left the finite numbers; the epochs before count.
    """

    run: int
    learning_rate: float
    best_epoch: int = 0
    best_score: float = -1.0
    epochs: int = 0
    steps: int = 0
    diverged: bool = False


@dataclass(slots=True)
class Trial:
    """A head with its run: the initial head before training, the best one after."""

    head: LinearHead
    run: ProbeRun


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeData:
    """What heads are trained and selected on.

    Attributes:
        features: (N, K) float32 training features.
        labels: (N,) training classes, int64, or float32 for two of them.
        selection: (V, K) float32 features that select the epoch.
        selection_labels: (V,) their classes.
        classes: number of classes.
    """

    features: Tensor
    labels: Tensor
    selection: Tensor
    selection_labels: IntArray
    classes: int


def train(
    trials: Sequence[Trial],
    data: ProbeData,
    *,
    protocol: ProbeProtocol,
    orders: dict[int, torch.Generator],
    bar: tqdm[None],
) -> None:
    """Train heads until each has stopped; `trials` then hold the best heads.

    A last epoch that the number of steps cuts short selects nothing, as in eva, unless it is the only one.

    Args:
        trials: run by run; trials of one run see the same rows.
        data: what they are trained and selected on.
        protocol: the rules.
        orders: generator of the order of rows of each run.
        bar: told the steps taken.
    """
    rows = len(data.features)
    peak = protocol.peak_lr(rows)
    patience = protocol.patience_epochs(rows)
    active = list(trials)
    stack = HeadStack(
        [trial.head for trial in active],
        protocol=protocol,
        runs=_numbers(active),
        rates=[trial.run.learning_rate / peak for trial in active],
    )
    step = epoch = 0
    while active and step < protocol.max_steps:
        runs = dict.fromkeys(trial.run.run for trial in active)
        order_RN = torch.stack([torch.randperm(rows, generator=orders[run]) for run in runs])
        order_RN = order_RN.to(data.features.device)
        batches = torch.split(order_RN, protocol.batch_size(rows), dim=1)[: protocol.max_steps - step]
        for number, rows_RB in enumerate(batches):
            lr = protocol.lr(step=step + number, epoch=epoch, train_rows=rows)
            stack.step(data.features, data.labels, rows_RB, lr=lr)
        step, epoch = step + len(batches), epoch + 1
        bar.update(len(batches))
        whole = len(batches) == protocol.steps_per_epoch(rows) or epoch == 1
        scores, finite = _scores(stack, data, protocol), stack.finite()
        for number, trial in enumerate(active):
            run = trial.run
            run.epochs, run.steps, run.diverged = epoch, step, not finite[number]
            if whole and finite[number] and scores[number] > run.best_score:
                run.best_epoch, run.best_score = epoch, float(scores[number])
                trial.head = stack.head(number)
        going = [
            number
            for number, trial in enumerate(active)
            if not trial.run.diverged and epoch - trial.run.best_epoch < patience
        ]
        if going and len(going) < len(active):
            stack.keep(going)
        active = [active[number] for number in going]


def _scores(stack: HeadStack, data: ProbeData, protocol: ProbeProtocol) -> FloatArray:
    """Monitored value of each head on the selection split."""
    predicted_HV = stack.predict(data.selection).cpu().numpy()
    confusion_HCC = confusion_matrices(data.selection_labels, predicted_HV, classes=data.classes)
    plain = protocol.monitor == "accuracy" or (protocol.monitor == "eva_accuracy" and data.classes == 2)
    return (accuracies if plain else balanced_accuracies)(confusion_HCC)


def _numbers(trials: Sequence[Trial]) -> list[int]:
    """Runs of the trials, numbered from 0 in their order."""
    runs = list(dict.fromkeys(trial.run.run for trial in trials))
    return [runs.index(trial.run.run) for trial in trials]
