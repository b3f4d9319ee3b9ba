"""Weights go from any format into any other, and the forward pass stays the same."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file
from ssl_train import DINO, cli, export_folder
from ssl_train.backbone import create_backbone, embed_cls
from ssl_train.convert import convert
from ssl_train.weights import read_weights
from torch import Tensor

Make = Callable[..., Any]
SIZES = {"img_size": 32, "patch_size": 8, "depth": 2, "embed_dim": 24, "num_heads": 2}
TINY = {"architecture": "vit_tiny_patch16_224", "architecture_kwargs": SIZES}


@pytest.fixture
def model(make_dino: Make) -> DINO:
    """Student and teacher that differ."""
    built: DINO = make_dino().eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in built.teacher.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
        built.loss.center.normal_()
    return built


@pytest.fixture
def run_checkpoint(model: DINO, tmp_path: Path) -> str:
    """The part of a training checkpoint that conversion reads."""
    path = tmp_path / "last.ckpt"
    torch.save({"state_dict": model.state_dict(), "global_step": 7, "epoch": 0}, path)
    return str(path)


def assert_same(got: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert got.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(got[name], tensor), name


def rebuild(folder: Path) -> torch.nn.Module:
    described = json.loads((folder / "backbone.json").read_text())
    built = timm.create_model(described["architecture"], pretrained=False, **described["architecture_kwargs"])
    built.load_state_dict(load_file(folder / "backbone.safetensors"))
    return built.eval()


def test_a_round_trip_through_all_formats_changes_no_bit(model: DINO, run_checkpoint: str, tmp_path: Path) -> None:
    full = convert(source=run_checkpoint, to="meta_full", output=str(tmp_path / "full.pth"), **TINY)
    found = read_weights(str(full))
    assert found.origin == "meta"
    assert found.student is not None
    for network, weights in ((model.student, found.student), (model.teacher, found.teacher)):
        assert_same(weights.backbone, network.backbone.state_dict())
        assert_same(weights.head, network.head.state_dict())
    assert torch.equal(found.center, model.loss.center)  # type: ignore[arg-type]

    folder = convert(source=str(full), output=str(tmp_path / "folder"), **TINY)
    assert_same(load_file(folder / "head.safetensors"), model.teacher.head.state_dict())
    described = json.loads((folder / "backbone.json").read_text())
    assert described["method"] == "dino"
    assert described["mean"] == [0.485, 0.456, 0.406]
    # From here on the folder says which architecture it is.
    meta = convert(source=str(folder), to="meta", output=str(tmp_path / "backbone.pth"))
    assert_same(torch.load(meta, weights_only=True), model.teacher.backbone.state_dict())
    flat = convert(source=str(meta), to="timm", output=str(tmp_path / "flat.safetensors"), **TINY)
    again = convert(source=str(flat), output=str(tmp_path / "again"), **TINY, mean=(0.5,) * 3, std=(0.25,) * 3)
    with pytest.warns(UserWarning, match="ImageNet's mean and std"):
        convert(source=str(flat), output=str(tmp_path / "unsaid"), **TINY)
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(rebuild(again)(images), rebuild(folder)(images))
    torch.testing.assert_close(rebuild(folder)(images), model(images))
    assert json.loads((again / "backbone.json").read_text())["std"] == [0.25] * 3
    assert sorted(path.name for path in again.iterdir()) == ["backbone.json", "backbone.safetensors"]

    back = convert(source=str(folder), to="meta_full", output=str(tmp_path / "back.pth"))
    assert_same(read_weights(str(back)).teacher.head, model.teacher.head.state_dict())


def test_the_student_can_be_taken_instead(model: DINO, run_checkpoint: str, tmp_path: Path) -> None:
    flat = convert(source=run_checkpoint, to="timm", network="student", output=str(tmp_path / "s.safetensors"), **TINY)
    assert_same(load_file(flat), model.student.backbone.state_dict())


@pytest.mark.parametrize("interpolation", ["dino", "timm"])
def test_another_input_size_embeds_as_the_original_does_there(interpolation: Any, model: DINO, tmp_path: Path) -> None:
    source = export_folder(model, tmp_path / "source", step=3, mpp=[0.5])
    larger = convert(
        source=str(source),
        output=str(tmp_path / "larger"),
        architecture_kwargs={"img_size": 56},
        position_interpolation=interpolation,
    )
    described = json.loads((larger / "backbone.json").read_text())
    kept = {name: described[name] for name in ("input_size_px", "mean", "mpp", "method", "step")}
    assert kept == {"input_size_px": 56, "mean": [0.5] * 3, "mpp": [0.5], "method": "dino", "step": 3}
    images = torch.randn(2, 3, 56, 56)
    expected = embed_cls(model.teacher.backbone, images, position_interpolation=interpolation)
    torch.testing.assert_close(rebuild(larger)(images), expected)


def test_a_kernel_of_another_patch_size_gives_the_tokens_of_resized_patches(model: DINO, tmp_path: Path) -> None:
    """Patches of 16 px that are patches of 8 px enlarged: the same tokens."""
    source = export_folder(model, tmp_path / "source", step=0)
    coarser = convert(
        source=str(source),
        output=str(tmp_path / "coarser"),
        architecture_kwargs={"patch_size": 16, "img_size": 64},
    )
    patch = torch.randn(5, 3, 8, 8)
    enlarged = torch.nn.functional.interpolate(patch, size=(16, 16), mode="bicubic", antialias=True)
    before = model.teacher.backbone.patch_embed.proj(patch)
    after = rebuild(coarser).patch_embed.proj(enlarged)  # type: ignore[operator, union-attr]
    torch.testing.assert_close(after, before, rtol=1e-3, atol=1e-4)
    assert json.loads((coarser / "backbone.json").read_text())["patch_size"] == 16


def test_positions_keep_their_place_on_a_finer_grid() -> None:
    """With an offset of 0 and twice the grid, the middle of four new positions is the old one, but for overshoot."""
    from ssl_train.backbone import load_backbone

    coarse = create_backbone("vit_tiny_patch16_224", img_size=32, patch_size=8, depth=1, embed_dim=6, num_heads=1)
    ramp = torch.arange(4.0).repeat(4, 1)
    state = {name: tensor.clone() for name, tensor in coarse.state_dict().items()}
    state["pos_embed"][0, 1:, 0] = ramp.flatten()
    fine = create_backbone("vit_tiny_patch16_224", img_size=32, patch_size=4, depth=1, embed_dim=6, num_heads=1)
    load_backbone(fine, state, source="x", position_interpolation="timm")
    grid = fine.pos_embed[0, 1:, 0].reshape(8, 8)
    assert torch.equal(fine.pos_embed[:, :1], coarse.pos_embed[:, :1])
    torch.testing.assert_close(grid[:, 2:6], torch.tensor([0.75, 1.25, 1.75, 2.25]).repeat(8, 1), rtol=0, atol=0.1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"to": "folder", **TINY}, "does not say how its images were normalised"),
        ({"to": "timm"}, "no well-known architecture"),
        ({"to": "meta_full", "output": "full.safetensors", **TINY}, r"name it \.pth"),
        (
            {"to": "timm", "architecture": "vit_tiny_patch16_224", "architecture_kwargs": {**SIZES, "depth": 3}},
            r"missing blocks\.2\.norm1\.weight.*nearest architecture is vit_tiny_patch16_224",
        ),
        ({"to": "meta", **TINY, "architecture_kwargs": {**SIZES, "img_size": [32, 48]}}, "grid of 4 x 6"),
    ],
)
def test_what_cannot_be_converted_is_refused(
    arguments: dict[str, Any], message: str, run_checkpoint: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        convert(**{"source": run_checkpoint, "output": str(tmp_path / "out"), **arguments})
    assert not (tmp_path / "out").exists()


def test_metas_format_takes_only_what_its_code_can_build(tmp_path: Path) -> None:
    kwargs = {**SIZES, "reg_tokens": 2, "no_embed_class": True, "init_values": 1e-5}
    torch.save(create_backbone("vit_tiny_patch16_224", **kwargs).state_dict(), tmp_path / "x.pth")
    arguments: Any = {"source": str(tmp_path / "x.pth"), "architecture": "vit_tiny_patch16_224"}
    with pytest.raises(ValueError, match=r"no such vision transformer \(reg_token, blocks\.0\.ls1\.gamma"):
        convert(**arguments, architecture_kwargs=kwargs, to="meta", output=str(tmp_path / "out"))
    with pytest.raises(ValueError, match="no head inside"):
        convert(**arguments, architecture_kwargs=kwargs, to="meta_full", output=str(tmp_path / "out"))


def test_the_command(
    run_checkpoint: str,
    model: DINO,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def command(*arguments: str) -> None:
        monkeypatch.setattr(sys, "argv", ["ssl-train", "convert", *arguments])
        cli.main()

    monkeypatch.setattr(sys, "argv", ["ssl-train", "--help"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 0
    assert "ssl-train convert --help" in " ".join(capsys.readouterr().out.split())

    output = tmp_path / "deep" / "teacher.safetensors"
    sizes = ["--architecture", "vit_tiny_patch16_224", "--architecture_kwargs", json.dumps(SIZES)]
    command("--source", run_checkpoint, "--to", "timm", "--output", str(output), *sizes)
    assert capsys.readouterr().out == f"wrote {output}\n"
    assert_same(load_file(output), model.teacher.backbone.state_dict())
    for arguments, message in (
        (["--source", "nowhere.pth", "--output", str(output)], "ssl-train: weights nowhere.pth: no such file"),
        (["--source", run_checkpoint, "--to", "zip", "--output", str(output)], "zip"),
        (["--source", run_checkpoint], "output"),
    ):
        with pytest.raises(SystemExit) as stop:
            command(*arguments)
        assert stop.value.code == 1
        lines = capsys.readouterr().err.strip().splitlines()
        assert len(lines) == 1
        assert message in lines[0]
