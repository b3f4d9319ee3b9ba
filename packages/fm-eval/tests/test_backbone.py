from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from fm_eval import BackboneError, ColourHistogram, embed_images, load_backbone
from torch import Tensor

TINY = {"img_size": 32, "patch_size": 8, "depth": 2, "embed_dim": 48, "num_heads": 3}
_IMAGES = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8))


def test_a_checkpoint_folder_is_the_timm_model_it_describes(make_checkpoint: Callable[..., Path]) -> None:
    folder = make_checkpoint()
    loaded = load_backbone(str(folder))
    model = timm.create_model("vit_tiny_patch16_224", num_classes=0, **TINY).eval()
    model.load_state_dict(safetensors.torch.load_file(folder / "backbone.safetensors"))
    pixels = (_IMAGES / 255 - torch.tensor([0.5, 0.4, 0.3])) / torch.tensor([0.2, 0.3, 0.4])
    with torch.inference_mode():
        expected = model(pixels.permute(0, 3, 1, 2))
        torch.testing.assert_close(loaded.model(_IMAGES), expected)
        tokens = model.forward_features(pixels.permute(0, 3, 1, 2))
        both = load_backbone(str(folder), pooling="cls+mean").model(_IMAGES)
    torch.testing.assert_close(both, torch.cat([tokens[:, 0], tokens[:, 1:].mean(dim=1)], dim=1))
    assert loaded.input_size_px == 32
    assert loaded.weights_sha256 == json.loads((folder / "backbone.json").read_text())["sha256"]
    assert (loaded.provenance["weights"], loaded.provenance["step"]) == ("checkpoint", 300)


def test_the_untrained_twin_differs_and_says_so(make_checkpoint: Callable[..., Path]) -> None:
    folder = str(make_checkpoint())
    trained, twin = load_backbone(folder), load_backbone(folder, random_weights=True, seed=1)
    assert (twin.provenance["weights"], twin.provenance["seed"]) == ("random", 1)
    assert "step" not in twin.provenance
    assert twin.weights_sha256 != trained.weights_sha256
    assert twin.weights_sha256 == load_backbone(folder, random_weights=True, seed=1).weights_sha256
    assert twin.weights_sha256 != load_backbone(folder, random_weights=True, seed=2).weights_sha256


def test_random_weights_depend_on_the_seed_alone() -> None:
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = load_backbone("vit_tiny_patch16_224", args=TINY, seed=5)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    second = load_backbone("vit_tiny_patch16_224", args=TINY, seed=5)
    assert first.weights_sha256 == second.weights_sha256
    assert first.provenance["weights"] == "random"


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_local_weights_of_a_timm_name(tmp_path: Path, suffix: str) -> None:
    model = timm.create_model("vit_tiny_patch16_224", num_classes=0, **TINY)
    path = tmp_path / f"weights{suffix}"
    save = safetensors.torch.save_file if suffix == ".safetensors" else torch.save
    save(model.state_dict(), path)
    loaded = load_backbone("vit_tiny_patch16_224", args=TINY, weights=path)
    pixels = (_IMAGES / 255 - 0.5) / 0.5
    with torch.inference_mode():
        torch.testing.assert_close(loaded.model(_IMAGES), model.eval()(pixels.permute(0, 3, 1, 2)))


