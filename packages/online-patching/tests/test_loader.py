"""``PatchLoader`` in plain loops and in a Lightning trainer: every patch once, whatever is stopped and resumed."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from online_patching import Catalog, GridStream, PatchStream
from online_patching.torch import PatchDataset, PatchLoader
from pytorch_lightning.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader

BATCH = 4

pytestmark = pytest.mark.filterwarnings(
    # Of a fork in a process with threads, of more workers than cores, of few workers, of a fit without a logger,
    # of a folder that has the checkpoints of the run that is resumed.
    "ignore::DeprecationWarning",
    "ignore:Checkpoint directory .* exists and is not empty:UserWarning",
    "ignore:This DataLoader will create:UserWarning",
    "ignore::pytorch_lightning.utilities.warnings.PossibleUserWarning",
    "ignore:.*isinstance.treespec.*",
)


@pytest.fixture
def make_stream(catalog: Catalog) -> Callable[[], PatchStream]:
    return lambda: PatchStream(catalog, size_px=32, mpp=1.0, seed=6)


def numbers(batches: Any) -> list[int]:
    return [number for batch in batches for number in batch["index"].tolist()]


@pytest.mark.parametrize("num_workers", [0, 3])
def test_epochs_go_on_where_the_last_one_ended(make_stream: Callable[[], PatchStream], num_workers: int) -> None:
    loader = PatchLoader(make_stream(), batch_size=BATCH, epoch_patches=22, num_workers=num_workers)
    assert len(loader) == 5
    seen = [numbers(loader) for _ in range(3)]
    assert seen == [list(range(20 * k, 20 * k + 20)) for k in range(3)]
    # One that is left early goes on too: the next epoch is a whole one.
    assert numbers(itertools.islice(loader, 2)) == list(range(60, 68))
    assert numbers(loader) == list(range(68, 88))
    loader.close()
    assert numbers(itertools.islice(loader, 1)) == list(range(88, 92))


def test_batches_are_those_of_the_stream(make_stream: Callable[[], PatchStream]) -> None:
    expected = list(itertools.islice(make_stream(), 24))
    for num_workers, options in ((0, {}), (2, {"prefetch_factor": 3, "multiprocessing_context": "forkserver"})):
        loader = PatchLoader(make_stream(), batch_size=6, num_workers=num_workers, **options)
        for k, batch in enumerate(itertools.islice(loader, 4)):
            for place, patch in enumerate(expected[6 * k : 6 * k + 6]):
                assert torch.equal(batch["image"][place], torch.from_numpy(patch["image"]))
                assert {key: batch[key][place] for key in ("index", "slide_id", "mpp", "foreground")} == {
                    key: pytest.approx(patch[key]) for key in ("index", "slide_id", "mpp", "foreground")
                }
        loader.close()


@pytest.mark.parametrize(("before", "after"), [(0, 2), (3, 0), (2, 3)])
def test_a_state_resumes_at_the_next_batch_with_other_workers(
    make_stream: Callable[[], PatchStream], before: int, after: int
) -> None:
    first = PatchLoader(make_stream(), batch_size=BATCH, epoch_patches=40, num_workers=before)
    assert numbers(itertools.islice(first, 3)) == list(range(12))
    state = json.loads(json.dumps(first.state_dict()))
    assert len(json.dumps(state)) < 10_000
    # The workers had read ahead; that is not what counts.
    first.close()
    second = PatchLoader(make_stream(), batch_size=BATCH, epoch_patches=40, num_workers=after)
    second.load_state_dict(state)
    assert numbers(second) == list(range(12, 40)), "the rest of the epoch"
    assert numbers(second) == list(range(40, 80))
    second.close()


def test_a_state_resumes_with_another_number_of_ranks(make_stream: Callable[[], PatchStream]) -> None:
    parts = [PatchLoader(make_stream(), batch_size=4, rank=rank, world_size=3) for rank in range(3)]
    seen = [numbers(itertools.islice(loader, 2)) for loader in parts]
    assert sorted(itertools.chain(*seen)) == list(range(24))
    states = [loader.state_dict() for loader in parts]
    assert states[0] == states[1] == states[2], "every rank writes the same"
    rest = []
    for rank in range(2):
        loader = PatchLoader(make_stream(), batch_size=6, rank=rank, world_size=2)
        loader.load_state_dict(states[0])
        rest.append(numbers(itertools.islice(loader, 2)))
    assert sorted(itertools.chain(*rest)) == list(range(24, 48))
    assert rest[0] == [*range(24, 30), *range(36, 42)]
    odd = PatchLoader(make_stream(), batch_size=5)
    with pytest.raises(ValueError, match="position 24 is not a multiple of 5 patches"):
        odd.load_state_dict(states[0])


def test_a_finite_stream_is_served_whole_each_time(catalog: Catalog) -> None:
    stream = GridStream(catalog, size_px=96, mpp=1.0)
    total = len(stream)
    for world_size in (1, 2):
        loaders = [PatchLoader(stream, batch_size=4, rank=rank, world_size=world_size) for rank in range(world_size)]
        assert sum(map(len, loaders)) >= total / 4
        for _ in range(2):
            assert sorted(itertools.chain(*map(numbers, loaders))) == list(range(total))
    loader = PatchLoader(stream, batch_size=4, num_workers=2)
    assert numbers(itertools.islice(loader, 2)) == list(range(8))
    state = loader.state_dict()
    assert numbers(loader) == list(range(total)), "a new iteration begins anew"
    loader.load_state_dict(state)
    assert numbers(loader) == list(range(8, total))
    finished = loader.state_dict()
    assert finished["stream"]["position"] == total
    loader.load_state_dict(finished)
    assert numbers(loader) == list(range(total))
    loader.close()


class Recorder(pl.LightningModule):
    """Trains a number on nothing, and keeps which patches it was given."""

    def __init__(self, *, fail_at: int | None = None) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen: list[int] = []
        self.fail_at = fail_at

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> torch.Tensor:
        if self.global_step == self.fail_at:
            raise ConnectionError("the machine goes away")
        self.seen += batch["index"].tolist()
        return (self.weight * batch["image"].float().mean()).sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-9)


def trainer_in(folder: Path, **arguments: Any) -> pl.Trainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    return pl.Trainer(accelerator="cpu", devices=1, default_root_dir=folder, **{**quiet, **arguments})


@pytest.mark.parametrize(("before", "after", "accumulate"), [(2, 0, 1), (0, 3, 2)])
def test_a_lightning_checkpoint_resumes_at_what_was_trained_on(
    make_stream: Callable[[], PatchStream], tmp_path: Path, before: int, after: int, accumulate: int
) -> None:
    keep = ModelCheckpoint(tmp_path, every_n_train_steps=3, save_last=True)
    common: dict[str, Any] = {"max_steps": 9, "accumulate_grad_batches": accumulate}
    broken = Recorder(fail_at=5)
    loader = PatchLoader(make_stream(), batch_size=BATCH, epoch_patches=1000, num_workers=before)
    with pytest.raises(ConnectionError):
        trainer_in(tmp_path, callbacks=[keep], **common).fit(broken, loader)
    loader.close()
    assert broken.seen == list(range(5 * accumulate * BATCH))
    resumed = Recorder()
    loader = PatchLoader(make_stream(), batch_size=BATCH, epoch_patches=1000, num_workers=after)
    trainer_in(tmp_path, callbacks=[keep], **common).fit(
        resumed, loader, ckpt_path=tmp_path / "last.ckpt", weights_only=False
    )
    loader.close()
    assert resumed.seen == list(range(3 * accumulate * BATCH, 9 * accumulate * BATCH))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_limited_and_restarted_epochs_of_a_trainer_repeat_no_patch(
    make_stream: Callable[[], PatchStream], tmp_path: Path, num_workers: int
) -> None:
    loader = PatchLoader(make_stream(), batch_size=BATCH, epoch_patches=24, num_workers=num_workers)
    model = Recorder()
    trainer_in(tmp_path, max_epochs=3, limit_train_batches=4, enable_checkpointing=False).fit(model, loader)
    assert model.seen == list(range(3 * 4 * BATCH))
    trainer_in(tmp_path, max_epochs=2, enable_checkpointing=False).fit(model, loader)
    assert model.seen == list(range(3 * 4 * BATCH + 2 * 24))
    loader.close()


def test_ranks_come_from_the_launcher(make_stream: Callable[[], PatchStream], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    loader = PatchLoader(make_stream(), batch_size=3)
    assert numbers(itertools.islice(loader, 2)) == [3, 4, 5, 9, 10, 11]
    # Also in workers that start afresh.
    dataset = PatchDataset(make_stream(), batch_size=3)
    spawned = DataLoader(dataset, batch_size=None, num_workers=1, multiprocessing_context="spawn")
    assert numbers(itertools.islice(spawned, 2)) == [3, 4, 5, 9, 10, 11]


_RANK = """
import itertools, json, sys, torch
from online_patching import PatchStream
from online_patching.torch import PatchLoader

