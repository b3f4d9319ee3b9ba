"""What would training see?

One HTML page (``preview_html``): the first slides of a catalog as a contact sheet, and some of them at length, with
outline, facts, and patches by magnification as a stream of that slide alone draws them. Or one picture (``preview``):
thumbnails with their foreground above patches of the stream.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import cv2
import numpy as np
import shapely

from online_patching.catalog import Catalog
from online_patching.decode import Pixels
from online_patching.errors import MagnificationError, MissingMppError, PatchingError, SamplingError
from online_patching.geometry import footprint_level0_px, serves_mpp
from online_patching.plan import DecodeMode
from online_patching.preview_page import ShownPatch, ShownSlide, page
from online_patching.slide_row import SlideRow
from online_patching.stream import PatchStream
from online_patching.thumbnail import read_thumbnail, thumbnail_of

OUTLINE_RGB = (0, 160, 60)
GAP_PX = 4
THUMBNAIL_SIDE_PX, SHEET_SIDE_PX = 1024, 320
# Slides that are read at the same time; most of the work is decoding.
THREADS = 4
# A page of so many is a few MB.
SHEET_SLIDES, SLIDES_AT_LENGTH, PATCHES = 48, 4, 6
# The same of one picture; patches of each magnification on average.
PICTURE_SLIDES, PICTURE_PATCHES = 4, 8
_PICTURE_COLUMNS = 4


def preview_html(
    catalog: Catalog,
    *,
    slides: Sequence[str] | None = None,
    sheet_slides: int = SHEET_SLIDES,
    patches: int = PATCHES,
    size_px: int = 256,
    mpp: Sequence[float] = (2.0, 1.0, 0.5, 0.25),
    min_foreground: float = 0.4,
    seed: int = 0,
    decode: DecodeMode = "exact",
) -> str:
    """A page of a catalog's slides that needs no other file.

    Args:
        catalog: An open catalog.
        slides: Ids of the slides to show at length; the first four where not given.
        sheet_slides: So many slides, the first by their ids, are on the contact sheet.
        patches: So many of each magnification.
        size_px: As of ``PatchStream``, like what follows.
        mpp: um per pixel.
        min_foreground: Least share of a patch inside the foreground.
        seed: Of the choice of patches.
        decode: Whether tiles may be decoded at reduced scale.

    Raises:
        CatalogError: No such slide.
        ValueError: Numbers out of range.
    """
    for name, value, least in (("sheet_slides", sheet_slides, 0), ("patches", patches, 0)):
        if value < least:
            raise ValueError(f"{name}: got {value}, allowed at least {least}")
    choice = _Choice(size_px, tuple(mpp), min_foreground, seed, decode)
    ids = catalog.ids()
    at_length = ids[:SLIDES_AT_LENGTH] if slides is None else list(dict.fromkeys(slides))
    rows = [catalog.row(slide_id) for slide_id in at_length]
    on_sheet = [catalog.row(slide_id) for slide_id in ids[:sheet_slides]]
    with ThreadPoolExecutor(THREADS) as pool:
        sheet = list(pool.map(lambda row: _shown(catalog, row, SHEET_SIDE_PX), on_sheet))
        pictures = list(pool.map(lambda row: _shown(catalog, row, THUMBNAIL_SIDE_PX), rows))
    shown = [_at_length(catalog, row, picture, patches, choice) for row, picture in zip(rows, pictures, strict=True)]
    rest = len(ids) - len(sheet)
    areas = catalog.rows.numbers("foreground_area_mm2")
    subtitle = f"{len(ids)} slides, {np.nansum(areas):.1f} mm² of foreground; patches of {size_px} px, seed {seed}"
    return page(
        f"Preview of {catalog.shown_url.rstrip('/').rpartition('/')[2]}",
        subtitle,
        shown,
        sheet,
        f"{rest} more slides are in the catalog" if rest else "",
    )


def _shown(catalog: Catalog, row: SlideRow, side_px: int) -> ShownSlide:
    """A slide's thumbnail and foreground; what cannot be read becomes a note."""
    thumbnail: Pixels | None = None
    outline: shapely.Geometry = shapely.MultiPolygon()
    notes = []
    try:
        picture = read_thumbnail(catalog.slide(row.id), side_px)
        thumbnail = picture.pixels
        if picture.is_sparse:
            notes.append(f"The picture is made of {picture.tiles} of {picture.of_tiles} tiles.")
        if picture.corrupt_tiles:
            notes.append(f"{picture.corrupt_tiles} of its tiles do not decode; they are white here.")
    except PatchingError as error:
        notes.append(f"It cannot be read: {error}")
    try:
        outline = catalog.foreground(row.id)
    except PatchingError as error:
        notes.append(str(error))
    return ShownSlide(
        row.id, thumbnail, row.width_px, row.height_px, outline, _foreground_words(row), {}, {}, tuple(notes)
    )


def _foreground_words(row: SlideRow) -> str:
    area = row.foreground_area_level0_px2
    if area is None:
        return "foreground not found yet"
    if area == 0:
        return "no foreground"
    share = f"{area / (row.width_px * row.height_px):.1%} foreground"
    return share if row.foreground_area_mm2 is None else f"{share}, {row.foreground_area_mm2:.2f} mm²"


