from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from fm_eval import BackboneError, ColourHistogram, EmbedSettings, embed_images, load_backbone
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


def _tiny() -> torch.nn.Module:
    torch.manual_seed(3)
    model: torch.nn.Module = timm.create_model("vit_tiny_patch16_224", num_classes=0, **TINY)
    return model.eval()


def test_a_dino_training_checkpoint_gives_its_teacher(tmp_path: Path) -> None:
    model, student = _tiny(), timm.create_model("vit_tiny_patch16_224", num_classes=0, **TINY)
    teacher = {f"backbone.{key}": value for key, value in model.state_dict().items()}
    teacher["head.mlp.0.weight"] = torch.zeros(2, 48)
    content = {
        "student": {f"module.backbone.{key}": value for key, value in student.state_dict().items()},
        "teacher": teacher,
        "args": argparse.Namespace(arch="vit_tiny", lr=np.float64(0.1)),
        "epoch": 100,
    }
    torch.save(content, tmp_path / "checkpoint.pth")
    loaded = load_backbone("vit_tiny_patch16_224", args=TINY, weights=tmp_path / "checkpoint.pth")
    with torch.inference_mode():
        expected = model((_IMAGES / 255 - 0.5).permute(0, 3, 1, 2) / 0.5)
        torch.testing.assert_close(loaded.model(_IMAGES), expected)
    assert loaded.provenance["weights_notes"] == [
        "took 'teacher' of the file",
        "left out 1 tensors of the projection head",
    ]


def test_meta_dinov2_names_with_registers(tmp_path: Path) -> None:
    """The conversion against timm's own, on random weights of Meta's names."""
    from timm.models.vision_transformer import checkpoint_filter_fn

    name, args = "vit_small_patch14_reg4_dinov2", {"img_size": 28, "depth": 1}
    model = timm.create_model(name, num_classes=0, **args).eval()
    state = model.state_dict()
    state = {key: torch.randn_like(value) for key, value in state.items()}
    state["register_tokens"] = state.pop("reg_token")
    state["mask_token"] = torch.zeros(1, 384)
    state["pos_embed"] = torch.randn(1, 5, 384)  # with the class token's
    torch.save(state, tmp_path / "dinov2.pth")
    loaded = load_backbone(name, args=args, weights=tmp_path / "dinov2.pth")
    model.load_state_dict(checkpoint_filter_fn(dict(state), model))
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    images = _IMAGES[:, :28, :28]
    with torch.inference_mode():
        expected = model(((images / 255 - mean) / std).permute(0, 3, 1, 2))
        torch.testing.assert_close(loaded.model(images), expected)
    assert "mask_token left out" in loaded.provenance["weights_notes"][0]


def test_another_input_size_is_asked_for(make_checkpoint: Callable[..., Path]) -> None:
    folder = str(make_checkpoint())
    larger = load_backbone(folder, input_size_px=48)
    assert (larger.input_size_px, larger.embed_dim) == (48, 48)
    assert larger.provenance["weights_notes"] == ["position embedding resampled from 17 to 37 tokens"]
    assert larger.identity != load_backbone(folder).identity
    with pytest.raises(BackboneError, match="input_size_px 0, at least 1"):
        load_backbone(folder, input_size_px=0)
    with pytest.raises(BackboneError, match=r"failed on one image of 64 x 64 .*check its input size"):
        load_backbone(str(make_checkpoint(folder="other", input_size_px=64)))


def test_identity_is_what_decides_the_embeddings(make_checkpoint: Callable[..., Path]) -> None:
    one = load_backbone(str(make_checkpoint()))
    same = load_backbone(str(make_checkpoint(folder="moved", step=400)))
    assert one.identity == same.identity
    others = [
        load_backbone(str(make_checkpoint(folder="std", std=[0.5, 0.5, 0.5]))),
        load_backbone(
            str(make_checkpoint(folder="heads", architecture_kwargs=TINY | {"num_heads": 4, "num_classes": 0}))
        ),
        load_backbone(str(make_checkpoint(folder="pooled")), pooling="mean"),
        load_backbone(str(make_checkpoint(folder="drawn")), random_weights=True),
    ]
    assert len({one.identity, *(other.identity for other in others)}) == 5
    bins = [load_backbone("fm_eval.ColourHistogram", args={"bins": n}).identity for n in (4, 8)]
    assert bins[0] != bins[1]


