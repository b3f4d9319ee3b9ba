"""How do the heads that a task asks for do on embeddings that are in memory?

For each head: train, let the selection split choose where there is something to choose, score every split. The linear
probe's epochs are selected on val, or on the reported split where there is no val (the habit of eva), or on an inner
part of train where the protocol says so; other heads select on val or else on an inner part of train. The result says
which. A head that these embeddings leave undefined says why and
stops no other one.

Before: embed. After: evaluate.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fm_eval.errors import FmEvalError
from fm_eval.knn import knn_predict
from fm_eval.logistic import LogisticProbe
from fm_eval.metrics import FloatArray, IntArray
from fm_eval.packing import pack
from fm_eval.probe import LinearProbe
from fm_eval.protocol import ProbeProtocol
from fm_eval.result import FewShotResult, HeadResult, KnnResult, ProbeResult
from fm_eval.scores import Scores, score
from fm_eval.selection import inner_selection
from fm_eval.simpleshot import SimpleShot, few_shot

HeadName = Literal["simpleshot", "few-shot", "logistic"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddedDataset:
    """Embeddings of a labelled dataset with its splits.

    Attributes:
        embeddings: (N, K) of all rows.
        labels: (N,) classes.
        groups: (N,) patient, slide or source of each row.
        rows: row numbers by split; `train` and at least one of `val` and `test`.
        classes: number of classes C.
    """

    embeddings: NDArray[np.float32]
    labels: IntArray
    groups: NDArray[np.str_]
    rows: dict[str, IntArray]
    classes: int

    @property
    def reported(self) -> str:
        """The split of the headline number: test if there is one."""
        return "test" if "test" in self.rows else "val"

    @property
    def selecting(self) -> str:
        """The split that selects: val if there is one."""
        return "val" if "val" in self.rows else "test"

    def part(self, rows: IntArray) -> tuple[NDArray[np.float32], IntArray]:
        """Embeddings and labels of some rows."""
        return self.embeddings[rows], self.labels[rows]

    def scored(
        self, probabilities: Callable[[NDArray[np.float32]], FloatArray], *, resamples: int, seed: int, train: bool
    ) -> dict[str, Scores]:
        """Scores by split of a head that maps (n, K) embeddings to (R, n, C) probabilities; no interval for train."""
        found = {}
        for split, rows in self.rows.items():
            if split == "train" and not train:
                continue
            embeddings, labels = self.part(rows)
            drawn = 0 if split == "train" else resamples
            found[split] = score(
                labels, probabilities(embeddings), groups=self.groups[rows], resamples=drawn, seed=seed
            )
        return found


def run_probe(
    protocol: ProbeProtocol,
    data: EmbeddedDataset,
    *,
    seed: int,
    resamples: int = 0,
    device: str = "cpu",
    progress: bool = False,
) -> ProbeResult:
    """Train a linear probe by a protocol and score every split.

    Raises:
        ProbeError: embeddings, labels or splits that the protocol cannot be followed on.
    """
    start = time.perf_counter()
    train, selecting, selected_on = _divide(data, inner=protocol.selection == "inner", seed=seed)
    probe = LinearProbe(protocol, classes=data.classes, seed=seed, device=device, progress=progress)
    probe.fit(*data.part(train), *data.part(selecting))
    scores = data.scored(probe.predict_proba, resamples=resamples, seed=seed, train=True)
    return ProbeResult(
        protocol=asdict(protocol),
        seed=seed,
        selected_on=selected_on,
        scores=scores,
        runs=[asdict(run) for run in probe.runs_],
        seconds=_since(start),
        trials=[asdict(run) for run in probe.trials_] if protocol.learning_rates else [],
        predicted=pack(probe.predict_proba(data.embeddings[data.rows[data.reported]]).argmax(axis=2)),
    )


def run_knn(data: EmbeddedDataset, *, k: int, temperature: float, seed: int, resamples: int = 0) -> KnnResult:
    """Score both votes of the nearest neighbours; there is no reason to score train."""
    majority: dict[str, Scores] = {}
    softmax: dict[str, Scores] = {}
    used, undefined = k, None
    try:
        for split, rows in data.rows.items():
            if split == "train":
                continue
            embeddings, labels = data.part(rows)
            found = knn_predict(
                *data.part(data.rows["train"]), embeddings, classes=data.classes, k=k, temperature=temperature
            )
            used, groups = found.k, data.groups[rows]
            for into, votes in ((majority, found.majority_votes), (softmax, found.softmax_votes)):
                into[split] = score(labels, votes[None], groups=groups, resamples=resamples, seed=seed)
    except FmEvalError as error:
        majority, softmax, undefined = {}, {}, str(error)
    return KnnResult(k=used, temperature=temperature, majority=majority, softmax=softmax, undefined=undefined)


def run_simpleshot(data: EmbeddedDataset, *, seed: int, resamples: int = 0) -> HeadResult:
    """Score the nearest class mean of all training rows."""
    start = time.perf_counter()
    scores, undefined = {}, None
    try:
        head = SimpleShot(classes=data.classes).fit(*data.part(data.rows["train"]))
        scores = data.scored(lambda x: head.predict_proba(x)[None], resamples=resamples, seed=seed, train=False)
    except FmEvalError as error:
        undefined = str(error)
    return HeadResult(
        name="simpleshot", selected_on=None, settings={}, scores=scores, seconds=_since(start), undefined=undefined
    )


def run_logistic(data: EmbeddedDataset, *, seed: int, resamples: int = 0) -> HeadResult:
    """Score logistic regression at the regularisation that the selection split chooses."""
    start = time.perf_counter()
    scores, undefined, settings, selected_on = {}, None, {}, None
    try:
        train, selecting, selected_on = _divide(data, inner="val" not in data.rows, seed=seed)
        head = LogisticProbe(classes=data.classes).fit(*data.part(train), *data.part(selecting))
        settings = {**asdict(head.best_), "tried": [asdict(fit) for fit in head.fits_]}
        scores = data.scored(lambda x: head.predict_proba(x)[None], resamples=resamples, seed=seed, train=True)
    except FmEvalError as error:
        undefined = str(error)
    return HeadResult(
        name="logistic",
        selected_on=selected_on,
        settings=settings,
        scores=scores,
        seconds=_since(start),
        undefined=undefined,
    )


def run_few_shot(data: EmbeddedDataset, *, seed: int) -> FewShotResult:
    """Balanced accuracy of SimpleShot on the reported split with few training rows a class."""
    start = time.perf_counter()
    shots, undefined = [], None
    try:
        train, reported = data.part(data.rows["train"]), data.part(data.rows[data.reported])
        shots = few_shot(*train, *reported, classes=data.classes, seed=seed)
    except FmEvalError as error:
        undefined = str(error)
    return FewShotResult(split=data.reported, seed=seed, shots=shots, seconds=_since(start), undefined=undefined)


def _divide(data: EmbeddedDataset, *, inner: bool, seed: int) -> tuple[IntArray, IntArray, str]:
    """Rows to train on, rows to select on, and the name of what selects."""
    train = data.rows["train"]
    if not inner:
        return train, data.rows[data.selecting], data.selecting
    kept, held_out = inner_selection(data.labels[train], data.groups[train], seed=seed)
    return train[kept], train[held_out], "inner train"


def _since(start: float) -> float:
    return round(time.perf_counter() - start, 3)
