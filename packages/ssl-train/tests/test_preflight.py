from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from ssl_train import PatchData, RunChecks
from ssl_train.preflight import _remedy

Make = Callable[..., Any]


def fit(model: Any, trainer: Any, *, length: int | None = None, end_at: int | None = None) -> None:
    """Trains on a stream that knows its length, or on one that ends without a word."""
    from synthetic_stream import FiniteStream, SyntheticStream

    stream = FiniteStream(length=length) if length is not None else SyntheticStream(end_at=end_at)
    trainer.fit(model, PatchData(stream=stream, batch_size=4))


def test_a_stream_too_short_is_refused_before_the_first_step(make_dino: Make, make_trainer: Make) -> None:
    trainer = make_trainer(max_steps=4, callbacks=[RunChecks()])
    with pytest.raises(
        ValueError, match=r"15 patches are too few for trainer\.max_steps=4 of 4 patches \(16\).* 3 steps"
    ):
        fit(make_dino(), trainer, length=15)
    assert trainer.global_step == 0


def test_a_stream_that_is_just_long_enough_is_used_up(make_dino: Make, make_trainer: Make) -> None:
    trainer = make_trainer(max_steps=4, callbacks=[RunChecks()])
    fit(make_dino(), trainer, length=16)
    assert trainer.global_step == 4


def test_a_stream_that_ends_is_no_finished_training(make_dino: Make, make_trainer: Make) -> None:
    trainer = make_trainer(max_steps=9, callbacks=[RunChecks()])
    with pytest.raises(ValueError, match="training ended after 3 of 9 steps: the stream gave no more patches"):
        fit(make_dino(), trainer, end_at=13)


def test_a_run_without_length_is_refused(make_dino: Make, make_trainer: Make) -> None:
    trainer = make_trainer(max_steps=-1, callbacks=[RunChecks()])
    with pytest.raises(ValueError, match=r"trainer\.max_steps=-1: the schedules need"):
        fit(make_dino(), trainer)


@pytest.mark.parametrize(
    ("settings", "accumulated", "remedy"),
    [
        (
            {"batch_size": 4, "global_batch_size": 16},
            2,
            r"4 x 1 devices x 2 accumulated are 8 .*accumulate_grad_batches=4",
        ),
        (
            {"batch_size": 3, "global_batch_size": 16},
            1,
            "each device has 16 of them: take a data.batch_size that divides",
        ),
    ],
)
def test_a_step_of_other_patches_than_the_recipes_is_refused(
    settings: dict[str, int], accumulated: int, remedy: str, make_dino: Make, make_trainer: Make
) -> None:
    from synthetic_stream import SyntheticStream

    trainer = make_trainer(max_steps=4, callbacks=[RunChecks()], accumulate_grad_batches=accumulated)
    with pytest.raises(ValueError, match=rf"data\.global_batch_size=16: .*{remedy}"):
        trainer.fit(make_dino(), PatchData(stream=SyntheticStream(), **settings))
    assert trainer.global_step == 0


def test_devices_that_do_not_divide_a_step_are_told() -> None:
    assert _remedy(1024, 256, 3) == "1024 is not divisible by 3 devices: take a number of devices that divides it"
