"""What does a JPEG 2000 tile claim to be, and which smaller image do its first bytes hold?

A few bytes of header can claim gigapixels, and OpenJPEG allocates for the claim before it looks at the data. So
``check_jpeg2000`` reads the claim first and refuses a frame that is not exactly the tile.

A codestream holds its resolutions one after the other, each twice as fine as the last. ``reduced`` writes its header
anew so that it ends with a coarser one: a smaller image, one wavelet decomposition less a factor of two, the step
sizes of the subbands that are left. What the coarser resolutions need comes first in the file, so a decoder stops
there; the pixels are those of decoding at a reduced resolution (ISO 15444-1 B.5, B.12).
"""

from __future__ import annotations

# OpenJPEG allocates some KB for each tile of a codestream before it reads one.
MAX_CODESTREAM_TILES = 256

_CODESTREAM = b"\xff\x4f\xff\x51"
_JP2_SIGNATURE = b"\0\0\0\x0cjP  "
_COD, _QCD, _SOT, _SOD = 0x52, 0x5C, 0x90, 0x93
# TLM, PLM, PLT, CRG, COM: lengths and remarks. Others (COC, QCC, RGN, POC, PPM, PPT) change what the header says.
_HARMLESS = frozenset((0x55, 0x57, 0x58, 0x63, 0x64))
_LAYERS_FIRST, _RESOLUTIONS_FIRST = 0, (1, 2)


def check_jpeg2000(data: bytes | memoryview, height_px: int, width_px: int, samples: int) -> bool:
    """Compare the SIZ marker (ISO 15444-1 A.5.1) with the tile.

    Returns:
        Whether any component is stored at a lower resolution.

    Raises:
        ValueError: No JPEG 2000 stream, or one of another size, other samples or absurdly many tiles.
    """
    siz = _codestream(data)
    if len(siz) < 42 or siz[:4] != _CODESTREAM:
        raise ValueError("no JPEG 2000 codestream")
    right, lower, left, upper, step_x, step_y, first_x, first_y = _grid(siz)
    found = (lower - upper, right - left, int.from_bytes(siz[40:42], "big"))
    if found != (height_px, width_px, samples):
        raise ValueError(
            f"it claims {found[1]} x {found[0]} px of {found[2]} samples, its header says {width_px} x {height_px} px"
            f" of {samples}"
        )
    tiles = -(-(right - first_x) // step_x) * -(-(lower - first_y) // step_y) if step_x and step_y else 0
    if not 0 < tiles <= MAX_CODESTREAM_TILES:
        raise ValueError(f"it claims {tiles} tiles inside (allowed: 1 to {MAX_CODESTREAM_TILES})")
    return any(siz[43 + 3 * k : 45 + 3 * k] != b"\x01\x01" for k in range(samples))


def reduced(data: bytes, reduction: int) -> bytes | None:
    """A codestream of the image at 1 / ``reduction`` of its scale, or None where it cannot be had by its header alone.

    Args:
        data: A stream that ``check_jpeg2000`` accepted.
        reduction: 2, 4 or 8.
    """
    grid = _grid(data) if data[:4] == _CODESTREAM else ()
    # A single tile at the origin.
    if not grid or any(grid[2:4]) or any(grid[6:8]) or grid[4] < grid[0] or grid[5] < grid[1]:
        return None
    size = b"".join((-(-side // reduction)).to_bytes(4, "big") for side in grid)
    end = 4 + int.from_bytes(data[4:6], "big")
    parts = [data[:8], size, data[40:end]]
    steps, place = reduction.bit_length() - 1, end
    while place + 4 <= len(data) and data[place] == 0xFF:
        marker, end = data[place + 1], place + 2 + int.from_bytes(data[place + 2 : place + 4], "big")
        if marker == _SOT:
            return b"".join((*parts, data[place:])) if _plain_parts(data, place) else None
        if marker not in (_COD, _QCD) and marker not in _HARMLESS:
            return None
        segment: bytes | None = data[place:end]
        if marker == _COD:
            segment = _fewer_levels(data[place:end], steps)
        elif marker == _QCD:
            segment = _fewer_subbands(data[place:end], steps)
        if segment is None:
            return None
        parts.append(segment)
        place = end
    return None


def _grid(siz: bytes | memoryview) -> tuple[int, ...]:
    """Xsiz, Ysiz, XOsiz, YOsiz, XTsiz, YTsiz, XTOsiz, YTOsiz."""
    return tuple(int.from_bytes(siz[k : k + 4], "big") for k in range(8, 40, 4))


def _fewer_levels(cod: bytes, steps: int) -> bytes | None:
    """The COD marker segment (A.6.1) with fewer decomposition levels."""
    if len(cod) < 14:
        return None
    order, layers, levels = cod[5], int.from_bytes(cod[6:8], "big"), cod[9]
    coarse_comes_first = order in _RESOLUTIONS_FIRST or (order == _LAYERS_FIRST and layers == 1)
    if levels < steps or not coarse_comes_first:
        return None
    body = cod[4:9] + bytes((levels - steps,)) + cod[10:14]
    # Sizes of the precincts, a byte a resolution, coarsest first.
    return _segment(_COD, body + cod[14 : 14 + levels + 1 - steps] if cod[4] & 1 else body)


def _fewer_subbands(qcd: bytes, steps: int) -> bytes:
    """The QCD marker segment (A.6.4) without the step sizes of the finest subbands, three a level."""
    style = qcd[4] & 31
    if style == 1:
        # One step size, from which the others derive.
        return qcd
    width = 1 if style == 0 else 2
    return _segment(_QCD, qcd[4 : len(qcd) - 3 * steps * width])


def _segment(marker: int, body: bytes) -> bytes:
    return bytes((0xFF, marker)) + (len(body) + 2).to_bytes(2, "big") + body


def _plain_parts(data: bytes, place: int) -> bool:
    """Whether no tile-part header (A.4.2) changes what the main header says."""
    while data[place : place + 2] == bytes((0xFF, _SOT)):
        length = int.from_bytes(data[place + 6 : place + 10], "big")
        at = place + 12
        while data[at : at + 2] != bytes((0xFF, _SOD)):
            if data[at : at + 1] != b"\xff" or at + 4 > len(data) or data[at + 1] not in _HARMLESS:
                return False
            at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if length == 0:
            return True
        place += max(length, 14)
    return True


def _codestream(data: bytes | memoryview) -> bytes | memoryview:
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
