from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from online_patching.tissue import METHODS, UNET_FILE, tissue_finder
from online_patching.tissue_glass import COMMON_GLASS, glass_colour, like_its_glass, on_common_glass
from online_patching.tissue_onnx import MARGIN_PX, WINDOW_PX, OnnxTissue
from written_onnx import write_network
from written_slides import tissue_image

U8 = npt.NDArray[np.uint8]


def glass(height: int, width: int) -> U8:
    return np.full((height, width, 3), 243, np.uint8) + np.random.default_rng(0).integers(
        0, 3, (height, width, 1), np.uint8
    )


def penned(colour: tuple[int, int, int]) -> U8:
    image = glass(300, 400)
    cv2.ellipse(image, (200, 150), (120, 90), 10, 0, 340, colour, 14)
    cv2.line(image, (20, 20), (60, 280), colour, 18)
    return image


def section() -> tuple[U8, npt.NDArray[np.bool_]]:
    image = tissue_image(800, 600, 1)
    truth = np.zeros(image.shape[:2], np.uint8)
    cv2.ellipse(truth, (400, 300), (304, 216), 0, 0, 360, 1, -1)
    return image, truth > 0


@pytest.mark.parametrize("method", METHODS)
def test_every_method_finds_a_section(method: str) -> None:
    image, truth = section()
    finder = tissue_finder(method)
    mask, values = finder(image, 12.0), finder.values(image, 12.0)
    assert mask.dtype == np.bool_
    assert mask.shape == image.shape[:2]
    assert values.dtype == np.float32
    assert values.shape == mask.shape
    assert 0 <= values.min() <= values.max() <= 1
    assert values[truth].mean() > values[~truth].mean()
    assert 2 * (mask & truth).sum() / (mask.sum() + truth.sum()) > 0.95


@pytest.mark.parametrize("method", ["unet", "stain"])
def test_glass_and_pens_of_no_tissue_colour_are_left_out(method: str) -> None:
    finder = tissue_finder(method)
    assert finder(glass(300, 300), None).mean() < 0.001
    for colour in ((40, 70, 200), (30, 140, 60), (25, 25, 28)):
        assert finder(penned(colour), None).mean() < 0.01, f"pen {colour} counted as tissue"


def test_the_network_leaves_red_pen_out_as_well() -> None:
    assert tissue_finder("unet")(penned((215, 25, 40)), None).mean() < 0.02
    assert tissue_finder("stain")(penned((215, 25, 40)), None).mean() > 0.05, "then the rule would do"


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("level", [0, 128, 255])
@pytest.mark.parametrize("shape", [(1, 1), (1, 50), (33, 31), (240, 320)])
def test_plain_views_of_any_size(method: str, level: int, shape: tuple[int, int]) -> None:
    mask = tissue_finder(method)(np.full((*shape, 3), level, np.uint8), None)
    assert mask.shape == shape
    if method in ("unet", "stain", "hsv") and min(shape) > 200:
        assert not mask.any(), "white, black or grey counted as tissue"


@pytest.mark.parametrize("mpp", [0.5, 4.0, 8.0, 12.0, 16.0, 30.0])
def test_scale_is_taken_to_the_networks_own(mpp: float) -> None:
    image, truth = section()
    size = (round(800 * 10 / mpp), round(600 * 10 / mpp)) if mpp >= 4 else (3200, 2400)
    view = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)
    mask = tissue_finder("unet")(view, mpp)
    wanted = cv2.resize(truth.astype(np.uint8), size, interpolation=cv2.INTER_AREA) > 0
    assert mask.shape == view.shape[:2]
    assert 2 * (mask & wanted).sum() / (mask.sum() + wanted.sum()) > 0.95


def test_windows_join_without_seams() -> None:
    height, width = WINDOW_PX // 4, WINDOW_PX + 300
    image = np.asarray(cv2.resize(section()[0], (width, height)), np.uint8)
    network = OnnxTissue(UNET_FILE)
    cut = (width + 1) // 2
    values = network.probability(image, 10.0)
    seam = np.abs(values[:, cut] - values[:, cut - 1]).max()
    steps = np.abs(np.diff(values, axis=1)).max()
    assert seam <= steps
    alone = network.probability(np.ascontiguousarray(image[:, : cut + MARGIN_PX]), 10.0)
    np.testing.assert_allclose(values[:, : cut - 1], alone[:, : cut - 1], atol=1e-4)


def test_a_view_of_unknown_scale_is_seen_at_several() -> None:
    image = section()[0]
    alone = [OnnxTissue(UNET_FILE, unknown_scales=[factor]).probability(image, None) for factor in (1.0, 0.25)]
    both = OnnxTissue(UNET_FILE, unknown_scales=(1.0, 0.25))
    np.testing.assert_allclose(both.probability(image, None), np.mean(alone, axis=0), atol=1e-6)
    np.testing.assert_allclose(both.probability(image, 10.0), alone[0], atol=1e-6)


