from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import pytorch_lightning as pl
from ssl_train import PatchData, PatchStream, StageProgressBar, Throughput

Make = Callable[..., Any]


class ThrottledStream:
    """Waits before it hands over the last sample of each batch of another stream."""

    def __init__(self, stream: PatchStream, *, seconds: float, batch_size: int) -> None:
        self._stream, self._seconds, self._batch_size = stream, seconds, batch_size

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for number, sample in enumerate(self._stream, start=1):
            if number % self._batch_size == 0:
                time.sleep(self._seconds)
            yield sample

    def shard(self, **share: int) -> ThrottledStream:
        return ThrottledStream(self._stream.shard(**share), seconds=self._seconds, batch_size=self._batch_size)

    def state_dict(self) -> dict[str, Any]:
        return self._stream.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._stream.load_state_dict(state)


class LongSteps(pl.Callback):
    """Makes each step longer and notes when it began and ended."""

    def __init__(self, *, seconds: float) -> None:
        self._seconds = seconds
        self.begins: list[float] = []
        self.ends: list[float] = []

    def on_train_batch_start(self, *_: Any) -> None:
        self.begins.append(time.perf_counter())

    def on_train_batch_end(self, *_: Any) -> None:
        time.sleep(self._seconds)
        self.ends.append(time.perf_counter())


def test_the_bar_of_a_terminal_names_the_stage_and_counts_steps(
    make_dino: Make,
    make_data: Make,
    make_trainer: Make,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    trainer = make_trainer(max_steps=4, callbacks=[Throughput(window=2), StageProgressBar()], enable_progress_bar=True)
    trainer.fit(make_dino(), make_data())
    shown = capsys.readouterr().err
    assert "train dino: 100%" in shown
    last = shown.split("\r")[-1]
    assert "4/4" in last
    assert all(f"{name}=" in last for name in ("loss", "images/s", "stall"))


def test_the_log_of_a_job_has_a_line_at_the_start_and_one_at_the_end(
    make_dino: Make, make_data: Make, make_trainer: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = make_trainer(max_steps=4, callbacks=[Throughput(window=2), StageProgressBar()], enable_progress_bar=True)
    trainer.fit(make_dino(), make_data())
    shown = capsys.readouterr().err
    assert "\r" not in shown
    first, last = (line for line in shown.splitlines() if line.startswith("train dino: "))
    assert "0/4" in first
    assert "4/4" in last
    assert all(f"{name}=" in last for name in ("loss", "images/s", "stall"))


def test_throughput_counts_images_and_waiting(make_dino: Make, make_data: Make, make_trainer: Make) -> None:
    trainer = make_trainer(max_steps=4, callbacks=[Throughput(window=2)])
    trainer.fit(make_dino(), make_data())
    assert trainer.callback_metrics["images_per_second"] > 0
    assert 0 <= trainer.callback_metrics["data_stall_share"] <= 1
    assert trainer.callback_metrics["memory_gib"] > 0.01


@pytest.mark.parametrize("needed_rate", [0.5, 0.8])
def test_the_stall_share_of_a_throttled_loader(needed_rate: float, make_dino: Make, make_trainer: Make) -> None:
    """At half the needed rate half of the time is spent waiting; a machine that has more to do lengthens the steps."""
    from synthetic_stream import SyntheticStream

    window, period = 5, 0.3
    steps = LongSteps(seconds=needed_rate * period)
    trainer = make_trainer(max_steps=2 * window, callbacks=[steps, Throughput(window=window)])
    stream: Any = ThrottledStream(SyntheticStream(), seconds=period, batch_size=4)
    trainer.fit(make_dino(), PatchData(stream=stream, batch_size=4))
    # Of the second window; the start is in the first.
    seconds = steps.ends[-1] - steps.ends[window - 1]
    waited = sum(begin - end for begin, end in zip(steps.begins[window:], steps.ends[window - 1 : -1], strict=True))
    assert 0 < waited < seconds
    assert trainer.callback_metrics["data_stall_share"] == pytest.approx(waited / seconds, abs=0.05)
    assert trainer.callback_metrics["images_per_second"] == pytest.approx(4 * window / seconds, rel=0.05)
