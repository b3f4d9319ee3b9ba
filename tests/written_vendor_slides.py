"""Slides in the dialects of scanner vendors, written to their published structure, for tests without real files.

tifffile, an independent library, writes the directories and tiles; the vendor's metadata is written here. OpenSlide
opens what comes out, which is what makes these files worth testing with.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import cv2
import imagecodecs
import numpy as np
import numpy.typing as npt
import tifffile
from written_slides import pyramid_of

Pixels = npt.NDArray[np.uint8]
XMP_TAG = 700
# TIFF tags by number: the type's number and the values.
Tags = dict[int, tuple[int, object]]


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
        for level, pixels in enumerate(pyramid_of(image, downsamples)):
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
        f'<dimension sizeX="{width}" sizeY="{height}" r="{r}" z="{z}" ifd="{1 + z * len(sizes_px) + r}"/>'
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
    levels = pyramid_of(image, downsamples)
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


def jpeg_header_length(jpeg: bytes) -> int:
    """Bytes of a JPEG up to the end of its scan header."""
    at = 2
    while True:
        marker, at = jpeg[at + 1], at + 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big")
        if marker == 0xDA:
            return at


def restart_jpeg(image: Pixels, interval_mcus: int, *, sampling: int) -> tuple[bytes, list[int]]:
    """A JPEG with restart markers by OpenCV, and where the data of each interval begins."""
    options = [cv2.IMWRITE_JPEG_QUALITY, 85, cv2.IMWRITE_JPEG_RST_INTERVAL, interval_mcus]
    options += [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, sampling]
    jpeg = cv2.imencode(".jpg", np.ascontiguousarray(image[..., ::-1]), options)[1].tobytes()
    start = jpeg_header_length(jpeg)
    markers = [k for k in range(start, len(jpeg) - 1) if jpeg[k] == 0xFF and 0xD0 <= jpeg[k + 1] <= 0xD7]
    return jpeg, [start, *(k + 2 for k in markers)]


def joined_jpeg(image: Pixels, interval_mcus: int, *, stated_height: int) -> tuple[bytes, list[int]]:
    """A JPEG wider than a JPEG can state (its width is 0), joined from intervals that are encoded one by one."""
    height, width = image.shape[:2]
    step = 8 * interval_mcus
    blocks = [image[y : y + 8, x : x + step] for y in range(0, height, 8) for x in range(0, width, step)]
    jpegs = [
        cv2.imencode(".jpg", np.ascontiguousarray(block), [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, 0x111111])[1].tobytes()
        for block in blocks
    ]
    length = jpeg_header_length(jpegs[0])
    header = bytearray(jpegs[0][:length])
    frame = header.index(b"\xff\xc0")
    header[frame + 5 : frame + 9] = stated_height.to_bytes(2, "big") + bytes(2)
    scan = header.index(b"\xff\xda")
    header[scan:scan] = b"\xff\xdd\0\4" + interval_mcus.to_bytes(2, "big")
    data, starts = bytes(header), []
    pieces = [data]
    place = len(data)
    for k, jpeg in enumerate(jpegs):
        end = bytes((0xFF, 0xD9 if k == len(jpegs) - 1 else 0xD0 + k % 8))
        starts.append(place)
        pieces.append(jpeg[length:-2] + end)
        place += len(pieces[-1])
    return b"".join(pieces), starts


class NdpiWriter:
    """Writes the directories of an NDPI: 32-bit entries, 64-bit links, the high bits of every entry behind them."""

    def __init__(self, path: Path, *, gap_bytes: int = 0) -> None:
        self.file = path.open("wb")
        self.file.write(b"II*\0" + bytes(8))
        self.link_at = 4
        # A hole in the file: everything behind it has offsets of more than 32 bits.
        self.file.seek(gap_bytes, 1)

    def write(self, size: tuple[int, int], jpeg: bytes, starts: list[int], tags: Tags) -> None:
        """One directory; ``tags`` add to, or with None take away from, those of every NDPI."""
        strip = self._append(jpeg)
        all_tags: Tags = {
            256: (4, [size[0]]),
            257: (4, [size[1]]),
            258: (3, [8, 8, 8]),
            259: (3, [7]),
            262: (3, [6]),
            272: (2, b"C9600-12\0"),
            273: (4, [strip]),
            277: (3, [3]),
            278: (4, [size[1]]),
            279: (4, [len(jpeg)]),
            282: (5, [22_000, 1]),
            283: (5, [22_000, 1]),
            296: (3, [3]),
            65420: (4, [1]),
            65421: (11, [20.0]),
            65422: (9, [-1_500_000]),
            65423: (9, [2_500_000]),
            65424: (9, [0]),
            65427: (2, b"R\0"),
            65449: (2, b"Created=2010\r\nProduct=NDP\r\n\0"),
        }
        if len(starts) > 1:
            all_tags[65426] = (4, [start & 0xFFFFFFFF for start in starts])
            all_tags[65432] = (4, [start >> 32 for start in starts])
        all_tags |= tags
        entries, highs = b"", b""
        for tag, (type_code, values) in sorted(all_tags.items()):
            if values is None:
                continue
            count, low, high = self._value(type_code, values)
            entries += struct.pack("<HHI", tag, type_code, count) + low
            highs += high
        directory = self._append(struct.pack("<H", len(entries) // 12) + entries + bytes(8) + highs)
        self.file.seek(self.link_at)
        self.file.write(struct.pack("<Q", directory))
        self.link_at = directory + 2 + len(entries)
        self.file.seek(0, 2)

    def close(self) -> None:
        """Finish the file."""
        self.file.close()

    def _append(self, data: bytes) -> int:
        place = self.file.tell()
        self.file.write(data)
        return place

    def _value(self, type_code: int, values: object) -> tuple[int, bytes, bytes]:
        """Count of a tag's values, and the low and high halves of its value or offset."""
        if isinstance(values, bytes):
            return len(values), *self._halves(self._append(values))
        assert isinstance(values, list)
        kind = {3: "H", 4: "I", 5: "I", 9: "i", 11: "f"}[type_code]
        count = len(values) // 2 if type_code == 5 else len(values)
        if type_code == 4 and count == 1:
            return 1, *self._halves(values[0])
        data = struct.pack(f"<{len(values)}{kind}", *values)
        return (count, data.ljust(4, b"\0"), bytes(4)) if len(data) <= 4 else (count, *self._halves(self._append(data)))

    @staticmethod
    def _halves(value: int) -> tuple[bytes, bytes]:
        return struct.pack("<I", value & 0xFFFFFFFF), struct.pack("<I", value >> 32)


