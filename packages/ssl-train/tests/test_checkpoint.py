from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
import timm
import torch
from safetensors.torch import load_file
from ssl_train import DINO, PatchData, export_folder
from ssl_train.checkpoint import load_training_checkpoint, save_training_checkpoint

Make = Callable[..., DINO]


def rebuild(folder: Path) -> torch.nn.Module:
    """What a consumer of the folder does, with nothing of this package."""
    described = json.loads((folder / "backbone.json").read_text())
    model = timm.create_model(described["architecture"], pretrained=False, **described["architecture_kwargs"])
    model.load_state_dict(load_file(folder / "backbone.safetensors"), strict=True)
    return model.eval()


def test_the_folder_rebuilds_the_teacher(make_dino: Make, tmp_path: Path) -> None:
    model = make_dino(drop_path_rate=0.3, position_interpolation="timm").eval()
    with torch.no_grad():
        model.teacher.backbone.cls_token.normal_()
    folder = export_folder(model, tmp_path / "out", step=7, mpp=[0.5, 1.0])
    images = torch.randn(2, 3, 48, 48)
    with torch.no_grad():
        torch.testing.assert_close(rebuild(folder)(images), model(images))


def test_the_description_is_whole(make_dino: Make, tmp_path: Path) -> None:
    folder = export_folder(make_dino(input_size_px=48), tmp_path, step=7, mpp=[0.5])
    described = json.loads((folder / "backbone.json").read_text())
    digest = hashlib.sha256((folder / "backbone.safetensors").read_bytes()).hexdigest()
    expected = {
        "format_version": 1,
        "architecture": "vit_tiny_patch16_224",
        "embed_dim": 24,
        "patch_size": 8,
        "input_size_px": 48,
        "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5],
        "mpp": [0.5],
        "method": "dino",
        "step": 7,
        "sha256": digest,
    }
    assert {name: described[name] for name in expected} == expected
    assert "drop_path_rate" not in described["architecture_kwargs"]
    assert set(described) - set(expected) == {"architecture_kwargs", "versions", "git_commit"}
    assert sorted(path.name for path in folder.iterdir()) == ["backbone.json", "backbone.safetensors"]


def test_an_export_initialises_another_run(make_dino: Make, tmp_path: Path) -> None:
    source = make_dino(seed=1)
    folder = export_folder(source, tmp_path, step=0)
    for path in (folder, folder / "backbone.safetensors"):
        target = make_dino(seed=2, init_weights=str(path))
        for name, tensor in target.teacher.backbone.state_dict().items():
            assert torch.equal(tensor, source.teacher.backbone.state_dict()[name])


@pytest.mark.parametrize(
    ("change", "message"),
    [({"format_version": 2}, "format_version 2"), (None, "no backbone.json")],
)
def test_folders_of_the_future_or_half_written_are_refused(
    change: dict[str, int] | None, message: str, make_dino: Make, tmp_path: Path
) -> None:
    folder = export_folder(make_dino(), tmp_path, step=0)
    described = json.loads((folder / "backbone.json").read_text())
    if change is None:
        (folder / "backbone.json").unlink()
    else:
        (folder / "backbone.json").write_text(json.dumps({**described, **change}))
    with pytest.raises(ValueError, match=message):
        make_dino(init_weights=str(folder))


def test_a_run_does_not_resume_from_another_models_checkpoint(
    make_dino: Make, make_data: Callable[..., PatchData], make_trainer: Callable[..., pl.Trainer], tmp_path: Path
) -> None:
    path = tmp_path / "last.ckpt"
    trainer = make_trainer(max_steps=1)
    trainer.fit(make_dino(warmup_epochs=0), make_data())
    save_training_checkpoint(trainer, path)
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]
    with pytest.raises(ValueError, match=r"other shapes: .*head\.last_layer\.weight_g \(32, 1\) instead of \(48, 1\)"):
        make_trainer(max_steps=1).fit(make_dino(out_dim=48), make_data(), ckpt_path=path, weights_only=True)


def test_a_sharded_checkpoint_takes_the_place_of_the_former(tmp_path: Path) -> None:
    """A folder of shards, as a sharded strategy writes it."""

    def shards(path: Path, *, weights_only: bool) -> None:
        path.mkdir()
        (path / f"shard{len(list(tmp_path.iterdir()))}").touch()

    trainer: Any = SimpleNamespace(is_global_zero=True, save_checkpoint=shards)
    for name in ("shard1", "shard2"):
        save_training_checkpoint(trainer, tmp_path / "last.ckpt")
        assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]
        assert [path.name for path in (tmp_path / "last.ckpt").iterdir()] == [name]


def test_weights_of_another_model_are_refused(make_dino: Make, tmp_path: Path) -> None:
    torch.save({"state_dict": {"x": torch.zeros(1)}, "global_step": 3}, tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match="does not fit the model"):
        load_training_checkpoint(make_dino(), tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match="no such file"):
        load_training_checkpoint(make_dino(), tmp_path / "absent.ckpt")
