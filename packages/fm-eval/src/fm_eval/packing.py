"""How do tens of thousands of small whole numbers fit into one line of a JSON result?

`dtype:shape:data`, for example `u1:5x132:eNpj...`: the smallest unsigned type that holds them, little-endian, zlib,
base64. A result file may come from a stranger: what is unpacked never exceeds the stated shape, and that is bounded.
Called by evaluate and result.
"""

from __future__ import annotations

import base64
import binascii
import re
import zlib

import numpy as np

from fm_eval.errors import ResultError
from fm_eval.metrics import IntArray

# Runs x rows: a hundred runs on a million rows.
_MOST_VALUES = 100_000_000
_PACKED = re.compile(r"u([124]):(\d{1,9}(?:x\d{1,9})*):([A-Za-z0-9+/=]*)")


def pack(values: IntArray) -> str:
    """Whole numbers from 0 to 2^32 - 1 of any shape as one line of text."""
    largest = int(values.max()) if values.size else 0
    assert not values.size or values.min() >= 0, "packed numbers are classes and groups, never below 0"
    size = next(size for size in (1, 2, 4) if largest < 256**size)
    data = zlib.compress(np.ascontiguousarray(values, dtype=f"<u{size}").tobytes(), 9)
    return f"u{size}:{'x'.join(map(str, values.shape))}:{base64.b64encode(data).decode('ascii')}"


def unpack(text: str) -> IntArray:
    """The int64 array that `pack` was given.

    Raises:
        ResultError: not such a text.
    """
    match = _PACKED.fullmatch(text)
    if match is None:
        raise ResultError(f"packed numbers {text[:20]!r}: not of the form dtype:shape:data; run the evaluation again")
    size, shape = int(match[1]), tuple(map(int, match[2].split("x")))
    count = int(np.prod(shape, dtype=object))
    if count > _MOST_VALUES:
        raise ResultError(f"packed numbers of shape {match[2]}: more than {_MOST_VALUES:,} values")
    try:
        stream = zlib.decompressobj()
        data = stream.decompress(base64.b64decode(match[3], validate=True), size * count + 1)
    except (binascii.Error, zlib.error) as error:
        raise ResultError(f"packed numbers of shape {match[2]}: damaged ({error}); run the evaluation again") from error
    if len(data) != size * count or not stream.eof:
        raise ResultError(f"packed numbers of shape {match[2]}: another number of bytes; run the evaluation again")
    return np.frombuffer(data, dtype=f"<u{size}").reshape(shape).astype(np.int64)
