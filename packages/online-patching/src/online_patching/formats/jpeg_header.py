"""What does the header of a JPEG say: size, colour, and where it can be taken up in the middle?

Restart markers divide the scan of a JPEG into intervals that decode on their own (ISO 10918-1 E.1.4). ``read`` of the
header tells how many MCUs an interval has; ``resized`` is the header under which one interval is a small JPEG.
"""

from __future__ import annotations

from dataclasses import dataclass

from online_patching.formats.header import Colour

# libjpeg's numbers of colour spaces (jpeglib.h, J_COLOR_SPACE).
JCS_UNKNOWN, JCS_GREY, JCS_RGB, JCS_YCBCR = 0, 1, 2, 3

_SOI, _SOF0, _SOF1, _SOS, _DRI, _APP0, _APP14 = 0xD8, 0xC0, 0xC1, 0xDA, 0xDD, 0xE0, 0xEE
_OTHER_FRAMES = frozenset({*range(0xC2, 0xD0)} - {0xC4, 0xC8, 0xCC})


@dataclass(frozen=True, slots=True)
class JpegHeader:
    """A sequential Huffman JPEG of three 8-bit components in one scan.

    Attributes:
        data: From the start of the image to the end of the scan header.
        size_at: Where in it height and width stand, 2 bytes each.
        width_px: Width; 0 where the writer could not state it.
        height_px: Height; 0 where the writer could not state it.
        mcu_width_px: Width of a minimum coded unit.
        mcu_height_px: Height of a minimum coded unit.
        restart_interval_mcus: MCUs between two restart markers; 0 where there are none.
        colour: What its samples mean, by libjpeg's rules (JFIF, then Adobe's marker, then the component ids).
    """

    data: bytes
    size_at: int
    width_px: int
    height_px: int
    mcu_width_px: int
    mcu_height_px: int
    restart_interval_mcus: int
    colour: Colour

    def resized(self, width_px: int, height_px: int) -> bytes:
        """The header of an image of another size."""
        size = height_px.to_bytes(2, "big") + width_px.to_bytes(2, "big")
        return self.data[: self.size_at] + size + self.data[self.size_at + 4 :]


def parse_jpeg_header(data: bytes) -> JpegHeader:
    """The header at the start of a JPEG.

    Args:
        data: The first bytes of the JPEG, at least up to the end of the scan header.

    Raises:
        ValueError: No such header, or one of another kind of JPEG than 8-bit sequential RGB or YCbCr in one scan.
    """
    if data[:2] != bytes((0xFF, _SOI)):
        raise ValueError("no JPEG begins there")
    at, size_at, frame, interval, jfif, transform = 2, 0, b"", 0, False, None
    while True:
        marker, body, following = _segment(data, at)
        if marker in (_SOF0, _SOF1):
            size_at, frame = at + 5, body
        elif marker in _OTHER_FRAMES:
            raise ValueError(f"a JPEG of the kind SOF{marker - _SOF0}, not sequential Huffman")
        elif marker == _DRI and len(body) == 2:
            interval = int.from_bytes(body, "big")
        elif marker == _APP0 and body[:5] == b"JFIF\0":
            jfif = True
        elif marker == _APP14 and body[:5] == b"Adobe" and len(body) >= 12:
            transform = body[11]
        at = following
        if marker == _SOS:
            break
    if len(frame) != 15 or frame[0] != 8 or frame[5] != 3 or body[:1] != b"\3":
        raise ValueError("not a JPEG of three 8-bit components in one scan")
    factors = [frame[k] for k in (7, 10, 13)]
    across, down = max(f >> 4 for f in factors), max(f & 15 for f in factors)
    if not (1 <= across <= 4 and 1 <= down <= 4):
        raise ValueError(f"sampling factors of {across} x {down}")
    height, width = int.from_bytes(frame[1:3], "big"), int.from_bytes(frame[3:5], "big")
    colour = _colour(jfif, transform, bytes(frame[k] for k in (6, 9, 12)))
    return JpegHeader(data[:at], size_at, width, height, 8 * across, 8 * down, interval, colour)


def stated_colour(data: bytes) -> Colour | None:
    """Colours that the markers at the start of a JPEG state (JFIF; Adobe's APP14, ITU-T T.872), or None."""
    at = 2
    try:
        while True:
            marker, body, at = _segment(data, at)
            if marker == _APP0 and body[:5] == b"JFIF\0":
                return Colour.YCBCR
            if marker == _APP14 and body[:5] == b"Adobe" and len(body) >= 12:
                return {0: Colour.RGB, 1: Colour.YCBCR}.get(body[11])
            if marker == _SOS:
                return None
    except ValueError:
        return None


def _segment(data: bytes, at: int) -> tuple[int, bytes, int]:
    """Marker and body of the segment at a place, and where the next one begins."""
    length = int.from_bytes(data[at + 2 : at + 4], "big")
    following = at + 2 + length
    if data[at : at + 1] != b"\xff" or length < 2 or following > len(data):
        raise ValueError("its header is broken or longer than what was read")
    return data[at + 1], data[at + 4 : following], following


def _colour(jfif: bool, transform: int | None, ids: bytes) -> Colour:
    if jfif:
        return Colour.YCBCR
    if transform is not None:
        return Colour.YCBCR if transform else Colour.RGB
    return Colour.RGB if ids == b"RGB" else Colour.YCBCR
