"""Which vendor wrote a TIFF, and which slide is in it?

The vendor is told by the first directory's description and software. Aperio SVS and generic pyramidal TIFF are read
here: every *tiled* directory is a level (Aperio puts a stripped thumbnail between them, and label and macro behind).
"""

from __future__ import annotations

import re

from online_patching.formats import tiff
from online_patching.formats.header import FoundSlide
from online_patching.formats.header_reader import HeaderReader
from online_patching.formats.ndpi_directories import read_ndpi_directories
from online_patching.formats.tiff_level import as_pyramid, mpp_from_resolution, read_level, slide_of
from online_patching.formats.tiff_vendors import read_vendor_slide


async def read_tiff_slide(reader: HeaderReader, *, experimental: bool = False) -> FoundSlide:
    """Header and byte ranges of a slide in a TIFF, from its directories alone.

    Raises:
        SlideFormatError: Not such a slide, a damaged one, or one whose colours are not certain.
    """
    ifds = await read_ndpi_directories(reader) or await tiff.read_ifds(reader)
    description = await ifds[0].text(tiff.IMAGE_DESCRIPTION)
    software = await ifds[0].text(tiff.SOFTWARE)
    found = await read_vendor_slide(reader, ifds, description=description, software=software, experimental=experimental)
    if found is not None:
        return found
    _refuse_other_vendors(reader, description, software)
    tiled = [ifd for ifd in ifds if tiff.TILE_OFFSETS in ifd]
    if not tiled:
        raise reader.error("a TIFF without tiles: not a slide; write it as a tiled pyramid (TIFF or SVS)")
    levels = as_pyramid(reader, [await read_level(reader, ifd) for ifd in tiled])
    if description.startswith("Aperio"):
        properties = aperio_properties(description)
        mpp = _positive(properties.get("MPP"))
        return slide_of(reader, levels, vendor="aperio", mpp=mpp, properties=properties)
    mpp = await mpp_from_resolution(tiled[0])
    return slide_of(reader, levels, vendor="generic-tiff", mpp=mpp, properties={})


def aperio_properties(description: str) -> dict[str, str]:
    """The ``key = value`` fields of an Aperio ImageDescription; of repeated keys the first counts."""
    fields = (part.partition("=") for part in description.split("|")[1:])
    properties: dict[str, str] = {}
    for key, _, value in fields:
        properties.setdefault(key.strip(), value.strip())
    return properties


def _refuse_other_vendors(reader: HeaderReader, description: str, software: str) -> None:
    # Their levels or colours need more than the TIFF tags say; reading them as generic TIFF would be wrong.
    if software.startswith("Philips") or "<OME" in description or "<scn" in description or "<iScan" in description:
        name = "Philips" if software.startswith("Philips") else re.findall(r"OME|scn|iScan", description)[0]
        raise reader.error(f"a {name} TIFF, which this version does not read; supported: Aperio SVS, pyramidal TIFF")


def _positive(text: str | None) -> float | None:
    try:
        value = float(text) if text else 0.0
    except ValueError:
        return None
    return value if 0 < value < 1000 else None
