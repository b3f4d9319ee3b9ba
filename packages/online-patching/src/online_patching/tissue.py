"""Which part of a thumbnail is tissue, by which method?

`tissue_finder` gives a finder for a method's name: the shipped network (``unet``, on thumbnails treated by
`tissue_glass`), a network of the user's (the path of an ``.onnx`` file, contract in `tissue_onnx`, on thumbnails as
they are), or one of the rules of `tissue_classical`. A finder turns a thumbnail into a mask (or, for scoring, into
values); `foreground` turns the mask into polygons.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from online_patching import tissue_classical
from online_patching.tissue_glass import like_its_glass, on_common_glass
from online_patching.tissue_onnx import OnnxTissue

Thumbnail = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]
Values = npt.NDArray[np.float32]

METHODS = ("unet", "stain", "saturation", "grey", "hsv")
"""Names that `tissue_finder` knows."""

UNET_FILE = Path(__file__).parent / "models" / "foreground_unet.onnx"
"""The shipped network; its model card lies beside it."""

UNET_THRESHOLD = 0.5
"""Probability above which a pixel is tissue. Chosen on images that do not score the network (see the model card)."""

UNET_UNKNOWN_SCALES = (1.0, 0.5, 0.25)
"""Factors at which the shipped network sees a view of unknown resolution. Chosen with the threshold."""


class TissueFinder(Protocol):
    """Finds the tissue of a thumbnail. Threads may share one."""

    def __call__(self, thumbnail: Thumbnail, mpp: float | None) -> Mask:
        """Mask of a thumbnail.

        Args:
            thumbnail: uint8 (H, W, 3) RGB.
            mpp: um per pixel of the thumbnail, None if unknown.

        Returns:
            bool (H, W), True on tissue.

        Raises:
            ValueError: not such a thumbnail, or no positive mpp.
        """
        ...

    def values(self, thumbnail: Thumbnail, mpp: float | None) -> Values:
        """What is compared with the threshold: float32 (H, W), 0 to 1, higher on tissue; a network's probability."""
        ...


@dataclass(frozen=True, slots=True)
class _Rule:
    mask_of: Callable[[Thumbnail], Mask]
    values_of: Callable[[Thumbnail], Values]

    def __call__(self, thumbnail: Thumbnail, mpp: float | None) -> Mask:
        _check(thumbnail, mpp)
        return self.mask_of(thumbnail)

    def values(self, thumbnail: Thumbnail, mpp: float | None) -> Values:
        _check(thumbnail, mpp)
        return self.values_of(thumbnail)


@dataclass(frozen=True, slots=True)
class _Network:
    network: OnnxTissue
    threshold: float
    common_glass: bool

    def __call__(self, thumbnail: Thumbnail, mpp: float | None) -> Mask:
        values = self.values(thumbnail, mpp)
        mask = values > self.threshold
        return mask & ~like_its_glass(thumbnail, values) if self.common_glass and mpp is not None else mask

    def values(self, thumbnail: Thumbnail, mpp: float | None) -> Values:
        _check(thumbnail, mpp)
        view = on_common_glass(thumbnail) if self.common_glass else thumbnail
        return self.network.probability(view, mpp)


_RULES = {
    "stain": _Rule(tissue_classical.stain_mask, tissue_classical.stain_values),
    "saturation": _Rule(tissue_classical.saturation_mask, tissue_classical.saturation_values),
    "grey": _Rule(tissue_classical.grey_mask, tissue_classical.grey_values),
    "hsv": _Rule(tissue_classical.hsv_mask, tissue_classical.hsv_values),
}


def tissue_finder(method: str) -> TissueFinder:
    """A finder of tissue.

    Args:
        method: One of `METHODS`, or the path of an ``.onnx`` file.

    Raises:
        ValueError: no such method, or a file that is not a network as `tissue_onnx` describes it.
    """
    if method in _RULES:
        return _RULES[method]
    if method == "unet":
        return _Network(OnnxTissue(UNET_FILE, unknown_scales=UNET_UNKNOWN_SCALES), UNET_THRESHOLD, common_glass=True)
    if method.lower().endswith(".onnx"):
        return _Network(OnnxTissue(method), 0.5, common_glass=False)
    raise ValueError(
        f"foreground method {method!r}: not known; allowed are {', '.join(METHODS)} and the path of an .onnx file"
    )


def recorded_name(method: str) -> str:
    """What a catalog keeps of a method's name: of a network also the first digits of its file's SHA-256.

    Args:
        method: As for `tissue_finder`, which accepted it.
    """
    if method in _RULES:
        return method
    file = UNET_FILE if method == "unet" else Path(method)
    return f"{Path(method).name} {hashlib.sha256(file.read_bytes()).hexdigest()[:8]}"


def _check(thumbnail: Thumbnail, mpp: float | None) -> None:
    fits = isinstance(thumbnail, np.ndarray) and thumbnail.ndim == 3 and thumbnail.shape[2] == 3
    if not fits or thumbnail.dtype != np.uint8 or 0 in thumbnail.shape:
        got = f"{thumbnail.dtype} {thumbnail.shape}" if isinstance(thumbnail, np.ndarray) else type(thumbnail).__name__
        raise ValueError(f"thumbnail: got {got}, allowed uint8 (H, W, 3) RGB of at least one pixel; convert it")
    if mpp is not None and not (np.isfinite(mpp) and mpp > 0):
        raise ValueError(f"thumbnail's mpp: got {mpp}, allowed a positive number of um per pixel, or None if unknown")
