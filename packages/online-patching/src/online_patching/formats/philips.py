"""What slide is in a Philips TIFF?

The first directory's description is an XML document of nested ``DataObject`` elements, whose ``Attribute`` elements are
named after DICOM. The directories state their sizes in whole tiles; how large a pixel of each level is stands in the
XML, and from it the true downsample, and so the true size, of every level (OpenSlide's format page "Philips TIFF").
Tiles between regions of interest are not stored: their offset and length are 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from xml.etree.ElementTree import Element

from online_patching.formats import tiff
from online_patching.formats.header import FoundSlide
from online_patching.formats.header_reader import HeaderReader
from online_patching.formats.padded_levels import cut_to_downsamples
from online_patching.formats.tiff import TiffIfd
from online_patching.formats.tiff_level import read_levels, slide_of
from online_patching.formats.xml_header import children, parse_xml

# 1 nm to 1 mm: no microscope goes beyond.
MIN_SPACING_MM, MAX_SPACING_MM = 1e-6, 1.0
# Whose glass it is: no business of a catalog.
_NOT_A_PROPERTY = {"PIM_DP_UFS_BARCODE"}


async def read_philips(reader: HeaderReader, ifds: list[TiffIfd], description: str) -> FoundSlide:
    """Header and byte ranges of a Philips TIFF.

    Args:
        reader: Of the file.
        ifds: Its directories; the tiled ones are levels, finest first.
        description: The first directory's description.

    Raises:
        SlideFormatError: Not such a slide, a damaged one, or one whose pixels cannot be decoded with certain colours.
    """
    root = parse_xml(reader, description)
    image = _main_image(reader, root)
    levels = await read_levels(reader, [ifd for ifd in ifds if tiff.TILE_OFFSETS in ifd])
    spacings = [_spacing_mm(reader, text) for text in _level_spacings(image)]
    if not levels or len(spacings) != len(levels):
        raise reader.error(
            f"a Philips TIFF with {len(levels)} tiled directories and {len(spacings)} pixel spacings in its XML:"
            " one of each is expected a level; the file is damaged"
        )
    (base_x, base_y) = spacings[0]
    # Pixel spacings are rounded in the XML; the downsamples are whole numbers (OpenSlide rounds them as well).
    downsamples = [float(round((x / base_x + y / base_y) / 2)) for x, y in spacings]
    properties = _properties(root, image)
    stated = properties.get("DICOM_PIXEL_SPACING")
    mpp = 1000 * sum(_spacing_mm(reader, stated) if stated else spacings[0]) / 2
    return slide_of(
        reader, cut_to_downsamples(reader, levels, downsamples), vendor="philips", mpp=mpp, properties=properties
    )


def _main_image(reader: HeaderReader, root: Element) -> Element:
    """The one scanned image that is the slide; label and macro stand beside it."""
    images = [
        image
        for image in _array(root, "PIM_DP_SCANNED_IMAGES")
        if any(_value(attribute) == "WSI" for attribute in _named(image, "PIM_DP_IMAGE_TYPE"))
    ]
    if len(images) != 1:
        raise reader.error(f"a Philips TIFF whose XML names {len(images)} slide images: exactly one is read")
    return images[0]


def _level_spacings(image: Element) -> list[str]:
    return [
        _value(attribute)
        for representation in _array(image, "PIIM_PIXEL_DATA_REPRESENTATION_SEQUENCE")
        if representation.get("ObjectType") == "PixelDataRepresentation"
        for attribute in _named(representation, "DICOM_PIXEL_SPACING")
    ]


def _spacing_mm(reader: HeaderReader, text: str) -> tuple[float, float]:
    """(x, y) in mm of ``"row spacing" "column spacing"``, DICOM's order."""
    parts = text.replace('"', " ").split()
    try:
        y, x = (float(part) for part in parts)
    except ValueError:
        x = y = 0.0
    if not all(MIN_SPACING_MM < spacing < MAX_SPACING_MM for spacing in (x, y)):
        raise reader.error(f"a Philips TIFF with the pixel spacing {text[:80]!r}: two lengths in mm are expected")
    return x, y


def _properties(root: Element, image: Element) -> dict[str, str]:
    found: dict[str, str] = {}
    for element in (root, image):
        for attribute in children(element, "Attribute"):
            name, value = attribute.get("Name", ""), _value(attribute)
            if name not in _NOT_A_PROPERTY:
                found[name] = value
    power = _objective_power(found.get("DICOM_DERIVATION_DESCRIPTION", ""))
    if power is not None:
        found["objective_power"] = power
    return found


def _objective_power(derivation: str) -> str | None:
    """The first number of ``levels=`` in ``key=value-key=value-...``, where it can be a magnification."""
    for item in derivation.split("-"):
        key, _, value = item.partition("=")
        first = value.partition(",")[0]
        if key == "levels" and first.isdecimal() and len(first) <= 3 and 0 < int(first) <= 200:
            return str(int(first))
    return None


def _named(element: Element, name: str) -> Iterator[Element]:
    return (attribute for attribute in children(element, "Attribute") if attribute.get("Name") == name)


def _array(element: Element, name: str) -> Iterator[Element]:
    """The ``DataObject`` elements in the array of an attribute."""
    for attribute in _named(element, name):
        yield from children(attribute, "Array", "DataObject")


def _value(attribute: Element) -> str:
    return (attribute.text or "").strip()
