"""Under which rules is a linear probe trained?

A protocol is a frozen value with a name; the presets are

- `paper`: the paper's Table VI. One linear layer, SGD with Nesterov momentum 0.9, no decay, 12,500 steps,
  learning rate 0.01 at batch 4096 scaled linearly with the batch (256 for fewer than 4096 training rows),
  cosine to zero over the steps, early stopping after 5 % of the largest possible number of epochs, five runs.
- `paper-standardized`: the same after standardising every feature with the training rows' mean and std. A
  fixed learning rate favours embeddings of large scale; this makes models with different feature scale
  comparable.
- `eva-0.0.2`: what the eva release behind the published numbers does: the cosine is stepped once an epoch, so
  the rate hardly falls, and all runs start from one initial head.
- `eva-0.4`: eva 0.4.5: AdamW at 3e-4 (a third of it for five epochs), batch 256, a patience of 20 %.
- `sweep`: `paper-standardized` at seven learning rates; the one whose mean over the runs is best on the selection
  split is kept.

A preset's epochs are selected on the val split, or on the reported split where there is no other (eva's habit). The
name followed by `-honest` is the same protocol with epochs and learning rate selected on an inner, group-disjoint
part of train, so that no reported row selects anything.

After: probe, which trains by it; result, which records it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from fm_eval.errors import ProbeError

Optimizer = Literal["sgd", "adamw"]
Schedule = Literal["cosine", "warm-third"]
Monitor = Literal["accuracy", "balanced_accuracy", "eva_accuracy"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeProtocol:
    """Rules of a linear probe.

    Attributes:
        name: what the result is filed under.
        runs: independent trainings; the spread over them is reported.
        max_steps: optimizer steps at most.
        optimizer: `sgd` (momentum, Nesterov) or `adamw` (betas 0.9 and 0.999).
        base_lr: learning rate at `base_batch_size`.
        base_batch_size: batch when there are at least as many training rows.
        small_batch_size: batch when there are fewer.
        scale_lr: scale the rate linearly with the batch.
        momentum: of sgd.
        nesterov: of sgd.
        weight_decay: of either optimizer.
        schedule: `cosine` to zero at step `max_steps`, or `warm-third`: a third of the rate for five epochs.
        schedule_unit: what the cosine counts, optimizer steps or epochs (eva 0.0.2).
        patience_fraction: early stopping after this share of the largest possible number of epochs without a
            new best.
        round_patience_up: round that number of epochs up instead of down.
        patience: this number of epochs instead. eva shipped 400 (BACH), 24 (CRC), 51 (MHIST) and 9 (PCam), 5 % of
            the epochs that the images of all splits would make, for the paper's protocol.
        monitor: what selects the epoch. `eva_accuracy`: mean recall for three and more classes, accuracy for
            two.
        standardize: subtract the training mean and divide by the training std of each feature.
        shared_initial_head: start all runs from the same head.
        learning_rates: rates tried at `base_batch_size`, all in one pass; empty tries `base_lr` alone.
        selection: what selects the epoch (and rate): `split`, the val split or else the reported one, or `inner`, a
            group-disjoint part of train that is then not trained on.
    """

    name: str
    runs: int = 5
    max_steps: int = 12_500
    optimizer: Optimizer = "sgd"
    base_lr: float = 0.01
    base_batch_size: int = 4096
    small_batch_size: int = 256
    scale_lr: bool = True
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 0.0
    schedule: Schedule = "cosine"
    schedule_unit: Literal["step", "epoch"] = "step"
    patience_fraction: float = 0.05
    round_patience_up: bool = False
    patience: int | None = None
    monitor: Monitor = "eva_accuracy"
    standardize: bool = False
    shared_initial_head: bool = False
    learning_rates: tuple[float, ...] = ()
    selection: Literal["split", "inner"] = "split"

    def __post_init__(self) -> None:
        for field, value in (
            ("runs", self.runs),
            ("max_steps", self.max_steps),
            ("batch", self.small_batch_size),
            ("patience", 1 if self.patience is None else self.patience),
        ):
            if value < 1:
                raise ProbeError(f"protocol {self.name}: got {field} {value}, at least 1 needed")
        if not all(rate > 0 for rate in self.rates) or not 0 < self.patience_fraction <= 1:
            raise ProbeError(
                f"protocol {self.name}: learning rates {self.rates}, patience_fraction {self.patience_fraction}; "
                "allowed are rates > 0 and 0 < patience_fraction <= 1"
            )

    @property
    def rates(self) -> tuple[float, ...]:
        """Learning rates at `base_batch_size` that are tried."""
        return self.learning_rates or (self.base_lr,)

    def batch_size(self, train_rows: int) -> int:
        """Batch for a training set of this many rows."""
        return self.base_batch_size if train_rows >= self.base_batch_size else self.small_batch_size

    def peak_lr(self, train_rows: int) -> float:
        """Learning rate before the schedule."""
        if not self.scale_lr:
            return self.base_lr
        return self.base_lr * self.batch_size(train_rows) / self.base_batch_size

    def steps_per_epoch(self, train_rows: int) -> int:
        """Batches of one epoch, the last and shorter one included."""
        return math.ceil(train_rows / self.batch_size(train_rows))

    def patience_epochs(self, train_rows: int) -> int:
        """Epochs without a new best after which a run stops, at least 1."""
        if self.patience is not None:
            return self.patience
        epochs = self.max_steps / self.steps_per_epoch(train_rows) * self.patience_fraction
        # 0.2 * 5 is a little above 1 in binary: do not round that up
        return max(1, math.ceil(epochs - 1e-9) if self.round_patience_up else math.floor(epochs + 1e-9))

    def lr(self, *, step: int, epoch: int, train_rows: int) -> float:
        """Learning rate of the 0-based optimizer step `step`, which lies in the 0-based epoch `epoch`."""
        peak = self.peak_lr(train_rows)
        if self.schedule == "warm-third":
            return peak / 3 if epoch < 5 else peak
        done = step if self.schedule_unit == "step" else epoch
        return peak * 0.5 * (1 + math.cos(math.pi * done / self.max_steps))


HONEST = "-honest"
_PAPER = ProbeProtocol(name="paper")
_STANDARDIZED = replace(_PAPER, name="paper-standardized", standardize=True)
PROTOCOLS: dict[str, ProbeProtocol] = {
    protocol.name: protocol
    for protocol in (
        _PAPER,
        _STANDARDIZED,
        replace(_PAPER, name="eva-0.0.2", schedule_unit="epoch", shared_initial_head=True),
        ProbeProtocol(
            name="eva-0.4",
            optimizer="adamw",
            base_lr=3e-4,
            base_batch_size=256,
            scale_lr=False,
            schedule="warm-third",
            patience_fraction=0.2,
            round_patience_up=True,
            monitor="balanced_accuracy",
        ),
        replace(_STANDARDIZED, name="sweep", learning_rates=(1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)),
    )
}


def get_protocol(name: str) -> ProbeProtocol:
    """Look up a preset by name; the name followed by `-honest` selects on an inner part of train.

    Raises:
        ProbeError: no such preset.
    """
    preset = PROTOCOLS.get(name.removesuffix(HONEST))
    if preset is None:
        raise ProbeError(
            f"protocol {name!r} is unknown, allowed are {', '.join(PROTOCOLS)}, each also followed by {HONEST}"
        )
    return replace(preset, name=name, selection="inner") if name.endswith(HONEST) else preset
