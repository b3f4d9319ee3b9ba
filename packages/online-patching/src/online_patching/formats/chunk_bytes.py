"""How many bytes does a compressed chunk claim to hold?

A few hundred stored bytes can claim gigabytes, and decompressors allocate what is claimed. ``check_claim`` reads the
claim from the head of the stream before anything is decompressed. Streams of gzip and zlib state nothing, but expand at
most a thousandfold (RFC 1951), which the bound on a chunk's stored bytes limits.

Sources: RFC 8878 section 3.1.1 (Zstandard frames), c-blosc ``README_CHUNK_FORMAT``; numcodecs puts the size before LZ4.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

import imagecodecs

_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_DICTIONARY_ID_BYTES = (0, 1, 2, 4)


class ChunkClaimError(Exception):
    """A stored chunk cannot hold what it claims."""


def check_claim(data: bytes, codecs: Sequence[str], chunk_bytes: int) -> None:
    """Refuse a chunk that claims more than its array says.

    Args:
        data: The chunk as stored.
        codecs: Names of the array's codecs, of which one at most compresses.
        chunk_bytes: Bytes of a chunk's pixels.

    Raises:
        ChunkClaimError: It claims more, or nothing that can be read.
    """
    names = {name.removeprefix("numcodecs.") for name in codecs}
    try:
        if "blosc" in names:
            (claim,) = struct.unpack_from("<I", data, 4)
        elif "lz4" in names:
            (claim,) = struct.unpack_from("<I", data)
        elif "zstd" in names:
            stated = zstd_content_bytes(data)
            # Without a statement the only way to know is to try, into a buffer that cannot grow.
            claim = len(imagecodecs.zstd_decode(data, out=bytearray(chunk_bytes))) if stated is None else stated
        else:
            return
    except (struct.error, IndexError, imagecodecs.ZstdError) as error:
        raise ChunkClaimError(f"{len(data)} bytes that are no stream of its codec") from error
    if claim > chunk_bytes:
        raise ChunkClaimError(f"{len(data)} bytes claim to hold {claim}, its array says {chunk_bytes}")


def zstd_content_bytes(data: bytes) -> int | None:
    """What the head of a Zstandard frame states as its content's size, or None where it states nothing.

    Raises:
        IndexError: The frame is cut off.
        struct.error: It is no such frame.
    """
    if data[:4] != _ZSTD_MAGIC:
        raise struct.error("no Zstandard frame")
    descriptor = data[4]
    size_flag, single_segment = descriptor >> 6, (descriptor >> 5) & 1
    size_bytes = (1 if single_segment else 0, 2, 4, 8)[size_flag]
    if size_bytes == 0:
        return None
    start = 5 + (1 - single_segment) + _DICTIONARY_ID_BYTES[descriptor & 3]
    field = data[start : start + size_bytes]
    if len(field) < size_bytes:
        raise IndexError("cut off")
    return int.from_bytes(field, "little") + (256 if size_bytes == 2 else 0)
