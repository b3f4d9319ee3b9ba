from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
from ssl_train import PatchData
from ssl_train.data import PatchBatches, prefetch


def indices_of(data: PatchData, n: int, **trainer: int) -> list[list[int]]:
    settings = {"global_step": 0, "global_rank": 0, "world_size": 1, "accumulate_grad_batches": 1, **trainer}
    data.trainer = SimpleNamespace(**settings)  # type: ignore[assignment]
    batches = iter(data.train_dataloader())
    got = [batch["index"].tolist() for batch in islice(batches, n)]
    del batches
    return got


@pytest.mark.parametrize("num_workers", [0, 1, 2])
def test_batches_are_the_same_for_any_number_of_workers(make_data: Callable[..., PatchData], num_workers: int) -> None:
    got = indices_of(make_data(num_workers=num_workers), 5)
    assert got == [list(range(4 * b, 4 * b + 4)) for b in range(5)]


def test_ranks_share_the_global_batch(make_data: Callable[..., PatchData]) -> None:
    ranks = [indices_of(make_data(), 3, global_rank=rank, world_size=2) for rank in range(2)]
    for batch in range(3):
        assert ranks[0][batch] + ranks[1][batch] == list(range(8 * batch, 8 * batch + 8))


def test_position_comes_from_the_trainers_steps(make_data: Callable[..., PatchData]) -> None:
    got = indices_of(make_data(), 1, global_step=5, accumulate_grad_batches=3, world_size=2)
    assert got == [list(range(120, 124))]


class Recorder(pl.LightningModule):
    """Keeps the numbers of the patches that it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen: list[int] = []

    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        self.seen += batch["index"].tolist()
        return self.weight.sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize(("num_workers", "accumulate"), [(0, 1), (1, 1), (0, 2)])
@pytest.mark.filterwarnings("ignore")
def test_epochs_of_a_trainer_repeat_no_patch(
    make_data: Callable[..., PatchData], tmp_path: Path, num_workers: int, accumulate: int
) -> None:
    model = Recorder()
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=3,
        limit_train_batches=4,
        accumulate_grad_batches=accumulate,
        default_root_dir=tmp_path,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, datamodule=make_data(num_workers=num_workers))
    assert model.seen == list(range(3 * 4 * 4))


def test_a_resumed_run_of_another_batch_size_is_refused(make_data: Callable[..., PatchData]) -> None:
    before, after = make_data(batch_size=4), make_data(batch_size=8)
    indices_of(before, 1)
    after.load_state_dict(before.state_dict())
    with pytest.raises(ValueError, match="8 patches a step, but the checkpoint was written with 4"):
        indices_of(after, 1)


def test_batches_are_uint8_tensors(make_data: Callable[..., PatchData]) -> None:
    stream = make_data(size_px=12).stream
    batch = next(iter(PatchBatches(stream, batch_size=3, rank=0, world_size=1)))
    assert batch["image"].shape == (3, 12, 12, 3)
    assert batch["image"].dtype == torch.uint8
    assert batch["index"].dtype == torch.int64


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_error_of_the_stream_reaches_the_trainer(make_data: Callable[..., PatchData], num_workers: int) -> None:
    with pytest.raises(Exception, match="slide s6: bucket unreachable"):
        indices_of(make_data(fail_at=6, num_workers=num_workers), 3)


def test_prefetching_is_bounded_ordered_and_stops() -> None:
    made: list[int] = []

    def numbers() -> Iterator[int]:
        for number in range(1_000):
            made.append(number)
            yield number

    before = set(threading.enumerate())
    stream = prefetch(numbers(), depth=2)
    assert [next(stream) for _ in range(10)] == list(range(10))
    stream.close()  # type: ignore[attr-defined]
    assert len(made) <= 10 + 2 + 2
    # Threads of other tests may have ended meanwhile.
    assert set(threading.enumerate()) <= before
    assert list(prefetch(iter(range(3)), depth=2)) == [0, 1, 2]


@pytest.mark.parametrize("wrong", [{"batch_size": 0}, {"num_workers": -1}])
def test_wrong_sizes_are_refused(make_data: Callable[..., PatchData], wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="data: "):
        make_data(**wrong)
