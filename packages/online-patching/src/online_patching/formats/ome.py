"""Which image of an OME-TIFF is the slide, and how large are its pixels?

The OME-XML in the first directory lists the images of the file (the slide, often a label and a macro), each with its
first directory and its planes. ``read_ome`` streams through that text, keeps the few attributes that matter and
chooses the largest image. The text is untrusted: it is bounded, and document types, the home of entities, are refused.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from xml.parsers import expat

MAX_XML_CHARACTERS = 4 << 20
MAX_IMAGES = 256

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


@dataclass(slots=True)
class OmeImage:
    """One image of the file.

    Attributes:
        name: Its name, such as ``label``.
        pixels: Attributes of its Pixels element.
        ifd: Number of its first directory in the main chain.
        other_file: File that holds its pixels where that is another one, or empty.
        samples: Samples a pixel of its first channel.
    """

    name: str
    pixels: dict[str, str] = field(default_factory=dict)
    ifd: int | None = None
    other_file: str = ""
    samples: int = 1

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels."""
        return _whole(self.pixels.get("SizeX")), _whole(self.pixels.get("SizeY"))

    @property
    def planes(self) -> tuple[int, int, int]:
        """Number of channels that are planes of their own, of z sections and of time points."""
        channels, z, t = (_whole(self.pixels.get(key, "1")) for key in ("SizeC", "SizeZ", "SizeT"))
        return -(-channels // self.samples), z, t

    @property
    def mpp(self) -> float | None:
        """Size of a pixel in um, the mean of both axes, or None where the text does not say."""
        sides = [_um(self.pixels, axis) for axis in "XY"]
        return sum(sides) / 2 if all(0 < side < 1000 for side in sides) else None


def read_ome(text: str) -> OmeImage:
    """The largest image of an OME-XML text.

    Raises:
        ValueError: The text is no OME-XML with an image, or longer or larger than allowed.
    """
    if len(text) > MAX_XML_CHARACTERS:
        raise ValueError(f"OME-XML of {len(text)} characters (allowed: {MAX_XML_CHARACTERS})")
    reader = _Reader()
    try:
        reader.parser.Parse(text.encode("utf-8"), True)
    except expat.ExpatError as error:
        raise ValueError(f"OME-XML that does not parse ({error})") from error
    if not reader.images:
        raise ValueError("OME-XML without an image; its pixels may lie in another file: open that one")
    return max(reader.images, key=lambda image: image.size[0] * image.size[1])


class _Reader:
    def __init__(self) -> None:
        self.images: list[OmeImage] = []
        self.parser = expat.ParserCreate(encoding="utf-8", namespace_separator=" ")
        self.parser.StartElementHandler = self._start
        self.parser.CharacterDataHandler = self._text
        self.parser.StartDoctypeDeclHandler = self._doctype
        self.parser.buffer_text = True
        self._own = ""
        self._channels = 0
        self._file = ""
        self._in_uuid = False

    def _doctype(self, *_: object) -> None:
        raise ValueError("OME-XML with a document type, which is not read")

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        element = name.rpartition(" ")[2]
        self._in_uuid = False
        if element == "OME":
            self._own = attributes.get("UUID", "")
        elif element == "Image":
            if len(self.images) >= MAX_IMAGES:
                raise ValueError(f"OME-XML of more than {MAX_IMAGES} images")
            self.images.append(OmeImage(attributes.get("Name", "")))
            self._channels = 0
        elif not self.images:
            return
        elif element == "Pixels":
            self.images[-1].pixels = attributes
        elif element == "Channel" and not self._channels:
            self._channels = 1
            self.images[-1].samples = max(1, _whole(attributes.get("SamplesPerPixel", "1")))
        elif element == "TiffData" and self.images[-1].ifd is None:
            self.images[-1].ifd = _whole(attributes.get("IFD", "0"))
            self._file = ""
        elif element == "UUID" and not self.images[-1].other_file:
            self._in_uuid, self._file = True, attributes.get("FileName", "another file")

    def _text(self, text: str) -> None:
        if self._in_uuid and self._own and text.strip() and text.strip() != self._own:
            self.images[-1].other_file = self._file


def _whole(text: str | None) -> int:
    if text is None or not (text.isascii() and text.isdigit() and len(text) < 10):
        raise ValueError(f"OME-XML with a size or number of {text!r}")
    return int(text)


def _um(pixels: dict[str, str], axis: str) -> float:
    unit = _UM_PER_UNIT.get(pixels.get(f"PhysicalSize{axis}Unit", "µm"))
    try:
        return float(pixels.get(f"PhysicalSize{axis}", "nan")) * (unit if unit is not None else float("nan"))
    except ValueError:
        return float("nan")
