"""Where do the edges of a mask run?

Every part of a mask is bounded by rings along the edges of its pixels, so that what they enclose is the mask itself:

1. the edges between a pixel inside and one outside, gathered into straight runs with the inside at their right;
2. each run leads to the one that starts where it ends; where four runs meet in one corner (two pixels that touch there
   only), to the one around the same pixel: parts are joined by sides, not by corners;
3. a ring belongs to the part whose pixels lie at its right; its sense tells an outer edge from a hole's.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import cv2
import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Ring = npt.NDArray[np.float64]

# Which pixel lies at the right of a run, seen from its start, by the run's direction.
_PIXEL_AT_RIGHT = {(1, 0): (0, 0), (-1, 0): (-1, -1), (0, 1): (-1, 0), (0, -1): (0, -1)}


@dataclass(slots=True)
class MaskPart:
    """Pixels joined by sides, as rings in pixels of the mask, corners float64 (N, 2) as (x, y), not repeated.

    Attributes:
        area_px: Number of its pixels.
        outer: Its outer edge; it may touch itself in corners.
        holes: Edges of its holes.
    """

    area_px: int
    outer: Ring = field(default_factory=lambda: np.empty((0, 2)))
    holes: list[Ring] = field(default_factory=list)


def mask_parts(mask: npt.NDArray[np.bool_], min_area_px: float = 0) -> tuple[list[MaskPart], int]:
    """The parts of a mask and their rings.

    Args:
        mask: bool (H, W).
        min_area_px: Parts of fewer pixels are left out, and holes of a smaller area filled.

    Returns:
        The parts, and how many were left out.
    """
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=4)
    areas = stats[:, cv2.CC_STAT_AREA]
    is_kept = areas >= min_area_px
    is_kept[0] = False
    parts = {int(label): MaskPart(int(areas[label])) for label in np.flatnonzero(is_kept)}
    if not parts:
        return [], count - 1
    starts, ends = _runs(is_kept[labels])
    for ring in _rings(starts, ends):
        x, y = starts[ring[0]]
        right, below = _PIXEL_AT_RIGHT[tuple(np.sign(ends[ring[0]] - starts[ring[0]]).tolist())]
        part = parts[int(labels[y + below, x + right])]
        corners = starts[ring].astype(np.float64)
        area = ring_area(corners)
        if area > 0:
            part.outer = corners
        elif -area >= min_area_px:
            part.holes.append(corners)
    return list(parts.values()), count - 1 - len(parts)


def ring_area(corners: Ring) -> float:
    """Area within a ring, below 0 where its inside lies at the left (y points down)."""
    x, y = corners.T
    return float((x * np.roll(y, -1) - np.roll(x, -1) * y).sum() / 2)


def _runs(mask: npt.NDArray[np.bool_]) -> tuple[Ints, Ints]:
    """Starts and ends of all straight runs of edges, int64 (N, 2) as (x, y): to the right, left, down, up."""
    inside = np.pad(mask.astype(np.int8), 1)
    y, x0, x1, sign = _runs_of_rows(np.diff(inside, axis=0)[:, 1:-1])
    # The inside lies below an edge of sign 1: at the right of who goes to the right.
    a, b = np.stack([x0, y], axis=1), np.stack([x1, y], axis=1)
    x, y0, y1, sign_y = _runs_of_rows(np.diff(inside, axis=1)[1:-1].T)
    c, d = np.stack([x, y0], axis=1), np.stack([x, y1], axis=1)
    right, left, down, up = sign > 0, sign < 0, sign_y < 0, sign_y > 0
    starts = [a[right], b[left], c[down], d[up]]
    ends = [b[right], a[left], d[down], c[up]]
    return np.concatenate(starts), np.concatenate(ends)


def _runs_of_rows(signs: npt.NDArray[np.int8]) -> tuple[Ints, Ints, Ints, npt.NDArray[np.int8]]:
    """Row, first and last place (exclusive) and sign of every run of equal signs that are not 0."""
    padded = np.pad(signs, ((0, 0), (1, 1)))
    before, after = padded[:, :-1], padded[:, 1:]
    changes = before != after
    rows, first = np.nonzero(changes & (after != 0))
    last = np.nonzero(changes & (before != 0))[1]
    return rows, first, last, signs[rows, first]


def _rings(starts: Ints, ends: Ints) -> list[list[int]]:
    """Numbers of the runs of every ring, in order."""
    width = int(starts[:, 0].max()) + 1
    start_keys, end_keys = (points[:, 1] * width + points[:, 0] for points in (starts, ends))
    step = np.sign(ends - starts)
    # A turn to the right, (dx, dy) -> (-dy, dx), stays at the same pixel; where no run goes there, one goes left.
    following = np.full(len(starts), -1, np.int64)
    for turn in (1, -1):
        for dx, dy in ((1, 0), (-1, 0), (0, 1), (0, -1)):
            coming = np.flatnonzero((step[:, 0] == dx) & (step[:, 1] == dy) & (following < 0))
            going = np.flatnonzero((step[:, 0] == -turn * dy) & (step[:, 1] == turn * dx))
            if not len(coming) or not len(going):
                continue
            going = going[np.argsort(start_keys[going])]
            places = np.searchsorted(start_keys[going], end_keys[coming]).clip(max=len(going) - 1)
            meets = start_keys[going[places]] == end_keys[coming]
            following[coming[meets]] = going[places[meets]]
    links = following.tolist()
    is_seen = bytearray(len(links))
    rings = []
    for first in range(len(links)):
        if is_seen[first]:
            continue
        ring, run = [], first
        while not is_seen[run]:
            is_seen[run] = 1
            ring.append(run)
            run = links[run]
        rings.append(ring)
    return rings
