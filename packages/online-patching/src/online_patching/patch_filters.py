"""Which sampled patches are not worth training on?

A filter looks at the pixels of a patch and keeps it or not; the stream draws another in its place. Filters are given
in Python or by their class paths::

    filters:
      - class_path: online_patching.patch_filters.StainedShare
      - class_path: online_patching.patch_filters.Sharpness
        init_args: {least_variance: 30}

Any class with the method of ``PatchFilter`` is one. Its ``repr`` enters the fingerprint of the stream, so it has to
tell the arguments, as that of a data class does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import cv2
import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]


@runtime_checkable
class PatchFilter(Protocol):
    """Keeps or refuses patches by their pixels alone; it travels to workers, so it can be pickled."""

    def keeps(self, pixels: npt.NDArray[np.uint8]) -> bool:
        """Whether a patch is kept; uint8 (H, W, 3) RGB, not to be changed."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class StainedShare:
    """Keeps patches of which enough pixels have the colours of stained tissue (the rule of Midnight).

    Args:
        least_share: Least share of such pixels.
        hue: Least and greatest hue, in OpenCV's half degrees, 0 to 180.
        saturation: Least and greatest saturation, 0 to 255.
        value: Least and greatest value, 0 to 255.

    Raises:
        ValueError: Numbers out of their ranges.
    """

    least_share: float = 0.6
    hue: tuple[int, int] = (90, 180)
    saturation: tuple[int, int] = (8, 255)
    value: tuple[int, int] = (103, 255)

    def __post_init__(self) -> None:
        _check_share("least_share", self.least_share)
        for name, (low, high), most in (
            ("hue", self.hue, 180),
            ("saturation", self.saturation, 255),
            ("value", self.value, 255),
        ):
            if not 0 <= low <= high <= most:
                raise ValueError(f"{name}: got {(low, high)}, allowed 0 to {most}, the lower number first")

    def keeps(self, pixels: npt.NDArray[np.uint8]) -> bool:
        """Whether enough pixels have these colours."""
        hsv = cv2.cvtColor(pixels, cv2.COLOR_RGB2HSV)
        ranges = (self.hue, self.saturation, self.value)
        stained = cv2.inRange(hsv, tuple(low for low, _ in ranges), tuple(high for _, high in ranges))
        return bool(cv2.countNonZero(stained) >= self.least_share * stained.size)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sharpness:
    """Keeps patches that are not blurred.

    Args:
        least_variance: Least variance of the Laplacian of the grey values. It depends on scanner and magnification:
            look at it for patches of your own.

    Raises:
        ValueError: A number below 0.
    """

    least_variance: float

    def __post_init__(self) -> None:
        if not self.least_variance >= 0:
            raise ValueError(f"least_variance: got {self.least_variance!r}, allowed at least 0")

    def variance(self, pixels: npt.NDArray[np.uint8]) -> float:
        """What is compared with the bound."""
        laplacian = cv2.Laplacian(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), cv2.CV_16S)
        return float(laplacian.var(dtype=np.float64))

    def keeps(self, pixels: npt.NDArray[np.uint8]) -> bool:
        """Whether the variance is large enough."""
        return self.variance(pixels) >= self.least_variance


@dataclass(frozen=True, slots=True, kw_only=True)
class WhiteShare:
    """Keeps patches that are not mostly white.

    Args:
        most_share: Greatest share of white pixels.
        white_from: A pixel is white if none of its channels is below this, 0 to 255.

    Raises:
        ValueError: Numbers out of their ranges.
    """

    most_share: float = 0.5
    white_from: int = 220

    def __post_init__(self) -> None:
        _check_share("most_share", self.most_share)
        if not 0 <= self.white_from <= 255:
            raise ValueError(f"white_from: got {self.white_from!r}, allowed 0 to 255")

    def keeps(self, pixels: npt.NDArray[np.uint8]) -> bool:
        """Whether few enough pixels are white."""
        white = cv2.inRange(pixels, (self.white_from,) * 3, (255, 255, 255))
        return bool(cv2.countNonZero(white) <= self.most_share * white.size)


def check_filters(filters: Sequence[PatchFilter]) -> tuple[PatchFilter, ...]:
    """The filters, if they are such.

    Raises:
        ValueError: One is no filter, or does not tell its arguments.
    """
    if not isinstance(filters, Sequence):
        raise ValueError(f"filters: got {filters!r}, allowed a list of objects with the method of PatchFilter")
    for each in filters:
        if not isinstance(each, PatchFilter) or isinstance(each, type):
            raise ValueError(f"filters: got {each!r}, allowed objects with the method of PatchFilter")
        if repr(each) == object.__repr__(each) or "..." in repr(each):
            raise ValueError(
                f"filters: {type(each).__name__} has no repr that tells its arguments, which the stream's fingerprint"
                " needs; make it a data class of plain values"
            )
    return tuple(filters)


def _check_share(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{name}: got {value!r}, allowed 0 to 1")