def write_ndpi(
    path: Path,
    image: Pixels,
    *,
    downsamples: tuple[int, ...] = (1, 2, 4),
    interval_mcus: int = 16,
    sampling: int = cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444,
    gap_bytes: int = 0,
    tags: Tags | None = None,
) -> None:
    """An NDPI of 10000/22000 um/px: levels with restart markers, the last without, another focal plane and a macro.

    Args:
        path: File to write.
        image: Level 0; its sides must divide by MCU, interval and downsample.
        downsamples: Of the levels.
        interval_mcus: MCUs between restart markers.
        sampling: OpenCV's constant of the chroma subsampling.
        gap_bytes: Size of a hole after the first bytes.
        tags: To replace, as (type, values), or to leave out, as (0, None), in level 0.
    """
    writer = NdpiWriter(path, gap_bytes=gap_bytes)
    for k, level in enumerate(pyramid_of(image, downsamples)):
        last = k == len(downsamples) - 1
        jpeg, starts = restart_jpeg(level, 0 if last else interval_mcus, sampling=sampling)
        lens: Tags = {65421: (11, [20.0 / downsamples[k]])}
        writer.write((level.shape[1], level.shape[0]), jpeg, starts, lens | (tags or {}) if k == 0 else lens)
    specials: list[Tags] = [{65424: (9, [500])}, {65421: (11, [-1.0])}]
    for special in specials:
        writer.write((128, 64), *restart_jpeg(np.zeros((64, 128, 3), np.uint8), 0, sampling=sampling), special)
    writer.close()


