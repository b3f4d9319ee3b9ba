"""How do decoded tiles become the window that was asked for, at the size that was asked for?

``stitch`` pastes tiles into a white window; ``resize`` brings it to the patch's size: area averaging when the patch
is coarser than the level (no aliasing), bicubic when it is finer, untouched when the sizes agree.
"""

from __future__ import annotations

from collections.abc import Mapping

import cv2
import numpy as np

from online_patching.decode import Pixels
from online_patching.geometry import LevelGeometry, LevelWindow

WHITE = 255


def stitch(window: LevelWindow, geometry: LevelGeometry, tiles: Mapping[int, Pixels]) -> Pixels:
    """The window's pixels from the tiles it touches.

    Args:
        window: Rectangle in pixels of the level.
        geometry: Size and tile grid of the level.
        tiles: Decoded tiles by row-major number; a missing one stays white.

    Returns:
        uint8 (height_level_px, width_level_px, 3); white outside of the level.
    """
    out = np.full((window.height_level_px, window.width_level_px, 3), WHITE, np.uint8)
    right = min(window.x_level_px + window.width_level_px, geometry.width_px)
    lower = min(window.y_level_px + window.height_level_px, geometry.height_px)
    for number, pixels in tiles.items():
        row, column = divmod(number, geometry.tiles_x)
        tile_x, tile_y = column * geometry.tile_width_px, row * geometry.tile_height_px
        x0, x1 = max(tile_x, window.x_level_px), min(tile_x + geometry.tile_width_px, right)
        y0, y1 = max(tile_y, window.y_level_px), min(tile_y + geometry.tile_height_px, lower)
        if x0 < x1 and y0 < y1:
            out[y0 - window.y_level_px : y1 - window.y_level_px, x0 - window.x_level_px : x1 - window.x_level_px] = (
                pixels[y0 - tile_y : y1 - tile_y, x0 - tile_x : x1 - tile_x]
            )
    return out


def resize(pixels: Pixels, size_px: int) -> Pixels:
    """The pixels as a square of ``size_px``, uint8 (size_px, size_px, 3)."""
    height, width = pixels.shape[:2]
    if (height, width) == (size_px, size_px):
        return pixels
    shrinks = height >= size_px and width >= size_px
    resized = cv2.resize(pixels, (size_px, size_px), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)
    return np.asarray(resized, np.uint8)
