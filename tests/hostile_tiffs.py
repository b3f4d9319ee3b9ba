"""TIFF files that lie, and what opening each costs.

    python tests/hostile_tiffs.py FOLDER

Writes every file into the folder, opens it and reads a tile, and prints one JSON line: name -> outcome, seconds of
work, seconds by the clock, and MB that the peak of resident memory grew. A process
of its own, so that the peak is that of these files.
"""

from __future__ import annotations

import json
import resource
import struct
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import imagecodecs
import numpy as np
from tiff_bytes import LONG, LONG8, SHORT, Page, tiff_bytes

ASCII = 2
HUGE = 60_000
PIXELS = np.random.default_rng(0).integers(0, 255, (256, 256, 3), np.uint8)
OME = '<OME><Image><Pixels SizeX="512" SizeY="512" SizeC="3"><Channel SamplesPerPixel="3"/></Pixels></Image></OME>\0'


def page(tile: bytes, *, compression: int = 8) -> Page:
    return Page(512, 512, tile=tile, padding=0, tags={259: (SHORT, [compression])})


def with_tags(tags: dict[int, tuple[int, object]], *, side: int = 512, counts: dict[int, int] | None = None) -> bytes:
    big = any(code == LONG8 for code, _ in tags.values()) or max((counts or {0: 0}).values()) >= 1 << 32
    one = Page(side, side, padding=0, tags=tags, claimed_counts=counts or {})  # type: ignore[arg-type]
    return tiff_bytes([one], big=big)


def lying_headers() -> Iterator[tuple[str, bytes]]:
    yield "one directory that follows itself", _linked([8])
    yield "two directories in a loop", _linked([8 + 18, 8])
    yield "sub-directory that is the image itself", _sub_loop()
    yield "sub-directories without number", with_tags({270: (ASCII, OME), 330: (LONG, [1])}, counts={330: 1 << 31})
    yield "entries without number", b"II*\0" + struct.pack("<IH", 8, 0xFFFF) + bytes(4096)
    yield "entries without number, BigTIFF", b"II+\0" + struct.pack("<HHQQ", 8, 0, 16, 1 << 60) + bytes(4096)
    for count in ((1 << 32) - 1, 1 << 60):
        yield f"{count} offsets", with_tags({}, counts={324: count, 325: count})
        yield f"{count} bits a sample", with_tags({}, counts={258: count})
        yield f"{count} characters of description", with_tags({270: (ASCII, "x" * 20)}, counts={270: count})
    for tags in ({322: (LONG, [0])}, {323: (LONG, [0])}, {256: (LONG, [0])}, {257: (LONG, [1 << 31])}):
        yield f"size {tags}", with_tags(dict(tags))
    yield "tiles of 16384 x 16384", with_tags({322: (LONG, [16384]), 323: (LONG, [16384])}, side=16384)
    yield "tiles of 4 billion", with_tags({322: (LONG, [0xFFFFFFFF]), 323: (LONG, [0xFFFFFFFF])})
    far = struct.pack("<4Q", *[(1 << 64) - 50] * 4)
    yield "offsets that overflow", with_tags({324: (LONG8, far), 325: (LONG8, struct.pack("<4Q", *[100] * 4))})
    yield "lengths that overflow", with_tags({324: (LONG8, far), 325: (LONG8, far)})
    yield "tiles past the end", with_tags({324: (LONG, [10**9] * 4)})
    yield "rational offsets", with_tags({324: (5, struct.pack("<8I", *[1] * 8))})
    yield "type of value unknown", with_tags({}).replace(struct.pack("<HH", 322, LONG), struct.pack("<HH", 322, 99))


