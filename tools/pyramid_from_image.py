"""Turns any large image into a pyramidal slide in a chosen encoding.

Steps: read the image with OpenCV, hand it to `svs_writer` in bands, get an Aperio-like SVS or a plain
pyramidal TIFF.

    python tools/pyramid_from_image.py section.jpg section.svs --mpp 0.69 --encoding jpeg-rgb
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from pathlib import Path

# OpenCV reads this limit when it is loaded; its default refuses images above 2^30 pixels.
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(2**40))

import cv2
import numpy as np
import numpy.typing as npt
from svs_writer import SlideSpec, write_slide
from tile_encoding import ENCODINGS
from tqdm import tqdm


def read_rgb(path: Path) -> npt.NDArray[np.uint8]:
    """Reads an image of any format OpenCV knows as uint8 RGB (H, W, 3).

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not an image that OpenCV reads.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    except cv2.error as error:
        raise ValueError(f"{path}: OpenCV cannot read it ({error.err})") from error
    if image is None:
        raise ValueError(f"{path}: not an image that OpenCV reads; give a JPEG, PNG or TIFF")
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB, dst=image), dtype=np.uint8)


def pyramid_from_image(
    image: Path,
    output: Path,
    *,
    mpp: float | None,
    encoding: str = "jpeg-rgb",
    tile_px: int = 256,
    quality: int = 80,
    downsamples: tuple[int, ...] = (1, 4, 16),
    vendor: str = "aperio",
    progress: bool = True,
) -> None:
    """Writes the image as a pyramidal slide.

    Args:
        image: A JPEG, PNG or TIFF.
        output: The slide to write; appears when it is whole.
        mpp: um per pixel of the image, or None: the slide then does not say.
        encoding: A key of `tile_encoding.ENCODINGS`.
        tile_px: Edge of a tile.
        quality: 1 to 100.
        downsamples: Of the levels, rising from 1.
        vendor: "aperio" or "generic".
        progress: Show a bar on stderr.

    Raises:
        FileNotFoundError: There is no such image, or no folder for the slide.
        ValueError: The image cannot be read, or the slide cannot be as asked for.
    """
    if mpp is not None and not (math.isfinite(mpp) and mpp > 0):
        raise ValueError(f"mpp {mpp}: must be a positive number of um per pixel")
    if not output.parent.is_dir():
        raise FileNotFoundError(f"{output}: its folder does not exist; make it first")
    pixels = read_rgb(image)
    height, width = pixels.shape[:2]
    spec = SlideSpec(
        width_px=width,
        height_px=height,
        tile_px=tile_px,
        encoding=encoding,
        quality=quality,
        mpp=mpp,
        app_mag=None if mpp is None else max(1, round(10 / mpp)),
        downsamples=downsamples,
        vendor=vendor,
        big_tiff=pixels.nbytes > 3_500_000_000,  # below, a classic TIFF holds all levels even uncompressed
        name=output.stem,
    )
    with tqdm(total=height, desc=f"writing {output.name}", unit="row", disable=not progress) as bar:
        bands = (pixels[top : top + spec.band_px] for top in range(0, height, spec.band_px))
        write_slide(output, spec, bands, on_band=bar.update)


def _whole_numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of whole numbers such as 1,4,16") from None


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line. Returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("image", type=Path)
    parser.add_argument("output", type=Path, help="such as slide.svs or slide.tiff")
    parser.add_argument("--mpp", type=float, help="um per pixel of the image; without it the slide does not say")
    parser.add_argument("--encoding", choices=list(ENCODINGS), default="jpeg-rgb")
    parser.add_argument("--tile", type=int, default=256, metavar="PX")
    parser.add_argument("--quality", type=int, default=80, help="1 to 100 (default 80)")
    parser.add_argument("--downsamples", type=_whole_numbers, default=(1, 4, 16), metavar="1,4,16")
    parser.add_argument("--vendor", choices=["aperio", "generic"], default="aperio")
    options = parser.parse_args(arguments)
    try:
        pyramid_from_image(
            options.image,
            options.output,
            mpp=options.mpp,
            encoding=options.encoding,
            tile_px=options.tile,
            quality=options.quality,
            downsamples=options.downsamples,
            vendor=options.vendor,
        )
    except (OSError, ValueError) as error:
        print(f"pyramid_from_image: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
