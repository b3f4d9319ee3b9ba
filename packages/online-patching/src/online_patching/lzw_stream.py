"""Is an LZW stream safe to decode?

imagecodecs (2026.3.6) takes the code after a Clear code for a byte without looking: a damaged one makes it read from
wherever an unset pointer points to. So those codes are looked at first. The width of a code follows from how many came
since the last Clear code (TIFF 6.0 section 13), so all of them up to the next one are read at once.
"""

from __future__ import annotations

import numpy as np

from online_patching.jpeg_stream import Data

_CLEAR, _END = 256, 257
_FIRST_BITS = 9
# Codes after a Clear code: 9 bits until the table holds 511 strings, then 10, 11 and 12.
_WIDTHS = np.repeat(np.array([9, 10, 11, 12]), [254, 512, 1024, 2306])
_ENDS = np.cumsum(_WIDTHS)
# Writers clear a table when it is full, or a little earlier; one that is cleared all the time is no writer's.
_LEAST_CODES_A_TABLE = 64


def check_lzw(data: Data) -> None:
    """Refuse a stream that imagecodecs must not be given.

    Raises:
        ValueError: It does not begin with a Clear code, one is followed by a code of a string, or there are too many.
    """
    stored = np.frombuffer(data, np.uint8)
    bits = 8 * len(stored)
    padded = np.concatenate([stored, np.zeros(3, np.uint8)]).astype(np.uint32)
    if len(stored) < 2 or stored[0] != 0x80 or stored[1] & 0x80:
        raise ValueError("an LZW stream that does not begin with a Clear code")
    place = _FIRST_BITS
    for _ in range(16 + bits // (_FIRST_BITS * _LEAST_CODES_A_TABLE)):
        ends = place + _ENDS
        ends = ends[: np.searchsorted(ends, bits, side="right")]
        if not len(ends):
            return
        widths = _WIDTHS[: len(ends)]
        first, shift = np.divmod(ends - widths, 8)
        three_bytes = padded[first] << 16 | padded[first + 1] << 8 | padded[first + 2]
        codes = three_bytes >> (24 - shift - widths).astype(np.uint32) & ((1 << widths) - 1).astype(np.uint32)
        stops = np.flatnonzero((codes == _CLEAR) | (codes == _END))
        if codes[0] > _END:
            raise ValueError("an LZW stream with a string before its bytes")
        if not len(stops) or codes[stops[0]] == _END:
            return
        place = int(ends[stops[0]])
    raise ValueError("an LZW stream of too many tables")
