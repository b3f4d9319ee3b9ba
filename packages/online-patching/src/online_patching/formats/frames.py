"""Which frame does a JPEG or JPEG 2000 stream claim, told without a codec library?

A few bytes of header can claim gigapixels, and the libraries allocate for the claim before they look at the data. So
``check_jpeg`` and ``check_jpeg2000`` read the claim first and refuse a frame that is not exactly the tile.
"""

from __future__ import annotations

# Every scan of a progressive JPEG is one more pass over the whole tile; encoders write about ten.
MAX_SCANS = 64
# OpenJPEG allocates some KB for each tile of a codestream before it reads one.
MAX_CODESTREAM_TILES = 256

_SOI, _SOS = b"\xff\xd8", 0xDA
_PROGRESSIVE = (0xC2, 0xC6, 0xCA, 0xCE)
# DHT, JPG and DAC lie between the frame markers C0 to CF.
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_CODESTREAM = b"\xff\x4f\xff\x51"
_JP2_SIGNATURE = b"\0\0\0\x0cjP  "


def check_jpeg(data: bytes, height_px: int, width_px: int, samples: int) -> None:
    """Compare the frame header (ITU-T T.81 B.2.2) with the tile.

    Raises:
        ValueError: No JPEG stream, or one of another size or with absurdly many scans.
    """
    if data[:2] != _SOI:
        raise ValueError("no JPEG stream")
    place = 2
    while place + 10 <= len(data):
        marker = data[place + 1]
        if data[place] != 0xFF or marker == _SOS or 0xD0 <= marker <= 0xD9:
            break
        if marker == 0xFF:
            place += 1
            continue
        if marker in _FRAMES:
            found = (data[place + 5] << 8 | data[place + 6], data[place + 7] << 8 | data[place + 8], data[place + 9])
            if found != (height_px, width_px, samples):
                raise ValueError(_claim(found, (height_px, width_px, samples)))
            if marker in _PROGRESSIVE and data.count(b"\xff\xda") > MAX_SCANS:
                raise ValueError(f"a progressive JPEG of more than {MAX_SCANS} scans")
            return
        place += 2 + (data[place + 2] << 8 | data[place + 3])
    raise ValueError("a JPEG stream without a frame header")


def check_jpeg2000(data: bytes, height_px: int, width_px: int, samples: int) -> bool:
    """Compare the SIZ marker (ISO 15444-1 A.5.1) with the tile.

    Returns:
        Whether any component is stored at a lower resolution.

    Raises:
        ValueError: No JPEG 2000 stream, or one of another size, other samples or absurdly many tiles.
    """
    siz = _codestream(data)
    if len(siz) < 42 or siz[:4] != _CODESTREAM:
        raise ValueError("no JPEG 2000 codestream")
    right, lower, left, upper, step_x, step_y, first_x, first_y = (
        int.from_bytes(siz[k : k + 4], "big") for k in range(8, 40, 4)
    )
    found = (lower - upper, right - left, int.from_bytes(siz[40:42], "big"))
    if found != (height_px, width_px, samples):
        raise ValueError(_claim(found, (height_px, width_px, samples)))
    tiles = -(-(right - first_x) // step_x) * -(-(lower - first_y) // step_y) if step_x and step_y else 0
    if not 0 < tiles <= MAX_CODESTREAM_TILES:
        raise ValueError(f"it claims {tiles} tiles inside (allowed: 1 to {MAX_CODESTREAM_TILES})")
    return any(siz[43 + 3 * k : 45 + 3 * k] != b"\x01\x01" for k in range(samples))


def _codestream(data: bytes) -> bytes:
    """The first bytes of the codestream, which a JP2 container keeps in a box (ISO 15444-1 I.4)."""
    if data[:8] != _JP2_SIGNATURE:
        return data[:256]
    place = 0
    while place + 16 <= len(data):
        length, head = int.from_bytes(data[place : place + 4], "big"), 8
        if length == 1:
            length, head = int.from_bytes(data[place + 8 : place + 16], "big"), 16
        if data[place + 4 : place + 8] == b"jp2c":
            return data[place + head : place + head + 256]
        if length < head:
            break
        place += length
    return b""


def _claim(found: tuple[int, int, int], wanted: tuple[int, int, int]) -> str:
    return (
        f"it claims {found[1]} x {found[0]} px of {found[2]} samples, its header says {wanted[1]} x {wanted[0]} px of"
        f" {wanted[2]}"
    )
