"""How well does a linear layer on frozen embeddings tell the classes apart?

1. features are standardised with the training rows' mean and std, where the protocol says so;
2. all runs of the protocol train side by side, each with its own initial head and its own order of rows;
3. after every epoch the selection split is predicted; a run keeps its best epoch and stops after the
   patience;
4. `predict` uses the best head of every run.

A run depends on (seed, run number) alone: trained with others or by itself it gives the same bits. Before:
embed, protocol, head. After: result.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from fm_eval.errors import ProbeError
from fm_eval.head import Head, initial_head, outputs_for
from fm_eval.metrics import AnyFloatArray, IntArray, accuracy, balanced_accuracy, confusion_matrix
from fm_eval.protocol import ProbeProtocol


@dataclass(slots=True)
class ProbeRun:
    """How one run went.

    Attributes:
        run: its number, which with the seed fixes everything random.
        best_epoch: 1-based epoch whose head was kept.
        best_score: the monitored value of that epoch on the selection split.
        epochs: epochs trained.
        steps: optimizer steps trained.
    """

    run: int
    best_epoch: int = 0
    best_score: float = -1.0
    epochs: int = 0
    steps: int = 0


class LinearProbe:
    """Linear heads trained by a protocol, one per run.

    Args:
        protocol: the rules.
        classes: number of classes C.
        seed: of initial heads and orders.
        run_ids: train these runs only; None trains all runs of the protocol.
        device: where the features and heads live.
        progress: show a progress bar.

    Attributes:
        heads_: the best head of each run.
        runs_: how each run went.
    """

    heads_: list[Head]
    runs_: list[ProbeRun]

    def __init__(
        self,
        protocol: ProbeProtocol,
        *,
        classes: int,
        seed: int = 0,
        run_ids: Sequence[int] | None = None,
        device: str | torch.device = "cpu",
        progress: bool = False,
    ) -> None:
        if classes < 2:
            raise ProbeError(f"probe: got {classes} classes, at least 2 needed")
        self.protocol = protocol
        self.classes = classes
        self.seed = seed
        self.run_ids = tuple(range(protocol.runs) if run_ids is None else run_ids)
        self.device = device
        self.progress = progress

    def fit(self, train: AnyFloatArray, labels: IntArray, selection: AnyFloatArray, selection_labels: IntArray) -> Self:
        """Train all runs.

        Args:
            train: (N, K) embeddings.
            labels: (N,) int64 classes.
            selection: (V, K) embeddings that select the epoch.
            selection_labels: (V,) int64 classes.

        Raises:
            ProbeError: empty, non-finite or mismatched arrays.
        """
        _check(train, labels, self.classes, "training")
        _check(selection, selection_labels, self.classes, "selection")
        mean, std = np.zeros(train.shape[1]), np.ones(train.shape[1])
        if self.protocol.standardize:
            mean, std = train.mean(axis=0, dtype=np.float64), train.std(axis=0, dtype=np.float64)
            std[std <= 1e-12 * np.abs(train).max(axis=0)] = 1.0  # a constant feature stays constant
        self._mean, self._std = mean, std
        with _threads_for(self.protocol.batch_size(len(train)) * train.shape[1]):
            self._fit(self._prepare(train), labels, self._prepare(selection), selection_labels)
        if not all(bool(torch.isfinite(head.weight_CK).all()) for head in self.heads_):
            raise ProbeError(f"probe {self.protocol.name}: diverged; use the protocol paper-standardized")
        return self

    def predict(self, embeddings: AnyFloatArray) -> IntArray:
        """(R, N) int64 classes that the best head of each run predicts for (N, K) embeddings."""
        features_NK = self._prepare(embeddings)
        return np.stack([head.predict(features_NK).cpu().numpy() for head in self.heads_])

    def _fit(self, features_NK: Tensor, labels: IntArray, selection_VK: Tensor, selection_labels: IntArray) -> None:
        labels_N = torch.from_numpy(labels).to(self.device)
        rows = len(features_NK)
        heads = self._initial_heads(features_NK.shape[1])
        self.heads_ = [Head(head.weight_CK, head.bias_C, protocol=self.protocol) for head in heads]
        self.runs_ = [ProbeRun(run) for run in self.run_ids]
        orders = [_generator(self.seed, run, 1) for run in self.run_ids]
        active = list(range(len(heads)))
        patience = self.protocol.patience_epochs(rows)
        step, epoch = 0, 0
        title = f"probe {self.protocol.name}"
        with tqdm(total=self.protocol.max_steps, desc=title, unit="step", disable=not self.progress) as bar:
            while active and step < self.protocol.max_steps:
                for i in active:
                    order_N = torch.randperm(rows, generator=orders[i]).to(self.device)
                    taken = self._train_epoch(heads[i], features_NK, labels_N, order_N, step=step, epoch=epoch)
                step, epoch = step + taken, epoch + 1
                bar.update(taken)
                for i in active:
                    run, head = self.runs_[i], heads[i]
                    run.epochs, run.steps = epoch, step
                    score = self._monitor(selection_labels, head.predict(selection_VK).cpu().numpy())
                    if score > run.best_score:
                        run.best_epoch, run.best_score = epoch, score
                        self.heads_[i] = Head(head.weight_CK, head.bias_C, protocol=self.protocol)
                active = [i for i in active if epoch - self.runs_[i].best_epoch < patience]

    def _train_epoch(
        self, head: Head, features_NK: Tensor, labels_N: Tensor, order_N: Tensor, *, step: int, epoch: int
    ) -> int:
        """Train one epoch of one run, or what is left of the steps; returns the steps taken."""
        rows = len(features_NK)
        batches = torch.split(order_N, self.protocol.batch_size(rows))[: self.protocol.max_steps - step]
        for number, batch in enumerate(batches):
            lr = self.protocol.lr(step=step + number, epoch=epoch, train_rows=rows)
            head.step(features_NK.index_select(0, batch), labels_N.index_select(0, batch), lr=lr)
        return len(batches)

    def _initial_heads(self, features: int) -> list[Head]:
        heads = []
        for run in self.run_ids:
            generator = _generator(self.seed, 0 if self.protocol.shared_initial_head else run, 0)
            weight_CK, bias_C = initial_head(features, outputs_for(self.classes), generator)
            heads.append(Head(weight_CK.to(self.device), bias_C.to(self.device), protocol=self.protocol))
        return heads

    def _prepare(self, embeddings: AnyFloatArray) -> Tensor:
        if not self.protocol.standardize:
            return torch.from_numpy(embeddings.astype(np.float32)).to(self.device)
        return torch.from_numpy(((embeddings - self._mean) / self._std).astype(np.float32)).to(self.device)

    def _monitor(self, labels: IntArray, predicted: IntArray) -> float:
        confusion = confusion_matrix(labels, predicted, classes=self.classes)
        plain = self.protocol.monitor == "accuracy" or (self.protocol.monitor == "eva_accuracy" and self.classes == 2)
        score = (accuracy if plain else balanced_accuracy)(confusion).value
        assert score is not None, "the selection split has rows"
        return score


def _generator(seed: int, run: int, purpose: int) -> torch.Generator:
    """Generator keyed by (seed, run, purpose): 0 for the initial head, 1 for the order of rows."""
    state = int(np.random.SeedSequence([seed, run, purpose]).generate_state(1, np.uint64)[0])
    return torch.Generator().manual_seed(state % 2**63)


@contextmanager
def _threads_for(values_a_batch: int) -> Iterator[None]:
    """Small products take longer to hand to threads than to compute: one thread below a million values."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1 if values_a_batch < 1_000_000 else threads)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _check(embeddings: AnyFloatArray, labels: IntArray, classes: int, which: str) -> None:
    if embeddings.ndim != 2 or 0 in embeddings.shape or labels.shape != (len(embeddings),):
        raise ProbeError(
            f"probe: {which} arrays of shape {embeddings.shape} and {labels.shape}, expected (N, K) and (N,)"
        )
    if labels.min() < 0 or labels.max() >= classes:
        raise ProbeError(f"probe: {which} labels span {labels.min()}..{labels.max()}, allowed are 0..{classes - 1}")
    if not np.isfinite(embeddings).all():
        row = int((~np.isfinite(embeddings).all(axis=1)).argmax())
        raise ProbeError(f"probe: {which} row {row} holds NaN or infinity; check the backbone")