def lying_xml() -> Iterator[tuple[str, bytes]]:
    laughs = "".join(f'<!ENTITY l{k} "{f"&l{k - 1};" * 10 if k else "ha" * 50}">' for k in range(12))
    texts = {
        "billion laughs": f'<?xml version="1.0"?><!DOCTYPE OME [{laughs}]><OME><Image Name="&l11;"/></OME>',
        "external entity": '<!DOCTYPE OME [<!ENTITY x SYSTEM "file:///etc/hostname">]><OME><Image>&x;</Image></OME>',
        "deep nesting": "<OME>" + "<a>" * 340_000,
        "wide attributes": "<OME><Image " + " ".join(f'a{k}=""' for k in range(95_000)) + "/></OME>",
        "images without number": "<OME>" + "<Image/>" * 120_000 + "</OME>",
        "20 MB of text": "<OME>" + "x" * (20 << 20) + "</OME>",
        "sizes of many digits": f'<OME><Image><Pixels SizeX="{"9" * 100_000}" SizeY="1"/></Image></OME>',
        "many elements": "<OME>" + "<a/>" * 250_000 + "</OME>",
        "not XML": "<OME",
        "no image": "<OME></OME>",
        "image without size": "<OME><Image/></OME>",
        "directory past the last": OME.replace("</Pixels>", '<TiffData IFD="999"/></Pixels>'),
    }
    for name, text in texts.items():
        yield f"OME-XML: {name}", with_tags({270: (ASCII, text + "\0")})


def bombs() -> Iterator[tuple[str, bytes]]:
    zeros = bytes(30_000_000)
    for name, compression, data in (
        ("deflate", 8, imagecodecs.zlib_encode(zeros)),
        ("LZW", 5, imagecodecs.lzw_encode(zeros)),
        ("ZSTD", 50000, imagecodecs.zstd_encode(zeros)),
        ("PackBits", 32773, b"\x81\0" * 200_000),
        ("WebP of another size", 50001, imagecodecs.webp_encode(np.zeros((3000, 3000, 3), np.uint8), level=1)),
    ):
        yield f"{name} bomb", tiff_bytes([page(bytes(data), compression=compression)])
    jpeg = bytes(imagecodecs.jpeg8_encode(PIXELS))
    yield "JPEG frame of 60,000 px", tiff_bytes([page(_resized_jpeg(jpeg), compression=7)])
    yield (
        "progressive JPEG frame of 60,000 px",
        tiff_bytes([page(_resized_jpeg(jpeg, progressive=True), compression=7)]),
    )
    yield "frame in the JPEG tables", _jpeg_tables_bomb(jpeg)
    frame = jpeg.replace(b"\xff\xc0", b"\xff\xc2", 1)
    scan = frame[frame.index(b"\xff\xda") : -2]
    yield "JPEG of many scans", tiff_bytes([page(frame[:-2] + scan[:200] * 3000 + b"\xff\xd9", compression=7)])
    stream = bytes(imagecodecs.jpeg2k_encode(PIXELS, codecformat="j2k", level=40))
    for name, at, values in (
        ("frame of 60,000 px", 8, (HUGE, HUGE)),
        ("codestream of 65,536 tiles", 24, (1, 1)),
        ("tiles of 0 px", 24, (0, 0)),
    ):
        changed = bytearray(stream)
        struct.pack_into(">II", changed, at, *values)
        for compression in (33003, 33005, 34712):
            yield f"JPEG 2000 {name} in {compression}", tiff_bytes([page(bytes(changed), compression=compression)])
    changed = bytearray(stream)
    struct.pack_into(">H", changed, 40, 16384)
    yield "JPEG 2000 of 16,384 components", tiff_bytes([page(bytes(changed), compression=34712)])
    for compression in (5, 7, 8, 33003, 33005, 34712, 50000, 50001, 32773):
        yield (
            f"noise in compression {compression}",
            tiff_bytes([page(PIXELS.tobytes()[:5000], compression=compression)]),
        )


