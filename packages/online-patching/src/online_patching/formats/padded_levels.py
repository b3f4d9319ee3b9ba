"""Which tiles of a padded TIFF level are the level?

Some vendors state a level's size in whole tiles, so that levels are padded differently and their sizes do not tell the
downsample. Where another place of the header tells it, the level is cut to its true size, and its tile table with it.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

from online_patching.formats.header import TileRanges
from online_patching.formats.header_reader import HeaderReader
from online_patching.formats.tiff_level import TiffLevel

# Padding fills up tiles, and may add some. Sizes that differ by more than twice and these tiles are of another level.
MAX_PADDING_TILES = 4


def check_downsamples(reader: HeaderReader, levels: list[TiffLevel], downsamples: list[float]) -> None:
    """Refuse downsamples that the sizes of the stored levels contradict.

    Raises:
        SlideFormatError: The downsamples do not grow, or a level would be far smaller or larger than what is stored.
    """
    if any(later <= earlier for earlier, later in pairwise(downsamples)):
        raise reader.error(f"its levels have the downsamples {downsamples}, which do not grow: the file is damaged")
    for level, downsample in zip(levels, downsamples, strict=True):
        stored, base = level.geometry, levels[0].geometry
        for side, base_side, tile in (
            (stored.width_px, base.width_px, stored.tile_width_px),
            (stored.height_px, base.height_px, stored.tile_height_px),
        ):
            size = base_side / downsample
            if not size / 2 - 1 <= side <= 2 * size + MAX_PADDING_TILES * tile:
                raise reader.error(
                    f"a level of {stored.width_px} x {stored.height_px} px is said to have the downsample"
                    f" {downsample:g} of {base.width_px} x {base.height_px} px: the file is damaged"
                )


def cut_to_downsamples(reader: HeaderReader, levels: list[TiffLevel], downsamples: list[float]) -> list[TiffLevel]:
    """The levels with their true downsamples, each cut to level 0's size divided by it.

    Args:
        reader: Of the file, which an error names.
        levels: As their directories state them, finest first.
        downsamples: Of every level; the first is 1.

    Raises:
        SlideFormatError: The downsamples do not fit the sizes that are stored.
    """
    check_downsamples(reader, levels, downsamples)
    base = levels[0].geometry
    cut = []
    for level, downsample in zip(levels, downsamples, strict=True):
        width, height = int(base.width_px / downsample), int(base.height_px / downsample)
        cut.append(_cut(reader, level, width, height, downsample))
    return cut


def _cut(reader: HeaderReader, level: TiffLevel, width: int, height: int, downsample: float) -> TiffLevel:
    stored = level.geometry
    geometry = replace(stored, width_px=max(width, 1), height_px=max(height, 1), downsample=downsample)
    if geometry.tiles_x > stored.tiles_x or geometry.tiles_y > stored.tiles_y:
        raise reader.error(
            f"a level of downsample {downsample:g} should have {width} x {height} px, but only"
            f" {stored.width_px} x {stored.height_px} px are stored: the file is damaged"
        )
    grid, rows, columns = (stored.tiles_y, stored.tiles_x), geometry.tiles_y, geometry.tiles_x
    offset = level.tiles.offset.reshape(grid)[:rows, :columns].ravel()
    length = level.tiles.length.reshape(grid)[:rows, :columns].ravel()
    return TiffLevel(geometry, level.encoding, TileRanges(offset, length))
