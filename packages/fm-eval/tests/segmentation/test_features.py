from __future__ import annotations

import dataclasses
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from fm_eval import BackboneError, LoadedBackbone, load_backbone
from fm_eval.segmentation import SegmentationDataset, load_segmentation_dataset
from fm_eval.segmentation.encoder import WindowEncoder
from fm_eval.segmentation.features import (
    FreshBatches,
    StoredBatches,
    Window,
    crop_windows,
    open_tokens,
)
from torch import Tensor

TINY = {"img_size": 32, "patch_size": 8, "depth": 2, "embed_dim": 48, "num_heads": 3}


@pytest.fixture
def dataset(make_folder: Callable[..., Path]) -> SegmentationDataset:
    root = make_folder(count=4, instance=True)
    (root / "index.csv").write_text("image_id,split\ni0,train\ni1,train\ni2,train\ni3,test\n")
    return load_segmentation_dataset(root, labels="instance")


def test_tokens_lie_where_their_pixels_are(tiny_backbone: LoadedBackbone) -> None:
    """The tokens of timm's own forward pass, at the place of the patch; another pixel moves its own token most."""
    encoder = WindowEncoder(tiny_backbone, window_px=32)
    image = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3), dtype=np.uint8)
    tokens = encoder(image)
    assert tokens.shape == (1, 48, 4, 4)
    scaled = (torch.from_numpy(image).permute(0, 3, 1, 2) / 255 - 0.5) / 0.5
    with torch.inference_mode():
        expected = tiny_backbone.model.model.forward_features(scaled)[:, 1:]  # type: ignore[attr-defined]
    torch.testing.assert_close(tokens.flatten(2).transpose(1, 2), expected)
    image[0, 8:16, 24:32] = 0  # row 1, column 3 of the grid
    moved = (encoder(image) - tokens).norm(dim=1)[0]
    assert divmod(int(moved.argmax()), 4) == (1, 3)


def test_positions_are_interpolated_for_windows_of_another_size(tiny_backbone: LoadedBackbone) -> None:
    before = tiny_backbone.model.model.pos_embed.shape  # type: ignore[attr-defined]
    encoder = WindowEncoder(tiny_backbone, window_px=64)
    assert (encoder.embed_dim, encoder.grid) == (48, 8)
    assert tiny_backbone.model.model.pos_embed.shape == before  # type: ignore[attr-defined]
    same = timm.create_model("vit_tiny_patch16_224", num_classes=0, **TINY).eval()
    same.load_state_dict(tiny_backbone.model.model.state_dict())  # type: ignore[attr-defined]
    same.set_input_size(img_size=64)
    image = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), dtype=np.uint8)
    with torch.inference_mode():
        expected = same.forward_features((torch.from_numpy(image).permute(0, 3, 1, 2) / 255 - 0.5) / 0.5)[:, 1:]
    torch.testing.assert_close(encoder(image).flatten(2).transpose(1, 2), expected)


def test_hybrids_of_convolutions_and_attention_have_tokens_too() -> None:
    encoder = WindowEncoder(load_backbone("vit_tiny_r_s16_p8_224", args={"depth": 1}), window_px=224)
    assert (encoder.embed_dim, encoder.grid) == (192, 7)


class _Odd:
    """Gives whatever it is told to."""

    def __init__(self, tokens: Tensor) -> None:
        self.tokens = tokens

    def __call__(self, images_BHWC: Tensor, /) -> Tensor:
        return images_BHWC.float().mean((1, 2))

    def patch_tokens(self, images_BHWC: Tensor) -> Tensor:
        return self.tokens.expand(len(images_BHWC), -1, -1, -1)


def test_backbones_that_give_no_grid_of_tokens_are_refused(tiny_backbone: LoadedBackbone) -> None:
    histogram = load_backbone("fm_eval.ColourHistogram")
    with pytest.raises(BackboneError, match="ColourHistogram gives one embedding an image and no spatial tokens"):
        WindowEncoder(histogram, window_px=224)
    with pytest.raises(BackboneError, match="ResNet has no grid of patch tokens; use a vision transformer"):
        WindowEncoder(load_backbone("resnet10t"), window_px=224)
    with pytest.raises(BackboneError, match=r"patch size 8 does not divide the window of 36 pixels; use window_px=32"):
        WindowEncoder(tiny_backbone, window_px=36)
    uneven = load_backbone("vit_tiny_patch16_224", args={**TINY, "img_size": 224, "patch_size": 15})
    with pytest.raises(BackboneError, match="patch size 15 does not divide the window of 224 pixels"):
        WindowEncoder(uneven, window_px=224)
    for tokens, message in (
        (torch.full((1, 3, 4, 4), torch.nan), "NaN, infinity"),
        (torch.full((1, 3, 4, 4), 1e6), "beyond half precision"),
        (torch.zeros(1, 3, 4, 5), r"gave \(1, 3, 4, 5\)"),
        (torch.zeros(1, 3, 5, 5), "5 tokens a side do not divide the window of 32"),
    ):
        odd = dataclasses.replace(tiny_backbone, model=_Odd(tokens), input_size_px=32)
        with pytest.raises(BackboneError, match=message):
            WindowEncoder(odd, window_px=32)


