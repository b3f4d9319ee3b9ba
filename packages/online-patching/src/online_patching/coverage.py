"""How much of each cell of a whole grid lies inside a polygon?

Asked cell by cell, an outline is looked through again and again. Here every edge is cut at the lines of the grid
once; each piece then lies in one cell, to which it gives its part of the integral of x dy (see ``outline``), and all
cells to the left of it in its row get their whole width times its rise. A running sum over each row adds these up.

``covered_areas`` gives the cells; ``RectangleAreas`` adds cells up to rectangles between any lines of the grid.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from online_patching.outline import Outline

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


def covered_areas(outline: Outline, x_lines: Floats, y_lines: Floats) -> Floats:
    """Area of the polygon within each cell of a grid, in square pixels.

    Args:
        outline: The polygon.
        x_lines: Upright lines, rising, float64 (C + 1,).
        y_lines: Level lines, rising, float64 (R + 1,).

    Returns:
        Float64 (R, C), exact but for rounding.
    """
    rows, columns = len(y_lines) - 1, len(x_lines) - 1
    x0, y0, x1, y1 = outline.edges()
    across, down = x1 - x0, y1 - y0
    edge, t0, t1 = _pieces(_crossings(x0, x1, x_lines), _crossings(y0, y1, y_lines), len(x0))
    middle = (t0 + t1) * 0.5
    x, y = x0[edge] + middle * across[edge], y0[edge] + middle * down[edge]
    rise = (t1 - t0) * down[edge]
    # One column more, for what lies beyond the last line: it gives its rise to all cells of its row.
    column = np.searchsorted(x_lines, x, side="right") - 1
    row = np.searchsorted(y_lines, y, side="right") - 1
    kept = ((row >= 0) & (row < rows) & (column >= 0)).nonzero()[0]
    cell = row[kept] * (columns + 1) + column[kept]
    rise = rise[kept]
    rises = np.bincount(cell, rise, rows * (columns + 1)).reshape(rows, columns + 1)
    inset = x[kept] - x_lines[column[kept]]
    within = np.bincount(cell, inset * rise, rows * (columns + 1)).reshape(rows, columns + 1)[:, :columns]
    beyond = np.cumsum(rises[:, :0:-1], axis=1)[:, ::-1]
    areas: Floats = within + beyond * np.diff(x_lines)
    return areas


class RectangleAreas:
    """Areas of the polygon within rectangles between lines of a grid.

    Args:
        outline: The polygon.
        x_lines: Places of upright lines, in any order, also more than once.
        y_lines: Places of level lines.

    Attributes:
        error_px2: The areas are off by no more: they are differences of sums over the whole grid.
    """

    def __init__(self, outline: Outline, x_lines: Floats, y_lines: Floats) -> None:
        self._x, self._y = np.unique(x_lines), np.unique(y_lines)
        areas = covered_areas(outline, self._x, self._y)
        self._sums = np.zeros((len(self._y), len(self._x)))
        np.cumsum(areas, axis=0, out=self._sums[1:, 1:])
        np.cumsum(self._sums[1:, 1:], axis=1, out=self._sums[1:, 1:])
        self.error_px2 = 1e-13 * float(np.abs(areas).sum()) + 1e-12

    def between(self, left: Floats, upper: Floats, right: Floats, lower: Floats) -> Floats:
        """Areas within every combination of columns and rows, float64 (R, C).

        Args:
            left: Left edges of the C columns; each one of the lines, like all others.
            upper: Upper edges of the R rows.
            right: Right edges of the columns.
            lower: Lower edges of the rows.
        """
        columns = self._sums[:, np.searchsorted(self._x, right)] - self._sums[:, np.searchsorted(self._x, left)]
        areas: Floats = columns[np.searchsorted(self._y, lower)] - columns[np.searchsorted(self._y, upper)]
        return areas


def _crossings(start: Floats, end: Floats, lines: Floats) -> tuple[Ints, Floats]:
    """Edges that cross lines along one axis, and where between their start (0) and end (1)."""
    first = np.searchsorted(lines, np.minimum(start, end), side="right")
    last = np.searchsorted(lines, np.maximum(start, end), side="left")
    counts = np.maximum(last - first, 0)
    edge = np.repeat(np.arange(len(start)), counts)
    line = np.arange(len(edge)) - np.repeat(counts.cumsum() - counts - first, counts)
    places = (lines[line] - start[edge]) / (end[edge] - start[edge])
    return edge, np.minimum(np.maximum(places, 0.0), 1.0)


def _pieces(upright: tuple[Ints, Floats], level: tuple[Ints, Floats], edges: int) -> tuple[Ints, Floats, Floats]:
    """The edge, start and end of every piece between two crossings."""
    edge = np.concatenate([np.arange(edges), upright[0], level[0]])
    start = np.concatenate([np.zeros(edges), upright[1], level[1]])
    order = np.lexsort((start, edge))
    edge, start = edge[order], start[order]
    end = np.ones(len(edge))
    end[:-1] = np.where(edge[1:] == edge[:-1], start[1:], 1.0)
    return edge, start, end
