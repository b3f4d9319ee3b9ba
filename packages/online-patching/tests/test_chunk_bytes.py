"""What compressed chunks claim to hold, judged by the libraries that wrote them."""

from __future__ import annotations

import imagecodecs
import numcodecs
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from online_patching.formats.chunk_bytes import ChunkClaimError, check_claim, zstd_content_bytes


@given(size=st.integers(0, 200_000))
@example(size=255)
@example(size=256)
@example(size=65_791)
@example(size=65_792)
def test_the_size_that_zstd_states(size: int) -> None:
    assert zstd_content_bytes(bytes(imagecodecs.zstd_encode(bytes(size)))) == size


@pytest.mark.parametrize(
    ("name", "codec"),
    [("blosc", numcodecs.Blosc()), ("lz4", numcodecs.LZ4()), ("zstd", numcodecs.Zstd()), ("zstd", None)],
    ids=["blosc", "lz4", "zstd", "zstd without a size"],
)
def test_more_than_the_array_says_is_refused(name: str, codec: object) -> None:
    pixels = np.arange(3000, dtype=np.uint8)
    data = _unsized_zstd(pixels.tobytes()) if codec is None else bytes(codec.encode(pixels))  # type: ignore[attr-defined]
    for codecs in ([name], ["bytes", f"numcodecs.{name}", "crc32c"]):
        check_claim(data, codecs, 3000)
        with pytest.raises(ChunkClaimError):
            check_claim(data, codecs, 2999)
    for cut in range(4):
        with pytest.raises(ChunkClaimError, match="no stream"):
            check_claim(data[:cut], [name], 3000)


def test_codecs_that_state_nothing_are_left_to_their_bound() -> None:
    check_claim(b"anything", ["gzip"], 1)
    check_claim(b"", ["bytes"], 1)


def _unsized_zstd(content: bytes) -> bytes:
    """One raw block in a frame that states no content size (RFC 8878, sections 3.1.1.1 and 3.1.1.2)."""
    window_of_1_mib = b"\x50"
    last_raw_block = ((len(content) << 3) | 1).to_bytes(3, "little")
    frame = b"\x28\xb5\x2f\xfd\x00" + window_of_1_mib + last_raw_block + content
    assert zstd_content_bytes(frame) is None
    return frame