def test_threads_share_a_finder() -> None:
    finder = tissue_finder("unet")
    views = [np.asarray(cv2.resize(section()[0], (120 + 31 * k, 90 + 17 * k)), np.uint8) for k in range(8)]
    alone = [finder.values(view, None) for view in views]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda view: finder.values(view, None), views * 3))
    for number, values in enumerate(together):
        np.testing.assert_allclose(values, alone[number % len(views)], atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_what_is_no_thumbnail_is_refused(method: str) -> None:
    finder = tissue_finder(method)
    for bad in (
        np.zeros((9, 9), np.uint8),
        np.zeros((9, 9, 4), np.uint8),
        np.zeros((9, 9, 3), np.float32),
        np.zeros((0, 9, 3), np.uint8),
    ):
        with pytest.raises(ValueError, match=r"thumbnail: got .*allowed uint8 \(H, W, 3\)"):
            finder(bad, None)  # type: ignore[arg-type]
    for mpp in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match=r"mpp: got .*allowed a positive"):
            finder(np.zeros((9, 9, 3), np.uint8), mpp)


def test_glass_is_brought_to_one_colour() -> None:
    image, truth = section()
    clear = np.median(image[~truth], axis=0)
    for tint in ((1.0, 1.0, 1.0), (0.9, 0.86, 0.92), (0.7, 0.66, 0.62)):
        tinted = np.rint(image * np.array(tint)).astype(np.uint8)
        np.testing.assert_allclose(glass_colour(tinted), clear * tint, atol=5)
        common = on_common_glass(tinted)
        assert np.abs(np.median(common[~truth], axis=0) - COMMON_GLASS).max() < 6
        assert (common[truth].mean(axis=0) < common[~truth].mean(axis=0)).all()


@pytest.mark.parametrize("level", [243, 180])
@pytest.mark.parametrize("width", [6, 14])
def test_glass_in_gaps_of_a_thumbnail_is_no_tissue(level: int, width: int) -> None:
    image, truth = section()
    gap = np.zeros(truth.shape, np.uint8)
    cv2.line(gap, (150, 420), (640, 180), 1, width)
    torn = np.where(gap[..., None] > 0, glass(*truth.shape), image)
    torn = np.rint(cv2.GaussianBlur(torn, (0, 0), 0.6) * (level / 243)).astype(np.uint8)
    inside = cv2.erode(gap, np.ones((3, 3), np.uint8)) > 0
    beside = truth & (cv2.dilate(gap, np.ones((9, 9), np.uint8)) == 0)
    mask = tissue_finder("unet")(torn, 12.0)
    assert mask[inside & truth].mean() < 0.05
    assert mask[beside].mean() > 0.97


def test_what_looks_like_glass_is_told_by_the_glass_that_is_sure() -> None:
    rng = np.random.default_rng(0)
    view = np.rint(rng.normal(230, 2, (80, 120, 3)).clip(0, 255)).astype(np.uint8)
    view[:, 60:] -= 20
    sure = np.full((80, 120), 0.6, np.float32)
    assert not like_its_glass(view, sure).any(), "no glass to learn from"
    sure[:, :30] = 0.0
    alike = like_its_glass(view, sure)
    assert alike[:, :58].mean() > 0.95
    assert not alike[:, 62:].any()
    tinted = view.copy()
    tinted[:, :60, 1] -= 15
    assert not like_its_glass(np.where(np.arange(120)[:, None] < 30, view, tinted), sure)[:, 32:58].any()
    # Ink is sure not to be tissue, and all tissue is brighter than it.
    inked = view.copy()
    inked[:, :30] = 40
    assert not like_its_glass(inked, sure).any()
    # Bright glass is as good as dark glass.
    np.testing.assert_array_equal(like_its_glass(view - 60, sure), alike)


def test_ink_and_darkness_are_not_taken_for_glass() -> None:
    red = np.full((40, 60, 3), (220, 30, 40), np.uint8)
    assert np.ptp(on_common_glass(red)[0, 0].astype(int)) > 100
    dark = np.random.default_rng(0).integers(0, 90, (40, 60, 3), np.uint8)
    np.testing.assert_array_equal(on_common_glass(dark), dark)


def test_unknown_methods_name_the_known_ones() -> None:
    with pytest.raises(ValueError, match="'otsu': not known; allowed are unet, stain, saturation, grey, hsv and the"):
        tissue_finder("otsu")


def test_a_network_of_the_users_own(tmp_path: Path) -> None:
    path = write_network(tmp_path / "mean.onnx", "ReduceMean", axes=[1])
    finder = tissue_finder(str(path))
    image = np.zeros((50, 70, 3), np.uint8)
    image[:, 40:] = 200
    np.testing.assert_allclose(finder.values(image, None), image[..., 0] / 255, atol=1e-4)
    assert finder(image, None)[:, 40:].all()
    assert not finder(image, None)[:, :40].any()


def test_networks_that_do_not_fit_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"network .*nowhere\.onnx: no such file"):
        tissue_finder(str(tmp_path / "nowhere.onnx"))
    damaged = tmp_path / "damaged.onnx"
    damaged.write_bytes(UNET_FILE.read_bytes()[:5000])
    with pytest.raises(ValueError, match=r"network .*damaged\.onnx: .*cannot read it"):
        tissue_finder(str(damaged))
    three = write_network(tmp_path / "three.onnx", "Sigmoid")
    with pytest.raises(ValueError, match=r"three\.onnx: got \(1, 3, 64, 96\).*allowed is .*\(1, 1, H, W\)"):
        tissue_finder(str(three))
    scaled = write_network(tmp_path / "sum.onnx", "ReduceSum", axes=[1])
    with pytest.raises(ValueError, match=r"sum\.onnx: got values from 3 to 3; allowed is .*a probability"):
        tissue_finder(str(scaled))
