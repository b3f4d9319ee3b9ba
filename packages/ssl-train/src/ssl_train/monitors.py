"""Is the training still one? Collapse, and numbers that are none.

`CollapseMonitor` reads the outputs of the teacher every few steps; `NonFiniteGradients` looks at the gradients before
they reach the weights, so that the weights and the last checkpoint stay good.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor
from torch.distributed.tensor import DTensor

from ssl_train.embedding_metrics import prototype_use, rankme
from ssl_train.errors import UnhealthyRunError
from ssl_train.steps import StepCallback

Action = Literal["warn", "stop"]


def judge(message: str, action: Action) -> None:
    """Warns, or ends the run.

    Raises:
        UnhealthyRunError: the action is `stop`.
    """
    if action == "stop":
        raise UnhealthyRunError(message)
    rank_zero_warn(message)


class CollapseMonitor(StepCallback):
    """Logs signs of collapse every few steps, and warns or stops where they last.

    Logged beside the `loss`, `teacher_entropy` and `teacher_std` of every step, of the teacher's outputs for the
    global crops of one micro-batch: `teacher_entropy_share` (of ln K; 1 is the uniform answer), `prototype_use` and
    `rankme`. Signs (DINO, section 5.3, tells the first two apart):

    - uniform: the [CLS] cross-entropy (the loss of DINO, the term `dino_loss` of DINOv2) is ln K, that of an answer
      without information;
    - constant: the teacher's logits do not differ between samples (`teacher_std`), or all samples have the same
      most likely prototype;
    - flat: the RankMe of the teacher's embeddings fell to less than `rankme_share` of the first reading.

    Args:
        every_n_steps: optimizer steps between two readings.
        patience: readings in a row that show the same or another sign, before the action.
        after_epochs: epochs at the start without a verdict: there the loss of fresh heads is near ln K in good runs.
        tolerance: distance from ln K, relative, and `teacher_std`, below which an output counts as collapsed.
        rankme_share: see above; 0 leaves the sign out.
        action: `warn` once, or `stop`.
    """

    def __init__(
        self,
        *,
        every_n_steps: int = 50,
        patience: int = 4,
        after_epochs: float = 1.0,
        tolerance: float = 1e-3,
        rankme_share: float = 0.5,
        action: Action = "warn",
    ) -> None:
        if every_n_steps < 1 or patience < 1 or min(after_epochs, tolerance, rankme_share) < 0:
            raise ValueError(
                "CollapseMonitor: every_n_steps and patience must be at least 1 and the others at least 0, got "
                f"every_n_steps={every_n_steps}, patience={patience}, after_epochs={after_epochs}, "
                f"tolerance={tolerance}, rankme_share={rankme_share}"
            )
        self._every = every_n_steps
        self._patience = patience
        self._after_epochs = after_epochs
        self._tolerance = tolerance
        self._rankme_share = rankme_share
        self._action = action
        self._suspicious = 0
        self._first_rankme: float | None = None
        self._listening = False
        self._heard: tuple[Tensor, Tensor] | None = None
        self._hook: torch.utils.hooks.RemovableHandle | None = None

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run compares with."""
        return {"first_rankme": self._first_rankme, "suspicious": self._suspicious}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on as the interrupted run."""
        self._first_rankme = state_dict["first_rankme"]
        self._suspicious = state_dict["suspicious"]

    def on_fit_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Listens to the teacher's head: embeddings in, logits out."""
        self._hook = pl_module.teacher.head.register_forward_hook(self._listen)

    def _listen(self, _head: Any, embeddings: tuple[Tensor, ...], logits: Tensor) -> None:
        if self._listening:
            self._heard = embeddings[0].detach(), logits.detach()
            self._listening = False

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        """A reading is of the step that is about to be made, the first included."""
        self._listening = trainer.global_step % self._every == 0

    def on_step_end(self, trainer: pl.Trainer, pl_module: Any, step: int) -> None:
        """Takes a reading and judges it."""
        if self._heard is None:
            return
        embeddings_ND, logits_NK = self._heard
        self._heard = None
        metrics = trainer.callback_metrics
        uniform = math.log(pl_module.loss.out_dim)
        use, rank = prototype_use(logits_NK - pl_module.loss.center), rankme(embeddings_ND)
        if self._first_rankme is None:
            self._first_rankme = rank
        pl_module.log_dict(
            {
                "teacher_entropy_share": float(metrics["teacher_entropy"]) / uniform,
                "prototype_use": use,
                "rankme": rank,
            }
        )
        if step * pl_module.epochs_per_step < self._after_epochs:
            return
        term = "dino_loss" if "dino_loss" in metrics else "loss"
        loss, std = float(metrics[term]), float(metrics["teacher_std"])
        signs = {
            f"the {term} {loss:.4f} is ln K": abs(loss - uniform) < self._tolerance * uniform,
            f"the teacher's logits hardly differ between samples (std {std:.1e})": std < self._tolerance,
            "one prototype answers for all samples": len(logits_NK) > 1 and use * min(logits_NK.shape) <= 1,
            f"RankMe fell from {self._first_rankme:.1f} to {rank:.1f}": rank < self._rankme_share * self._first_rankme,
        }
        found = [sign for sign, holds in signs.items() if holds]
        seen = trainer.strategy.reduce_boolean_decision(bool(found), all=False)
        self._suspicious = self._suspicious + 1 if seen else 0
        if self._suspicious == self._patience:
            judge(
                f"step {step}: collapse: {'; '.join(found) or 'seen by another rank'} ({self._patience} readings in a "
                "row); lower base_learning_rate, or lower teacher_temp where the answer is uniform and raise it where "
                "it is constant",
                self._action,
            )

    def teardown(self, *_: Any, **__: Any) -> None:
        """Stops listening."""
        if self._hook is not None:
            self._hook.remove()
            self._hook = None


