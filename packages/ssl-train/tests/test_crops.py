from __future__ import annotations

import math
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as tvf
from PIL import Image, ImageFilter, ImageOps
from ssl_train import MultiCrop, colour
from ssl_train.crop_parameters import ColourSettings, CropParameters, ViewSettings, draw
from ssl_train.cutting import make_crops, recolour, resize_crop, resize_crops
from ssl_train.resample import BOX_PASSES, blur_matrix, box_blur_matrix
from torch import Tensor

GREY_COLOURS = ColourSettings(brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1, jitter_p=0.8, grey_p=0.2)
STAINED = replace(GREY_COLOURS, hed_p=0.6, hed_sigma=0.2)
VIEWS = [
    ViewSettings(scale=(0.4, 1.0), blur_p=1.0, solarise_p=0.0),
    ViewSettings(scale=(0.4, 1.0), blur_p=0.1, solarise_p=0.2),
    ViewSettings(scale=(0.05, 0.4), blur_p=0.5, solarise_p=0.0),
]


def drawn(
    indices: list[int], *, seed: int = 0, dihedral: bool = False, colours: ColourSettings = GREY_COLOURS
) -> CropParameters:
    return draw(indices, seed=seed, patch_size_px=(60, 48), views=VIEWS, colours=colours, dihedral=dihedral)


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
        "stains": [False],
        "stain_factor": [[1.0, 1.0, 1.0]],
        "stain_shift": [[0.0, 0.0, 0.0]],
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


@pytest.mark.parametrize("size", [16, 37, 80])
@pytest.mark.parametrize("box", [(0, 0, 60, 48), (7, 11, 30, 31), (20, 3, 5, 40)])
def test_on_the_cpu_crop_and_resize_are_pillow_to_a_level(size: int, box: tuple[int, int, int, int]) -> None:
    top, left, height, width = box
    patch = np.random.default_rng(3).integers(0, 256, (60, 48, 3), dtype=np.uint8)
    got = torch.empty(3, size, size)
    boxed = plain(top=[top], left=[left], height=[height], width=[width])
    resize_crop(torch.from_numpy(patch), boxed, 0, out=got)
    pillow = Image.fromarray(patch).crop((left, top, left + width, top + height))
    # Pillow chooses which axis comes first by its cost; here it is the horizontal one.
    pillow = pillow.resize((size, height), Image.Resampling.BICUBIC).resize((size, size), Image.Resampling.BICUBIC)
    difference = (got - as_float(pillow)).abs()
    # Weights of fewer bits than Pillow's: a value at the middle between two levels may go the other way.
    assert difference.max() <= 1
    assert (difference > 0).float().mean() < 0.01


def test_the_cpu_and_accelerators_make_the_same_crops() -> None:
    patches = torch.from_numpy(np.stack([smooth_patch(i) for i in range(3)]))
    parameters = drawn(list(range(3)), dihedral=True, colours=STAINED).views(0, len(VIEWS))
    assert 0 < parameters.stains.sum() < len(parameters.stains)
    assert parameters.jitters.any()
    assert parameters.blurs.any()
    assert parameters.flip_y.any()
    assert parameters.transpose.any()
    ours = make_crops(patches, parameters, 32)
    batched = resize_crops(patches.float(), parameters, 32)
    recolour(batched, parameters)
    # One rounds the resized crop to 8 bits, the other does not; solarising turns that over at its threshold.
    difference = (ours - batched).abs()
    assert difference.median() <= 1
    assert (difference > 3).float().mean() < 0.002


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


def dyed(amounts_3: list[float]) -> Tensor:
    """What remains of white light after so much haematoxylin, eosin and DAB, (3,)."""
    vectors = torch.tensor([[0.650, 0.704, 0.286], [0.072, 0.990, 0.105], [0.268, 0.570, 0.776]], dtype=torch.float64)
    density = torch.tensor(amounts_3, dtype=torch.float64) @ (vectors / vectors.norm(dim=1, keepdim=True))
    return 256 * torch.exp(-density) - 1


def test_stains_change_by_their_factors_and_shifts() -> None:
    amounts = [[0.9, 0.3, 0.1], [0.2, 0.6, 0.05], [0.4, 0.4, 0.4]]
    image = torch.stack([dyed(a) for a in amounts], dim=1).float()[None, :, :, None]
    factors, shifts = [1.2, 0.8, 1.1], [0.05, -0.02, 0.1]
    expected = torch.stack(
        [dyed([f * a + s for f, a, s in zip(factors, pixel, shifts, strict=True)]) for pixel in amounts], dim=1
    )
    got = colour.adjust_stains(image, torch.tensor([factors]), torch.tensor([shifts]))
    torch.testing.assert_close(got[0, :, :, 0].double(), expected.clamp(0, 255), rtol=0, atol=1e-3)