@pytest.mark.parametrize("classes", [0, 5])
def test_a_hugging_face_folder_of_a_timm_model(tmp_path: Path, classes: int) -> None:
    torch.manual_seed(3)
    model = timm.create_model("vit_tiny_patch16_224", num_classes=classes, **TINY).eval()
    safetensors.torch.save_file(model.state_dict(), tmp_path / "model.safetensors")
    config = {
        "architecture": "vit_tiny_patch16_224",
        "num_classes": classes,
        "num_features": 48,
        "model_args": TINY,
        "pretrained_cfg": {"input_size": [3, 32, 32], "mean": [0.7, 0.5, 0.7], "std": [0.2, 0.3, 0.2]},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    loaded = load_backbone(str(tmp_path))
    assert (loaded.input_size_px, loaded.embed_dim) == (32, 48)
    pixels = (_IMAGES / 255 - torch.tensor([0.7, 0.5, 0.7])) / torch.tensor([0.2, 0.3, 0.2])
    with torch.inference_mode():
        tokens = model.forward_features(pixels.permute(0, 3, 1, 2))
        torch.testing.assert_close(loaded.model(_IMAGES), tokens[:, 0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architecture": None}, "neither a timm architecture nor a model_type"),
        ({"pretrained_cfg": {"mean": [0.5, 0.5, 0.5]}}, r"'pretrained_cfg\.std' is None"),
        ({"pretrained_cfg": {"input_size": [3, 32, 64]}}, "'input_size' is .3, 32, 64., expected .3, S, S."),
        ({}, r"neither model\.safetensors nor pytorch_model\.bin"),
    ],
)
def test_a_hugging_face_folder_that_says_too_little(tmp_path: Path, change: dict[str, object], message: str) -> None:
    if change:
        safetensors.torch.save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "vit_tiny_patch16_224", **change}))
    with pytest.raises(BackboneError, match=message):
        load_backbone(str(tmp_path))


def _transformers_state(model: torch.nn.Module, kind: str) -> dict[str, Tensor]:
    """A timm ViT's state dict under the names that the transformers library gives a `vit` or a `dinov2`."""
    inner = {
        "vit": ("layernorm_before", "layernorm_after", "intermediate.dense", "output.dense"),
        "dinov2": ("norm1", "norm2", "mlp.fc1", "mlp.fc2"),
    }[kind]
    state: dict[str, Tensor] = {}
    for key, value in model.state_dict().items():
        block, _, rest = key.removeprefix("blocks.").partition(".")
        layer = f"encoder.layer.{block}."
        if rest.startswith("attn.qkv."):
            for name, part in zip(("query", "key", "value"), value.chunk(3), strict=True):
                state[f"{layer}attention.attention.{name}.{rest.split('.')[-1]}"] = part.clone()
            continue
        names = dict(zip(("norm1", "norm2", "mlp.fc1", "mlp.fc2"), inner, strict=True))
        names |= {"attn.proj": "attention.output.dense", "ls1": "layer_scale1", "ls2": "layer_scale2"}
        old, _, last = rest.rpartition(".")
        other = {"pos_embed": "position_embeddings", "cls_token": "cls_token"}
        if key in other:
            state[f"embeddings.{other[key]}"] = value
        elif key.startswith("patch_embed.proj."):
            state[key.replace("patch_embed.proj", "embeddings.patch_embeddings.projection")] = value
        elif key.startswith("norm."):
            state[f"layer{key}"] = value
        else:
            state[layer + names[old] + "." + last.replace("gamma", "lambda1")] = value
    return state


