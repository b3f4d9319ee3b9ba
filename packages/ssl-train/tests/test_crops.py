from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as tvf
from PIL import Image, ImageFilter, ImageOps
from ssl_train import MultiCrop, colour
from ssl_train.crops import ColourSettings, CropParameters, ViewSettings, draw, recolour, resize_crops
from ssl_train.resample import BOX_PASSES, blur_matrix, box_blur_matrix
from torch import Tensor

GREY_COLOURS = ColourSettings(brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1, jitter_p=0.8, grey_p=0.2)
VIEWS = [
    ViewSettings(scale=(0.4, 1.0), blur_p=1.0, solarise_p=0.0),
    ViewSettings(scale=(0.4, 1.0), blur_p=0.1, solarise_p=0.2),
    ViewSettings(scale=(0.05, 0.4), blur_p=0.5, solarise_p=0.0),
]


def drawn(indices: list[int], *, seed: int = 0, dihedral: bool = False) -> CropParameters:
    return draw(indices, seed=seed, patch_size_px=(60, 48), views=VIEWS, colours=GREY_COLOURS, dihedral=dihedral)


def plain(**changes: object) -> CropParameters:
    """One crop of the whole 60 x 48 patch with nothing done to it."""
    values: dict[str, object] = {
        "top": [0],
        "left": [0],
        "height": [60],
        "width": [48],
        "flip_x": [False],
        "flip_y": [False],
        "transpose": [False],
        "jitters": [False],
        "jitter_order": [[0, 1, 2, 3]],
        "jitter": [[1.0, 1.0, 1.0, 0.0]],
        "greys": [False],
        "blurs": [False],
        "blur_radius": [1.0],
        "solarises": [False],
    }
    return CropParameters(**{name: np.array(value) for name, value in {**values, **changes}.items()})  # type: ignore[arg-type]


