"""Which part of a slide is tissue?

Arrays in, polygons out; nothing here reads a file.

1. ``tissue_mask``: a thumbnail becomes a mask. Stained tissue absorbs green light most, so it is coloured and its red
   value is above its green one; glass is grey, and blue, green and black pen is not reddish.
2. ``mask_to_polygon``: the mask becomes a valid (multi)polygon in level-0 pixels, with holes, small parts dropped.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import shapely
from shapely.geometry import MultiPolygon, Polygon

Contour = npt.NDArray[Any]

# Otsu's threshold is kept between these saturations (of 255): a slide full of tissue, or empty glass, has no two
# modes for it to separate.
SATURATION_RANGE = (12, 40)
# Tissue absorbs green more than red; pen ink and dust do not. Grey levels, of 255.
MIN_RED_OVER_GREEN = 4


def tissue_mask(thumbnail: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    """Foreground of an H&E thumbnail by saturation (Otsu) and hue.

    Args:
        thumbnail: uint8 (H, W, 3) RGB at 4 to 32 um per pixel.

    Returns:
        bool (H, W), True on tissue.
    """
    if thumbnail.ndim != 3 or thumbnail.shape[2] != 3 or thumbnail.dtype != np.uint8:
        raise ValueError(f"thumbnail: got {thumbnail.dtype} {thumbnail.shape}, allowed uint8 (H, W, 3)")
    smooth = np.asarray(cv2.medianBlur(np.ascontiguousarray(thumbnail), 5))
    saturation = cv2.cvtColor(smooth, cv2.COLOR_RGB2HSV)[..., 1]
    otsu, _ = cv2.threshold(saturation, 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    threshold = float(np.clip(otsu, *SATURATION_RANGE))
    red, green, blue = (smooth[..., k].astype(np.int16) for k in range(3))
    stained = (red - green >= MIN_RED_OVER_GREEN) & (blue >= green - MIN_RED_OVER_GREEN)
    mask = ((saturation > threshold) & stained).astype(np.uint8)
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (5, 5))
    closed = cv2.morphologyEx(mask, cv2.MORPH_CLOSE, kernel)
    return np.asarray(cv2.morphologyEx(closed, cv2.MORPH_OPEN, kernel), np.bool_)


def mask_to_polygon(
    mask: npt.NDArray[np.bool_],
    *,
    width_level0_px: int,
    height_level0_px: int,
    min_area_share: float = 2e-4,
    tolerance_mask_px: float = 0.7,
) -> MultiPolygon:
    """Outline of a mask in level-0 pixels.

    Args:
        mask: bool (H, W) that covers the whole slide.
        width_level0_px: Width of level 0.
        height_level0_px: Height of level 0.
        min_area_share: Parts and holes below this share of the slide's area are dropped.
        tolerance_mask_px: Largest displacement by simplification, in pixels of the mask.

    Returns:
        A valid geometry within the slide; empty where the mask is.
    """
    contours, hierarchy = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    if not contours:
        return MultiPolygon()
    links_of = np.asarray(hierarchy[0])
    smallest = min_area_share * mask.size
    parts = [
        part
        for outline, links in zip(contours, links_of, strict=True)
        if links[3] < 0 and (part := _part(outline, int(links[2]), contours, links_of, smallest)) is not None
    ]
    whole = shapely.union_all(parts).simplify(tolerance_mask_px)
    height, width = mask.shape
    scaled = shapely.transform(
        whole, lambda xy: (xy + 0.5) * np.array([width_level0_px / width, height_level0_px / height])
    )
    inside = shapely.clip_by_rect(shapely.make_valid(scaled), 0, 0, width_level0_px, height_level0_px)
    return polygons_only(inside)


def polygons_only(geometry: shapely.Geometry) -> MultiPolygon:
    """The polygons of any geometry (repairs may leave stray points and lines), as one valid multipolygon."""
    parts = [g for g in shapely.get_parts(shapely.make_valid(geometry)) if g.geom_type in ("Polygon", "MultiPolygon")]
    merged = shapely.union_all(parts)
    polygons = [g for g in shapely.get_parts(merged) if g.geom_type == "Polygon" and not g.is_empty]
    return MultiPolygon(polygons)


def _part(
    outline: Contour,
    first_hole: int,
    contours: Sequence[Contour],
    links: npt.NDArray[Any],
    smallest: float,
) -> shapely.Geometry | None:
    if len(outline) < 4 or cv2.contourArea(outline) < smallest:
        return None
    holes = []
    hole = first_hole
    while hole >= 0:
        if len(contours[hole]) >= 4 and cv2.contourArea(contours[hole]) >= smallest:
            holes.append(_ring(contours[hole], -0.5))
        hole = int(links[hole][0])
    return shapely.difference(_ring(outline, 0.5), shapely.union_all(holes))


def _ring(contour: Contour, outwards_px: float) -> shapely.Geometry:
    """What a contour encloses, along pixel edges: both kinds of contour run through centres of the mask's pixels.

    Moved before holes are cut out: where tissue is one pixel thin, a hole's contour lies on the outline's.
    """
    return shapely.make_valid(Polygon(contour[:, 0, :].astype(np.float64))).buffer(outwards_px, join_style="mitre")