def sparse(folder: Path) -> Iterator[tuple[str, Path]]:
    """Files of holes, whose arrays or tiles really are as long as they claim."""
    arrays = {324: (LONG8, [1 << 30, 0]), 325: (LONG8, [1 << 33, 0])}
    for name, columns, rows in (("2^28 tiles", 1 << 14, 1 << 14), ("3 million tiles", 3 << 10, 1 << 10)):
        tags = arrays | {256: (LONG, [columns * 256]), 257: (LONG, [rows * 256])}
        head = with_tags(tags, counts={324: columns * rows, 325: columns * rows})
        yield f"{name}, sparse", _sparse(folder / f"{name}.tif", head, 1 << 34)
    level = {**arrays, 254: (LONG, [1]), 256: (LONG, [256 << 10]), 257: (LONG, [256 << 10])}
    pages = [Page(512, 512, padding=0, tags=level, claimed_counts={324: 1 << 20, 325: 1 << 20}) for _ in range(200)]
    yield "200 levels of a million tiles", _sparse(folder / "levels.tif", tiff_bytes(pages, big=True), 1 << 34)
    tags = {324: (LONG, [4096] * 4), 325: (LONG, [3_000_000_000] * 4)}
    yield "tiles of 3 GB", _sparse(folder / "long tiles.tif", with_tags(tags), 1 << 32)


def _sparse(path: Path, head: bytes, size: int) -> Path:
    with path.open("wb") as file:
        file.write(head)
        file.truncate(size)
    return path


def _linked(following: list[int]) -> bytes:
    data = b"II*\0" + struct.pack("<I", 8)
    for offset in following:
        data += struct.pack("<HHHII", 1, 256, LONG, 1, 100) + struct.pack("<I", offset)
    return data + bytes(64)


def _sub_loop() -> bytes:
    data = with_tags({270: (ASCII, OME), 330: (LONG, [0])})
    entry = struct.pack("<HHII", 330, LONG, 1, 0)
    return data.replace(entry, struct.pack("<HHI", 330, LONG, 1) + data[4:8])


def _resized_jpeg(jpeg: bytes, *, progressive: bool = False) -> bytes:
    place = jpeg.index(b"\xff\xc0")
    changed = bytearray(jpeg)
    struct.pack_into(">HH", changed, place + 5, HUGE, HUGE)
    changed[place + 1] = 0xC2 if progressive else 0xC0
    return bytes(changed)


def _jpeg_tables_bomb(jpeg: bytes) -> bytes:
    one = page(jpeg, compression=7)
    one.tags[347] = (7, _resized_jpeg(jpeg, progressive=True))
    return tiff_bytes([one])


def cases(folder: Path) -> Iterator[tuple[str, Path]]:
    for maker in (lying_headers, lying_xml, bombs):
        for k, (name, data) in enumerate(maker()):
            path = folder / f"{maker.__name__}-{k}.tif"
            path.write_bytes(data)
            yield name, path
    yield from sparse(folder)


def main() -> None:
    from online_patching import PatchingError, open_slide

    folder = Path(sys.argv[1])
    written = list(cases(folder))
    # The first read loads libraries and starts threads; that is no cost of a hostile file.
    good = folder / "good.tif"
    good.write_bytes(tiff_bytes([page(bytes(imagecodecs.zlib_encode(PIXELS.tobytes())))]))
    open_slide(str(good)).read_level(level=0, x_px=0, y_px=0, width_px=512, height_px=512)
    results = {}
    for name, path in written:
        Path("/proc/self/clear_refs").write_text("5")
        before, started, worked = _memory("VmRSS"), time.monotonic(), time.process_time()
        try:
            slide = open_slide(str(path))
            slide.read_level(level=0, x_px=0, y_px=0, width_px=256, height_px=256)
            outcome = "read"
        except PatchingError as error:
            outcome = f"{type(error).__name__}: {error}"
        results[name] = (
            outcome,
            time.process_time() - worked,
            time.monotonic() - started,
            (_memory("VmHWM") - before) / 1024,
        )
    sys.stdout.write(json.dumps(results) + "\n")


def _memory(key: str) -> int:
    """KB of this process's memory (VmHWM: the most since clear_refs was written)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    main()
