"""Which image of an OME-TIFF is the slide, and how large are its pixels?

The OME-XML in the first directory lists the images of the file (the slide, often a label and a macro), each with its
first directory and its planes. ``read_ome`` parses it within ``xml_header``'s bounds, chooses the largest image and
keeps the few attributes that matter.
"""

from __future__ import annotations

from dataclasses import dataclass
from xml.etree.ElementTree import Element

from online_patching.formats.header_reader import HeaderReader
from online_patching.formats.xml_header import children, parse_xml

# Slides come with 5 to 200 KB; a hostile megabyte takes some 0.3 s.
MAX_XML_CHARACTERS = 1 << 20
MAX_IMAGES = 256
# More digits than any size or number of a slide has.
MAX_DIGITS = 9

# OME units of length -> um; others (pixel, reference frame) say nothing. Micro sign and Greek letter both occur.
_UM_PER_UNIT = {
    "pm": 1e-6,
    "Å": 1e-4,
    "nm": 1e-3,
    "µm": 1.0,
    "μm": 1.0,
    "mm": 1e3,
    "cm": 1e4,
    "m": 1e6,
    "in": 25400.0,
}


@dataclass(frozen=True, slots=True)
class OmeImage:
    """One image of the file.

    Attributes:
        name: Its name, such as ``label``.
        size: (width, height) in pixels.
        planes: Number of channels that are planes of their own, of z sections and of time points.
        mpp: Size of a pixel in um, the mean of both axes, or None where the text does not say.
        ifd: Number of its first directory in the main chain.
        other_file: File that holds its pixels where that is another one, or empty.
    """

    name: str
    size: tuple[int, int]
    planes: tuple[int, int, int]
    mpp: float | None
    ifd: int
    other_file: str


def read_ome(reader: HeaderReader, text: str) -> OmeImage:
    """The largest image of an OME-XML text.

    Args:
        reader: Of the file, which an error names.
        text: The XML document.

    Raises:
        SlideFormatError: The text is no OME-XML with an image, or larger than allowed.
    """
    if len(text) > MAX_XML_CHARACTERS:
        raise reader.error(f"OME-XML of {len(text)} characters (allowed: {MAX_XML_CHARACTERS}): the file is damaged")
    root = parse_xml(reader, text)
    images = list(children(root, "Image"))
    if not images:
        raise reader.error("OME-XML without an image; its pixels may lie in another file: open that one")
    if len(images) > MAX_IMAGES:
        raise reader.error(f"OME-XML of {len(images)} images (allowed: {MAX_IMAGES}): the file is damaged")
    sizes = [_size(reader, image) for image in images]
    largest = max(range(len(images)), key=lambda k: sizes[k][0] * sizes[k][1])
    image, pixels = images[largest], _pixels(reader, images[largest])
    channel, tiff_data = next(children(pixels, "Channel"), None), next(children(pixels, "TiffData"), None)
    samples = 1 if channel is None else max(1, _whole(reader, channel, "SamplesPerPixel", "1"))
    channels, z, t = (_whole(reader, pixels, name, "1") for name in ("SizeC", "SizeZ", "SizeT"))
    sides = [_um(pixels, axis) for axis in "XY"]
    return OmeImage(
        name=image.get("Name", ""),
        size=sizes[largest],
        planes=(-(-channels // samples), z, t),
        mpp=sum(sides) / 2 if all(0 < side < 1000 for side in sides) else None,
        ifd=0 if tiff_data is None else _whole(reader, tiff_data, "IFD", "0"),
        other_file=_other_file(root, pixels),
    )


def _pixels(reader: HeaderReader, image: Element) -> Element:
    found = next(children(image, "Pixels"), None)
    if found is None:
        raise reader.error("OME-XML with an image that has no Pixels: the file is damaged")
    return found


def _size(reader: HeaderReader, image: Element) -> tuple[int, int]:
    pixels = _pixels(reader, image)
    return _whole(reader, pixels, "SizeX"), _whole(reader, pixels, "SizeY")


def _other_file(root: Element, pixels: Element) -> str:
    """The first file that is named by another UUID than the document's own."""
    own = root.get("UUID", "")
    for uuid in children(pixels, "TiffData", "UUID"):
        named = (uuid.text or "").strip()
        if own and named and named != own:
            return uuid.get("FileName", "another file")
    return ""


def _whole(reader: HeaderReader, element: Element, name: str, default: str = "") -> int:
    text = element.get(name, default)
    if not (text.isascii() and text.isdigit() and len(text) <= MAX_DIGITS):
        raise reader.error(f"OME-XML with {name}={text[:40]!r}: a whole number is expected; the file is damaged")
    return int(text)


def _um(pixels: Element, axis: str) -> float:
    """Length of a pixel's side in um; NaN where the text does not say."""
    unit = _UM_PER_UNIT.get(pixels.get(f"PhysicalSize{axis}Unit", "µm"))
    try:
        return float(pixels.get(f"PhysicalSize{axis}", "nan")) * (unit if unit is not None else float("nan"))
    except ValueError:
        return float("nan")