class NonFiniteGradients(Callback):
    """Keeps NaN and infinity out of the weights: looks at the gradients of a step before the optimizer does.

    In fp16 the loss scaler skips such steps by itself while it finds its scale; they count as skipped here.

    Args:
        action: `stop` ends the run at once; `skip` leaves the step out (no weights, no moments) and warns.
        max_skipped: steps in a row that may be left out before the run ends all the same.
    """

    def __init__(self, *, action: Literal["stop", "skip"] = "stop", max_skipped: int = 10) -> None:
        if max_skipped < 1:
            raise ValueError(f"NonFiniteGradients: max_skipped must be at least 1, got {max_skipped}")
        self._action = action
        self._max_skipped = max_skipped
        self._skipped = 0

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Checks all gradients with one synchronisation of the device.

        Raises:
            UnhealthyRunError: something is not finite, and skipping is off or was of no use.
        """
        named = {name: _local(p.grad) for name, p in pl_module.named_parameters() if p.grad is not None}
        # Of a tensor that is not finite, the norm is not either.
        norms = torch.stack([norm.float() for norm in torch._foreach_norm(list(named.values()))]) if named else None
        finite = norms is None or bool(norms.isfinite().all())
        if trainer.strategy.reduce_boolean_decision(finite, all=True):
            self._skipped = 0
            return
        self._skipped += 1
        bad = (
            [] if norms is None else [name for name, ok in zip(named, norms.isfinite().tolist(), strict=True) if not ok]
        )
        message = (
            f"step {trainer.global_step + 1}: gradients of {len(bad)} of {len(named)} tensors are not finite "
            f"(the first: {bad[0] if bad else 'on another rank'}; loss {float(trainer.callback_metrics['loss']):.4g})"
        )
        remedy = "lower base_learning_rate, set clip_grad, or use bf16 instead of fp16"
        scaled = getattr(trainer.precision_plugin, "scaler", None) is not None
        if (self._action == "stop" and not scaled) or self._skipped > self._max_skipped:
            tries = f", {self._skipped} steps in a row" if self._skipped > 1 else ""
            raise UnhealthyRunError(f"{message}{tries}; {remedy}")
        if not scaled:
            rank_zero_warn(f"{message}; the step is left out")
            optimizer.zero_grad(set_to_none=True)


def _local(gradient: Tensor) -> Tensor:
    return gradient.to_local() if isinstance(gradient, DTensor) else gradient
