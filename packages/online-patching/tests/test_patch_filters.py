from __future__ import annotations

import colorsys
import pickle
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from online_patching.patch_filters import Pixels, Sharpness, StainedShare, WhiteShare, check_filters

WHITE, PINK = (244, 242, 243), (214, 130, 190)


def halves(share: float, first: tuple[int, int, int], second: tuple[int, int, int]) -> Pixels:
    """A patch of which this share has the first colour."""
    patch = np.empty((100, 100, 3), np.uint8)
    patch[:] = second
    patch[: round(100 * share)] = first
    return patch


def test_the_stain_rule_counts_pixels_by_hue_saturation_and_value() -> None:
    assert StainedShare().keeps(halves(0.6, PINK, WHITE))
    assert not StainedShare().keeps(halves(0.59, PINK, WHITE))
    # Hues of half degrees: cyan is 90, green 60, red 0; all bright and saturated.
    for hue, kept in ((100, True), (150, True), (60, False), (5, False)):
        red, green, blue = colorsys.hsv_to_rgb(hue / 180, 0.8, 0.9)
        assert StainedShare().keeps(halves(1, (round(255 * red), round(255 * green), round(255 * blue)), WHITE)) is kept
    assert not StainedShare().keeps(halves(1, (60, 30, 90), WHITE)), "too dark"
    assert not StainedShare().keeps(halves(1, (200, 196, 200), WHITE)), "grey"
    assert StainedShare(least_share=0.2).keeps(halves(0.3, PINK, WHITE))


def test_what_is_blurred_has_a_lower_variance() -> None:
    sharp = np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8)
    blurred: npt.NDArray[np.uint8] = np.asarray(cv2.GaussianBlur(sharp, (0, 0), 3), np.uint8)
    filter_ = Sharpness(least_variance=50)
    assert filter_.variance(halves(1, PINK, WHITE)) == 0
    assert filter_.variance(sharp) > 50 > filter_.variance(blurred)
    assert filter_.keeps(sharp)
    assert not filter_.keeps(blurred)


def test_white_is_what_is_bright_in_all_channels() -> None:
    assert WhiteShare(most_share=0.5).keeps(halves(0.5, WHITE, PINK))
    assert not WhiteShare(most_share=0.5).keeps(halves(0.51, WHITE, PINK))
    assert WhiteShare(most_share=0.5, white_from=250).keeps(halves(1, WHITE, PINK))


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: StainedShare(least_share=1.5), "least_share: got 1.5"),
        (lambda: StainedShare(hue=(100, 90)), "hue: got"),
        (lambda: StainedShare(hue=(0, 200)), "hue: got"),
        (lambda: Sharpness(least_variance=-1), "least_variance: got -1"),
        (lambda: WhiteShare(most_share=-0.1), "most_share: got"),
        (lambda: WhiteShare(white_from=300), "white_from: got 300"),
    ],
)
def test_numbers_out_of_their_ranges_are_refused(make: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        make()


class Nameless:
    def keeps(self, pixels: Pixels) -> bool:
        return True


def test_what_is_no_filter_is_refused() -> None:
    assert check_filters([StainedShare()]) == (StainedShare(),)
    assert pickle.loads(pickle.dumps(StainedShare())) == StainedShare()
    wrong: list[Any] = ["white", StainedShare]
    for each in wrong:
        with pytest.raises(ValueError, match="filters: got"):
            check_filters([each])
    with pytest.raises(ValueError, match="filters: Nameless has no repr"):
        check_filters([Nameless()])