@dataclass(frozen=True, slots=True)
class _Choice:
    """Which patches are shown, as the arguments of a stream."""

    size_px: int
    mpp: tuple[float, ...]
    min_foreground: float
    seed: int
    decode: DecodeMode


def _at_length(catalog: Catalog, row: SlideRow, picture: ShownSlide, patches: int, choice: _Choice) -> ShownSlide:
    """A slide with its facts and patches."""
    drawn: dict[float, list[ShownPatch]] = {}
    not_served: list[str] = []
    for mpp in choice.mpp if picture.thumbnail is not None else ():
        # A magnification keeps its colour on all slides.
        drawn[mpp] = []
        try:
            drawn[mpp] = _patches(catalog, row, mpp, patches, choice)
        except PatchingError as error:
            not_served.append(f"{mpp:g} um/px ({error})")
    facts = _facts(catalog, row, picture)
    if not_served:
        facts["Not served"] = "; ".join(not_served)
    return replace(picture, facts=facts, patches=drawn)


def _facts(catalog: Catalog, row: SlideRow, shown: ShownSlide) -> dict[str, str]:
    """What is known of a slide, in words."""
    parts, corners = len(shapely.get_parts(shown.outline)), shapely.get_num_coordinates(shown.outline)
    facts = {
        "Foreground": shown.foreground.replace(" foreground", " of the slide", 1 if "%" in shown.foreground else 0),
        "Found by": row.foreground_method or "not recorded",
        "Outline": f"{parts} {'part' if parts == 1 else 'parts'}, {corners:,} corners",
        "Size": f"{row.width_px:,} x {row.height_px:,} px",
        "Resolution": "not known" if row.mpp is None else f"{row.mpp:.4g} um/px ({row.mpp_source})",
    }
    if row.mpp is not None:
        facts["Extent"] = f"{row.width_px * row.mpp / 1000:.2f} x {row.height_px * row.mpp / 1000:.2f} mm"
    try:
        facts["Levels"] = ", ".join(f"1/{level.downsample:.3g}" for level in catalog.slide(row.id).levels)
    except PatchingError:
        facts["Levels"] = str(row.levels)
    facts |= {"Format": row.vendor, "File": f"{row.size / 1e6:,.1f} MB"}
    return facts | {name: str(value) for name, value in row.columns.items()}


def _patches(catalog: Catalog, row: SlideRow, mpp: float, count: int, choice: _Choice) -> list[ShownPatch]:
    """Patches of one slide at one magnification, as a stream of it alone gives them.

    Raises:
        PatchingError: It serves none.
    """
    if row.mpp is None:
        raise MissingMppError("its um/px are not known; give them when indexing")
    if not serves_mpp(row.mpp, mpp):
        raise MagnificationError("finer than the slide")
    side = footprint_level0_px(choice.size_px, mpp, row.mpp)
    area = row.foreground_area_level0_px2 or 0.0
    if area == 0 or area < choice.min_foreground * side**2:
        raise SamplingError("too little foreground")
    only = copy.copy(catalog)
    only.rows = catalog.rows.without([slide_id for slide_id in catalog.ids() if slide_id != row.id])
    stream = PatchStream(
        only,
        size_px=choice.size_px,
        mpp=[mpp],
        min_foreground=choice.min_foreground,
        seed=choice.seed,
        most_corrupt_share=1.0,
        decode=choice.decode,
    )
    return [
        ShownPatch(each["image"], each["x_level0_px"], each["y_level0_px"], side, mpp, each["foreground"])
        for each in itertools.islice(stream, count)
    ]


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


def preview(stream: PatchStream, *, slides: int = PICTURE_SLIDES, patches: int = 32, columns: int = 8) -> Pixels:
    """Thumbnails of the first slides above the first patches of a stream, uint8 (H, W, 3).

    Args:
        stream: Its first patches are shown, and the first of the slides that it serves.
        slides: So many thumbnails at most, four a row.
        patches: So many patches, of all magnifications together.
        columns: Patches a row.

    Raises:
        ValueError: Numbers below 1.
    """
    for name, value in (("slides", slides), ("patches", patches), ("columns", columns)):
        if value < 1:
            raise ValueError(f"{name} of a picture: got {value}, allowed at least 1")
    images = [patch["image"] for patch in itertools.islice(stream, patches)]
    below = contact_sheet(images, columns)
    across = min(slides, _PICTURE_COLUMNS)
    side = below.shape[1] // across - GAP_PX
    ids = [stream.catalog.rows[int(number)].id for number in stream.sampler.served[:slides]]
    above = contact_sheet([foreground_picture(stream.catalog, slide_id, side) for slide_id in ids], across)
    width = max(above.shape[1], below.shape[1])
    padded = [np.pad(s, ((0, 0), (0, width - s.shape[1]), (0, 0)), constant_values=255) for s in (above, below)]
    return np.concatenate(padded)
