from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file
from ssl_train import DINO, export_folder
from ssl_train.checkpoint import load_training_checkpoint

Make = Callable[..., DINO]


def rebuild(folder: Path) -> torch.nn.Module:
    """What a consumer of the folder does, with nothing of this package."""
    described = json.loads((folder / "backbone.json").read_text())
    model = timm.create_model(described["architecture"], pretrained=False, **described["architecture_kwargs"])
    model.load_state_dict(load_file(folder / "backbone.safetensors"), strict=True)
    return model.eval()


def test_the_folder_rebuilds_the_teacher(make_dino: Make, tmp_path: Path) -> None:
    model = make_dino(drop_path_rate=0.3).eval()
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


def test_weights_of_another_model_are_refused(make_dino: Make, tmp_path: Path) -> None:
    torch.save({"state_dict": {"x": torch.zeros(1)}, "global_step": 3}, tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match="does not fit the model"):
        load_training_checkpoint(make_dino(), tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match="no such file"):
        load_training_checkpoint(make_dino(), tmp_path / "absent.ckpt")
