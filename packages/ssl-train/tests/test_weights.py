"""What is read from folders, files and names; what is refused."""

from __future__ import annotations

import argparse
import json
import os
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from ssl_train import DINO, StepCheckpoint, export_folder
from ssl_train.architectures import infer_architecture, misfit, nearest_architecture, sizes_of
from ssl_train.weights import read_weights

Make = Callable[..., Any]


def tiny_state(**changes: Any) -> dict[str, torch.Tensor]:
    kwargs = {"img_size": 32, "patch_size": 8, "depth": 2, "embed_dim": 24, "num_heads": 2, "num_classes": 0}
    return dict(timm.create_model("vit_tiny_patch16_224", **{**kwargs, **changes}).state_dict())


def meta_checkpoint(model: DINO) -> dict[str, Any]:
    """The structure of main_dino.py, save_dict, with what torch refuses by default."""
    rate = np.float64(5e-4)
    return {
        "student": OrderedDict((f"module.{k}", v) for k, v in model.student.state_dict().items()),
        "teacher": model.teacher.state_dict(),
        "optimizer": {"param_groups": [{"lr": rate, "weight_decay": rate, "betas": (0.9, 0.999)}], "state": {}},
        "epoch": 3,
        "args": argparse.Namespace(arch="vit_tiny", lr=5e-4, local_crops_scale=(0.05, 0.4)),
        "dino_loss": OrderedDict(center=torch.full((1, 32), 0.5)),
    }


def test_metas_full_checkpoint_holds_both_networks(make_dino: Make, tmp_path: Path) -> None:
    model = make_dino()
    with torch.no_grad():
        model.teacher.backbone.cls_token.normal_()
    path = tmp_path / "dino_full_checkpoint.pth"
    torch.save(meta_checkpoint(model), path)
    with pytest.raises(Exception, match=r"multiarray\.scalar was not an allowed global"):
        torch.load(path, weights_only=True)
    found = read_weights(str(path))
    assert found.origin == "meta"
    assert found.student is not None
    assert torch.equal(found.teacher.backbone["cls_token"], model.teacher.backbone.cls_token)
    assert torch.equal(found.student.backbone["cls_token"], model.student.backbone.cls_token)
    assert found.teacher.head.keys() == model.teacher.head.state_dict().keys()
    assert torch.equal(found.center, torch.full((1, 32), 0.5))  # type: ignore[arg-type]


