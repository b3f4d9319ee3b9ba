"""Are these images the levels of one pyramid, and what are their downsamples?

Every format that does not state downsamples comes here: a level's downsample is the mean over both axes of level 0's
side divided by its own, and the two must agree but for rounding and padding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from online_patching.errors import SlideFormatError
from online_patching.geometry import LevelGeometry

# Sixteen million pixels a side: four metres of glass at 0.25 um a pixel.
MAX_SIDE_PX = 1 << 24
# 4096 x 4096 px are 50 MB decoded; more in one tile is a bomb or no slide.
MAX_TILE_AREA_PX = 1 << 24
MAX_LEVELS = 64
# Share by which a level's aspect may differ from level 0's.
ASPECT_TOLERANCE = 0.02


def downsampled(
    level: LevelGeometry, base: LevelGeometry, *, error: Callable[[str], SlideFormatError], padded: bool = True
) -> LevelGeometry:
    """The level with its downsample set.

    Args:
        level: Size and tile grid of the level.
        base: The same of level 0.
        error: Makes the error that names the file.
        padded: Whether sizes may be filled up to whole tiles, so that small levels may differ by one; else they may
            differ by the rounding of whole pixels only.

    Raises:
        SlideFormatError: Images of different aspect: they are no levels of one pyramid.
    """
    down_x, down_y = base.width_px / level.width_px, base.height_px / level.height_px
    if padded:
        slack = max(level.tile_width_px / level.width_px, level.tile_height_px / level.height_px)
    else:
        slack = 1 / level.width_px + 1 / level.height_px
    if abs(down_x / down_y - 1) > max(ASPECT_TOLERANCE, slack):
        raise error(
            f"an image of {level.width_px} x {level.height_px} px beside one of {base.width_px} x {base.height_px} px:"
            " their sides are in different proportions, so they are not levels of one pyramid"
        )
    return replace(level, downsample=(down_x + down_y) / 2)
