"""How do squares of tissue become a slide?

Steps: a coarse map (one cell for 16 x 16 px) says where tissue lies, which lobule each place belongs to,
how thick the section is and where somebody drew with a pen. Each lobule shows one tissue class through
its own window (shift, mirror, turn) of that class's periodic square, and septa of stroma run between
lobules, so that the repetition does not show. `SlidePainter.bands` enlarges the map band by band and
colours it; glass is copied from a few ready tiles.

`sample_tissue` paints the squares, `sample_stain` colours, `svs_writer` takes the bands.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt
from sample_stain import Stain, apply_table, colour_table
from sample_tissue import TISSUE_CLASSES, paint_tissue, smooth_step

U8 = npt.NDArray[np.uint8]
F32 = npt.NDArray[np.float32]

_CELL = 16  # pixels of level 0 per cell of the map, along an edge
_GLASS_TILES = 4
_NOMINAL = 12 * 16  # thickness 1.0, in sixteenths of a thickness level
PENS = {"blue": (0.18, 0.30, 0.78), "green": (0.15, 0.55, 0.30), "black": (0.16, 0.15, 0.17)}
"""Inks of pen marks: share of red, green and blue light that they let through."""

_SEPTUM = 0  # lobule number of the septa


@dataclass(frozen=True, slots=True)
class _Lobule:
    """A window into a class's square: transposed or not, mirrored or not, from a corner."""

    tissue: int
    transposed: bool
    steps: tuple[int, int]
    corner: tuple[int, int]


