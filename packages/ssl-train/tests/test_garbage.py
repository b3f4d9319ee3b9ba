from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import pytorch_lightning as pl
from ssl_train import GarbageCollection

Make = Callable[..., Any]


class Watch(pl.Callback):
    """Steps after which a full collection ran, and whether Python collects by itself then."""

    def __init__(self) -> None:
        self.collected: list[int] = []
        self.automatic: set[bool] = set()
        self._full = 0

    def on_train_batch_start(self, *_: Any) -> None:
        self._full = gc.get_stats()[2]["collections"]

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self.automatic.add(gc.isenabled())
        if gc.get_stats()[2]["collections"] > self._full:
            self.collected.append(trainer.global_step)


@pytest.fixture(autouse=True)
def _collecting() -> Iterator[None]:
    assert gc.isenabled()
    yield
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0


def test_collections_come_every_so_many_steps_and_python_has_them_back(
    make_dino: Make, make_data: Make, make_trainer: Make
) -> None:
    watch = Watch()
    # Not at the micro-batches between.
    trainer = make_trainer(
        max_steps=7, accumulate_grad_batches=2, callbacks=[GarbageCollection(every_n_steps=3), watch]
    )
    trainer.fit(make_dino(), make_data())
    assert watch.collected == [3, 6]
    assert watch.automatic == {False}


def test_an_error_gives_them_back_too(make_dino: Make, make_data: Make, make_trainer: Make) -> None:
    class Broken(pl.Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            assert not gc.isenabled()
            raise RuntimeError("broken")

    trainer = make_trainer(max_steps=5, callbacks=[GarbageCollection(every_n_steps=1), Broken()])
    with pytest.raises(RuntimeError, match="broken"):
        trainer.fit(make_dino(), make_data())


def test_off_leaves_python_alone(make_dino: Make, make_data: Make, make_trainer: Make) -> None:
    watch = Watch()
    make_trainer(max_steps=5, callbacks=[GarbageCollection(), watch]).fit(make_dino(), make_data())
    assert watch.automatic == {True}


def test_a_negative_number_is_refused() -> None:
    with pytest.raises(ValueError, match="every_n_steps must be at least 0, got -1"):
        GarbageCollection(every_n_steps=-1)
