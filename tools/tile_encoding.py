"""How do the bytes of one tile look in an Aperio or generic pyramid?

Steps: an `Encoding` names compression and colour; `TileEncoder` turns uint8 RGB tiles into what the TIFF
stores. JPEG tiles become *abbreviated* streams: quantisation and Huffman tables move to the JPEGTables
tag of the level, and every marker that would tell a decoder the colour space (JFIF, Adobe APP14) is left
out, as in Aperio's files. For JPEG/RGB the components are numbered 0, 1, 2, from which libjpeg guesses
YCbCr: only the photometric tag is right.

`svs_writer` puts the tiles into a file.
"""

from __future__ import annotations

import hashlib
import zlib
from dataclasses import dataclass

import imagecodecs
import numpy as np
import numpy.typing as npt

U8 = npt.NDArray[np.uint8]

_RGB, _YCBCR = 2, 6  # PhotometricInterpretation
_DQT, _DHT, _SOF0, _SOS = 0xDB, 0xC4, 0xC0, 0xDA
_FLAT = 5.0  # standard deviation below which a tile counts as glass
_MEMO_TILES = 64  # glass repeats within a slide, tissue does not: a small memo catches nearly all repeats


@dataclass(frozen=True, slots=True)
class Encoding:
    """Compression and colour of a level: TIFF tags 259, 262 and 530, and the words Aperio's
    description uses.
    """

    compression: int
    photometric: int
    subsampling: tuple[int, int] | None
    words: str


ENCODINGS: dict[str, Encoding] = {
    # Aperio writes the subsampling tag (2, 2) although the frame header of its JPEG/RGB says 4:4:4.
    "jpeg-rgb": Encoding(7, _RGB, (2, 2), "JPEG/RGB"),
    "jpeg-ycbcr": Encoding(7, _YCBCR, (2, 1), "JPEG/YCC"),
    "jpeg-ycbcr-420": Encoding(7, _YCBCR, (2, 2), "JPEG/YCC"),
    "jp2k-ycbcr": Encoding(33003, _RGB, None, "J2K/YUV16"),
    "jp2k-rgb": Encoding(33005, _RGB, None, "J2K/KDU"),
    "deflate": Encoding(8, _RGB, None, "Deflate/RGB"),
    "none": Encoding(1, _RGB, None, "RAW/RGB"),
}


class TileEncoder:
    """Encodes the tiles of one level; equal tiles (glass) are encoded once.

    Args:
        encoding: A key of `ENCODINGS`.
        quality: 1 to 100. JPEG: libjpeg's quality. JPEG 2000: a PSNR of `25 + 0.15 * quality` dB, 7 dB
            more for 33003,
            where smooth chroma would otherwise pay for coarse luma.
    """

    def __init__(self, *, encoding: str, quality: int) -> None:
        if encoding not in ENCODINGS:
            raise ValueError(f"encoding {encoding!r}: not known; use one of {', '.join(ENCODINGS)}")
        if not 1 <= quality <= 100:
            raise ValueError(f"quality {quality}: must be between 1 and 100")
        self._name = encoding
        self._quality = quality
        self._memo: dict[bytes, bytes] = {}
        self.encoding = ENCODINGS[encoding]
        self.tables: bytes | None = None
        """The JPEGTables of the level, known from the first tile on; None for other compressions."""

    def encode(self, tile: U8) -> bytes:
        """Returns the stored bytes of a uint8 RGB tile (H, W, 3)."""
        key = hashlib.sha256(tile.tobytes()).digest()
        encoded = self._memo.get(key)
        if encoded is None:
            encoded = self._encode(tile)
            if len(self._memo) < _MEMO_TILES:
                self._memo[key] = encoded
        return encoded

    def _encode(self, tile: U8) -> bytes:
        compression = self.encoding.compression
        if compression == 7:
            return self._encode_jpeg(tile)
        if compression == 33003:
            return self._encode_jpeg2000(rgb_to_ycbcr(tile), mct=False)
        if compression == 33005:
            return self._encode_jpeg2000(tile, mct=True)
        return zlib.compress(tile.tobytes(), 6) if compression == 8 else tile.tobytes()

    def _encode_jpeg(self, tile: U8) -> bytes:
        if self.encoding.photometric == _RGB:
            stream = imagecodecs.jpeg8_encode(tile, level=self._quality, colorspace=2, outcolorspace=2)
            tables, body = abbreviate_jpeg(bytes(stream), component_ids=(0, 1, 2))
        else:
            chroma = "422" if self.encoding.subsampling == (2, 1) else "420"
            stream = imagecodecs.jpeg8_encode(tile, level=self._quality, subsampling=chroma)
            tables, body = abbreviate_jpeg(bytes(stream), component_ids=(1, 2, 3))
        assert self.tables in (None, tables), "tiles of one quality have the same tables"
        self.tables = tables
        return body

    def _encode_jpeg2000(self, tile: U8, *, mct: bool) -> bytes:
        psnr = round(25 + 0.15 * self._quality) + (0 if mct else 7)
        if tile.std(axis=(0, 1)).max() < _FLAT:  # a flat tile would reach its PSNR with a wrong mean colour
            psnr += 12
        stream = imagecodecs.jpeg2k_encode(tile, level=psnr, mct=mct, codecformat="j2k", reversible=False, numthreads=1)
        return bytes(stream)


def rgb_to_ycbcr(rgb: U8) -> U8:
    """Converts full-range RGB to YCbCr with the matrix of JFIF (ITU-R BT.601), as 33003 tiles store it."""
    matrix = np.array(
        [[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]], dtype=np.float32
    )
    ycbcr = rgb.astype(np.float32) @ matrix.T + np.array([0, 128, 128], dtype=np.float32)
    return np.asarray(np.clip(np.rint(ycbcr), 0, 255), dtype=np.uint8)


def abbreviate_jpeg(stream: bytes, *, component_ids: tuple[int, int, int]) -> tuple[bytes, bytes]:
    """Splits a baseline JPEG stream into shared tables and an abbreviated stream without colour markers.

    Args:
        stream: A whole baseline JPEG of three components.
        component_ids: The numbers that the frame and scan headers shall give to the components.

    Returns:
        The tables-only stream for tag 347 (SOI, DQT and DHT, EOI) and the image stream (SOI, SOF0,
        SOS, data, EOI).

    Source: ITU-T T.81, sections B.4 and B.5; TIFF Technical Note 2.
    """
    tables, frame = [b"\xff\xd8"], [b"\xff\xd8"]
    position = 2
    while True:
        marker = stream[position + 1]
        end = position + 2 + int.from_bytes(stream[position + 2 : position + 4])
        segment = bytearray(stream[position:end])
        if marker in (_DQT, _DHT):
            tables.append(bytes(segment))
        elif marker == _SOF0:
            segment[10:19:3] = bytes(component_ids)  # after marker, length, precision, height, width, count
            frame.append(bytes(segment))
        elif marker == _SOS:
            segment[5:11:2] = bytes(component_ids)
            frame += [bytes(segment), stream[end:]]
            return b"".join([*tables, b"\xff\xd9"]), b"".join(frame)
        else:
            assert marker == 0xFE or 0xE0 <= marker <= 0xEF, f"marker {marker:#x} in a baseline JPEG stream"
        position = end
