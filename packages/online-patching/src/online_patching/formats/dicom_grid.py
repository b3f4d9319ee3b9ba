"""Which tile of a DICOM level does each frame hold?

In a sparse level every frame states the place of its upper left pixel in the total pixel matrix (PS3.3 section
C.8.12.6.1), in an item of the per-frame functional groups. There may be a hundred thousand of them: they are found by
one search over the bytes, and by walking the items only where that does not find one position a frame.
"""

from __future__ import annotations

import re

import numpy as np
import numpy.typing as npt

from online_patching.formats.dicom_elements import DataSet, DataSetError
from online_patching.formats.header import TileRanges
from online_patching.formats.header_reader import HeaderReader
from online_patching.geometry import LevelGeometry

PER_FRAME_GROUPS = 0x52009230
# Real files take 100 to 700 bytes a frame.
BYTES_A_FRAME, FEWEST_BYTES, MOST_BYTES = 4096, 1 << 20, 128 << 20
PLANE_POSITION, COLUMN_POSITION, ROW_POSITION = 0x0048021A, 0x0048021E, 0x0048021F

# A frame's position as it is nearly always stored: column and row beside each other.
_POSITIONS = {
    True: re.compile(rb"\x48\x00\x1e\x02SL\x04\x00(.{4}\x48\x00\x1f\x02SL\x04\x00.{4})", re.DOTALL),
    False: re.compile(rb"\x48\x00\x1e\x02\x04\x00\x00\x00(.{4}\x48\x00\x1f\x02\x04\x00\x00\x00.{4})", re.DOTALL),
}


def per_frame_bytes(frames: int) -> int:
    """Up to how many bytes of per-frame functional groups are read of a file with so many frames."""
    return min(FEWEST_BYTES + BYTES_A_FRAME * frames, MOST_BYTES)


def tiles_of_frames(
    reader: HeaderReader, geometry: LevelGeometry, frames: int, per_frame: DataSet
) -> npt.NDArray[np.intp] | None:
    """Tile number of every frame.

    Args:
        reader: The file, for its errors.
        geometry: Size and tile grid of the level.
        frames: Number of frames.
        per_frame: Data set that holds the per-frame functional groups, if the file has them.

    Returns:
        intp (frames,); None where no positions are stored and frames follow one another.

    Raises:
        SlideFormatError: Positions that are no tiles of one picture.
        DataSetError: Positions are missing.
    """
    if PER_FRAME_GROUPS not in per_frame.values:
        return None
    corners = _corners(per_frame, frames) - 1
    size = np.array([geometry.tile_width_px, geometry.tile_height_px])
    if (corners % size).any():
        raise reader.error("frames off the tile grid: tiles that overlap or lie askew are not read")
    tiles = corners // size
    if (tiles < 0).any() or (tiles >= [geometry.tiles_x, geometry.tiles_y]).any():
        raise reader.error(f"frames outside of the level of {geometry.width_px} x {geometry.height_px} px: damaged")
    numbers: npt.NDArray[np.intp] = tiles[:, 1] * geometry.tiles_x + tiles[:, 0]
    if len(np.unique(numbers)) != frames:
        raise reader.error("several frames at one place (focal planes or optical paths): only one of them is read")
    return numbers


def _corners(per_frame: DataSet, frames: int) -> npt.NDArray[np.int64]:
    """(column, row) of every frame's upper left pixel, counted from 1; int64 (frames, 2)."""
    found = _POSITIONS[per_frame.explicit].findall(per_frame.values[PER_FRAME_GROUPS])
    if len(found) == frames:
        return np.frombuffer(b"".join(found), "<i4").reshape(frames, 4)[:, [0, 3]].astype(np.int64)
    corners = np.zeros((frames, 2), np.int64)
    number = 0
    for number, groups in enumerate(per_frame.items(PER_FRAME_GROUPS), 1):
        position = groups.item(PLANE_POSITION)
        values = [position.values.get(tag, b"") for tag in (COLUMN_POSITION, ROW_POSITION)]
        if number > frames or any(len(value) != 4 for value in values):
            raise DataSetError(f"frame {number} of {frames} has no position in the total pixel matrix")
        corners[number - 1] = [int.from_bytes(value, "little", signed=True) for value in values]
    if number != frames:
        raise DataSetError(f"positions of {number} frames, {frames} stored")
    return corners


def by_tile(frames: TileRanges, grid: npt.NDArray[np.intp], geometry: LevelGeometry) -> TileRanges:
    """Ranges by tile; tiles without a frame have length 0."""
    tiles = geometry.tiles_x * geometry.tiles_y
    offset, length = np.zeros(tiles, np.uint64), np.zeros(tiles, np.uint32)
    offset[grid], length[grid] = frames.offset, frames.length
    return TileRanges(offset, length)
