"""How does an image file become the square uint8 array that a backbone is given?

Decode to RGB, resize the shorter side to the backbone's input size (bilinear with antialias), cut the centre
square. Scaling to [0, 1] and the mean/std belong to the model and are applied on its device by backbone.

Before: datasets. After: embed, which calls this in threads (Pillow decodes and resizes outside the GIL).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fm_eval.errors import DatasetError

# what the cache and the result record: change it whenever pixels change
TRANSFORM_NAME = "rgb-shorter-side-bilinear-antialias-centre-crop-1"


@contextmanager
def opened_image(path: Path, *, kind: str, remedy: str) -> Iterator[Image.Image]:
    """An image file, open; whatever keeps it from being decoded within is told in one line.

    Args:
        path: of the file.
        kind: what it is called in messages.
        remedy: what to do about one that is damaged.

    Raises:
        DatasetError: the file cannot be decoded.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                yield image
    except (
        OSError,
        SyntaxError,
        ValueError,
        Image.DecompressionBombError,
        Image.DecompressionBombWarning,
    ) as error:
        if isinstance(error, DatasetError):
            raise
        raise DatasetError(f"{kind} {path}: cannot be decoded ({error}); {remedy}") from error


def load_rgb(path: Path) -> Image.Image:
    """Decode one image file to RGB; transparency and 16-bit depth are refused rather than guessed.

    Raises:
        DatasetError: the file cannot be decoded, or its pixels have no unambiguous 8-bit RGB meaning.
    """
    with opened_image(path, kind="image", remedy="replace the file or drop its row") as image:
        image.load()
        if image.mode not in {"RGB", "RGBA", "L", "P", "CMYK", "YCbCr", "1"}:
            raise DatasetError(f"image {path}: pixel mode {image.mode}; convert it to 8-bit RGB")
        if "A" in image.getbands() and image.getchannel("A").getextrema()[0] != 255:
            raise DatasetError(f"image {path}: transparent pixels; flatten it to RGB")
        return image.convert("RGB")


def resize_and_crop(image: Image.Image, *, size_px: int) -> NDArray[np.uint8]:
    """Resize the shorter side to `size_px` and cut the centre square.

    Args:
        image: RGB, any size.
        size_px: side of the output.

    Returns:
        uint8 (size_px, size_px, 3), C-contiguous.
    """
    width, height = image.size
    short = min(width, height)
    new_width = size_px if width == short else int(size_px * width / short)
    new_height = size_px if height == short else int(size_px * height / short)
    if (new_width, new_height) != (width, height):
        image = image.resize((new_width, new_height), Image.Resampling.BILINEAR)
    left, top = round((new_width - size_px) / 2), round((new_height - size_px) / 2)
    return np.asarray(image.crop((left, top, left + size_px, top + size_px)), dtype=np.uint8).copy()
