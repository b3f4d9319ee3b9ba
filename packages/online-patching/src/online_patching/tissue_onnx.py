"""How does a network in an ONNX file say which part of a thumbnail is tissue?

Steps: scale the thumbnail to pixels that the network knows, cut it into overlapping windows of bounded size, run each
through OpenCV's DNN module (no torch), keep the middle of every answer, scale the whole back.

The network takes ``image`` float32 (1, 3, H, W), RGB from 0 to 1, H and W multiples of 32, and gives the probability
of tissue (1, 1, H, W). The shipped one and a user's own obey the same contract.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.float32]

MPP_RANGE = (8.0, 16.0)
"""um per pixel between which the network is at home; other thumbnails of known scale are scaled to the nearer end."""

MAX_SIDE_PX = 1600
"""A finer thumbnail that is longer is reduced, down to the coarse end of `MPP_RANGE`, but no further."""

WINDOW_PX = 1024
"""Largest side of what is run at once, margins apart: about 0.15 GB of features."""

MARGIN_PX = 64
"""Overlap of windows on either side, of which the answer is not used."""

MULTIPLE_PX = 32
# Nothing is enlarged more than this: pixels that a scanner did not store help no network.
_MAX_ENLARGEMENT = 2.0


class OnnxTissue:
    """Probability of tissue by a network. Safe to share between threads: one runs at a time.

    Args:
        path: The ONNX file.
        unknown_scales: Factors on a thumbnail of unknown resolution; the answers are averaged. Under the microscope
            the network knows tissue better from further away.

    Raises:
        ValueError: no such file, not a readable network, or not one of the contract above.
    """

    def __init__(self, path: str | Path, *, unknown_scales: Sequence[float] = (1.0,)) -> None:
        self._path = Path(path)
        self._unknown_scales = tuple(unknown_scales)
        if not self._path.is_file():
            raise ValueError(f"network {path}: no such file; give the path of an .onnx file that exists")
        try:
            self._net = cv2.dnn.readNetFromONNX(str(self._path))
        except cv2.error as error:
            raise ValueError(
                f"network {path}: OpenCV {cv2.__version__} cannot read it ({_cause(error)}); give a whole ONNX file"
                " of operations that cv2.dnn supports"
            ) from error
        # A network is not thread-safe, and one of them uses all cores that OpenCV has.
        self._lock = threading.Lock()
        self._run(np.full((MULTIPLE_PX * 2, MULTIPLE_PX * 3, 3), 255, np.uint8))

    def probability(self, thumbnail: npt.NDArray[np.uint8], mpp: float | None) -> Values:
        """Probability of tissue.

        Args:
            thumbnail: uint8 (H, W, 3) RGB.
            mpp: um per pixel of the thumbnail; None if unknown, which is taken for within `MPP_RANGE`.

        Returns:
            float32 (H, W), 0 to 1.
        """
        height, width = thumbnail.shape[:2]
        scale = _scale(height, width, mpp)
        scales = self._unknown_scales if mpp is None else (1.0,)
        answers = [self._at(thumbnail, scale * factor) for factor in scales]
        return np.asarray(np.mean(answers, axis=0), np.float32) if len(answers) > 1 else answers[0]

    def _at(self, thumbnail: npt.NDArray[np.uint8], scale: float) -> Values:
        height, width = thumbnail.shape[:2]
        size = max(1, round(width * scale)), max(1, round(height * scale))
        if size == (width, height):
            return self._windows(thumbnail)
        filtering = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        scaled = self._windows(np.asarray(cv2.resize(thumbnail, size, interpolation=filtering), np.uint8))
        return np.asarray(cv2.resize(scaled, (width, height), interpolation=cv2.INTER_LINEAR), np.float32)

    def _windows(self, view: npt.NDArray[np.uint8]) -> Values:
        height, width = view.shape[:2]
        rows, columns = _cuts(height), _cuts(width)
        found = np.empty((height, width), np.float32)
        for top, bottom in rows:
            for left, right in columns:
                above, before = max(0, top - MARGIN_PX), max(0, left - MARGIN_PX)
                part = view[above : min(height, bottom + MARGIN_PX), before : min(width, right + MARGIN_PX)]
                lower, further = (-(-n // MULTIPLE_PX) * MULTIPLE_PX - n for n in part.shape[:2])
                # Mirrored up to a multiple: black would be an edge of its own.
                padded = np.asarray(cv2.copyMakeBorder(part, 0, lower, 0, further, cv2.BORDER_REFLECT), np.uint8)
                answer = self._run(padded)
                found[top:bottom, left:right] = answer[top - above : bottom - above, left - before : right - before]
        return found

    def _run(self, view: npt.NDArray[np.uint8]) -> Values:
        blob = cv2.dnn.blobFromImage(view, scalefactor=1 / 255)
        with self._lock:
            try:
                self._net.setInput(blob)
                answer: Any = self._net.forward()
            except cv2.error as error:
                raise ValueError(self._not_fitting(f"OpenCV: {_cause(error)}")) from error
        wanted = (1, 1, *view.shape[:2])
        if not isinstance(answer, np.ndarray) or answer.shape != wanted:
            raise ValueError(self._not_fitting(f"got {np.shape(answer)} for an input of {blob.shape}"))
        if not np.isfinite(answer).all() or answer.min() < -1e-3 or answer.max() > 1 + 1e-3:
            raise ValueError(self._not_fitting(f"got values from {answer.min():g} to {answer.max():g}"))
        return np.asarray(answer[0, 0], np.float32).copy()

    def _not_fitting(self, got: str) -> str:
        return (
            f"network {self._path}: {got}; allowed is one input float32 (1, 3, H, W), RGB from 0 to 1, for all H and W"
            f" that are multiples of {MULTIPLE_PX}, and one output (1, 1, H, W), a probability; export it so"
        )


def _scale(height: int, width: int, mpp: float | None) -> float:
    """Factor on the sides of a thumbnail before the network sees it."""
    fine, coarse = MPP_RANGE
    longest = MAX_SIDE_PX / max(height, width)
    if mpp is None:
        return min(1.0, longest)
    if mpp > coarse:
        return min(mpp / coarse, _MAX_ENLARGEMENT)
    return min(1.0, max(mpp / coarse, min(mpp / fine, longest)))


def _cuts(length: int) -> list[tuple[int, int]]:
    """Divides a side into even parts of at most `WINDOW_PX`."""
    count = -(-length // WINDOW_PX)
    edges = [round(k * length / count) for k in range(count + 1)]
    return list(itertools.pairwise(edges))


def _cause(error: cv2.error) -> str:
    """The last line of what OpenCV says, without its source's place."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1].removeprefix("> ")[:200] if lines else "no reason given"
