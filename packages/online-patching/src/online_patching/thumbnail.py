"""What does a whole slide look like, at a size that fits the screen?

The coarsest level that is fine enough is read by strips of whole tile rows, each shrunk at once, so that a level of a
gigapixel never lies in memory. (A stored thumbnail image may be cropped or retouched by the scanner; this one is made
of the tiles that patches are read from.)
"""

from __future__ import annotations

from itertools import pairwise

import cv2
import numpy as np

from online_patching.decode import Pixels
from online_patching.slide import Slide

# 8 to 16 um per pixel for most slides.
THUMBNAIL_SIDE_PX = 2048
STRIP_TILE_ROWS = 4


def thumbnail_of(slide: Slide, side_px: int = THUMBNAIL_SIDE_PX) -> Pixels:
    """The whole slide, its longer side ``side_px`` (or as stored, where the slide is smaller).

    Returns:
        uint8 (H, W, 3) RGB.
    """
    fine_enough = [k for k, g in enumerate(slide.levels) if max(g.width_px, g.height_px) >= side_px]
    level = max(fine_enough, default=0)
    geometry = slide.levels[level]
    shrink = max(1.0, max(geometry.width_px, geometry.height_px) / side_px)
    width, height = max(1, round(geometry.width_px / shrink)), max(1, round(geometry.height_px / shrink))
    strip = max(1, round(STRIP_TILE_ROWS * geometry.tile_height_px / shrink))
    edges = [*range(0, height, strip), height]
    shrunk = []
    for top, bottom in pairwise(edges):
        y0, y1 = (round(edge * geometry.height_px / height) for edge in (top, bottom))
        pixels = slide.read_level(level=level, x_px=0, y_px=y0, width_px=geometry.width_px, height_px=y1 - y0)
        shrunk.append(cv2.resize(pixels, (width, bottom - top), interpolation=cv2.INTER_AREA))
    return np.concatenate(shrunk)
