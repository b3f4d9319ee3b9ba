from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from ssl_train import DINOv2, export_folder
from ssl_train.convert import convert
from ssl_train.convert import run as run_convert
from ssl_train.meta_dinov2 import backbone_alone, beside_backbone, from_reference, is_dinov2, to_reference
from ssl_train.weights import read_weights
from torch import Tensor

GATED = {"architecture": "vit_giant_patch14_dinov2"}


def network_state(**changes: Any) -> dict[str, Tensor]:
    from small_dinov2 import PATCH_HEAD, small_dinov2

    network = small_dinov2(ibot_head=PATCH_HEAD, **changes).teacher
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter)
    return dict(network.state_dict())


def assert_same_network(got: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Bit for bit, but that the class token of one may hold the position that the other has apart."""
    for part in (backbone_alone, beside_backbone):
        ours, theirs = part(got), part(expected)
        assert ours.keys() == theirs.keys()
        for name, tensor in theirs.items():
            assert torch.equal(ours[name], tensor), name


@pytest.mark.parametrize("changes", [{}, GATED], ids=["registers", "gated"])
def test_there_and_back(changes: dict[str, Any]) -> None:
    state = network_state(**changes)
    meta = to_reference(state)
    assert is_dinov2({"teacher": meta})
    back = from_reference(meta)
    assert back.keys() == state.keys()
    for name, tensor in state.items():
        assert torch.equal(back[name], tensor), name
    if changes:
        assert "backbone.blocks.0.mlp.w12.weight" in meta
    else:
        assert torch.equal(meta["backbone.pos_embed"][:, :1], state["cls_position"])
        assert meta["backbone.register_tokens"].shape == (1, 4, 24)


def test_blocks_in_chunks_are_numbered_through() -> None:
    meta = to_reference(network_state())
    chunked = {
        name.replace("blocks.1.", "blocks.1.1.").replace("blocks.0.", "blocks.0.0."): t for name, t in meta.items()
    }
    assert from_reference(chunked).keys() == from_reference(meta).keys()


def test_files_of_dino_are_not_taken_for_dinov2() -> None:
    assert not is_dinov2({"teacher": {"backbone.cls_token": 0, "head.mlp.0.weight": 0}, "student": {}})
    assert not is_dinov2({"cls_token": 0, "pos_embed": 0})


def test_convert_keeps_mask_token_and_heads(tmp_path: Path) -> None:
    """Teacher file -> checkpoint folder -> teacher file and backbone file."""
    sizes = ["--architecture", "vit_small_patch14_reg4_dinov2", "--architecture_kwargs"]
    sizes.append('{"img_size": 32, "patch_size": 8, "depth": 2, "embed_dim": 24, "num_heads": 2}')
    meta = to_reference(network_state())
    torch.save({"teacher": meta}, tmp_path / "teacher.pth")

    def run(source: str, to: str, output: str) -> None:
        run_convert(["--source", str(tmp_path / source), "--to", to, "--output", str(tmp_path / output), *sizes])

    run("teacher.pth", "folder", "folder")
    run("folder", "meta_dinov2_teacher", "again.pth")
    again = torch.load(tmp_path / "again.pth", weights_only=True)["teacher"]
    assert again.keys() == meta.keys()
    assert_same_network(from_reference(again), from_reference(meta))
    run("folder", "meta_dinov2", "backbone.pth")
    backbone = torch.load(tmp_path / "backbone.pth", weights_only=True)
    assert {f"backbone.{name}" for name in backbone} == {name for name in meta if name.startswith("backbone.")}
    assert read_weights(str(tmp_path / "backbone.pth")).description["method"] == "dinov2"


def test_heads_that_are_not_there_and_files_that_are_not_whole_are_told(tmp_path: Path) -> None:
    from small_dinov2 import small_dinov2

    export_folder(small_dinov2(), tmp_path / "folder", step=0)
    with pytest.raises(ValueError, match="no heads of DINOv2 inside"):
        convert(source=str(tmp_path / "folder"), output=str(tmp_path / "out"), to="meta_dinov2_teacher")
    torch.save({"mask_token": torch.zeros(1, 8), "cls_token": torch.zeros(1, 1, 8)}, tmp_path / "part.pth")
    with pytest.raises(ValueError, match=r"part\.pth: no backbone of DINOv2: pos_embed missing"):
        read_weights(str(tmp_path / "part.pth"))


def test_a_teacher_file_starts_a_run_with_its_heads(tmp_path: Path) -> None:
    from small_dinov2 import PATCH_HEAD, small_dinov2

    state = network_state()
    torch.save({"teacher": to_reference(state)}, tmp_path / "teacher.pth")
    model: DINOv2 = small_dinov2(ibot_head=PATCH_HEAD, init_weights=str(tmp_path / "teacher.pth"))
    for network in (model.student, model.teacher):
        assert_same_network(network.state_dict(), state)
    with pytest.raises(ValueError, match=r"the heads do not fit: unknown ibot_head.*init_heads: false"):
        small_dinov2(init_weights=str(tmp_path / "teacher.pth"))
    fresh: DINOv2 = small_dinov2(init_weights=str(tmp_path / "teacher.pth"), init_heads=False)
    assert torch.equal(fresh.student.mask_token, state["mask_token"])
    assert not torch.equal(fresh.student.dino_head.mlp[0].weight, state["dino_head.mlp.0.weight"])
