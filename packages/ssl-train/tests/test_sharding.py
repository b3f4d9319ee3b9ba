"""Two processes with everything sharded against one that works through both shards itself."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
import torch.multiprocessing as mp
from ssl_train import DINOv2, PatchData, StepCheckpoint, export_folder
from ssl_train.checkpoint import load_training_checkpoint
from ssl_train.dinov2_network import NetworkOutput
from ssl_train.sharding import FullySharded, check_agreement
from torch import Tensor
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.tensor import DTensor

BATCH = 8
Result = dict[str, Any]
Run = Callable[..., list[Result]]
# Every device sees the same batch, so that one equals two: no term within a device, no drop path.
SAME_EVERYWHERE = {"koleo_weight": 0.0, "centering": "sinkhorn_knopp"}


class Recorder(pl.Callback):
    def __init__(self) -> None:
        self.losses: list[Tensor] = []
        self.sharded: bool | None = None

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.losses.append(outputs["loss"].detach().clone())
        parameters = [*pl_module.student.parameters(), *pl_module.teacher.parameters()]
        self.sharded = all(isinstance(p, DTensor) for p in parameters)


def _train(rank: int, world_size: int, port: int, folder: Path, options: dict[str, Any]) -> None:
    from small_dinov2 import small_dinov2
    from synthetic_stream import SyntheticStream

    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), GROUP_RANK="0", WORLD_SIZE=str(world_size))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), TORCHELASTIC_RUN_ID="test")
    model, recorder = small_dinov2(**options["model"]), Recorder()
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=world_size,
        strategy=options.get("strategy") or FullySharded(param_dtype=options.get("param_dtype", "float32")),
        max_steps=options["steps"],
        max_epochs=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        callbacks=[recorder, StepCheckpoint(every_n_steps=100, keep_every_n_steps=2)],
    )
    data = PatchData(stream=SyntheticStream(), batch_size=options.get("batch_size", BATCH // world_size))
    trainer.fit(model, data, ckpt_path=options.get("ckpt_path"), weights_only=False)
    export_folder(model, folder / "export", step=trainer.global_step)
    whole = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    result = {"losses": torch.stack(recorder.losses), "sharded": recorder.sharded, "state": whole}
    torch.save(result, folder / f"rank{rank}.pt")


@pytest.fixture
def run_sharded(tmp_path: Path) -> Run:
    """Trains on so many processes; returns what each of them saw."""

    def run(world_size: int, name: str = "run", **options: Any) -> list[Result]:
        folder = tmp_path / name
        folder.mkdir()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        arguments = (world_size, port, folder, {"steps": 4, "model": {}, **options})
        mp.start_processes(_train, args=arguments, nprocs=world_size, start_method="fork")
        return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(world_size)]

    return run


@pytest.fixture
def _one_thread() -> Iterator[None]:
    """As in the processes: embeddings of a young network are so close that rounding decides who is whose neighbour."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class TwoShards(DINOv2):
    """What two devices do, one after the other in one process."""

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        n = len(batch["image"]) // 2
        shards = [(rank, 2) for rank in range(2)]
        parts = zip(batch["image"].split(n), batch["index"].split(n), strict=True)
        views = [self.crops(images, indices, seed=self.seed) for images, indices in parts]
        masks = [self.shard_masks(n, 0, shard) for shard in shards]
        kept = [self.shard_kept(n, 0, shard) for shard in shards]
        with torch.no_grad():
            teachers = [
                self.teacher(global_, local[:0], masked_M=m.index)
                for (global_, local), m in zip(views, masks, strict=True)
            ]
        joint = NetworkOutput(
            cls=torch.cat([t.cls for t in teachers], dim=1),
            global_logits=torch.cat([t.global_logits for t in teachers], dim=1),
            local_logits=torch.cat([t.local_logits for t in teachers], dim=1),
            masked_logits=torch.cat([t.masked_logits for t in teachers]),
        )
        targets = self.loss.targets(joint, teacher_temp=self._rates().teacher_temp)
        totals = []
        cls_parts = targets.cls.split(n, dim=1)
        masked_parts = targets.masked.split([len(m.index) for m in masks])
        for rank, (global_, local) in enumerate(views):
            student = self.student(
                global_, local, masked_M=masks[rank].index, mask_CN=masks[rank].mask, kept=kept[rank]
            )
            own = targets._replace(cls=cls_parts[rank], masked=masked_parts[rank])
            totals.append(self.loss(student, own, masks[rank]).total)
        self.loss.cls_centering.observe(joint.global_logits)
        for teacher in teachers:
            # The centre of patches is the mean of the devices' means.
            self.loss.patch_centering.observe(teacher.masked_logits.mean(0, keepdim=True))
        return torch.stack(totals).mean()


