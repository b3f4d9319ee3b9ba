"""Small slides written by an independent library (tifffile), for tests that need to know every pixel."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import tifffile

Pixels = npt.NDArray[np.uint8]


def tissue_image(width: int, height: int, seed: int) -> Pixels:
    """An ellipse of purple tissue with nuclei on glass; a smooth picture, so that JPEG keeps it."""
    rng = np.random.default_rng(seed)
    image = np.full((height, width, 3), (243, 242, 244), np.uint8)
    centre, axes = (width // 2, height // 2), (int(width * 0.38), int(height * 0.36))
    cv2.ellipse(image, centre, axes, 0, 0, 360, (214, 150, 190), -1)
    for _ in range(width * height // 900):
        x, y = int(rng.integers(width)), int(rng.integers(height))
        if ((x - centre[0]) / axes[0]) ** 2 + ((y - centre[1]) / axes[1]) ** 2 < 0.95:
            cv2.circle(image, (x, y), int(rng.integers(3, 6)), (96, 60, 140), -1)
    return np.asarray(cv2.GaussianBlur(image, (0, 0), 1.2), np.uint8)


def pyramid_of(image: Pixels, downsamples: tuple[int, ...] = (1, 2, 4)) -> list[Pixels]:
    """The image at whole downsamples; sizes are rounded down."""
    sizes = [(image.shape[1] // d, image.shape[0] // d) for d in downsamples]
    return [np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8) for size in sizes]


def write_pyramid(
    path: Path,
    image: Pixels,
    *,
    mpp: float | None = 0.5,
    tile: int = 128,
    downsamples: tuple[int, ...] = (1, 4),
    compression: str | None = "jpeg",
    predictor: bool = False,
    bigtiff: bool = False,
    byteorder: str = "<",
) -> list[Pixels]:
    """A tiled pyramid with an Aperio-like description; returns the levels as they were handed to the writer."""
    levels = []
    description = "Aperio Image Library v11.2.1\r\nsample|AppMag = 20" + (f"|MPP = {mpp}" if mpp else "")
    with tifffile.TiffWriter(path, bigtiff=bigtiff, byteorder=byteorder) as writer:
        for number, level in enumerate(pyramid_of(image, downsamples)):
            writer.write(
                level,
                photometric="rgb",
                tile=(tile, tile),
                compression=compression,
                compressionargs={"level": 90} if compression == "jpeg" else None,
                predictor=predictor,
                description=description if number == 0 else None,
                metadata=None,
            )
            levels.append(level)
    return levels