class _Counting(WindowEncoder):
    """Counts windows, and fails at one if told to."""

    windows = 0
    fails_after: int | None = None

    def __call__(self, images_BSS3: np.ndarray) -> Tensor:
        if self.fails_after is not None and self.windows >= self.fails_after:
            raise KeyboardInterrupt
        self.windows += len(images_BSS3)
        return super().__call__(images_BSS3)


def test_tokens_are_computed_once_and_resumed(
    dataset: SegmentationDataset, tiny_backbone: LoadedBackbone, tmp_path: Path
) -> None:
    windows = crop_windows(dataset.of_split("train"), window_px=32, crops_per_image=30, seed=0)
    encoder = _Counting(tiny_backbone, window_px=32)
    encoder.windows, encoder.fails_after = 0, 70
    with pytest.raises(KeyboardInterrupt):
        open_tokens(tmp_path, windows, dataset, encoder, batch_size=2)
    encoder.fails_after = None
    store = open_tokens(tmp_path, windows, dataset, encoder, batch_size=2)
    assert 90 < encoder.windows < 70 + 90  # the marks lie some batches apart
    encoder.windows = 0
    again = open_tokens(tmp_path, windows, dataset, encoder)
    assert encoder.windows == 0
    fresh = open_tokens(tmp_path / "other", windows, dataset, encoder, batch_size=90)
    for each in (again, fresh):
        torch.testing.assert_close(each.read(range(90)), store.read(range(90)), rtol=0, atol=2e-3)
    # the rows are those windows
    pixels, labels = dataset.read(windows[40].image)
    y, x = windows[40].corner
    tokens, label = store.read([40])
    assert np.array_equal(label[0].numpy(), labels[y : y + 32, x : x + 32])
    torch.testing.assert_close(tokens, encoder(pixels[None, y : y + 32, x : x + 32].copy()), rtol=0, atol=4e-3)


def test_memory_is_bounded_by_a_batch(
    dataset: SegmentationDataset, tiny_backbone: LoadedBackbone, tmp_path: Path
) -> None:
    encoder = WindowEncoder(tiny_backbone, window_px=32)
    peaks = []
    for crops in (20, 200):
        windows = crop_windows(dataset.of_split("train"), window_px=32, crops_per_image=crops, seed=0)
        tracemalloc.start()
        try:
            open_tokens(tmp_path / "tokens", windows, dataset, encoder, batch_size=8)
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    row = 48 * 4 * 4 * 2 + 32 * 32  # bytes of the tokens and labels of a window
    assert peaks[1] < peaks[0] + 3 * 180 * row / 4


def test_another_backbone_never_meets_the_tokens_of_the_first(
    dataset: SegmentationDataset, tiny_backbone: LoadedBackbone, tmp_path: Path
) -> None:
    windows = [Window(dataset.images[0], (0, 0))]
    tokens = tmp_path / "tokens"
    first = open_tokens(tokens, windows, dataset, WindowEncoder(tiny_backbone, window_px=32))
    other = load_backbone("vit_tiny_patch16_224", args=TINY, seed=2)
    second = open_tokens(tokens, windows, dataset, WindowEncoder(other, window_px=32))
    assert not torch.equal(first.read([0])[0], second.read([0])[0])
    provenance = {**tiny_backbone.provenance, "mean": [0.1, 0.1, 0.1]}  # the same weights, other pixels
    renamed = dataclasses.replace(tiny_backbone, provenance=provenance)
    open_tokens(tokens, windows, dataset, WindowEncoder(renamed, window_px=32))
    assert len(list(tokens.iterdir())) == 3


def test_an_epoch_holds_every_window_once_and_each_run_has_its_order(
    dataset: SegmentationDataset, tiny_backbone: LoadedBackbone, tmp_path: Path
) -> None:
    windows = crop_windows(dataset.of_split("train"), window_px=32, crops_per_image=4, seed=0)
    store = open_tokens(tmp_path, windows, dataset, WindowEncoder(tiny_backbone, window_px=32))
    batches = StoredBatches(store, batch_size=8, seed=3)  # 12 windows: the second batch straddles two epochs
    every = torch.cat([batches(0, step)[0] for step in range(3)])
    for epoch in every.split(12):
        rows = [next(r for r in range(12) if torch.equal(store.read([r])[0][0], tokens)) for tokens in epoch]
        assert sorted(rows) == list(range(12))
    assert not torch.equal(batches(0, 0)[0], batches(1, 0)[0])
    assert torch.equal(StoredBatches(store, batch_size=8, seed=3)(1, 2)[0], batches(1, 2)[0])


def test_fresh_crops_depend_on_seed_run_and_step_alone(
    dataset: SegmentationDataset, tiny_backbone: LoadedBackbone
) -> None:
    encoder = WindowEncoder(tiny_backbone, window_px=64)  # higher than the images, which are mirrored
    make = [FreshBatches(dataset.of_split("train"), dataset, encoder, batch_size=3, seed=1) for _ in range(2)]
    tokens, labels = make[0](0, 5)
    assert (tokens.shape, labels.shape) == ((3, 48, 8, 8), (3, 64, 64))
    assert torch.equal(make[1](0, 5)[1], labels)
    assert not torch.equal(make[1](0, 6)[1], labels)
    assert not torch.equal(make[1](1, 5)[1], labels)
