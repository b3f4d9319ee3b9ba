"""What can real thumbnails without labels teach?

Steps: take a thumbnail of a folder, label it where two rules of `online_patching.tissue_classical` agree (stained and
dark: tissue; neither: glass), leave out what they differ on and the rim of both, and cut views out of it.

An option of `train_foreground`. The shipped weights were trained without it.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from foreground_marks import U8
from foreground_scene import Scene
from online_patching.tissue_classical import grey_mask, stain_mask

VIEWS_PER_IMAGE = 24
_RIM_PX = 5
_SUFFIXES = (".png", ".jpg", ".jpeg")


def pseudo_labelled(folder: Path, *, size_px: int, rng: np.random.Generator) -> list[Scene]:
    """Cuts labelled views out of all thumbnails of a folder (about 8 to 16 um per pixel).

    Args:
        folder: Holds .png and .jpg files.
        size_px: Edge of a view; smaller images are mirrored at their edges.
        rng: Chooses where to cut.

    Raises:
        ValueError: no image there, or one that cannot be read.
    """
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in _SUFFIXES)
    if not paths:
        raise ValueError(f"{folder}: no images; put thumbnails ({', '.join(_SUFFIXES)}) there, or leave --images out")
    return [view for path in paths for view in _views(path, size_px=size_px, rng=rng)]


def _views(path: Path, *, size_px: int, rng: np.random.Generator) -> list[Scene]:
    stored = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if stored is None:
        raise ValueError(f"{path}: not an image that OpenCV reads; take it out of the folder")
    image = np.ascontiguousarray(np.asarray(stored, np.uint8)[..., ::-1])
    below, right = (max(0, size_px - side) for side in image.shape[:2])
    image = np.asarray(cv2.copyMakeBorder(image, 0, below, 0, right, cv2.BORDER_REFLECT), np.uint8)
    tissue, certain = _labels(image)
    views = []
    for _ in range(VIEWS_PER_IMAGE):
        top, left = (int(rng.integers(side - size_px + 1)) for side in image.shape[:2])
        cut = np.s_[top : top + size_px, left : left + size_px]
        views.append(Scene(image[cut], tissue[cut], certain[cut]))
    return views


def _labels(image: U8) -> tuple[U8, U8]:
    """Tissue, 0 or 1, and where both rules agree at some distance from where they do not."""
    stained, dark = stain_mask(image), grey_mask(image)
    agreed = (stained == dark).astype(np.uint8)
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (_RIM_PX, _RIM_PX))
    certain = np.asarray(cv2.erode(agreed, kernel), np.uint8)
    return (stained & dark).astype(np.uint8), certain