def ventana_xmp(columns: int, rows: int, tile: int, *, overlap_px: int = 0, areas: int = 1) -> str:
    """The XMP of level 0: how the tiles of an area are joined; they are numbered to and fro from the bottom."""

    def number(column: int, row: int) -> int:
        above = rows - 1 - row
        return above * columns + (columns - 1 - column if above % 2 else column) + 1

    def joint(direction: str, first: int, second: int, overlap: int) -> str:
        return (
            f'<TileJointInfo FlagJoined="1" Confidence="98" Direction="{direction}" Tile1="{first}" Tile2="{second}"'
            f' OverlapX="{overlap}" OverlapY="0"/>'
        )

    joints = "".join(
        joint("RIGHT", number(column, row), number(column + 1, row), overlap_px)
        for row in range(rows)
        for column in range(columns - 1)
    ) + "".join(
        joint("UP", number(column, row), number(column, row - 1), 0)
        for row in range(1, rows)
        for column in range(columns)
    )
    area = (
        f'<ImageInfo AOIScanned="1" AOIIndex="0" NumRows="{rows}" NumCols="{columns}" Width="{tile}" Height="{tile}"'
        f' Pos-X="0" Pos-Y="0">{joints}</ImageInfo>'
    )
    origins = "".join(f'<AOI{k} OriginX="0" OriginY="0"/>' for k in range(areas))
    return (
        f'<?xml version="1.0"?><EncodeInfo Ver="2"><SlideStitchInfo>{area * areas}</SlideStitchInfo>'
        f"<AoiOrigin>{origins}</AoiOrigin></EncodeInfo>"
    )


def write_ventana(
    path: Path,
    image: Pixels,
    *,
    tile: int = 64,
    downsamples: tuple[int, ...] = (1, 2, 4),
    iscan: str = '<iScan Magnification="40" ScanRes="0.2325" UnitNumber="BI10" UserName="somebody" Z-layers="1"/>',
    xmp: str | None = None,
    stitched: bool = False,
    names: tuple[str, ...] = ("level=0 mag=40 quality=90", "level=1 mag=20 quality=90", "level=2 mag=10 quality=90"),
) -> None:
    """A Ventana BIF: the label with the scanner's XMP, a thumbnail, then the levels.

    Args:
        path: File to write.
        image: Level 0; enlarged to whole tiles unless stitched.
        tile: Side of the tiles.
        downsamples: Of the levels.
        iscan: The scanner's element.
        xmp: Of level 0 instead of one without overlaps.
        stitched: A Ventana TIFF: level 0 has no XMP, and its sizes are not padded.
        names: Descriptions of the levels.
    """
    base = image if stitched else padded(image, tile)
    xmp = xmp or ventana_xmp(base.shape[1] // tile, base.shape[0] // tile, tile)
    with tifffile.TiffWriter(path, bigtiff=True) as writer:
        data = f"<Metadata>{iscan}</Metadata>".encode()
        for name, tags in (("Label Image", [(XMP_TAG, 1, len(data), data, True)]), ("Thumbnail", [])):
            writer.write(image[:40, :60], photometric="rgb", description=name, extratags=tags, metadata=None)
        for k, level in enumerate(pyramid_of(base, downsamples)):
            tags = [(XMP_TAG, 1, len(xmp), xmp.encode(), True)] if k == 0 and not stitched else []
            writer.write(
                level,
                photometric="rgb",
                tile=(tile, tile),
                compression="jpeg",
                compressionargs={"level": 90},
                description=names[k],
                extratags=tags,
                metadata=None,
            )
