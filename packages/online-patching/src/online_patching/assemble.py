"""How do pieces of decoded tiles become the patches that were asked for?

An ``Assembly`` holds the windows of one batch. Threads ``paste`` pieces of tiles into them; with its last piece a
window is brought to its size (``resize``) and becomes the result. A window of which a piece cannot be
had fails alone.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence

import cv2
import numpy as np

from online_patching.decode import Pixels
from online_patching.errors import CorruptTileError
from online_patching.plan import Piece

WHITE = 255
# A bilinear step shrinks by at most this share of the patch's size: by more it would skip pixels.
BILINEAR_SHRINK = 0.1
# Beyond, the step costs more than it saves.
MAX_MULTIPLE = 4


class Assembly:
    """The windows of one batch and what they become; any thread may work on it.

    Args:
        shapes: (height_px, width_px) of every window as it is read.
        sizes_px: Side of the square that each becomes, or None: as read.
        outs: Arrays to write the results to, or None: new ones.
    """

    def __init__(
        self, shapes: Sequence[tuple[int, int]], sizes_px: Sequence[int | None], outs: Sequence[Pixels | None]
    ) -> None:
        count = len(shapes)
        self._shapes = shapes
        self._sizes_px = sizes_px
        self._outs = outs
        self._windows: list[Pixels | None] = [None] * count
        self._pieces_left = [0] * count
        self._white = [False] * count
        self._lock = threading.Lock()
        self._idle = threading.Condition(self._lock)
        self._writers = 0
        self._is_closed = False
        self.results: list[Pixels | CorruptTileError | None] = [None] * count

    def expect(self, window: int, pieces: int, *, white: bool) -> None:
        """Say how many pieces a window will get, before any is pasted.

        Args:
            window: Number of the window.
            pieces: Pieces; a window without any is white and done at once.
            white: Whether the pieces leave some of it uncovered.
        """
        self._pieces_left[window] = pieces
        self._white[window] = white
        if pieces == 0:
            self._finish(window, self._new_window(window))

    def collected(self) -> list[Pixels | CorruptTileError]:
        """The results, all of them."""
        found = [result for result in self.results if result is not None]
        assert len(found) == len(self.results), "a window has not got all of its pieces"
        return found

    def is_wanted(self, pieces: Sequence[Piece]) -> bool:
        """Whether any window of these pieces has no result yet."""
        return any(self.results[piece.window] is None for piece in pieces)

    def paste(self, pixels: Pixels, pieces: Sequence[Piece], x0_tile_px: int, y0_tile_px: int) -> None:
        """Copy a decoded part of a tile, whose corner is (x0, y0), into all windows that need it."""
        for window, x0, y0, x1, y1, x, y in pieces:
            target = self._begin(window)
            if target is None:
                continue
            is_pasted = False
            try:
                target[y : y + y1 - y0, x : x + x1 - x0] = pixels[
                    y0 - y0_tile_px : y1 - y0_tile_px, x0 - x0_tile_px : x1 - x0_tile_px
                ]
                is_pasted = True
            finally:
                is_last = self._end_piece(window, is_pasted=is_pasted)
            if is_last:
                try:
                    self._finish(window, target)
                finally:
                    self._end()

    def fail(self, pieces: Sequence[Piece], error: CorruptTileError) -> None:
        """Give the windows of these pieces an error as their result; the first error of a window stays."""
        with self._lock:
            for piece in pieces:
                if self.results[piece.window] is None:
                    self.results[piece.window] = error
                    self._windows[piece.window] = None

    def close(self) -> None:
        """Nothing is written any more when this returns: whoever gave arrays may use them for something else.

        It waits for pieces that are being copied, not for tiles that are being decoded.
        """
        with self._lock:
            self._is_closed = True
            while self._writers:
                self._idle.wait()

    def _begin(self, number: int) -> Pixels | None:
        """The window, to write a piece to; None where nobody wants it any more."""
        with self._lock:
            if self._is_closed or self.results[number] is not None:
                return None
            window = self._windows[number]
            if window is None:
                window = self._windows[number] = self._new_window(number)
            self._writers += 1
            return window

    def _end_piece(self, number: int, *, is_pasted: bool) -> bool:
        """Whether it was the window's last piece; then the caller goes on writing, up to ``_end``."""
        with self._lock:
            self._pieces_left[number] -= is_pasted
            if is_pasted and self._pieces_left[number] == 0:
                return True
            self._end_locked()
            return False

    def _end(self) -> None:
        with self._lock:
            self._end_locked()

    def _end_locked(self) -> None:
        self._writers -= 1
        if self._is_closed:
            self._idle.notify_all()

    def _new_window(self, number: int) -> Pixels:
        shape, out = self._shapes[number], self._outs[number]
        window = out if out is not None and out.shape[:2] == shape else np.empty((*shape, 3), np.uint8)
        if self._white[number]:
            window[:] = WHITE
        return window

    def _finish(self, number: int, window: Pixels) -> None:
        size_px, out = self._sizes_px[number], self._outs[number]
        self.results[number] = window if size_px is None else resize(window, size_px, out)
        self._windows[number] = None


def resize(pixels: Pixels, size_px: int, out: Pixels | None = None) -> Pixels:
    """The pixels as a square, uint8 (size_px, size_px, 3), in ``out`` where it is given.

    Shrinking: a bilinear step to the next whole multiple of the size, then the mean of each block of pixels, which is
    what area averaging gives (0.2 dB apart against an exact area reference) at a third of its cost. Enlarging: bicubic.
    """
    height, width = pixels.shape[:2]
    if (height, width) == (size_px, size_px):
        if out is None or out is pixels:
            return pixels
        out[:] = pixels
        return out
    shrinks = height >= size_px and width >= size_px
    multiple = math.ceil(max(height, width) / size_px - BILINEAR_SHRINK)
    if shrinks and 1 <= multiple <= MAX_MULTIPLE:
        side = multiple * size_px
        if (height, width) != (side, side):
            stepped = out if multiple == 1 else None
            pixels = np.asarray(cv2.resize(pixels, (side, side), dst=stepped, interpolation=cv2.INTER_LINEAR))
        if multiple == 1:
            return pixels
    filter_ = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(pixels, (size_px, size_px), dst=out, interpolation=filter_), np.uint8)