def test_stains_left_as_they_are_leave_every_colour() -> None:
    image = torch.stack([as_float(smooth_patch(seed)) for seed in range(2)])
    image[0, :, 0, 0], image[0, :, 0, 1] = 0.0, 255.0
    got = colour.adjust_stains(image, torch.ones(2, 3), torch.zeros(2, 3))
    torch.testing.assert_close(got, image, rtol=0, atol=0.01)


def test_stains_are_drawn_apart_and_change_no_other_draw() -> None:
    without, with_stains = drawn(list(range(2000))), drawn(list(range(2000)), colours=STAINED)
    for field in fields(CropParameters):
        if not field.name.startswith("stain"):
            np.testing.assert_array_equal(getattr(without, field.name), getattr(with_stains, field.name))
    assert not without.stains.any()
    assert with_stains.stains.mean() == pytest.approx(0.6, abs=0.03)
    for values, centre in ((with_stains.stain_factor, 1.0), (with_stains.stain_shift, 0.0)):
        np.testing.assert_allclose(values.min((0, 1)), centre - 0.2, atol=0.002)
        np.testing.assert_allclose(values.max((0, 1)), centre + 0.2, atol=0.002)
        # Views and stains of a sample have their own.
        assert len(np.unique(values)) > 0.99 * values.size


def test_extended_context_keeps_the_size_and_form_of_cells() -> None:
    """A grid of points keeps its distances in both directions, wherever and however often it is cut."""
    patch = torch.zeros(98, 98, 3, dtype=torch.uint8)
    patch[::7, ::7] = 255
    crops = MultiCrop(
        global_size_px=56, local_size_px=28, n_locals=2, extended_context=True,
        jitter_p=0, grey_p=0, blur_p=(0, 0, 0), solarise_p=0,
    )  # fmt: skip
    views = crops._views_of(98, 98)
    p = draw(range(2000), seed=0, patch_size_px=(98, 98), views=views, colours=GREY_COLOURS, dihedral=False)
    side = np.array([56, 56, 28, 28])
    # Sides are whole pixels.
    assert (np.abs(p.height * p.width / side**2 - 1) <= 0.1 + 1.1 / side).all()
    assert (np.abs(p.width / p.height - 1) <= 0.05 + 1.1 / side).all()
    assert (p.top.max(0) > 98 - 1.1 * side).all()
    assert (p.top.min(0) < 5).all()
    for views_CBHW in crops(patch[None].expand(8, -1, -1, -1), torch.arange(8), seed=0):
        bright = (views_CBHW.mean(2) > 0).float().mean((0, 2, 3))
        size = views_CBHW.shape[-1]
        assert size == (56 if len(views_CBHW) == 2 and size == 56 else 28)
        # One point in 49 pixels, of which resizing makes a spot of about one pixel.
        assert (bright < 3 / 49).all()
    assert math.isclose(views[0].scale[0], 0.9 * 56**2 / 98**2)


def test_patches_too_small_for_extended_context_are_refused() -> None:
    crops = MultiCrop(global_size_px=56, local_size_px=28, n_locals=2, extended_context=True)
    with pytest.raises(ValueError, match=r"needs patches of at least 61 px for crops of 56 px, got 60 x 98"):
        crops(torch.zeros(2, 60, 98, 3, dtype=torch.uint8), torch.arange(2), seed=0)
    assert crops(torch.zeros(2, 61, 98, 3, dtype=torch.uint8), torch.arange(2), seed=0)[0].shape == (2, 2, 3, 56, 56)


def test_a_sample_has_its_parameters_whatever_its_batch() -> None:
    together, alone = drawn([3, 8, 5], colours=STAINED), drawn([5], colours=STAINED)
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
        {"hed_p": -0.1},
        {"hed_sigma": 1.5},
        {"std": (0.5, 0.0, 0.5)},
    ],
)
def test_settings_out_of_range_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="crops: "):
        MultiCrop(**wrong)  # type: ignore[arg-type]


def test_patches_that_are_no_uint8_images_are_refused() -> None:
    with pytest.raises(ValueError, match="uint8"):
        MultiCrop()(torch.zeros(2, 8, 8, 3), torch.arange(2), seed=0)
