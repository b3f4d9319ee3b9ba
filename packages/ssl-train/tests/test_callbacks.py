from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import pytorch_lightning as pl
from ssl_train import PatchData, PatchStream, StageProgressBar, Throughput

Make = Callable[..., Any]


class TimeTable:
    """When batches are handed over and when steps end: moments on the clock, so that no delay moves the next ones."""

    def __init__(self, *, period: float, stall_share: float) -> None:
        self.period = period
        self.busy = period * (1 - stall_share)
        self.begin: float | None = None

    def wait_for_batch(self, number: int) -> None:
        self.begin = time.perf_counter() if self.begin is None else self.begin
        self._until(self.begin + number * self.period)

    def wait_for_end_of_step(self, number: int) -> None:
        assert self.begin is not None
        # Lightning is one batch ahead: a step begins when the batch of the next one is there.
        self._until(self.begin + (number + 1) * self.period + self.busy)

    @staticmethod
    def _until(moment: float) -> None:
        time.sleep(max(0.0, moment - time.perf_counter()))


class ThrottledStream:
    """Hands over the last sample of each batch of another stream when the time table says so."""

    def __init__(self, stream: PatchStream, table: TimeTable, *, batch_size: int) -> None:
        self._stream, self._table, self._batch_size = stream, table, batch_size

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for number, sample in enumerate(self._stream, start=1):
            if number % self._batch_size == 0:
                self._table.wait_for_batch(number // self._batch_size - 1)
            yield sample

    def shard(self, **share: int) -> ThrottledStream:
        return ThrottledStream(self._stream.shard(**share), self._table, batch_size=self._batch_size)

    def state_dict(self) -> dict[str, Any]:
        return self._stream.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._stream.load_state_dict(state)


class LongSteps(pl.Callback):
    """Steps, whose work is done in a fraction of that, end when the time table says so."""

    def __init__(self, table: TimeTable) -> None:
        self._table = table

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self._table.wait_for_end_of_step(trainer.global_step - 1)


def test_the_bar_names_the_stage_and_counts_steps(
    make_dino: Make, make_data: Make, make_trainer: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    callbacks = [Throughput(window=2), StageProgressBar()]
    trainer = make_trainer(max_steps=4, callbacks=callbacks, enable_progress_bar=True)
    trainer.fit(make_dino(), make_data())
    shown = capsys.readouterr().err
    assert "train dino: 100%" in shown
    last = shown.split("\r")[-1]
    assert "4/4" in last
    assert all(f"{name}=" in last for name in ("loss", "images/s", "stall"))


def test_throughput_counts_images_and_waiting(make_dino: Make, make_data: Make, make_trainer: Make) -> None:
    trainer = make_trainer(max_steps=4, callbacks=[Throughput(window=2)])
    trainer.fit(make_dino(), make_data())
    assert trainer.callback_metrics["images_per_second"] > 0
    assert 0 <= trainer.callback_metrics["data_stall_share"] <= 1
    assert trainer.callback_metrics["memory_gib"] > 0.01


@pytest.mark.parametrize("stall_share", [0.5, 0.2])
def test_the_stall_share_of_a_throttled_loader(stall_share: float, make_dino: Make, make_trainer: Make) -> None:
    """At half the needed rate half of the time is spent waiting."""
    from synthetic_stream import SyntheticStream

    # A step of the model takes a few hundredths of a second, and ends on time on a machine that has more to do too.
    table = TimeTable(period=0.6, stall_share=stall_share)
    trainer = make_trainer(max_steps=6, callbacks=[LongSteps(table), Throughput(window=3)])
    stream: Any = ThrottledStream(SyntheticStream(), table, batch_size=4)
    trainer.fit(make_dino(), PatchData(stream=stream, batch_size=4))
    # Of the second window; the start is in the first.
    assert trainer.callback_metrics["data_stall_share"] == pytest.approx(stall_share, abs=0.05)
    assert trainer.callback_metrics["images_per_second"] == pytest.approx(4 / table.period, rel=0.05)
