"""An interrupted run goes on as if nothing had happened: killed at any moment, with other workers, on other devices."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
import torch.multiprocessing as mp
from ssl_train import DINO, StepCheckpoint

Make = Callable[..., Any]
Weights = dict[str, torch.Tensor]
# Stochastic depth on, for its choices must not depend on the number of devices.
SETTINGS: dict[str, Any] = {"drop_path_rate": 0.2, "base_learning_rate": 5e-4 * 256 / 4, "epoch_size": 16}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """A forked process would wait for ever for the threads that its parent's operations use."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class _Pace(pl.Callback):
    """Tells the parent how far the run is, and slows it down enough to be hit in any part of a step."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self._connection.send(trainer.global_step)
        time.sleep(0.01)


def weights_of(path: Path) -> Weights:
    state: Weights = torch.load(path, weights_only=True)["state_dict"]
    return state


def train(model: DINO, data: Any, trainer: pl.Trainer, ckpt_path: Path | None = None) -> Weights:
    trainer.fit(model, data, ckpt_path=ckpt_path, weights_only=True if ckpt_path else None)
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_a_run_that_is_killed_at_random_moments_ends_with_the_same_weights(
    make_dino: Make, make_data: Make, make_trainer: Make, tmp_path: Path
) -> None:
    """SIGKILL, five times, with another number of workers after each: bit for bit the uninterrupted run."""
    steps, kills = 18, 5
    settings = {"max_steps": steps, "accumulate_grad_batches": 2, "enable_checkpointing": True}

    def run(folder: Path, num_workers: int, *callbacks: pl.Callback) -> None:
        last = folder / "checkpoints" / "last.ckpt"
        trainer = make_trainer(
            default_root_dir=folder, callbacks=[StepCheckpoint(every_n_steps=1), *callbacks], **settings
        )
        data = make_data(batch_size=2, num_workers=num_workers)
        train(make_dino(drop_path_rate=0.2), data, trainer, last if last.exists() else None)

    run(tmp_path / "whole", 0)
    chance = random.Random(7)
    reached: list[int] = []
    for attempt in range(kills):
        receiver, sender = mp.Pipe(duplex=False)
        child = mp.get_context("fork").Process(target=run, args=(tmp_path / "cut", attempt % 3, _Pace(sender)))
        child.start()
        sender.close()
        until = (attempt + 1) * steps // (kills + 1)
        while receiver.recv() < until:
            pass
        time.sleep(chance.uniform(0, 0.06))
        assert child.pid is not None
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        assert child.exitcode == -signal.SIGKILL
        reached.append(torch.load(tmp_path / "cut" / "checkpoints" / "last.ckpt", weights_only=True)["global_step"])
    assert reached == sorted(set(reached))
    assert reached[-1] < steps
    run(tmp_path / "cut", 1)
    whole, cut = (weights_of(tmp_path / name / "checkpoints" / "last.ckpt") for name in ("whole", "cut"))
    assert whole.keys() == cut.keys()
    for name, tensor in whole.items():
        assert torch.equal(tensor, cut[name]), name


def test_two_devices_train_as_one_does(make_dino: Make, make_data: Make, make_trainer: Make, tmp_path: Path) -> None:
    """Within 1e-4 after 20 steps, over the whole run and where one device goes on after seven steps of two."""
    one_device = train(make_dino(**SETTINGS), make_data(batch_size=4), make_trainer(max_steps=20))
    trainer = make_trainer(
        max_steps=20,
        devices=2,
        strategy="ddp_fork",
        enable_checkpointing=True,
        callbacks=[StepCheckpoint(keep_every_n_steps=7)],
    )
    train(make_dino(**SETTINGS), make_data(batch_size=2), trainer)
    checkpoints = tmp_path / "checkpoints"
    two_devices = weights_of(checkpoints / "last.ckpt")
    two_then_one = train(
        make_dino(**SETTINGS),
        make_data(batch_size=4),
        make_trainer(
            max_steps=20,
            default_root_dir=tmp_path / "resumed",
            enable_checkpointing=True,
            callbacks=[StepCheckpoint()],
        ),
        checkpoints / "step-00000007.ckpt",
    )
    for name, tensor in one_device.items():
        for other in (two_devices[name], two_then_one[name]):
            difference = (tensor - other).abs()
            if name.endswith("qkv.bias"):  # the gradient of the key part is rounding noise, of which Adam makes steps
                difference[24:48] = 0
            assert difference.max() < 1e-4, name
