"""Can a part of a JPEG be decoded here by nvImageCodec (the extra ``nvimgcodec``)?

It decodes on the CPU, skips what lies outside of the part and gives the same pixels as decoding the whole. A decoder
serves one thread: two threads in one would crash. Loading the library without CUDA prints warnings, which are kept
from the process's stderr for that moment.

It notices when a file ends too early, but not when the image data does: the rest is then uniform grey. A part that
ends in such grey is not certain, and ``decode_jpeg_parts`` gives None.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from online_patching.fork_lock import ForkLock

Pixels = npt.NDArray[np.uint8]

# Interpolated chroma reaches this far from a block into the next.
_BLEED_PX = 2
# libjpeg leaves the coefficients of what is missing at zero: uniform grey in every colour space.
_FILL = b"\x80"
_local = threading.local()
_loading = ForkLock()


def is_available() -> bool:
    """Whether the library is installed and makes a decoder on the CPU."""
    return _library() is not None


class RegionPart(NamedTuple):
    """A rectangle of a sequential JPEG without restart markers.

    Attributes:
        stream: The JPEG.
        region: Left, top, right, bottom (exclusive).
        size_px: Width and height of the JPEG.
        mcu_px: Width and height of its minimum coded unit.
    """

    stream: bytes
    region: tuple[int, int, int, int]
    size_px: tuple[int, int]
    mcu_px: tuple[int, int]

    @property
    def end_px(self) -> tuple[int, int]:
        """Right and lower end of what is decoded: that of the last unit, which is looked at."""
        (width, height), (unit_x, unit_y), (_, _, right, bottom) = self.size_px, self.mcu_px, self.region
        return min(width, -(-right // unit_x) * unit_x), min(height, -(-bottom // unit_y) * unit_y)


def decode_jpeg_parts(parts: Sequence[RegionPart]) -> list[Pixels | None]:
    """Rectangles of JPEGs, as RGB.

    Returns:
        For each part uint8 (bottom - top, right - left, 3), or None where nvImageCodec does not decode it or where the
        pixels may be what is filled in for data that ended too early; another decoder has to tell.
    """
    library = _library()
    if library is None or not parts:
        return [None] * len(parts)
    codes = []
    for part in parts:
        left, top, _, _ = part.region
        end_x, end_y = part.end_px
        region = library.Region(top, left, end_y, end_x)
        codes.append(library.CodeStream(part.stream).get_sub_code_stream(region=region))
    decoder, parameters = _decoder(library)
    images = decoder.decode(codes, params=parameters)
    return [
        None if image is None else _checked(np.asarray(image), part) for part, image in zip(parts, images, strict=True)
    ]


def _checked(pixels: Pixels, part: RegionPart) -> Pixels | None:
    """The pixels that were asked for, or None where they are not certain."""
    left, top, right, bottom = part.region
    end_x, end_y = part.end_px
    if pixels.shape != (end_y - top, end_x - left, 3):
        return None
    # Few tiles get past their last pixel.
    if pixels.item(-1) == _FILL[0]:
        unit_x, unit_y = part.mcu_px
        x = max(0, (end_x - 1) // unit_x * unit_x + _BLEED_PX - left)
        y = max(0, (end_y - 1) // unit_y * unit_y + _BLEED_PX - top)
        last = pixels[y:, x:].tobytes()
        if last == _FILL * len(last):
            return None
    return pixels[: bottom - top, : right - left]


def _decoder(library: Any) -> tuple[Any, Any]:
    """This thread's decoder and parameters."""
    if getattr(_local, "pid", 0) != os.getpid():
        _local.made, _local.pid = _make(library), os.getpid()
    made: tuple[Any, Any] = _local.made
    return made


def _make(library: Any) -> tuple[Any, Any]:
    decoder = library.Decoder(
        device_id=library.NVIMGCODEC_DEVICE_CPU_ONLY,
        max_num_cpu_threads=1,
        backends=[library.Backend(library.BackendKind.CPU_ONLY)],
    )
    # The slide's header says what is up, never a tile.
    parameters = library.DecodeParams(apply_exif_orientation=False, color_spec=library.ColorSpec.SRGB)
    return decoder, parameters


@cache
def _library() -> Any:
    """The module, or None where it is not installed or does not work here."""
    with _loading, _quiet():
        try:
            from nvidia import nvimgcodec

            _make(nvimgcodec)
        except (ImportError, OSError, RuntimeError, AttributeError, TypeError):
            return None
    return nvimgcodec


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what the library prints while it loads (its GPU parts are missing) from stderr."""
    try:
        stderr = os.dup(2)
    except OSError:
        # A process without stderr has nothing to keep quiet.
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    os.close(nowhere)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
