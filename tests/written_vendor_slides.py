"""Slides in the dialects of scanner vendors, written to their published structure, for tests without real files.

tifffile, an independent library, writes the directories and tiles; the vendor's metadata is written here. OpenSlide
opens what comes out, which is what makes these files worth testing with.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import cv2
import imagecodecs
import numpy as np
import numpy.typing as npt
import tifffile

Pixels = npt.NDArray[np.uint8]


def pyramid(image: Pixels, downsamples: tuple[int, ...]) -> list[Pixels]:
    """The image at whole downsamples; sizes are rounded down."""
    sizes = [(image.shape[1] // downsample, image.shape[0] // downsample) for downsample in downsamples]
    return [np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8) for size in sizes]


def padded(image: Pixels, tile: int, *, more_columns: int = 0) -> Pixels:
    """The image enlarged to whole tiles, and by more columns of tiles, by repeating its edge."""
    below, right = -image.shape[0] % tile, -image.shape[1] % tile + more_columns * tile
    return np.pad(image, ((0, below), (0, right), (0, 0)), mode="edge")


def jpeg_tiles(image: Pixels, tile: int, missing: frozenset[int] = frozenset()) -> Iterator[bytes]:
    """JPEG YCbCr tiles in row-major order; the missing ones are empty."""
    columns = image.shape[1] // tile
    for number in range(columns * (image.shape[0] // tile)):
        y, x = (tile * place for place in divmod(number, columns))
        block = np.ascontiguousarray(image[y : y + tile, x : x + tile])
        yield b"" if number in missing else bytes(imagecodecs.jpeg8_encode(block, level=85, outcolorspace="ycbcr"))


def philips_xml(spacings_mm: list[tuple[float, float]], *, images: str = "WSI", prologue: str = "") -> str:
    """The description of a Philips TIFF; ``images`` are the types of the scanned images, separated by spaces."""

    def attribute(name: str, value: str) -> str:
        return f'<Attribute Name="{name}" Group="0x0028" Element="0x0030" PMSVR="IString">{value}</Attribute>'

    def spacing(x: float, y: float) -> str:
        return attribute("DICOM_PIXEL_SPACING", f"&quot;{y:.9f}&quot; &quot;{x:.9f}&quot;")

    representations = "".join(
        f'<DataObject ObjectType="PixelDataRepresentation">{spacing(x, y)}'
        f"{attribute('PIIM_PIXEL_DATA_REPRESENTATION_NUMBER', str(k))}</DataObject>"
        for k, (x, y) in enumerate(spacings_mm)
    )
    scanned = "".join(
        f'<DataObject ObjectType="DPScannedImage">{attribute("PIM_DP_IMAGE_TYPE", kind)}'
        + (
            attribute("DICOM_DERIVATION_DESCRIPTION", "tiff-useBigTIFF=0-useRgb=0-levels=40,10002,10000-q85")
            + spacing(*spacings_mm[0])
            + f'<Attribute Name="PIIM_PIXEL_DATA_REPRESENTATION_SEQUENCE"><Array>{representations}</Array></Attribute>'
            if kind == "WSI"
            else attribute("PIM_DP_IMAGE_DATA", "AAAA" * 2000)
        )
        + "</DataObject>"
        for kind in images.split()
    )
    return (
        f'<?xml version="1.0" encoding="UTF-8" ?>{prologue}<DataObject ObjectType="DPUfsImport">'
        f"{attribute('DICOM_MANUFACTURER', 'PHILIPS')}{attribute('PIM_DP_UFS_BARCODE', 'UDEyMzQ=')}"
        f'<Attribute Name="PIM_DP_SCANNED_IMAGES"><Array>{scanned}</Array></Attribute></DataObject>'
    )


def write_philips(
    path: Path,
    image: Pixels,
    *,
    tile: int = 64,
    downsamples: tuple[int, ...] = (1, 2, 4),
    missing: frozenset[int] = frozenset(),
    more_columns: int = 0,
    description: str | None = None,
) -> None:
    """A Philips TIFF of 0.25 um/px: padded levels, true sizes in the XML, a stripped macro behind."""
    spacings = [(0.00025 * downsample, 0.00025 * downsample) for downsample in downsamples]
    with tifffile.TiffWriter(path) as writer:
        for level, pixels in enumerate(pyramid(image, downsamples)):
            stored = padded(pixels, tile, more_columns=more_columns if level else 0)
            writer.write(
                jpeg_tiles(stored, tile, missing if level == 0 else frozenset()),
                shape=stored.shape,
                dtype=np.uint8,
                photometric="ycbcr",
                subsampling=(1, 1),
                tile=(tile, tile),
                compression="jpeg",
                subfiletype=1 if level else 0,
                description=(description or philips_xml(spacings, images="MACROIMAGE WSI")) if level == 0 else None,
                software="Philips DP v1.0" if level == 0 else False,
                metadata=None,
            )
        writer.write(image[:40, :60], photometric="rgb", description="Macro -offset=(0,0)", metadata=None)


def leica_xml(
    sizes_px: list[tuple[int, int]],
    *,
    nm_per_px: int = 500,
    offset_px: tuple[int, int] = (800, 400),
    regions: int = 1,
    light: str = "brightfield",
    planes: int = 1,
    first_ifd: int = 1,
) -> str:
    """The description of a Leica SCN: a macro as large as the glass in directory 0, and regions of given levels."""
    glass = (26_000_000, 76_000_000)

    def image(place: tuple[int, ...], dimensions: str, light: str) -> str:
        x, y, width, height = place
        return (
            '<image name="i"><creationDate>2012-01-01T10:00:00Z</creationDate><device model="Leica SCN400"/>'
            f'<pixels sizeX="1" sizeY="1">{dimensions}</pixels>'
            f'<view sizeX="{width}" sizeY="{height}" offsetX="{x}" offsetY="{y}" spacingZ="0"/><scanSettings>'
            "<objectiveSettings><objective>20</objective></objectiveSettings><illuminationSettings>"
            f"<numericalAperture>0.4</numericalAperture><illuminationSource>{light}</illuminationSource>"
            "</illuminationSettings></scanSettings></image>"
        )

    levels = "".join(
        f'<dimension sizeX="{width}" sizeY="{height}" r="{r}" z="{z}" ifd="{first_ifd + z * len(sizes_px) + r}"/>'
        for z in range(planes)
        for r, (width, height) in enumerate(sizes_px)
    )
    place = tuple(nm_per_px * value for value in (*offset_px, *sizes_px[0]))
    macro = image((0, 0, *glass), '<dimension sizeX="130" sizeY="380" r="0" ifd="0"/>', "brightfield")
    return (
        '<?xml version="1.0"?><scn xmlns="http://www.leica-microsystems.com/scn/2010/10/01"><collection name="c"'
        f' sizeX="{glass[0]}" sizeY="{glass[1]}">{macro}{image(place, levels, light) * regions}</collection></scn>'
    )


def write_leica(
    path: Path,
    image: Pixels,
    *,
    tile: int = 64,
    downsamples: tuple[int, ...] = (1, 2, 4),
    planes: int = 1,
    description: str | None = None,
) -> None:
    """A Leica SCN of 0.5 um/px: a tiled macro, then the levels of each focal plane, the other planes black."""
    levels = pyramid(image, downsamples)
    sizes = [(level.shape[1], level.shape[0]) for level in levels]
    description = description or leica_xml(sizes, planes=planes)
    macro = np.asarray(cv2.resize(image, (130, 380)), np.uint8)
    others = [np.zeros_like(level) for level in levels] * (planes - 1)
    with tifffile.TiffWriter(path, bigtiff=True) as writer:
        for number, pixels in enumerate([macro, *levels, *others]):
            writer.write(
                pixels,
                photometric="rgb",
                tile=(tile, tile),
                compression="jpeg",
                compressionargs={"level": 90},
                description=description if number == 0 else None,
                metadata=None,
            )
