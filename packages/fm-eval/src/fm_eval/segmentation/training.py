"""How is one decoder trained, and has it converged?

AdamW with a short linear warm-up and polynomial decay over a fixed number of steps; nothing is selected, the
last weights count. Every random choice is keyed by (seed, run, step), and the state is written every so many
steps, so that a run that was stopped goes on to the very weights that an uninterrupted one reaches (on the same
device and thread count).

The paper averages over "runs that did converge" and gives no rule. Here (`judge`): the run's pooled DICE without
background is measured on a fixed sample of training windows at ten points of the training. It has converged if

1. no loss was NaN or infinite,
2. at the end it is above the best that one foreground class everywhere would reach,
3. it gained less than 0.02 over the last fifth of the steps.

Neither val nor test labels play a part. Before: features, decoder. After: evaluate.
"""

from __future__ import annotations

import io
import math
import os
import pickle
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fm_eval.errors import ResultError
from fm_eval.segmentation.decoder import Decoder

Batches = Callable[[int, int], tuple[Tensor, Tensor]]
"""(run, step) to tokens (B, K, h, w) and class numbers (B, S, S)."""

CHECKS = 10
PLATEAU_GAIN = 0.02
_STEPS_BETWEEN_STATES = 100
_WARMUP_SHARE, _DECAY_POWER = 0.05, 0.9
_STATE_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSettings:
    """How a decoder is trained.

    Attributes:
        steps: optimizer steps.
        learning_rate: highest rate.
        weight_decay: of AdamW.
        clip_norm: largest norm of all gradients together.
        bf16: autocast to bfloat16; losses stay in float32.
    """

    steps: int
    learning_rate: float
    weight_decay: float
    clip_norm: float
    bf16: bool

    def rate(self, step: int) -> float:
        """Learning rate of a step."""
        warmup = max(1, int(_WARMUP_SHARE * self.steps))
        decay = math.pow(1 - step / self.steps, _DECAY_POWER)
        return self.learning_rate * min(1.0, (step + 1) / warmup) * decay


@dataclass(slots=True, kw_only=True)
class Progress:
    """How far a run is.

    Attributes:
        step: optimizer steps done.
        losses: mean loss between checks.
        pending: loss and number of steps since the last check.
        checks: pooled training DICE at each check, None where undefined.
        diverged_at: step whose loss was not finite.
        seconds: spent in training, over all sittings.
    """

    step: int = 0
    losses: list[float] = field(default_factory=list)
    pending: tuple[float, int] = (0.0, 0)
    checks: list[float | None] = field(default_factory=list)
    diverged_at: int | None = None
    seconds: float = 0.0


def train_decoder(
    decoder: Decoder,
    batches: Batches,
    settings: TrainSettings,
    *,
    run: int,
    seed: int,
    device: str = "cpu",
    check: Callable[[], float | None],
    state_path: Path,
    fingerprint: str,
    on_step: Callable[[int], None] | None = None,
) -> Progress:
    """Train a decoder, from its saved state if there is one.

    Args:
        decoder: trained in place.
        batches: what each step trains on.
        settings: optimizer and length.
        run: number of the run.
        seed: of sampled points.
        device: where the decoder is trained.
        check: training DICE of the decoder as it is now.
        state_path: where the state is kept.
        fingerprint: of everything that the weights depend on; a state of another is refused.
        on_step: called with the number of steps done, after each.

    Raises:
        ResultError: a state of other settings, a damaged one, or one that cannot be written.
    """
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
    progress = _resume(state_path, decoder, optimizer, fingerprint)
    check_steps = {math.ceil(settings.steps * (number + 1) / CHECKS) for number in range(CHECKS)}
    start = time.perf_counter()
    decoder.train()
    while progress.step < settings.steps and progress.diverged_at is None:
        step = progress.step
        for group in optimizer.param_groups:
            group["lr"] = settings.rate(step)
        generator = torch.Generator().manual_seed(_key(seed, run, step))
        tokens, labels = (part.to(device) for part in batches(run, step))
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=settings.bf16):
            loss = decoder.loss(tokens, labels, generator)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(decoder.parameters(), settings.clip_norm)
        value = loss.item()
        if not (math.isfinite(value) and math.isfinite(norm)):
            progress.diverged_at = step
            break
        optimizer.step()
        progress.pending = (progress.pending[0] + value, progress.pending[1] + 1)
        progress.step = step + 1
        if progress.step in check_steps:
            progress.losses.append(progress.pending[0] / progress.pending[1])
            progress.pending = (0.0, 0)
            progress.checks.append(check())
            decoder.train()
        if progress.step in check_steps or progress.step % _STEPS_BETWEEN_STATES == 0:
            progress.seconds, start = progress.seconds + time.perf_counter() - start, time.perf_counter()
            _save(state_path, decoder, optimizer, progress, fingerprint)
        if on_step is not None:
            on_step(progress.step)
    progress.seconds += time.perf_counter() - start
    return progress