def _write_transformers_folder(folder: Path, kind: str, **changes: object) -> torch.nn.Module:
    torch.manual_seed(3)
    init_values = None if kind == "vit" else 1.0
    model: torch.nn.Module = timm.create_model("vit_tiny_patch16_224", num_classes=0, init_values=init_values, **TINY)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    unused = {"pooler.dense.weight": torch.zeros(48, 48)} if kind == "vit" else {}
    safetensors.torch.save_file(_transformers_state(model, kind) | unused, folder / "model.safetensors")
    config = {"model_type": kind, "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3}
    config |= {"image_size": 32, "patch_size": 8, "intermediate_size": 192, "mlp_ratio": 4, "layer_norm_eps": 1e-6}
    (folder / "config.json").write_text(json.dumps(config | changes))
    (folder / "preprocessor_config.json").write_text(
        json.dumps({"image_mean": [0.7, 0.5, 0.7], "image_std": [0.2, 0.3, 0.2], "size": {"height": 32, "width": 32}})
    )
    return model.eval()


@pytest.mark.parametrize("kind", ["vit", "dinov2"])
def test_a_hugging_face_folder_of_a_transformers_model(tmp_path: Path, kind: str) -> None:
    model = _write_transformers_folder(tmp_path, kind)
    loaded = load_backbone(str(tmp_path))
    assert (loaded.input_size_px, loaded.embed_dim) == (32, 48)
    pixels = (_IMAGES / 255 - torch.tensor([0.7, 0.5, 0.7])) / torch.tensor([0.2, 0.3, 0.2])
    with torch.inference_mode():
        torch.testing.assert_close(loaded.model(_IMAGES), model(pixels.permute(0, 3, 1, 2)))
    notes = loaded.provenance.get("weights_notes")
    assert notes == (["left out pooler.dense.weight"] if kind == "vit" else None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "swin"}, "of type 'swin', only vit and dinov2"),
        ({"use_swiglu_ffn": True}, "a dinov2 with SwiGLU"),
        ({"hidden_size": "48"}, "'hidden_size' is '48', expected a positive int"),
        ({"num_hidden_layers": 3}, r"do not fit the architecture: 12 keys missing \(first blocks\.2\."),
    ],
)
def test_a_transformers_model_that_is_not_known(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    _write_transformers_folder(tmp_path, "vit", **changes)
    with pytest.raises(BackboneError, match=message):
        load_backbone(str(tmp_path))


_HUBCONF = """
dependencies = ["torch"]
import torch

class Mean(torch.nn.Module):
    def __init__(self, features):
        super().__init__()
        self.linear = torch.nn.Linear(3, features)
    def forward(self, pixels):
        return self.linear(pixels.mean(dim=(2, 3)))

def means(features=4):
    return Mean(features)

def words():
    return "no model"
"""


def test_a_torch_hub_folder(tmp_path: Path) -> None:
    (tmp_path / "hubconf.py").write_text(_HUBCONF)
    args = {"entry": "means", "features": 6, "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
    loaded = load_backbone(str(tmp_path), args=args, input_size_px=32)
    assert (loaded.embed_dim, loaded.input_size_px) == (6, 32)
    flipped = loaded.model(_IMAGES.flip(1))
    torch.testing.assert_close(loaded.model(_IMAGES), flipped)
    assert loaded.identity == load_backbone(str(tmp_path), args=args, input_size_px=32).identity
    for wrong, message in (
        ({}, "say which entry"),
        ({"entry": "means"}, "does not know its mean and std"),
        ({"entry": "words"}, "returned str, expected a torch model"),
        ({"entry": "gone"}, "entry 'gone' cannot be built"),
    ):
        with pytest.raises(BackboneError, match=message):
            load_backbone(str(tmp_path), args=wrong)


# timm 0.9.16's pre-trained vit-small (the paper's appendix C): input size, normalised with 0.5 or ImageNet's values
_VIT_SMALL = {
    "vit_small_patch14_dinov2.lvd142m": (518, "imagenet"),
    "vit_small_patch14_reg4_dinov2.lvd142m": (518, "imagenet"),
    "vit_small_patch16_224.augreg_in1k": (224, "half"),
    "vit_small_patch16_224.augreg_in21k": (224, "half"),
    "vit_small_patch16_224.augreg_in21k_ft_in1k": (224, "half"),
    "vit_small_patch16_224.dino": (224, "imagenet"),
    "vit_small_patch16_384.augreg_in1k": (384, "half"),
    "vit_small_patch16_384.augreg_in21k_ft_in1k": (384, "half"),
    "vit_small_patch32_224.augreg_in21k": (224, "half"),
    "vit_small_patch32_224.augreg_in21k_ft_in1k": (224, "half"),
    "vit_small_patch32_384.augreg_in21k_ft_in1k": (384, "half"),
    "vit_small_patch8_224.dino": (224, "imagenet"),
    "vit_small_r26_s32_224.augreg_in21k": (224, "half"),
    "vit_small_r26_s32_224.augreg_in21k_ft_in1k": (224, "half"),
    "vit_small_r26_s32_384.augreg_in21k_ft_in1k": (384, "half"),
    "vit_relpos_small_patch16_224.sw_in1k": (224, "half"),
    "vit_srelpos_small_patch16_224.sw_in1k": (224, "half"),
}


@pytest.mark.parametrize("name", _VIT_SMALL)
def test_the_vit_small_of_the_paper_resolve(name: str) -> None:
    size, normalised = _VIT_SMALL[name]
    loaded = load_backbone(name, args={"depth": 1})  # names and input configs do not depend on the depth
    assert (loaded.input_size_px, loaded.embed_dim) == (size, 384)
    mean = {"half": [0.5] * 3, "imagenet": [0.485, 0.456, 0.406]}[normalised]
    assert loaded.recipe["mean"] == pytest.approx(mean)
    assert loaded.recipe["pooling"] == ("mean" if "relpos" in name else "cls")
    assert loaded.provenance["weights"] == "random"


class _Broken(ColourHistogram):
    def __call__(self, images_BHWC: Tensor, /) -> Tensor:
        return super().__call__(images_BHWC) * torch.nan


def test_embeddings_keep_the_order_and_do_not_depend_on_the_batch(make_dataset: Callable[..., Path]) -> None:
    paths = sorted(make_dataset().parent.glob("*.png"))
    backbone = load_backbone("fm_eval.ColourHistogram", args={"bins": 4, "input_size_px": 32})
    whole = embed_images(paths, backbone)
    assert whole.shape == (48, 64)
    assert whole.dtype == np.float32
    assert np.array_equal(whole, embed_images(paths, backbone, EmbedSettings(batch_size=5, threads=3)))
    assert np.array_equal(whole[::-1], embed_images(paths[::-1], backbone))
    broken = dataclasses.replace(backbone, model=_Broken(bins=4, input_size_px=32))
    with pytest.raises(BackboneError, match=r"embedding of image .*c0_g0_0\.png holds NaN"):
        embed_images(paths, broken)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_is_near(
    make_dataset: Callable[..., Path], make_checkpoint: Callable[..., Path], precision: Any
) -> None:
    paths = sorted(make_dataset().parent.glob("*.png"))[:4]
    backbone = load_backbone(str(make_checkpoint()))
    whole = embed_images(paths, backbone)
    half = embed_images(paths, backbone, EmbedSettings(precision=precision))
    assert half.dtype == np.float32
    assert not np.array_equal(whole, half)
    assert np.abs(whole - half).max() < 0.03 * np.abs(whole).max()


@pytest.mark.parametrize(("setting", "value"), [("batch_size", 0), ("threads", 0), ("precision", "fp8")])
def test_settings_that_cannot_be_are_refused(setting: str, value: object) -> None:
    with pytest.raises(BackboneError, match=f"{setting}="):
        EmbedSettings(**{setting: value})  # type: ignore[arg-type]
