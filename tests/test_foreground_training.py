"""The drawn views that the foreground network learns from, and a training that can be repeated."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from foreground_images import pseudo_labelled
from foreground_marks import pen
from foreground_net import ForegroundNet
from foreground_scene import INK_WEIGHT, MAGNIFIED_MPP, SQUARE_PX, THUMBNAIL_MPP, Scene, Texture, scene
from online_patching.tissue_glass import COMMON_GLASS
from train_foreground import CUT_PX, THRESHOLDS, VIEW_PX, Settings, augmented, train, validate
from written_slides import tissue_image


@pytest.fixture(scope="module")
def textures() -> list[Texture]:
    rng = np.random.default_rng(0)
    dyes = [rng.integers(30, 90, (2, SQUARE_PX, SQUARE_PX)).astype(np.uint16) for _ in range(3)]
    return [Texture("stroma", mpp, h << 8 | e) for mpp in (*MAGNIFIED_MPP, *THUMBNAIL_MPP) for h, e in dyes]


def test_a_view_is_a_function_of_its_seed(textures: list[Texture]) -> None:
    first, again, other = (scene(np.random.default_rng(seed), textures, size_px=96) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first.image, again.image)
    np.testing.assert_array_equal(first.tissue, again.tissue)
    assert (first.image != other.image).any()


def test_views_hold_all_shares_of_tissue_and_masks_that_fit(textures: list[Texture]) -> None:
    rng = np.random.default_rng(1)
    views = [scene(rng, textures, size_px=96) for _ in range(150)]
    shares = np.array([view.tissue.mean() for view in views])
    assert (shares == 0).mean() > 0.1
    assert (shares > 0.99).mean() > 0.05
    assert ((shares > 0.1) & (shares < 0.9)).mean() > 0.2
    darker = []
    for view in views:
        assert view.image.shape == (96, 96, 3)
        assert view.image.dtype == view.tissue.dtype == view.certain.dtype == np.uint8
        assert set(np.unique(view.tissue)) <= {0, 1}
        assert set(np.unique(view.certain)) <= {0, 1, INK_WEIGHT}
        if 0.1 < view.tissue.mean() < 0.9 and not (view.certain == INK_WEIGHT).any():
            green = view.image[..., 1].astype(float)
            # The median: parts that were not scanned pull the mean of the glass down.
            darker.append(np.median(green[view.tissue > 0]) < np.median(green[view.tissue == 0]))
    assert np.mean(darker) > 0.75, "tissue absorbs green"


def test_ink_darkens_where_it_covers() -> None:
    light = np.full((128, 128, 3), 240, np.float32)
    coverage = pen(light, np.random.default_rng(5), coarse=False)
    assert coverage.max() > 0.5
    assert light[coverage > 0.5].min(axis=-1).mean() < 200
    assert np.abs(light[coverage == 0] - 240).max() < 1e-3


def test_training_is_repeatable_and_learns(textures: list[Texture]) -> None:
    settings = Settings(steps=6, batch=2, fresh=1, pool=4, seed=7)
    first, again = train(settings, textures), train(settings, textures)
    for a, b in zip(first.state_dict().values(), again.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)
    untrained = ForegroundNet().state_dict()["head.weight"]
    assert not torch.equal(first.state_dict()["head.weight"], untrained)


def test_thresholds_are_scored_on_drawn_views(textures: list[Texture]) -> None:
    scores = validate(ForegroundNet().eval(), textures, seed=0, views=4)
    assert len(scores) == len(THRESHOLDS)
    assert all(0 <= score <= 1 for score in scores)


def test_a_view_keeps_its_labels_when_cut_turned_and_lit(textures: list[Texture]) -> None:
    rng = np.random.default_rng(2)
    half = np.zeros((VIEW_PX, VIEW_PX), np.uint8)
    half[:, : VIEW_PX // 2] = 1
    image = np.where(half[..., None] > 0, np.array([200, 120, 170], np.uint8), np.array([230, 222, 214], np.uint8))
    for _ in range(20):
        cut = augmented(Scene(image, half, np.ones_like(half)), rng)
        assert cut.image.shape == (CUT_PX, CUT_PX, 3)
        assert cut.image[cut.tissue > 0][:, 1].max() < cut.image[cut.tissue == 0][:, 1].min()
        assert np.abs(cut.image[cut.tissue == 0].mean(axis=0) - COMMON_GLASS).max() < 20


def test_the_network_is_small_and_keeps_the_size() -> None:
    net = ForegroundNet().eval()
    assert sum(p.numel() for p in net.parameters()) <= 400_000
    with torch.no_grad():
        assert net(torch.zeros(1, 3, 64, 96)).shape == (1, 1, 64, 96)


def test_real_thumbnails_are_labelled_where_two_rules_agree(tmp_path: Path) -> None:
    image = tissue_image(300, 200, 1)
    cv2.imwrite(str(tmp_path / "a.png"), image[..., ::-1])
    views = pseudo_labelled(tmp_path, size_px=96, rng=np.random.default_rng(0))
    assert {view.image.shape for view in views} == {(96, 96, 3)}
    sure = np.concatenate([view.image[(view.tissue > 0) & (view.certain > 0)] for view in views]).astype(int)
    assert len(sure) > 1000
    assert (sure[:, 0] - sure[:, 1]).mean() > 4
    (tmp_path / "a.png").unlink()
    with pytest.raises(ValueError, match="no images; put thumbnails"):
        pseudo_labelled(tmp_path, size_px=96, rng=np.random.default_rng(0))
