"""Which vendor's dialect is a TIFF written in, beyond Aperio's and the plain ones?

No real file of these dialects was at hand: their readers were tested on files that this project wrote to the published
structure, with OpenSlide as the judge. They are therefore experimental and open only where that is asked for.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from online_patching.formats.hamamatsu_ndpi import read_hamamatsu_ndpi
from online_patching.formats.header import FoundSlide
from online_patching.formats.header_reader import HeaderReader
from online_patching.formats.leica_scn import read_leica_scn
from online_patching.formats.ndpi_directories import FORMAT_FLAG as NDPI_FORMAT_FLAG
from online_patching.formats.philips import read_philips
from online_patching.formats.tiff import TiffIfd
from online_patching.formats.ventana_bif import XMP, read_ventana_bif
from online_patching.formats.xml_header import MAX_CHARACTERS


@dataclass(frozen=True, slots=True)
class Dialect:
    """One vendor's dialect of TIFF.

    Attributes:
        name: As users know it.
        read: Reads the slide from the file, its directories and the text that tells the dialect.
    """

    name: str
    read: Callable[[HeaderReader, list[TiffIfd], str], Awaitable[FoundSlide]]


PHILIPS = Dialect("Philips TIFF", read_philips)
LEICA = Dialect("Leica SCN", read_leica_scn)
HAMAMATSU = Dialect("Hamamatsu NDPI", read_hamamatsu_ndpi)
VENTANA = Dialect("Ventana BIF", read_ventana_bif)


async def read_vendor_slide(
    reader: HeaderReader, ifds: list[TiffIfd], *, description: str, software: str, experimental: bool
) -> FoundSlide | None:
    """The slide in a vendor's dialect of TIFF, or None where the file is in none of them.

    Args:
        reader: Of the file.
        ifds: Its directories.
        description: The first directory's description.
        software: The first directory's software.
        experimental: Whether the caller asked for experimental formats.

    Raises:
        SlideFormatError: It is in one of them but damaged, not readable as one grid of tiles, or was not asked for.
    """
    dialect, text = await _dialect(ifds[0], description, software)
    if dialect is None:
        return None
    if not experimental:
        raise reader.error(
            f"a {dialect.name}: this format is experimental, because it was tested on files of this project's own"
            " writing only; open it with open_slide(url, experimental=True) or `online-patching index --experimental`"
        )
    return await dialect.read(reader, ifds, text)


async def _dialect(ifd: TiffIfd, description: str, software: str) -> tuple[Dialect | None, str]:
    if software.startswith("Philips"):
        return PHILIPS, description
    if NDPI_FORMAT_FLAG in ifd:
        return HAMAMATSU, ""
    if "<scn" in description:
        return LEICA, description
    if "<iScan" in description:
        return VENTANA, description
    if 0 < ifd.count(XMP) <= MAX_CHARACTERS:
        xmp = await ifd.text(XMP)
        if "<iScan" in xmp:
            return VENTANA, xmp
    return None, ""
