"""Which part of a thumbnail is tissue, by rules that need no training?

Each rule is two functions of a thumbnail: a value float32 (H, W), higher on tissue, and a mask bool (H, W).

- ``stain``: stained tissue absorbs green light most, so it is coloured and its red value is above its green one;
  glass is grey, and blue, green and black pen is not reddish.
- ``saturation``: saturation above Otsu's threshold (IEEE Trans. SMC 9, 1979).
- ``grey``: darker than Otsu's threshold.
- ``hsv``: hue from violet to red, some saturation, not black and not white.

All but ``stain`` divide every view in two and so keep something of an empty one, and none of them knows red pen.
`tissue` chooses among these and the network of `tissue_onnx`.
"""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

Thumbnail = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]
Values = npt.NDArray[np.float32]

# Otsu's threshold is kept between these saturations (of 255): a slide full of tissue, or empty glass, has no two
# modes for it to separate.
SATURATION_RANGE = (12, 40)
# Tissue absorbs green more than red; pen ink and dust do not. Grey levels, of 255.
MIN_RED_OVER_GREEN = 4
# OpenCV's hue has 180 steps: 120 is blue, 150 magenta, 0 and 180 red.
HUE_RANGE = (120, 180)
HSV_MIN_SATURATION = 15
HSV_VALUE_RANGE = (50, 245)
_KERNEL_PX = 5


def stain_mask(thumbnail: Thumbnail) -> Mask:
    """Foreground of an H&E thumbnail by saturation (Otsu within `SATURATION_RANGE`) and hue.

    Args:
        thumbnail: uint8 (H, W, 3) RGB at 4 to 32 um per pixel.

    Returns:
        bool (H, W), True on tissue.
    """
    smooth = _smoothed(thumbnail)
    saturation = cv2.cvtColor(smooth, cv2.COLOR_RGB2HSV)[..., 1]
    otsu, _ = cv2.threshold(saturation, 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    threshold = float(np.clip(otsu, *SATURATION_RANGE))
    red, green, blue = (smooth[..., k].astype(np.int16) for k in range(3))
    stained = (red - green >= MIN_RED_OVER_GREEN) & (blue >= green - MIN_RED_OVER_GREEN)
    return _cleaned((saturation > threshold) & stained)


def stain_values(thumbnail: Thumbnail) -> Values:
    """How much more red than green light passes, 0 to 1."""
    smooth = _smoothed(thumbnail).astype(np.float32)
    return np.asarray(np.clip(smooth[..., 0] - smooth[..., 1], 0, 255) / 255, np.float32)


def saturation_mask(thumbnail: Thumbnail) -> Mask:
    """Saturation above Otsu's threshold."""
    saturation = np.rint(saturation_values(thumbnail) * 255).astype(np.uint8)
    return _cleaned(cv2.threshold(saturation, 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)[1] > 0)


def saturation_values(thumbnail: Thumbnail) -> Values:
    """Saturation, 0 to 1."""
    return np.asarray(cv2.cvtColor(_smoothed(thumbnail), cv2.COLOR_RGB2HSV)[..., 1] / np.float32(255), np.float32)


def grey_mask(thumbnail: Thumbnail) -> Mask:
    """Grey value at most Otsu's threshold."""
    grey = cv2.cvtColor(_smoothed(thumbnail), cv2.COLOR_RGB2GRAY)
    return _cleaned(cv2.threshold(grey, 0, 255, cv2.THRESH_BINARY_INV + cv2.THRESH_OTSU)[1] > 0)


def grey_values(thumbnail: Thumbnail) -> Values:
    """Darkness, 0 to 1."""
    return np.asarray(1 - cv2.cvtColor(_smoothed(thumbnail), cv2.COLOR_RGB2GRAY) / np.float32(255), np.float32)


def hsv_mask(thumbnail: Thumbnail) -> Mask:
    """Hue, saturation and value within fixed ranges."""
    hue, saturation, value = cv2.split(cv2.cvtColor(_smoothed(thumbnail), cv2.COLOR_RGB2HSV))
    low, high = HSV_VALUE_RANGE
    inside = (hue >= HUE_RANGE[0]) & (saturation >= HSV_MIN_SATURATION) & (value >= low) & (value <= high)
    return _cleaned(inside)


def hsv_values(thumbnail: Thumbnail) -> Values:
    """Saturation where the hue and the value are within their ranges, else 0."""
    hue, saturation, value = cv2.split(cv2.cvtColor(_smoothed(thumbnail), cv2.COLOR_RGB2HSV))
    inside = (hue >= HUE_RANGE[0]) & (value >= HSV_VALUE_RANGE[0]) & (value <= HSV_VALUE_RANGE[1])
    return np.asarray(saturation * inside / np.float32(255), np.float32)


def _smoothed(thumbnail: Thumbnail) -> Thumbnail:
    return np.asarray(cv2.medianBlur(np.ascontiguousarray(thumbnail), _KERNEL_PX), np.uint8)


def _cleaned(mask: npt.NDArray[np.bool_]) -> Mask:
    """Small holes closed, specks removed."""
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (_KERNEL_PX, _KERNEL_PX))
    closed = cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_CLOSE, kernel)
    return np.asarray(cv2.morphologyEx(closed, cv2.MORPH_OPEN, kernel), np.bool_)