def assert_same_weights(got: dict[str, Tensor], expected: dict[str, Tensor], *, atol: float) -> None:
    assert got.keys() == expected.keys()
    for name, tensor in expected.items():
        difference = (got[name] - tensor).abs()
        if name.endswith("qkv.bias"):
            # Adam makes steps of the rounding noise of a gradient that is zero.
            difference[24:48] = 0
        assert difference.max() <= atol, name


@pytest.mark.usefixtures("_one_thread")
@pytest.mark.parametrize(("strategy", "centering"), [(None, "softmax"), (None, "sinkhorn_knopp"), ("ddp", "softmax")])
def test_two_processes_equal_one_that_emulates_two_shards(
    strategy: str | None,
    centering: str,
    run_sharded: Run,
    make_data: Callable[..., PatchData],
    make_trainer: Callable[..., pl.Trainer],
) -> None:
    """With KoLeo, which is local to a device, stochastic depth and separate heads."""
    from small_dinov2 import PATCH_HEAD, small_dinov2

    settings = {"centering": centering, "drop_path_rate": 0.3, "ibot_head": PATCH_HEAD, "clip_grad": 0.1}
    # Adam turns rounding noise of small gradients into a share of the learning rate.
    settings |= {"base_learning_rate": 0.01}
    ranks = run_sharded(2, model=settings, strategy=strategy)
    assert all(rank["sharded"] == (strategy is None) for rank in ranks)
    emulated, recorder = small_dinov2(TwoShards, **settings), Recorder()
    make_trainer(max_steps=4, callbacks=[recorder]).fit(emulated, make_data(batch_size=BATCH))
    losses = torch.stack([rank["losses"] for rank in ranks]).mean(0)
    torch.testing.assert_close(losses, torch.stack(recorder.losses), rtol=0, atol=1e-5)
    for rank in ranks:
        if rank["state"]:
            assert_same_weights(rank["state"], emulated.state_dict(), atol=1e-5)
    assert ranks[0]["state"]
    start = small_dinov2(**settings).state_dict()
    moved = (
        start["student.backbone.blocks.0.mlp.fc1.weight"] - emulated.student.backbone.blocks[0].mlp.fc1.weight
    ).abs()
    assert moved.max() > 1e-4


@pytest.mark.parametrize(("first", "second"), [(2, 1), (1, 2)])
def test_a_sharded_checkpoint_resumes_on_another_number_of_processes(
    first: int, second: int, run_sharded: Run, tmp_path: Path
) -> None:
    whole = run_sharded(first, "whole", model=SAME_EVERYWHERE)[0]
    checkpoint = tmp_path / "whole" / "checkpoints" / "step-00000002.ckpt"
    assert len(list(checkpoint.glob("*.distcp"))) == first
    resumed = run_sharded(second, "resumed", model=SAME_EVERYWHERE, ckpt_path=checkpoint)[0]
    assert len(resumed["losses"]) == 2
    assert_same_weights(resumed["state"], whole["state"], atol=1e-5)