class SlidePainter:
    """Paints one slide.

    Args:
        width_px, height_px: Size of level 0.
        mpp: um per pixel.
        tile_px: Edge of the tiles that the slide will be stored in; empty tiles then repeat exactly.
        stain: Its colours.
        square_um: Edge of the periodic squares of tissue; the smaller, the faster and the more repetitive.
        pen: Draw marks with this one of `PENS`, or none.
        rng: Source of all randomness.
    """

    def __init__(
        self,
        *,
        width_px: int,
        height_px: int,
        mpp: float,
        tile_px: int,
        stain: Stain,
        square_um: float,
        pen: str | None,
        rng: np.random.Generator,
    ) -> None:
        self._size = (width_px, height_px)
        self._tile_px = tile_px
        self._cell_um = _CELL * mpp
        self._shape = (-(-height_px // _CELL), -(-width_px // _CELL))
        self._table = colour_table(stain)
        square_px = round(square_um / mpp / _CELL) * _CELL
        self._squares = [paint_tissue(tissue, rng, size_px=square_px, mpp=mpp) for tissue in TISSUE_CLASSES]
        self._turned = [np.ascontiguousarray(square.T) for square in self._squares]
        self._lay_out(rng)
        self._pen = None if pen is None else self._draw_pen(rng)
        self._ink = (1.0, 1.0, 1.0) if pen is None else PENS[pen]
        self._glass = np.clip(
            np.rint(np.array(stain.glass) + rng.normal(0, 1.1, (_GLASS_TILES, tile_px, tile_px, 1))), 0, 255
        ).astype(np.uint8)
        tiles = (-(-height_px // tile_px), -(-width_px // tile_px))
        self._glass_choice = rng.integers(_GLASS_TILES, size=tiles)
        self._dither = rng.integers(16, size=(64, 64), dtype=np.uint8)

    def bands(self, band_px: int) -> Iterator[U8]:
        """Yields level 0 from the top, uint8 RGB (band_px, width, 3); `band_px` is a multiple of 16
        and the tile.
        """
        width, height = self._size
        for top in range(0, height, band_px):
            rows = min(band_px, height - top)
            band = self._glass_band(top, band_px)
            cells = slice(top // _CELL, -(-(top + rows) // _CELL))
            columns = np.flatnonzero(self._thickness[cells].any(axis=0))
            if len(columns):
                self._paint_tissue(band, cells, slice(int(columns[0]), int(columns[-1]) + 1))
            if self._pen is not None:
                self._paint_pen(band, self._pen, cells)
            yield np.ascontiguousarray(band[:rows, :width])

    # The map ----------------------------------------

    def _lay_out(self, rng: np.random.Generator) -> None:
        rows, columns = self._shape
        extent_um = np.array([columns, rows]) * self._cell_um
        inside = self._tissue_field(rng)
        spacing_um = min(620.0, float(extent_um.min()) / 4)
        nearest, wall_um = self._lobule_cells(rng, spacing_um)
        septum_um = spacing_um * 0.035 * (1 + 0.6 * self._noise(rng, 150.0))
        tear = (wall_um < septum_um * 0.5) & (self._noise(rng, spacing_um) > 1.0)
        self._ids = np.where(wall_um < septum_um, _SEPTUM, nearest + 1).astype(np.uint8)
        thickness = _NOMINAL * (1 + 0.07 * self._noise(rng, 400.0) + 0.05 * self._noise(rng, 90.0))
        thickness *= smooth_step(inside, 0, 0.01) * ~tear
        self._thickness = np.clip(thickness, 0, 239).astype(np.uint8)
        count = int(nearest.max()) + 1
        turns = [rng.permutation(len(TISSUE_CLASSES)) for _ in range(-(-count // len(TISSUE_CLASSES)))]
        classes = [TISSUE_CLASSES.index("stroma"), *np.concatenate(turns).tolist()[:count]]
        size = self._squares[0].shape[0]
        self._lobules = [
            _Lobule(
                tissue=tissue,
                transposed=bool(rng.integers(2)),
                steps=(int(rng.choice((-1, 1))), int(rng.choice((-1, 1)))),
                corner=(int(rng.integers(size)), int(rng.integers(size))),
            )
            for tissue in classes
        ]

    def _tissue_field(self, rng: np.random.Generator) -> F32:
        """Returns a field over the cells that is positive where tissue lies: one or two ragged pieces."""
        rows, columns = self._shape
        x = np.linspace(-1, 1, columns, dtype=np.float32)[None]
        y = np.linspace(-1, 1, rows, dtype=np.float32)[:, None]
        pieces = int(rng.integers(1, 3))
        field = np.full(self._shape, -1, dtype=np.float32)
        for piece in range(pieces):
            centre_x = (piece - (pieces - 1) / 2) * 0.95 + rng.uniform(-0.08, 0.08)
            centre_y = rng.uniform(-0.12, 0.12)
            turn = np.arctan2(y - centre_y, x - centre_x)
            radius = np.full_like(turn, 0.66 if pieces == 1 else 0.42)
            for waves in range(2, 7):
                radius *= 1 + rng.normal(0, 0.22 / waves) * np.cos(waves * turn + rng.uniform(0, 2 * np.pi))
            stretch = 1.0 if pieces == 1 else 0.6
            field = np.maximum(field, radius - np.hypot(x - centre_x, (y - centre_y) * stretch))
        field += 0.02 * self._noise(rng, 120.0) + 0.008 * self._noise(rng, 30.0)
        margin = np.minimum(1 - np.abs(x), 1 - np.abs(y)) - 0.04  # glass all around
        return np.asarray(np.minimum(field, margin), dtype=np.float32)

    def _lobule_cells(self, rng: np.random.Generator, spacing_um: float) -> tuple[npt.NDArray[np.int64], F32]:
        """Divides the map into rounded, uneven lobules. Returns their numbers and the distance to the
        next, in um.
        """
        rows, columns = self._shape
        bend = 0.12 * spacing_um
        x = (np.arange(columns) * self._cell_um)[None] + bend * self._noise(rng, spacing_um / 2)
        y = (np.arange(rows) * self._cell_um)[:, None] + bend * self._noise(rng, spacing_um / 2)
        across, down = (max(1, round(n * self._cell_um / spacing_um)) for n in (columns, rows))
        grid = np.stack(np.meshgrid(np.arange(across), np.arange(down)), axis=-1)
        step = np.array([columns / across, rows / down]) * self._cell_um
        # At most 254 lobules: with the septa their numbers fit a byte.
        centres = ((grid + rng.uniform(0.15, 0.85, grid.shape)) * step).reshape(-1, 2)[:254]
        first = np.full(self._shape, np.inf, dtype=np.float32)
        second, nearest = first.copy(), np.zeros(self._shape, dtype=np.int64)
        for number, (centre_x, centre_y) in enumerate(centres):
            distance = np.hypot(x - centre_x, y - centre_y).astype(np.float32)
            nearest[distance < first] = number
            np.minimum(second, np.maximum(first, distance), out=second)
            np.minimum(first, distance, out=first)
        return nearest, ((second - first) / 2).astype(np.float32)

    def _noise(self, rng: np.random.Generator, scale_um: float) -> F32:
        rows, columns = self._shape
        nodes = [max(4, int(n * self._cell_um / scale_um) + 2) for n in (rows, columns)]
        coarse = rng.standard_normal(nodes, dtype=np.float32)
        smooth = np.asarray(cv2.resize(coarse, (columns, rows), interpolation=cv2.INTER_CUBIC), dtype=np.float32)
        return np.asarray(smooth / smooth.std(), dtype=np.float32)

    def _draw_pen(self, rng: np.random.Generator) -> U8:
        """Draws a loop around a part of the tissue and a stroke in a corner. Returns coverage per
        cell, 0 to 255.
        """
        rows, columns = self._shape
        mask = np.zeros(self._shape, dtype=np.uint8)
        width = max(2, round(min(rows, columns) * 0.035))
        turn = np.linspace(0.3, 2 * np.pi - rng.uniform(0.2, 1.2), 60)
        radius = 1 + 0.06 * np.cos(3 * turn + rng.uniform(0, 6))
        loop_x = columns * (rng.uniform(0.35, 0.6) + 0.24 * radius * np.cos(turn))
        loop_y = rows * (rng.uniform(0.4, 0.6) + 0.3 * radius * np.sin(turn))
        stroke_x = columns * np.linspace(0.04, 0.22, 20)
        stroke_y = rows * (0.06 + 0.02 * np.sin(np.linspace(0, 9, 20)))
        for line in ((loop_x, loop_y), (stroke_x, stroke_y)):
            points = np.stack(line, axis=-1).astype(np.int32)[:, None]
            cv2.polylines(mask, [points], isClosed=False, color=235, thickness=width)
        streaks = np.clip(1 + 0.12 * self._noise(rng, 60.0), 0, 1.05)
        return np.asarray(cv2.GaussianBlur(mask, (0, 0), 1.0) * streaks, dtype=np.uint8)

    # The pixels ----------------------------------------

    def _glass_band(self, top: int, band_px: int) -> U8:
        tile = self._tile_px
        first = top // tile
        rows = [
            np.concatenate(list(self._glass[choice]), axis=1)
            for choice in self._glass_choice[first : first + band_px // tile]
        ]
        missing = band_px // tile - len(rows)  # below the slide
        return np.concatenate(rows + rows[-1:] * missing)

    def _paint_tissue(self, band: U8, cells: slice, columns: slice) -> None:
        thickness = _enlarge(self._thickness, cells, columns)
        height, width = thickness.shape
        index = np.zeros((height, width), dtype=np.uint16)
        ids = self._ids[cells, columns]
        for number in np.unique(ids[self._thickness[cells, columns] > 0]).tolist():
            reach = np.flatnonzero((ids == number).any(axis=0))
            start, stop = max(0, int(reach[0]) - 1), min(ids.shape[1], int(reach[-1]) + 2)
            part = slice(columns.start + start, columns.start + stop)
            mask = _enlarge((self._ids == number).astype(np.uint8) * 255, cells, part) > 127
            x, y = part.start * _CELL, cells.start * _CELL
            window = self._window(self._lobules[number], x, y, mask.shape)
            np.copyto(index[:, start * _CELL : stop * _CELL], window, where=mask)
        repeats = (-(-height // 64), -(-width // 64))
        thickness += np.tile(self._dither, repeats)[:height, :width]
        thickness >>= 4
        coloured = apply_table(self._table, index, thickness)
        target = band[:height, columns.start * _CELL : columns.start * _CELL + width]
        shown = (slice(0, target.shape[0]), slice(0, target.shape[1]))
        target[:] = cv2.copyTo(coloured[shown], thickness[shown], np.ascontiguousarray(target))

    def _window(self, lobule: _Lobule, x: int, y: int, shape: tuple[int, ...]) -> npt.NDArray[np.uint16]:
        square = (self._turned if lobule.transposed else self._squares)[lobule.tissue]
        size = square.shape[0]
        rows = (lobule.corner[1] + lobule.steps[1] * np.arange(y, y + shape[0])) % size
        columns = (lobule.corner[0] + lobule.steps[0] * np.arange(x, x + shape[1])) % size
        return np.asarray(np.take(np.take(square, rows, axis=0), columns, axis=1), dtype=np.uint16)

    def _paint_pen(self, band: U8, pen: U8, cells: slice) -> None:
        columns = np.flatnonzero(pen[cells].any(axis=0))
        if not len(columns):
            return
        part = slice(max(0, int(columns[0]) - 1), int(columns[-1]) + 2)
        cover = _enlarge(pen, cells, slice(part.start, min(part.stop, pen.shape[1])))
        target = band[: cover.shape[0], part.start * _CELL : part.start * _CELL + cover.shape[1]]
        cover = cover[: target.shape[0], : target.shape[1]]
        for channel, transmission in enumerate(self._ink):
            light = 255 - cover.astype(np.float32) * (1 - transmission)
            target[..., channel] = cv2.multiply(target[..., channel], light, scale=1 / 255, dtype=cv2.CV_8U)


def _enlarge(cells: U8, rows: slice, columns: slice) -> U8:
    """Enlarges a part of the map to pixels, bilinear; the result does not depend on which part is
    asked for.
    """
    rows_in = np.clip(np.arange(rows.start - 1, rows.stop + 1), 0, cells.shape[0] - 1)
    columns_in = np.clip(np.arange(columns.start - 1, columns.stop + 1), 0, cells.shape[1] - 1)
    part = cells[np.ix_(rows_in, columns_in)]
    size = (part.shape[1] * _CELL, part.shape[0] * _CELL)
    large = np.asarray(cv2.resize(part, size, interpolation=cv2.INTER_LINEAR), dtype=np.uint8)
    return np.ascontiguousarray(large[_CELL:-_CELL, _CELL:-_CELL])
