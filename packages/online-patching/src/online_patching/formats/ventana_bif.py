"""What slide is in a Ventana BIF?

The XMP tag of the first directory, which is the label, holds an ``iScan`` element with resolution and magnification.
Levels are the directories whose description says ``level=N mag=M``; what the magnifications say is the downsample.
The XMP tag of level 0 tells how its camera tiles were joined (OpenSlide's format page "Ventana"):

1. no such tag: the tiles were joined by the scanner, and are a plain grid;
2. one scanned area whose joints all overlap by 0 px: they are a plain grid as well;
3. anything else is no grid of tiles: it would have to be resampled, and is refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from xml.etree.ElementTree import Element

from online_patching.formats import tiff
from online_patching.formats.header import FoundSlide
from online_patching.formats.header_reader import HeaderReader
from online_patching.formats.padded_levels import check_downsamples, cut_to_downsamples
from online_patching.formats.tiff import TiffIfd
from online_patching.formats.tiff_level import TiffLevel, read_levels, slide_of
from online_patching.formats.xml_header import attribute_number, children, local_name, parse_xml

XMP = 700
MIN_MAGNIFICATION = 0.001
# What the scanner says of itself; user, barcode and annotation are no business of a catalog.
_PROPERTIES = ("ScanRes", "UnitNumber", "ScannerModel", "BuildVersion", "ScanMode", "ScanWhitePoint", "Z-layers")


async def read_ventana_bif(reader: HeaderReader, ifds: list[TiffIfd], xmp: str) -> FoundSlide:
    """Header and byte ranges of a Ventana BIF whose tiles are one grid.

    Args:
        reader: Of the file.
        ifds: Its directories.
        xmp: The first directory's XMP tag.

    Raises:
        SlideFormatError: A damaged file, or one whose tiles overlap or lie in several areas.
    """
    iscan = _iscan(reader, parse_xml(reader, xmp))
    planes = iscan.get("Z-layers", "1").strip()
    if planes not in ("", "0", "1"):
        raise reader.error(f"a Ventana BIF of {planes[:20]} focal planes: only slides of one plane are read")
    found = [(ifd, _level_magnification(await ifd.text(tiff.IMAGE_DESCRIPTION))) for ifd in ifds]
    levels = [(ifd, *stated) for ifd, stated in found if stated is not None]
    magnifications = [magnification for _, _, magnification in levels]
    falling = all(finer > coarser > MIN_MAGNIFICATION for finer, coarser in pairwise([1000.0, *magnifications]))
    if not levels or [number for _, number, _ in levels] != list(range(len(levels))) or not falling:
        raise reader.error(f"a Ventana BIF whose levels have the magnifications {magnifications}: the file is damaged")
    if any(tiff.TILE_OFFSETS not in ifd for ifd, _, _ in levels):
        raise reader.error("a Ventana BIF with a level that is not tiled: the file is damaged")
    downsamples = [magnifications[0] / magnification for magnification in magnifications]
    pyramid = await _pyramid(reader, [ifd for ifd, _, _ in levels], downsamples)
    resolution = attribute_number(reader, iscan, "ScanRes") if iscan.get("ScanRes") else 0.0
    properties = {name: iscan.get(name, "").strip() for name in _PROPERTIES}
    properties["objective_power"] = iscan.get("Magnification", f"{magnifications[0]:g}").strip()
    mpp = resolution if 0.01 < resolution < 100 else None
    return slide_of(reader, pyramid, vendor="ventana", mpp=mpp, properties=properties)


async def _pyramid(reader: HeaderReader, ifds: list[TiffIfd], downsamples: list[float]) -> list[TiffLevel]:
    levels = await read_levels(reader, ifds)
    if XMP not in ifds[0]:
        check_downsamples(reader, levels, downsamples)
        return [
            replace(level, geometry=replace(level.geometry, downsample=downsample))
            for level, downsample in zip(levels, downsamples, strict=True)
        ]
    _check_joints(reader, parse_xml(reader, await ifds[0].text(XMP)), levels[0])
    return cut_to_downsamples(reader, levels, downsamples)


def _iscan(reader: HeaderReader, root: Element) -> Element:
    """The element of the scanner, which some files wrap into ``Metadata``."""
    found = root if local_name(root) == "iScan" else next(children(root, "iScan"), None)
    if found is None:
        raise reader.error("a Ventana BIF whose XMP has no iScan element where it belongs: the file is damaged")
    return found


def _level_magnification(description: str) -> tuple[int, float] | None:
    """N and M of ``level=N mag=M quality=Q``, or None where the directory is no level."""
    fields = dict(part.split("=", 1) for part in description.split() if "=" in part)
    try:
        return int(fields["level"]), float(fields["mag"])
    except (KeyError, ValueError):
        return None


def _check_joints(reader: HeaderReader, root: Element, base: TiffLevel) -> None:
    """Whether the tiles of level 0 lie side by side."""
    areas = [area for area in children(root, "SlideStitchInfo", "ImageInfo") if area.get("AOIScanned", "1") != "0"]
    if len(areas) != 1:
        raise reader.error(
            f"a Ventana BIF of {len(areas)} scanned areas: exactly one is read, as areas lie at places that are no"
            " single grid of tiles; export it as a plain pyramidal TIFF"
        )
    size = [attribute_number(reader, areas[0], name) for name in ("Width", "Height")]
    if size != [base.geometry.tile_width_px, base.geometry.tile_height_px]:
        raise reader.error(f"a Ventana BIF whose XMP states tiles of {size} px, other than its level 0: damaged")
    overlapping = sum(overlap != 0 for overlap in _overlaps(reader, areas[0]))
    if overlapping:
        raise reader.error(
            f"a Ventana BIF with {overlapping} overlaps between tiles: they are no grid, and reading them as one would"
            " give wrong pixels; export it as a plain pyramidal TIFF"
        )


def _overlaps(reader: HeaderReader, area: Element) -> Iterator[float]:
    for joint in children(area, "TileJointInfo"):
        yield attribute_number(reader, joint, "OverlapX")
        yield attribute_number(reader, joint, "OverlapY")