def judge(progress: Progress, *, floor: float) -> str | None:
    """Why a run has not converged; None if it has.

    Args:
        progress: of a finished run.
        floor: pooled DICE of the best single foreground class everywhere, on the checked windows.
    """
    if progress.diverged_at is not None:
        return f"loss or gradient not finite at step {progress.diverged_at}"
    last = progress.checks[-1]
    if last is None or last <= floor:
        return (
            f"training DICE {last if last is None else round(last, 3)} is not above {floor:.3f}, one class everywhere"
        )
    fifth = max(1, len(progress.checks) // 5)
    before = progress.checks[-1 - fifth] if len(progress.checks) > fifth else None
    gain = last - (before or 0.0)
    if gain >= PLATEAU_GAIN:
        return f"training DICE still rose by {gain:.3f} over the last fifth of the steps, allowed is {PLATEAU_GAIN}"
    return None


def single_class_dice(pixels_C: Sequence[int]) -> float:
    """Highest mean DICE over the present foreground classes that one of them everywhere reaches.

    Args:
        pixels_C: pixels of each class, background first.
    """
    present = [count for count in pixels_C[1:] if count]
    return max((2 * count / (sum(pixels_C) + count) / len(present) for count in present), default=0.0)


def _key(seed: int, run: int, step: int) -> int:
    """One generator seed for each step of each run, below 2^63."""
    return ((seed * 1_000_003 + run) * 1_000_000_007 + step) % 2**63


def _save(path: Path, decoder: Decoder, optimizer: torch.optim.Optimizer, progress: Progress, fingerprint: str) -> None:
    buffer = io.BytesIO()
    torch.save(
        {
            "format_version": _STATE_VERSION,
            "fingerprint": fingerprint,
            "decoder": decoder.state_dict(),
            "optimizer": optimizer.state_dict(),
            "progress": {name: getattr(progress, name) for name in Progress.__slots__},
        },
        buffer,
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "wb") as file:
            file.write(buffer.getvalue())
        Path(temporary).replace(path)
    except OSError as error:
        raise ResultError(f"state {path}: cannot be written ({error.strerror or error})") from error


def _resume(path: Path, decoder: Decoder, optimizer: torch.optim.Optimizer, fingerprint: str) -> Progress:
    if not path.is_file():
        return Progress()
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        version, of_state = state["format_version"], state["fingerprint"]
    except (OSError, RuntimeError, EOFError, KeyError, ValueError, TypeError, pickle.UnpicklingError) as error:
        raise ResultError(
            f"state {path}: damaged ({type(error).__name__}); remove it to train this run anew"
        ) from error
    if version > _STATE_VERSION:
        raise ResultError(f"state {path}: format_version {version} is newer than {_STATE_VERSION}; update fm-eval")
    if of_state != fingerprint:
        raise ResultError(
            f"state {path}: of other data, weights or settings; give another output folder, or remove this one"
        )
    decoder.load_state_dict(state["decoder"])
    optimizer.load_state_dict(state["optimizer"])
    return Progress(**state["progress"])