def test_scalars_of_numpy_1_have_another_name(tmp_path: Path) -> None:
    """Files of old carry `numpy.core.multiarray.scalar`."""
    path = tmp_path / "old.pth"
    # Without compression the pickle stands in the file as it is, and the zip's check sum goes with it.
    content = {"teacher": tiny_state(), "optimizer": {"lr": np.float64(0.25)}}
    torch.save(content, path, _use_new_zipfile_serialization=False)
    written = path.read_bytes()
    assert b"cnumpy._core.multiarray\nscalar\n" in written
    path.write_bytes(written.replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n"))
    assert read_weights(str(path)).teacher.backbone.keys() == tiny_state().keys()


def test_flat_files_of_either_kind_hold_a_backbone_without_classifier(tmp_path: Path) -> None:
    state = tiny_state(num_classes=5)
    torch.save(state, tmp_path / "a.pth")
    torch.save({"state_dict": {f"module.{name}": t for name, t in state.items()}}, tmp_path / "b.pth")
    save_file(state, tmp_path / "c.safetensors")
    for name in ("a.pth", "b.pth", "c.safetensors"):
        found = read_weights(str(tmp_path / name))
        assert found.origin == "file"
        assert found.student is None
        assert not found.teacher.head
        assert found.teacher.backbone.keys() == state.keys() - {"head.weight", "head.bias"}


def test_training_checkpoints_hold_both_networks(
    make_dino: Make, make_data: Make, make_trainer: Make, tmp_path: Path
) -> None:
    model = make_dino(warmup_epochs=0)
    trainer = make_trainer(max_steps=2, callbacks=[StepCheckpoint()], enable_checkpointing=True)
    trainer.fit(model, make_data())
    found = read_weights(str(tmp_path / "checkpoints" / "last.ckpt"))
    assert found.origin == "run"
    assert found.student is not None
    for network, weights in ((model.student, found.student), (model.teacher, found.teacher)):
        for part in ("backbone", "head"):
            state = getattr(network, part).state_dict()
            assert all(torch.equal(getattr(weights, part)[name], tensor) for name, tensor in state.items())
    assert torch.equal(found.center, model.loss.center)  # type: ignore[arg-type]


def test_a_timm_name_is_looked_up_where_timm_keeps_its_downloads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cache laid out as the hub's client does, and no network."""
    name = "vit_tiny_patch16_224.augreg_in21k_ft_in1k"
    state = timm.create_model(name).state_dict()
    snapshot = tmp_path / "hub" / f"models--timm--{name}" / "snapshots" / ("0" * 40)
    (snapshot.parents[1] / "refs").mkdir(parents=True)
    (snapshot.parents[1] / "refs" / "main").write_text("0" * 40)
    snapshot.mkdir(parents=True)
    save_file(state, snapshot / "model.safetensors")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    found = read_weights(name)
    assert torch.equal(found.teacher.backbone["cls_token"], state["cls_token"])
    assert found.description == {"architecture": "vit_tiny_patch16_224", "mean": [0.5] * 3, "std": [0.5] * 3}
    with pytest.raises(ValueError, match="give the path of a downloaded file"):
        read_weights("vit_small_patch16_224.dino")


class Bomb:
    def __reduce__(self) -> Any:
        return os.mkdir, ("exploded",)


class Reader:
    def __reduce__(self) -> Any:
        return eval, ("1 + 1",)


@pytest.mark.parametrize(("content", "named"), [(Bomb(), "mkdir"), (Reader(), "eval")])
@pytest.mark.parametrize("zipped", [True, False])
def test_pickles_that_run_code_are_refused(
    content: Any, named: str, zipped: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"teacher": {"x": content}}, "evil.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=rf"evil\.pth: refused, for its pickle asks for \S*{named}"):
        read_weights("evil.pth")
    assert not Path("exploded").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds list, expected a dictionary of tensors"),
        ({"epoch": 3, "lr": 0.1}, "expected a state dict, that is names and tensors, got epoch, lr"),
        ({"teacher": {}}, "got nothing"),
    ],
)
def test_other_content_is_refused(content: Any, message: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(ValueError, match=message):
        read_weights(str(tmp_path / "x.pth"))


def test_damaged_files_are_refused(make_dino: Make, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such file or folder and no timm model"):
        read_weights("nowhere.pth")
    torch.save(tiny_state(), tmp_path / "cut.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "cut.pth").read_bytes()[:5000])
    (tmp_path / "cut.safetensors").write_bytes(b"\x10" * 50)
    for name in ("cut.pth", "cut.safetensors"):
        with pytest.raises(ValueError, match="not a whole safetensors or torch file"):
            read_weights(str(tmp_path / name))
    folder = export_folder(make_dino(), tmp_path / "folder", step=0)
    weights = folder / "backbone.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    with pytest.raises(ValueError, match=r"not the file that backbone\.json names"):
        read_weights(str(folder))
    weights.unlink()
    with pytest.raises(ValueError, match=r"no backbone\.safetensors"):
        read_weights(str(folder))
    (folder / "backbone.json").write_text(json.dumps(["format_version"]))
    with pytest.raises(ValueError, match="damaged"):
        read_weights(str(folder))


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("vit_small_patch16_224", {}),
        ("vit_base_patch8_224", {}),
        ("vit_small_patch8_224", {"img_size": 256}),
        ("vit_tiny_patch16_224", {"patch_size": 32, "img_size": 96}),
        ("vit_small_patch14_reg4_dinov2", {}),
        ("vit_base_patch14_dinov2", {"img_size": 224}),
    ],
)
def test_well_known_architectures_are_told_by_their_tensors(name: str, kwargs: dict[str, Any]) -> None:
    with torch.device("meta"):
        state = timm.create_model(name, num_classes=0, **kwargs).state_dict()
    assert infer_architecture(state, source="x") == (name, kwargs)


def test_of_other_sizes_the_nearest_is_named() -> None:
    state = tiny_state()
    sizes = sizes_of(state)
    assert sizes is not None
    assert nearest_architecture(sizes) == "vit_tiny_patch16_224"
    with pytest.raises(ValueError, match=r"embed_dim 24, depth 2, patch size 8.*: vit_tiny_patch16_224.*num_heads"):
        infer_architecture(state, source="x")
    with pytest.raises(ValueError, match="not the state dict of a vision transformer; it holds conv1"):
        infer_architecture({"conv1.weight": torch.zeros(1)}, source="x")


def test_a_misfit_lists_keys_shapes_and_the_nearest_architecture() -> None:
    with torch.device("meta"):
        small = timm.create_model("vit_small_patch16_224", num_classes=0).state_dict()
        base = timm.create_model("vit_base_patch16_224", num_classes=0).state_dict()
    assert misfit(small, small) is None
    wrong = misfit({**small, "extra": torch.zeros(1)}, base)
    assert wrong is not None
    assert "unknown extra" in wrong
    assert "cls_token (1, 1, 384) instead of (1, 1, 768)" in wrong
    assert "and 144 more" in wrong
    assert "the nearest architecture is vit_small_patch16_224" in wrong
    del small["norm.weight"]
    assert (misfit(small, base) or "").startswith("missing norm.weight; other shapes")
