"""What does a prediction look like beside the truth?

Image, label and prediction side by side, left to right as in the paper's Fig. 3; every class has one colour, the
background is white. After: evaluate, which keeps a few in the result.
"""

from __future__ import annotations

import base64
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_GAP_PX = 8
_PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#c9a100", "#56b4e9", "#8c6bb1", "#7f7f7f")


def class_rgb(number: int) -> tuple[int, int, int]:
    """Colour of a class: white for the background, then a palette that colour-blind readers can tell apart."""
    if number == 0:
        return 255, 255, 255
    hexadecimal = _PALETTE[(number - 1) % len(_PALETTE)].lstrip("#")
    red, green, blue = bytes.fromhex(hexadecimal)
    return red, green, blue


def side_by_side(
    image: NDArray[np.uint8], label: NDArray[np.uint8], prediction: NDArray[np.uint8]
) -> NDArray[np.uint8]:
    """One picture of uint8 (H, W, 3) and two label images (H, W): uint8 (H, 3 W + two gaps, 3)."""
    colours = np.array([class_rgb(number) for number in range(256)], dtype=np.uint8)
    gap = np.full((len(image), _GAP_PX, 3), 128, dtype=np.uint8)
    return np.concatenate([image, gap, colours[label], gap, colours[prediction]], axis=1)


def png_bytes(picture: NDArray[np.uint8], *, height_px: int | None = None) -> bytes:
    """A picture as PNG, shrunk to a height if it is taller; nearest neighbour, so that no colours are mixed."""
    shown = Image.fromarray(picture)
    if height_px is not None and shown.height > height_px:
        shown = shown.resize((round(shown.width * height_px / shown.height), height_px), Image.Resampling.NEAREST)
    buffer = BytesIO()
    shown.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def as_base64(data: bytes) -> str:
    """ASCII text for a data URL."""
    return base64.b64encode(data).decode("ascii")
