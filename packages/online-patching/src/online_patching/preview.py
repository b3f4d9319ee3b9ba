"""What would training see? One picture: a slide's thumbnail with its foreground, and patches of the stream."""

from __future__ import annotations

import itertools

import cv2
import numpy as np
import shapely

from online_patching.catalog import Catalog
from online_patching.decode import Pixels
from online_patching.stream import PatchStream
from online_patching.thumbnail import thumbnail_of

OUTLINE_RGB = (0, 160, 60)
GAP_PX = 4


def foreground_picture(catalog: Catalog, slide_id: str, side_px: int) -> Pixels:
    """A slide's thumbnail with the outline of its foreground, centred on a white square of ``side_px``."""
    thumbnail = np.ascontiguousarray(thumbnail_of(catalog.slide(slide_id), side_px))
    scale = thumbnail.shape[1] / catalog.row(slide_id).width_px
    for polygon in shapely.get_parts(catalog.foreground(slide_id)):
        for ring in (polygon.exterior, *polygon.interiors):
            cv2.polylines(thumbnail, [np.rint(np.asarray(ring.coords) * scale).astype(np.int32)], True, OUTLINE_RGB, 2)
    height, width = thumbnail.shape[:2]
    square = np.full((side_px, side_px, 3), 255, np.uint8)
    y, x = (side_px - height) // 2, (side_px - width) // 2
    square[max(y, 0) : max(y, 0) + height, max(x, 0) : max(x, 0) + width] = thumbnail[:side_px, :side_px]
    return square


def contact_sheet(pictures: list[Pixels], columns: int) -> Pixels:
    """Equal squares side by side on white."""
    side = pictures[0].shape[0] + GAP_PX
    rows = -(-len(pictures) // columns)
    sheet = np.full((rows * side, columns * side, 3), 255, np.uint8)
    for k, picture in enumerate(pictures):
        y, x = (k // columns) * side, (k % columns) * side
        sheet[y : y + picture.shape[0], x : x + picture.shape[1]] = picture
    return sheet


def preview(stream: PatchStream, *, slides: int = 4, patches: int = 32, columns: int = 8) -> Pixels:
    """Thumbnails of the first slides above the first patches of a stream, uint8 (H, W, 3)."""
    images = [patch["image"] for patch in itertools.islice(stream, patches)]
    below = contact_sheet(images, columns)
    side = below.shape[1] // min(slides, 4) - GAP_PX
    ids = [stream.catalog.rows[int(number)].id for number in stream.sampler.served[:slides]]
    above = contact_sheet([foreground_picture(stream.catalog, slide_id, side) for slide_id in ids], min(slides, 4))
    width = max(above.shape[1], below.shape[1])
    padded = [np.pad(s, ((0, 0), (0, width - s.shape[1]), (0, 0)), constant_values=255) for s in (above, below)]
    return np.concatenate(padded)