if __name__ == "__main__":
    rank, rendezvous, catalog = sys.argv[1:]
    torch.distributed.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=int(rank), world_size=2)
    found = []
    for num_workers, method in ((0, None), (2, "fork"), (1, "forkserver")):
        stream = PatchStream(catalog, size_px=32, mpp=1.0, seed=6)
        loader = PatchLoader(stream, batch_size=3, num_workers=num_workers, multiprocessing_context=method)
        found.append([batch["index"].tolist() for batch in itertools.islice(loader, 3)])
        loader.close()
    torch.distributed.destroy_process_group()
    print(json.dumps(found))
"""


def test_ranks_come_from_torch_distributed(catalog_url: str, tmp_path: Path) -> None:
    (tmp_path / "rank.py").write_text(_RANK)
    command = [sys.executable, "-W", "ignore", str(tmp_path / "rank.py")]
    places = [str(tmp_path / "rendezvous"), catalog_url]
    ranks = [subprocess.Popen([*command, str(rank), *places], stdout=subprocess.PIPE, text=True) for rank in range(2)]
    for rank, process in enumerate(ranks):
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0
        own = [list(range(6 * batch + 3 * rank, 6 * batch + 3 * rank + 3)) for batch in range(3)]
        assert json.loads(output.splitlines()[-1]) == [own] * 3


def test_metrics_tell_what_all_workers_did(make_stream: Callable[[], PatchStream]) -> None:
    for num_workers in (0, 2):
        loader = PatchLoader(make_stream(), batch_size=BATCH, num_workers=num_workers)
        numbers(itertools.islice(loader, 10))
        metrics = loader.metrics()
        loader.close()
        assert metrics.patches == 40
        assert 0 < metrics.wait_seconds <= metrics.seconds
        assert 0 < metrics.wait_share <= 1
        assert metrics.patches_per_second == pytest.approx(40 / metrics.seconds)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"batch_size": 0}, "batch_size: got 0"),
        ({"batch_size": 8, "epoch_patches": 7}, r"epoch_patches: got 7, allowed at least one batch \(8\)"),
        ({"batch_size": 8, "rank": 1}, "got rank 1 and world_size None"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(
    make_stream: Callable[[], PatchStream], arguments: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        PatchLoader(make_stream(), **arguments)


def test_states_of_other_formats_and_streams_are_refused(make_stream: Callable[[], PatchStream]) -> None:
    loader = PatchLoader(make_stream(), batch_size=4)
    state = loader.state_dict()
    with pytest.raises(ValueError, match="format_version 99, allowed 1"):
        loader.load_state_dict({**state, "format_version": 99})
    with pytest.raises(ValueError, match="seed 7"):
        loader.load_state_dict({**state, "stream": {**state["stream"], "seed": 7}})
