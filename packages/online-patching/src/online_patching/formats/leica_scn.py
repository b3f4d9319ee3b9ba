"""What slide is in a Leica SCN?

The first directory's description is an XML document: a collection of images, each with a place on the glass in nm
(``view``) and its pyramid (``dimension`` elements that name a directory each). The image as large as the collection is
the macro; a brightfield image beside it is a region that was scanned (OpenSlide's format page "Leica").

OpenSlide paints all regions onto a canvas of the collection's size. Regions begin anywhere on it, so they are no single
grid of tiles: here the one region is the slide, without the empty canvas, and its properties tell where on the canvas
it begins. A file of several regions is refused, as a part of its tissue would be left out silently.
"""

from __future__ import annotations

from collections.abc import Sequence
from xml.etree.ElementTree import Element

from online_patching.formats import tiff
from online_patching.formats.header import FoundSlide
from online_patching.formats.header_reader import HeaderReader
from online_patching.formats.tiff import TiffIfd
from online_patching.formats.tiff_level import TiffLevel, as_pyramid, read_levels, slide_of
from online_patching.formats.xml_header import attribute_number, child_text, children, parse_xml

BRIGHTFIELD = "brightfield"
# A metre: more than any glass.
MAX_GLASS_NM = 1e9


async def read_leica_scn(reader: HeaderReader, ifds: list[TiffIfd], description: str) -> FoundSlide:
    """Header and byte ranges of the scanned region of a Leica SCN.

    Args:
        reader: Of the file.
        ifds: Its directories, which the XML names by number.
        description: The first directory's description.

    Raises:
        SlideFormatError: A damaged file, one without exactly one brightfield region, or one whose pixels cannot be
            decoded with certain colours.
    """
    collection = next(children(parse_xml(reader, description), "collection"), None)
    if collection is None:
        raise reader.error("a Leica SCN whose XML has no collection: the file is damaged")
    image, view = _region(reader, collection)
    dimensions = _dimensions(reader, image)
    stored = await read_levels(reader, [_directory(reader, ifds, dimension) for dimension in dimensions])
    for level, dimension in zip(stored, dimensions, strict=True):
        _check_size(reader, level, dimension)
    levels = as_pyramid(reader, stored)
    base = levels[0].geometry
    width, height, x, y = (attribute_number(reader, view, name) for name in ("sizeX", "sizeY", "offsetX", "offsetY"))
    mpp_x, mpp_y = width / base.width_px / 1000, height / base.height_px / 1000
    if not (0.01 < mpp_x < 100 and 0.01 < mpp_y < 100 and abs(x) < MAX_GLASS_NM and abs(y) < MAX_GLASS_NM):
        raise reader.error(f"a Leica SCN of {mpp_x:g} x {mpp_y:g} um/px at ({x:g}, {y:g}) nm: the file is damaged")
    properties = {
        "objective_power": child_text(image, "scanSettings", "objectiveSettings", "objective"),
        "numerical_aperture": child_text(image, "scanSettings", "illuminationSettings", "numericalAperture"),
        "creation_date": child_text(image, "creationDate"),
        "scanner": next((device.get("model", "") for device in children(image, "device")), ""),
        "region_x_level0_px": str(int(x / 1000 / mpp_x)),
        "region_y_level0_px": str(int(y / 1000 / mpp_x)),
    }
    return slide_of(reader, levels, vendor="leica", mpp=(mpp_x + mpp_y) / 2, properties=properties)


def _region(reader: HeaderReader, collection: Element) -> tuple[Element, Element]:
    """The one scanned image and its view."""
    whole = [attribute_number(reader, collection, name) for name in ("sizeX", "sizeY")]
    regions: list[tuple[Element, Element]] = []
    for image in children(collection, "image"):
        view = next(children(image, "view"), None)
        if view is None:
            raise reader.error("a Leica SCN with an image that has no view: the file is damaged")
        place = [attribute_number(reader, view, name) for name in ("offsetX", "offsetY", "sizeX", "sizeY")]
        light = child_text(image, "scanSettings", "illuminationSettings", "illuminationSource")
        if place != [0, 0, *whole] and light == BRIGHTFIELD:
            regions.append((image, view))
    if len(regions) != 1:
        raise reader.error(
            f"a Leica SCN with {len(regions)} brightfield regions: exactly one is read, as regions lie at places that"
            " are no single grid of tiles; export each region to a file of its own"
        )
    return regions[0]


def _dimensions(reader: HeaderReader, image: Element) -> Sequence[Element]:
    """The levels of focal plane 0."""
    found = [each for each in children(image, "pixels", "dimension") if each.get("z", "0") == "0"]
    if not found or any(each.get("c", "0") != "0" for each in found):
        raise reader.error(
            f"a Leica SCN with {len(found)} levels in focal plane 0 of one channel: no brightfield image"
        )
    return found


def _directory(reader: HeaderReader, ifds: list[TiffIfd], dimension: Element) -> TiffIfd:
    number = attribute_number(reader, dimension, "ifd")
    if not (0 <= number < len(ifds) and number.is_integer()) or tiff.TILE_OFFSETS not in ifds[int(number)]:
        raise reader.error(f"a Leica SCN whose XML names the directory {number:g} of {len(ifds)}: the file is damaged")
    return ifds[int(number)]


def _check_size(reader: HeaderReader, level: TiffLevel, dimension: Element) -> None:
    width, height = (attribute_number(reader, dimension, name) for name in ("sizeX", "sizeY"))
    stored = level.geometry
    if width != stored.width_px or height != stored.height_px:
        raise reader.error(
            f"a Leica SCN whose XML states {width:g} x {height:g} px for a directory of {stored.width_px} x"
            f" {stored.height_px} px: the file is damaged"
        )
