"""Which vendor wrote a TIFF, and which slide is in it?

The vendor is told by the first directory's description and software.

- Aperio SVS: every *tiled* directory is a level (a stripped thumbnail lies between them, label and macro behind).
- OME-TIFF: the largest image of the OME-XML; its lower levels are the directories that tag 330 of its own names.
- Philips, Leica SCN, Ventana BIF and Hamamatsu NDPI: experimental, see ``tiff_vendors``.
- Generic pyramidal TIFF: the first directory, and every tiled one that says it is a reduced version of another.
"""

from __future__ import annotations

from online_patching.formats import tiff
from online_patching.formats.header import FoundSlide
from online_patching.formats.header_reader import HeaderReader
from online_patching.formats.ndpi_directories import read_ndpi_directories
from online_patching.formats.ome import OmeImage, read_ome
from online_patching.formats.tiff import TiffIfd
from online_patching.formats.tiff_level import as_pyramid, mpp_from_resolution, read_levels, slide_of
from online_patching.formats.tiff_vendors import read_vendor_slide

# NewSubfileType, bit 0 (TIFF 6.0 section 8).
REDUCED_RESOLUTION = 1


async def read_tiff_slide(reader: HeaderReader, *, experimental: bool = False) -> FoundSlide:
    """Header and byte ranges of a slide in a TIFF, from its directories alone.

    Raises:
        SlideFormatError: Not such a slide, a damaged one, or one whose colours are not certain.
    """
    ifds = await read_ndpi_directories(reader) or await tiff.read_ifds(reader)
    await tiff.fetch_values(reader, ifds[:1], (tiff.IMAGE_DESCRIPTION, tiff.SOFTWARE))
    description = await ifds[0].text(tiff.IMAGE_DESCRIPTION)
    software = await ifds[0].text(tiff.SOFTWARE)
    found = await read_vendor_slide(reader, ifds, description=description, software=software, experimental=experimental)
    if found is not None:
        return found
    if not any(tiff.TILE_OFFSETS in ifd for ifd in ifds):
        raise reader.error("a TIFF without tiles: not a slide; write it as a tiled pyramid (TIFF or SVS)")
    if description.startswith("Aperio"):
        return await _read_aperio(reader, ifds, description)
    if "<OME" in description:
        return await _read_ome_tiff(reader, ifds, description)
    return await _read_generic(reader, ifds)


async def _read_aperio(reader: HeaderReader, ifds: list[TiffIfd], description: str) -> FoundSlide:
    tiled = [ifd for ifd in ifds if tiff.TILE_OFFSETS in ifd]
    levels = as_pyramid(reader, await read_levels(reader, tiled))
    properties = aperio_properties(description)
    return slide_of(reader, levels, vendor="aperio", mpp=_positive(properties.get("MPP")), properties=properties)


async def _read_generic(reader: HeaderReader, ifds: list[TiffIfd]) -> FoundSlide:
    if tiff.TILE_OFFSETS not in ifds[0]:
        raise reader.error("the first image of this TIFF is stored in strips, not tiles: write it as a tiled pyramid")
    reduced = [
        ifd
        for ifd in ifds[1:]
        if tiff.TILE_OFFSETS in ifd and await ifd.number(tiff.SUBFILE_TYPE, 0) & REDUCED_RESOLUTION
    ]
    await tiff.fetch_values(reader, ifds[:1], (tiff.X_RESOLUTION, tiff.Y_RESOLUTION))
    levels = as_pyramid(reader, await read_levels(reader, [ifds[0], *reduced]))
    return slide_of(reader, levels, vendor="generic-tiff", mpp=await mpp_from_resolution(ifds[0]), properties={})


async def _read_ome_tiff(reader: HeaderReader, ifds: list[TiffIfd], description: str) -> FoundSlide:
    image = read_ome(reader, description)
    (width, height), (channels, z, t) = image.size, image.planes
    ifd = _ome_directory(reader, ifds, image)
    if (channels, z, t) != (1, 1, 1):
        raise reader.error(
            f"an OME-TIFF of {channels} channels, {z} z sections and {t} time points as separate planes: only one plane"
            " of interleaved RGB or of grey is read; export the plane that is wanted"
        )
    if (width, height) != (await ifd.number(tiff.IMAGE_WIDTH), await ifd.number(tiff.IMAGE_LENGTH)):
        raise reader.error(f"its OME-XML says {width} x {height} px, its directory {image.ifd} another size")
    # The list of lower levels often lies behind the arrays of this one: all that is one request.
    await tiff.fetch_values(reader, [ifd], (tiff.SUB_IFDS, tiff.TILE_OFFSETS, tiff.TILE_BYTE_COUNTS))
    levels = as_pyramid(reader, await read_levels(reader, [ifd, *await tiff.read_sub_ifds(reader, ifd)]))
    if any(level.geometry.width_px >= width for level in levels[1:]):
        raise reader.error("an OME-TIFF whose sub-resolutions are no smaller than the image: the file is damaged")
    return slide_of(reader, levels, vendor="ome-tiff", mpp=image.mpp, properties={"Name": image.name})


def _ome_directory(reader: HeaderReader, ifds: list[TiffIfd], image: OmeImage) -> TiffIfd:
    if image.other_file:
        raise reader.error(f"an OME-TIFF of several files: its pixels lie in {image.other_file!r}; open that one")
    if image.ifd >= len(ifds):
        raise reader.error(f"its OME-XML names directory {image.ifd} of {len(ifds)}: the file is damaged")
    return ifds[image.ifd]


def aperio_properties(description: str) -> dict[str, str]:
    """The ``key = value`` fields of an Aperio ImageDescription; of repeated keys the first counts."""
    fields = (part.partition("=") for part in description.split("|")[1:])
    properties: dict[str, str] = {}
    for key, _, value in fields:
        properties.setdefault(key.strip(), value.strip())
    return properties


def _positive(text: str | None) -> float | None:
    try:
        value = float(text) if text else 0.0
    except ValueError:
        return None
    return value if 0 < value < 1000 else None