def smooth_patch(seed: int = 0, height: int = 60, width: int = 48) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (height // 4, width // 4, 3), dtype=np.uint8)
    return np.array(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def as_float(image: np.ndarray | Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float()


@pytest.mark.parametrize("size", [16, 37, 80])
@pytest.mark.parametrize("box", [(0, 0, 60, 48), (7, 11, 30, 31), (20, 3, 5, 40)])
def test_crop_and_resize_equals_pillow(size: int, box: tuple[int, int, int, int]) -> None:
    top, left, height, width = box
    # Within 48..207 nothing overshoots 0..255: there the order of Pillow's passes, which is its own, shows.
    patch = np.random.default_rng(3).integers(48, 208, (60, 48, 3), dtype=np.uint8)
    got = resize_crops(
        torch.from_numpy(patch)[None].float(),
        plain(top=[top], left=[left], height=[height], width=[width]),
        size,
    )
    pillow = Image.fromarray(patch).crop((left, top, left + width, top + height))
    expected = as_float(pillow.resize((size, size), Image.Resampling.BICUBIC))
    # Pillow rounds to 8 bits after each pass: half a level, of which the second pass, whose absolute weights
    # sum to at most 1.25, makes 0.625, and half a level again.
    assert (got[0] - expected).abs().max() <= 1.13
    assert (got[0] - expected).abs().mean() <= 0.4


@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("flip_x", [False, True])
@pytest.mark.parametrize("flip_y", [False, True])
def test_flips_and_transposition_of_the_resized_crop(flip_x: bool, flip_y: bool, transpose: bool) -> None:
    patch = torch.from_numpy(smooth_patch())[None].float()
    straight = resize_crops(patch, plain(), 24)
    got = resize_crops(patch, plain(flip_x=[flip_x], flip_y=[flip_y], transpose=[transpose]), 24)
    expected = straight.flip(-1) if flip_x else straight
    expected = expected.flip(-2) if flip_y else expected
    expected = expected.mT if transpose else expected
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("radius", [0.1, 0.43, 0.97, 1.37, 1.93])
def test_blur_equals_pillow(radius: float) -> None:
    patch = smooth_patch(5, 48, 48)
    once = box_blur_matrix(radius_N=torch.tensor([radius]), size=48)
    rounded = as_float(patch)
    for _ in range(BOX_PASSES):
        rounded = (rounded @ once.mT).add(0.5).floor()
    for _ in range(BOX_PASSES):
        rounded = (once @ rounded).add(0.5).floor()
    expected = as_float(Image.fromarray(patch).filter(ImageFilter.GaussianBlur(radius)))
    # With Pillow's rounding after every box blur; its fixed-point weights may tip a rare tie (radii with
    # round weights, such as 1, have many).
    assert (rounded - expected).abs().max() <= 1
    assert (rounded != expected).float().mean() < 0.01
    # Without: half a level for each of the six.
    whole = blur_matrix(radius_N=torch.tensor([radius]), size=48)
    assert (whole @ as_float(patch) @ whole.mT - expected).abs().max() <= 3.0


@pytest.mark.parametrize(
    ("ours", "theirs", "value"),
    [
        (colour.adjust_brightness, tvf.adjust_brightness, 1.4),
        (colour.adjust_brightness, tvf.adjust_brightness, 0.6),
        (colour.adjust_contrast, tvf.adjust_contrast, 1.4),
        (colour.adjust_contrast, tvf.adjust_contrast, 0.6),
        (colour.adjust_saturation, tvf.adjust_saturation, 1.2),
        (colour.adjust_saturation, tvf.adjust_saturation, 0.8),
        (colour.adjust_hue, tvf.adjust_hue, 0.1),
        (colour.adjust_hue, tvf.adjust_hue, -0.07),
    ],
)
def test_colour_operations_equal_torchvision(ours: object, theirs: object, value: float) -> None:
    images = torch.stack([as_float(smooth_patch(seed)) for seed in range(3)])
    images[0, :, :5] = 77.0  # grey pixels have no hue
    got = ours(images, torch.full((3,), value))  # type: ignore[operator]
    expected = theirs(images / 255, value) * 255  # type: ignore[operator]
    # torchvision's luma weights are 0.2989, 0.587, 0.114: they sum to 0.9999.
    torch.testing.assert_close(got, expected, rtol=0, atol=0.05)


def test_grey_and_solarise_equal_pillow() -> None:
    patch = smooth_patch()
    crops = torch.stack([as_float(patch)] * 2)
    parameters = [plain(greys=[True]), plain(solarises=[True])]
    both = CropParameters(*(np.concatenate([getattr(p, f.name) for p in parameters]) for f in fields(CropParameters)))
    recolour(crops, both)
    grey = Image.fromarray(patch).convert("L").convert("RGB")
    assert (crops[0] - as_float(grey)).abs().max() <= 0.51
    assert torch.equal(crops[1], as_float(ImageOps.solarize(Image.fromarray(patch))))


def test_jitter_follows_its_order() -> None:
    image = as_float(smooth_patch())[None]
    factors = np.array([[0.7, 1.3, 1.2, 0.1]], dtype=np.float32)
    expected = tvf.adjust_hue(image / 255, 0.1)
    expected = tvf.adjust_contrast(tvf.adjust_saturation(expected, 1.2), 1.3)
    expected = tvf.adjust_brightness(expected, 0.7) * 255
    got = image.clone()
    recolour(got, plain(jitters=[True], jitter_order=[[3, 2, 1, 0]], jitter=factors))
    torch.testing.assert_close(got, expected, rtol=0, atol=0.1)


def test_a_sample_has_its_parameters_whatever_its_batch() -> None:
    together, alone = drawn([3, 8, 5]), drawn([5])
    for field in fields(CropParameters):
        np.testing.assert_array_equal(getattr(together, field.name)[2:], getattr(alone, field.name))
    assert not np.array_equal(drawn([5], seed=1).left, alone.left)


def test_crops_do_not_depend_on_the_batch() -> None:
    crops = MultiCrop(global_size_px=32, local_size_px=16, n_locals=3, dihedral=True)
    patches = torch.from_numpy(np.stack([smooth_patch(i) for i in range(4)]))
    indices = torch.tensor([10, 11, 12, 13])
    together = crops(patches, indices, seed=7)
    for row in range(4):
        alone = crops(patches[row : row + 1], indices[row : row + 1], seed=7)
        for a, b in zip(alone, together, strict=True):
            torch.testing.assert_close(a[:, 0], b[:, row], rtol=0, atol=1e-4)
    assert together[0].shape == (2, 4, 3, 32, 32)
    assert together[1].shape == (3, 4, 3, 16, 16)


def test_distribution_of_boxes_and_choices() -> None:
    p = drawn(list(range(4000)), dihedral=True)
    area = p.height * p.width / (60 * 48)
    rounding = 0.06
    for view, settings in enumerate(VIEWS):
        low, high = settings.scale
        assert low - rounding <= area[:, view].min()
        assert area[:, view].max() <= high + rounding
    assert (p.top >= 0).all()
    assert (p.top + p.height <= 60).all()
    assert (p.left >= 0).all()
    assert (p.left + p.width <= 48).all()
    ratio = p.width[:, 2] / p.height[:, 2]
    assert ratio.min() > 0.6
    assert ratio.max() < 1.6
    shares = {
        "jitters": (0.8, p.jitters),
        "greys": (0.2, p.greys),
        "blur 1": (1.0, p.blurs[:, 0]),
        "blur 2": (0.1, p.blurs[:, 1]),
        "blur local": (0.5, p.blurs[:, 2]),
        "solarise 1": (0.0, p.solarises[:, 0]),
        "solarise 2": (0.2, p.solarises[:, 1]),
        "flip x": (0.5, p.flip_x),
        "flip y": (0.5, p.flip_y),
        "transpose": (0.5, p.transpose),
    }
    for name, (expected, values) in shares.items():
        assert values.mean() == pytest.approx(expected, abs=0.03), name
    assert not drawn([1, 2, 3]).flip_y.any()
    low, high = p.jitter.min((0, 1)), p.jitter.max((0, 1))
    np.testing.assert_allclose(low, [0.6, 0.6, 0.8, -0.1], atol=0.01)
    np.testing.assert_allclose(high, [1.4, 1.4, 1.2, 0.1], atol=0.01)
    assert len(np.unique(p.jitter_order.reshape(-1, 4), axis=0)) == 24


def test_a_patch_too_narrow_for_any_box_falls_back_to_the_centre() -> None:
    views = [ViewSettings(scale=(1.0, 1.0), blur_p=0, solarise_p=0)]
    p = draw([0, 1], seed=0, patch_size_px=(10, 100), views=views, colours=GREY_COLOURS, dihedral=False)
    assert (p.height == 10).all()
    assert (p.width == 13).all()
    assert (p.left == 43).all()


@pytest.mark.parametrize(
    "wrong",
    [
        {"global_scale": (0.5, 0.4)},
        {"local_scale": (0.0, 0.4)},
        {"grey_p": 1.5},
        {"n_locals": -1},
        {"hue": 0.6},
        {"std": (0.5, 0.0, 0.5)},
    ],
)
def test_settings_out_of_range_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="crops: "):
        MultiCrop(**wrong)  # type: ignore[arg-type]


def test_patches_that_are_no_uint8_images_are_refused() -> None:
    with pytest.raises(ValueError, match="uint8"):
        MultiCrop()(torch.zeros(2, 8, 8, 3), torch.arange(2), seed=0)