def test_the_export_of_a_sharded_checkpoint_is_that_of_one_process(run_sharded: Run, tmp_path: Path) -> None:
    from safetensors.torch import load_file
    from small_dinov2 import small_dinov2

    for world in (2, 1):
        run_sharded(world, f"on{world}", model=SAME_EVERYWHERE)
    exported = []
    for name in ("on2", "on1"):
        model = small_dinov2(**SAME_EVERYWHERE, seed=3)
        assert load_training_checkpoint(model, tmp_path / name / "checkpoints" / "last.ckpt") == 4
        folder = export_folder(model, tmp_path / f"{name}_export", step=4)
        exported.append(load_file(folder / "backbone.safetensors"))
        # What the processes gathered themselves at the end of the run.
        within = load_file(tmp_path / name / "export" / "backbone.safetensors")
        assert_same_weights(within, exported[-1], atol=0.0)
    assert_same_weights(exported[0], exported[1], atol=1e-5)


def test_bfloat16_parameters_keep_shards_of_float32(run_sharded: Run) -> None:
    # Without KoLeo: young embeddings are so close that bfloat16 decides who is whose neighbour.
    ranks = run_sharded(2, param_dtype="bfloat16", steps=2, model=SAME_EVERYWHERE)
    assert all(tensor.dtype == torch.float32 for tensor in ranks[0]["state"].values())
    assert all(tensor.isfinite().all() for tensor in ranks[0]["state"].values())
    exact = run_sharded(2, "exact", steps=2, model=SAME_EVERYWHERE)
    for got, expected in zip(ranks, exact, strict=True):
        torch.testing.assert_close(got["losses"], expected["losses"], rtol=0.05, atol=0)


def test_damaged_and_foreign_folders_are_told(run_sharded: Run, tmp_path: Path) -> None:
    from small_dinov2 import PATCH_HEAD, small_dinov2

    run_sharded(2, steps=2)
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    with pytest.raises(ValueError, match=r"does not fit the model.*ibot_head"):
        load_training_checkpoint(small_dinov2(ibot_head=PATCH_HEAD), last)
    broken = tmp_path / "broken.ckpt"
    shutil.copytree(last, broken)
    (broken / "__1_0.distcp").unlink()
    with pytest.raises(ValueError, match=r"__1_0\.distcp"):
        load_training_checkpoint(small_dinov2(), broken)
    with pytest.raises(mp.ProcessRaisedException, match=r"ValueError: checkpoint .*__1_0\.distcp"):
        run_sharded(1, "again", steps=3, ckpt_path=broken)
    (broken / ".metadata").unlink()
    with pytest.raises(ValueError, match="not a whole sharded checkpoint"):
        load_training_checkpoint(small_dinov2(), broken)


def test_a_sharded_checkpoint_needs_the_strategy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    import yaml
    from ssl_train import cli

    config = {
        "model": {"class_path": "ssl_train.DINOv2", "init_args": {"architecture": "vit_tiny_patch16_224"}},
        "data": {"batch_size": 1, "stream": {"class_path": "synthetic_stream.SyntheticStream"}},
        "trainer": {"max_steps": 1, "accelerator": "cpu", "strategy": "auto"},
    }
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(config))
    (tmp_path / "last.ckpt").mkdir()
    command = ["ssl-train", "fit", "--config", str(tmp_path / "x.yaml"), "--ckpt_path", str(tmp_path / "last.ckpt")]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(ValueError, match=r"last\.ckpt: sharded, but trainer\.strategy is auto; take ssl_train"):
        cli.run()


def _disagree(rank: int, store: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    check_agreement({"seed": "0"})
    check_agreement({"seed": "0", "layer_decay": str(0.9 + rank / 10)})


def test_ranks_that_disagree_are_told_what_about(tmp_path: Path) -> None:
    with pytest.raises(mp.ProcessRaisedException, match=r"disagree on layer_decay: rank 0 has 0\.9, rank 1 has 1\.0"):
        mp.start_processes(_disagree, args=(str(tmp_path / "store"),), nprocs=2, start_method="fork")
    check_agreement({"alone": "nothing to compare"})