def test_a_pickle_that_runs_code_is_refused(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (open, (str(tmp_path / "sprung"),))

    torch.save({"weight": Trap()}, tmp_path / "trap.pth")
    with pytest.raises(BackboneError, match=r"trap\.pth: not a safetensors or plain torch state dict"):
        load_backbone("vit_tiny_patch16_224", args=TINY, weights=tmp_path / "trap.pth")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"format_version": 2}, "format_version 2 is newer than 1"),
        ({"sha256": "0" * 64}, "damaged or mixed"),
        ({"architecture": "vit_unheard_of"}, "knows no architecture 'vit_unheard_of'"),
        ({"architecture_kwargs": {"shoes": 2}}, "cannot be built with"),
        ({"architecture_kwargs": {**TINY, "depth": 3}}, r"12 keys missing \(first blocks\.2\."),
        ({"architecture_kwargs": {**TINY, "depth": 1}}, r"12 unexpected \(first blocks\.1\."),
        ({"architecture_kwargs": {**TINY, "img_size": 64}}, "another shape .first pos_embed"),
        ({"embed_dim": 49}, "says embed_dim 49, model has 48"),
        ({"embed_dim": "48"}, "'embed_dim' is '48', expected int"),
        ({"input_size_px": 0}, "expected at least 1"),
        ({"mean": [0.5]}, "'mean' is .0.5., expected 3 numbers"),
        ({"std": [0.5, 0.5, 0.0]}, "std above 0"),
    ],
)
def test_a_folder_that_breaks_the_contract_is_refused(
    make_checkpoint: Callable[..., Path], fields: dict[str, object], message: str
) -> None:
    with pytest.raises(BackboneError, match=message) as caught:
        load_backbone(str(make_checkpoint(**fields)))
    assert "\n" not in str(caught.value)


def test_a_half_written_folder_is_refused(make_checkpoint: Callable[..., Path]) -> None:
    folder = make_checkpoint()
    (folder / "backbone.json").rename(folder / "later")
    with pytest.raises(BackboneError, match=r"no backbone\.json, so the export is not finished"):
        load_backbone(str(folder))
    (folder / "backbone.json").write_text("{", encoding="utf-8")
    with pytest.raises(BackboneError, match="not readable JSON"):
        load_backbone(str(folder))
    (folder / "later").replace(folder / "backbone.json")
    (folder / "backbone.safetensors").unlink()
    with pytest.raises(BackboneError, match=r"no backbone\.safetensors"):
        load_backbone(str(folder))


def test_names_that_mean_nothing_are_refused() -> None:
    with pytest.raises(BackboneError, match="no such folder, timm"):
        load_backbone("vit_unheard_of")
    with pytest.raises(BackboneError, match="importable class"):
        load_backbone("fm_eval.Nothing")
    with pytest.raises(BackboneError, match="cannot be built with"):
        load_backbone("fm_eval.ColourHistogram", args={"shoes": 2})
    with pytest.raises(BackboneError, match="has none; use pooling mean"):
        load_backbone("resnet18", pooling="cls")


def test_colour_histogram_is_numpys() -> None:
    loaded = load_backbone("fm_eval.ColourHistogram", args={"bins": 4, "input_size_px": 32})
    for image, row in zip(_IMAGES.numpy(), loaded.model(_IMAGES).numpy(), strict=True):
        counts, _ = np.histogramdd(image.reshape(-1, 3), bins=[np.arange(0, 257, 64)] * 3)
        np.testing.assert_allclose(row, np.sqrt(counts.ravel() / 1024), rtol=1e-6)


class _Broken(ColourHistogram):
    def __call__(self, images_BHWC: Tensor, /) -> Tensor:
        return super().__call__(images_BHWC) * torch.nan


def test_embeddings_keep_the_order_and_do_not_depend_on_the_batch(make_dataset: Callable[..., Path]) -> None:
    paths = sorted(make_dataset().parent.glob("*.png"))
    backbone = load_backbone("fm_eval.ColourHistogram", args={"bins": 4, "input_size_px": 32})
    whole = embed_images(paths, backbone, batch_size=64)
    assert whole.shape == (48, 64)
    assert whole.dtype == np.float32
    assert np.array_equal(whole, embed_images(paths, backbone, batch_size=5, threads=3))
    assert np.array_equal(whole[::-1], embed_images(paths[::-1], backbone))
    broken = dataclasses.replace(backbone, model=_Broken(bins=4, input_size_px=32))
    with pytest.raises(BackboneError, match="image 0 holds NaN"):
        embed_images(paths, broken)
