from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from ssl_train import HeadWarmup

Make = Callable[..., Any]


def test_the_backbone_waits_for_the_head(make_dino: Make, make_data: Make, make_trainer: Make) -> None:
    class Watch(pl.Callback):
        moved: dict[int, tuple[bool, bool]]

        def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
            self.moved = {}
            self.start = {name: p.clone() for name, p in pl_module.student.named_parameters()}

        def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
            now = pl_module.student.named_parameters()
            changed = {name for name, p in now if not torch.equal(p, self.start[name])}
            parts = ("backbone.", "head.")
            backbone, head = (any(name.startswith(part) for name in changed) for part in parts)
            self.moved[trainer.global_step] = backbone, head

    watch = Watch()
    # An epoch is 16 patches, so 4 steps; the first step has a learning rate of 0.
    trainer = make_trainer(max_steps=6, callbacks=[HeadWarmup(epochs=1), watch])
    trainer.fit(make_dino(), make_data())
    assert watch.moved == {
        **{step: (False, step > 1) for step in range(1, 5)},
        **dict.fromkeys(range(5, 7), (True, True)),
    }


def test_a_negative_length_is_refused() -> None:
    with pytest.raises(ValueError, match="epochs must be at least 0, got -1"):
        HeadWarmup(epochs=-1)
