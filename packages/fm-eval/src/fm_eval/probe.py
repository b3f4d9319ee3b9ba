"""How well does a linear layer on frozen embeddings tell the classes apart?

1. features are standardised with the training rows' mean and std, where the protocol says so;
2. all runs and learning rates of the protocol train side by side on the rows in memory, each run with its own initial
   head and its own order of rows;
3. after every epoch the selection split is predicted; a head keeps its best epoch and stops after the patience;
4. of several learning rates the one whose best epochs are best on average over the runs is kept;
5. `predict_proba` uses the best head of every run.

A run depends on (seed, run number) alone: trained with others or by itself, in one thread or several, it gives the
same bits. Before: embed, protocol, training. After: scores.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Self

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from fm_eval.checks import check_labelled
from fm_eval.errors import ProbeError
from fm_eval.linear_heads import HeadStack, LinearHead, drawn_head, outputs_for
from fm_eval.metrics import AnyFloatArray, FloatArray, IntArray
from fm_eval.progress import progress_bar
from fm_eval.protocol import ProbeProtocol
from fm_eval.scaling import FeatureScale
from fm_eval.training import ProbeData, ProbeRun, Trial, train

_VALUES_FOR_THREADS = 1_000_000


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
        heads_: the best head of each run, at the chosen learning rate.
        runs_: how each run went, at the chosen learning rate.
        trials_: how every run went at every learning rate.
    """

    heads_: list[LinearHead]
    runs_: list[ProbeRun]
    trials_: list[ProbeRun]

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

    def fit(
        self, embeddings: AnyFloatArray, labels: IntArray, selection: AnyFloatArray, selection_labels: IntArray
    ) -> Self:
        """Train all runs.

        Args:
            embeddings: (N, K) training rows.
            labels: (N,) int64 classes.
            selection: (V, K) embeddings that select the epoch.
            selection_labels: (V,) int64 classes.

        Raises:
            ProbeError: empty, non-finite or mismatched arrays, training rows of one class, or every learning rate
                diverged.
        """
        classes, width = self.classes, embeddings.shape[-1]
        check_labelled(embeddings, labels, classes=classes, what="probe: training", several_classes=True)
        check_labelled(selection, selection_labels, classes=classes, what="probe: selection", width=width)
        protocol, rows = self.protocol, len(embeddings)
        self._scale = FeatureScale.of(embeddings) if protocol.standardize else None
        data = ProbeData(
            features=self._prepare(embeddings),
            # one logit is compared with the class itself: as float32, so that no step converts it
            labels=torch.from_numpy(labels.astype(np.float32 if classes == 2 else np.int64)).to(self.device),
            selection=self._prepare(selection),
            selection_labels=selection_labels,
            classes=classes,
        )
        trials = self._trials(width, protocol.peak_lr(rows))
        on_cpu = data.features.device.type == "cpu"
        with (
            _one_thread_a_worker(protocol.batch_size(rows) * width, most=len(trials) if on_cpu else 1) as workers,
            ThreadPoolExecutor(workers) as pool,
            progress_bar(
                total=protocol.max_steps * workers,
                desc=f"probe {protocol.name}",
                unit="step",
                disable=not self.progress,
            ) as bar,
        ):
            for _ in pool.map(lambda part: self._train(part, data, bar), [trials[i::workers] for i in range(workers)]):
                pass
        self._choose([trial for of_run in trials for trial in of_run])
        return self

    def predict(self, embeddings: AnyFloatArray) -> IntArray:
        """(R, N) int64 classes that the best head of each run predicts for (N, K) embeddings."""
        features_NK = self._prepare(embeddings)
        return HeadStack(self.heads_, protocol=self.protocol).predict(features_NK).cpu().numpy()

    def predict_proba(self, embeddings: AnyFloatArray) -> FloatArray:
        """(R, N, C) float64 class probabilities of the best head of each run for (N, K) embeddings."""
        features_NK = self._prepare(embeddings)
        return np.stack([head.probabilities(features_NK).cpu().numpy() for head in self.heads_])

    def initial_head(self, run: int, features: int) -> LinearHead:
        """The head that a run starts from, on K features."""
        generator = keyed_generator(self.seed, 0 if self.protocol.shared_initial_head else run, 0)
        return drawn_head(features, outputs_for(self.classes), generator)

    def _trials(self, features: int, peak_lr: float) -> list[list[Trial]]:
        """For each run its initial head at each learning rate."""
        protocol, trials = self.protocol, []
        for run in self.run_ids:
            head = self.initial_head(run, features)
            head = LinearHead(head.weight.to(self.device), head.bias.to(self.device))
            rates = [peak_lr * (rate / protocol.base_lr) for rate in protocol.rates]
            trials.append([Trial(head, ProbeRun(run, rate)) for rate in rates])
        return trials

    def _train(self, runs: Sequence[Sequence[Trial]], data: ProbeData, bar: tqdm[None]) -> None:
        trials = [trial for of_run in runs for trial in of_run]
        orders = {trial.run.run: keyed_generator(self.seed, trial.run.run, 1) for trial in trials}
        train(trials, data, protocol=self.protocol, orders=orders, bar=bar)

    def _choose(self, trials: Sequence[Trial]) -> None:
        """Keep the learning rate that is best on average over the runs, the first of equals."""
        self.trials_ = [trial.run for trial in trials]
        scores = {
            rate: [run.best_score for run in self.trials_ if run.learning_rate == rate]
            for rate in dict.fromkeys(run.learning_rate for run in self.trials_)
        }
        usable = {rate: np.mean(values) for rate, values in scores.items() if min(values) >= 0}
        if not usable:
            raise ProbeError(f"probe {self.protocol.name}: diverged; use the protocol paper-standardized")
        best = max(usable, key=lambda rate: usable[rate])
        chosen = [trial for trial in trials if trial.run.learning_rate == best]
        self.heads_, self.runs_ = [trial.head for trial in chosen], [trial.run for trial in chosen]

    def _prepare(self, embeddings: AnyFloatArray) -> Tensor:
        scaled = embeddings.astype(np.float32) if self._scale is None else self._scale.apply(embeddings)
        return torch.from_numpy(scaled).to(self.device)


def keyed_generator(seed: int, run: int, purpose: int) -> torch.Generator:
    """Generator keyed by (seed, run, purpose): 0 for the initial head, 1 for the order of rows, a randperm an epoch."""
    state = int(np.random.SeedSequence([seed, run, purpose]).generate_state(1, np.uint64)[0])
    return torch.Generator().manual_seed(state % 2**63)


@contextmanager
def _one_thread_a_worker(values_a_batch: int, *, most: int) -> Iterator[int]:
    """Number of workers, each of which computes in one thread.

    Runs are independent, so they share the cores run by run and not product by product. Below a million values a
    batch the interpreter is what takes the time, and one worker is as fast as several.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield min(threads, most) if values_a_batch >= _VALUES_FOR_THREADS else 1
    finally:
        torch.set_num_threads(threads)
