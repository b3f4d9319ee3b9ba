"""How does Zarr name the encoding of a tile, and what does a name that others wrote mean?

``codecs_of`` gives the Zarr (format 2) compressor and filters with which a reader that knows nothing of this package,
only ``imagecodecs.numcodecs``, gets exactly our pixels; an encoding that such a reader would decode otherwise is
refused with its reason. ``encoding_of`` goes the other way, for references that others made.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from online_patching.formats.header import Codec, Colour, TileEncoding
from online_patching.formats.jpeg_header import JCS_GREY, JCS_RGB, JCS_YCBCR
from online_patching.geometry import LevelGeometry

# Tiles that were not stored are white.
FILL_VALUE = 255

_JPEG_COLOURS = {Colour.GREY: JCS_GREY, Colour.RGB: JCS_RGB, Colour.YCBCR: JCS_YCBCR}
_COLOUR_NAMES: dict[Any, Colour] = {
    **{number: colour for colour, number in _JPEG_COLOURS.items()},
    "RGB": Colour.RGB,
    "YCBCR": Colour.YCBCR,
    "YCC": Colour.YCBCR,
    "GRAYSCALE": Colour.GREY,
    "MINISBLACK": Colour.GREY,
}
_LOSSLESS_IDS = {
    Codec.DEFLATE: "imagecodecs_zlib",
    Codec.LZW: "imagecodecs_lzw",
    Codec.ZSTD: "imagecodecs_zstd",
    Codec.PACKBITS: "imagecodecs_packbits",
}
_LOSSLESS_CODECS = {name: codec for codec, name in _LOSSLESS_IDS.items()} | {
    "zlib": Codec.DEFLATE,
    "zstd": Codec.ZSTD,
    "imagecodecs_deflate": Codec.DEFLATE,
}
# Codecs of whole pictures whose streams state their own colours, which are RGB.
_RGB_CONFIGS: dict[Codec, dict[str, Any]] = {
    Codec.JPEG_LS: {"id": "imagecodecs_jpegls"},
    Codec.WEBP: {"id": "imagecodecs_webp", "hasalpha": False},
}
_RGB_CODECS = {"imagecodecs_jpeg2k": Codec.JPEG2000} | {config["id"]: codec for codec, config in _RGB_CONFIGS.items()}
KNOWN_IDS = ("imagecodecs_jpeg", *_RGB_CODECS, *sorted(_LOSSLESS_CODECS))


@dataclass(frozen=True, slots=True)
class ChunkCodecs:
    """Codecs of an array's chunks, as JSON values of Zarr format 2.

    Attributes:
        compressor: Configuration of the codec, or None for raw tiles.
        filters: Configurations of the filters, or None.
    """

    compressor: dict[str, Any] | None
    filters: list[dict[str, Any]] | None = None


def codecs_of(encoding: TileEncoding, geometry: LevelGeometry) -> ChunkCodecs:
    """The codecs that decode a level's stored tiles to uint8 (tile height, tile width, 3) RGB.

    JPEG 2000 in YCbCr is given as if the decoder converted it, which it does for subsampled chroma only: the caller
    looks at the tiles.

    Raises:
        ValueError: Such codecs would give other pixels; the reason.
    """
    codec, colour, tables = encoding.codec, encoding.colour, encoding.jpeg_tables
    if encoding != TileEncoding(codec, colour, tables, encoding.predictor):
        raise ValueError(f"its {codec} tiles need more than a plain decoder can be told")
    if codec is Codec.JPEG and colour in _JPEG_COLOURS:
        return ChunkCodecs(
            {
                "id": "imagecodecs_jpeg",
                "tables": base64.b64encode(tables).decode() if tables else None,
                "colorspace_jpeg": _JPEG_COLOURS[colour],
                "colorspace_data": JCS_RGB,
            }
        )
    if codec is Codec.JPEG2000 and colour in (Colour.RGB, Colour.YCBCR):
        return ChunkCodecs({"id": "imagecodecs_jpeg2k"})
    if codec in _RGB_CONFIGS and colour is Colour.RGB:
        return ChunkCodecs(dict(_RGB_CONFIGS[codec]))
    if codec in (Codec.RAW, *_LOSSLESS_IDS) and colour is Colour.RGB and encoding.predictor in (1, 2):
        compressor = None if codec is Codec.RAW else {"id": _LOSSLESS_IDS[codec]}
        shape = [geometry.tile_height_px, geometry.tile_width_px, 3]
        delta = {"id": "imagecodecs_delta", "shape": shape, "dtype": "|u1", "axis": 1, "dist": 1}
        return ChunkCodecs(compressor, [delta] if encoding.predictor == 2 else None)
    raise ValueError(f"a plain decoder gives other pixels than RGB for {codec} tiles in {colour}")


class ColourNotStatedError(ValueError):
    """JPEG chunks whose colours only their own markers can tell."""


def encoding_of(compressor: Any, filters: Any, *, stream_colour: Colour | None = None) -> TileEncoding:
    """The encoding that a format 2 array's codecs describe.

    Args:
        compressor: JSON value of the array's metadata.
        filters: JSON value of the array's metadata.
        stream_colour: What the chunks' own markers say of their colours, where the compressor says nothing.

    Raises:
        ColourNotStatedError: Neither says.
        ValueError: Unknown codecs, or ones that leave the colours to a guess; what is allowed.
    """
    predictor = 2 if _is_delta(filters) else 1
    if compressor is None:
        return TileEncoding(Codec.RAW, predictor=predictor)
    if not isinstance(compressor, Mapping) or not isinstance(compressor.get("id"), str):
        raise ValueError("a compressor without an id")
    name = compressor["id"]
    if name in _LOSSLESS_CODECS:
        return TileEncoding(_LOSSLESS_CODECS[name], predictor=predictor)
    if predictor == 2 or name not in KNOWN_IDS:
        raise ValueError(f"codec {name!r}{' with a filter' * (predictor == 2)}; known: {', '.join(KNOWN_IDS)}, none")
    if name in _RGB_CODECS:
        if compressor.get("hasalpha") or compressor.get("index"):
            raise ValueError(f"codec {name!r} that keeps opacity or picks a frame; only plain RGB is read")
        return TileEncoding(_RGB_CODECS[name])
    return _jpeg(compressor, stream_colour)


def blank_chunk(codecs: ChunkCodecs, geometry: LevelGeometry) -> bytes:
    """A chunk that these codecs decode to white."""
    import imagecodecs.numcodecs
    import numcodecs  # type: ignore[import-untyped]
    import numpy as np

    imagecodecs.numcodecs.register_codecs(verbose=False)
    white: Any = np.full((geometry.tile_height_px, geometry.tile_width_px, 3), FILL_VALUE, np.uint8)
    for config in codecs.filters or []:
        white = numcodecs.get_codec(config).encode(white)
    if codecs.compressor is None:
        return bytes(np.ascontiguousarray(white))
    return bytes(numcodecs.get_codec(codecs.compressor).encode(white))


def _jpeg(config: Mapping[str, Any], stream_colour: Colour | None) -> TileEncoding:
    if config.get("header") or _colour(config.get("colorspace_data")) is not Colour.RGB:
        raise ValueError("JPEG chunks with a header of their own, or whose data are not stated to be RGB")
    stated = config.get("colorspace_jpeg")
    colour = stream_colour if stated is None else _colour(stated)
    if colour is None:
        problem = "JPEG chunks whose colours neither colorspace_jpeg nor their own markers state"
        raise ColourNotStatedError(problem) if stated is None else ValueError(problem)
    tables = config.get("tables")
    if tables is not None and not isinstance(tables, str):
        raise ValueError("JPEG tables that are no base64 text")
    return TileEncoding(Codec.JPEG, colour, base64.b64decode(tables or "", validate=True))


def _colour(stated: Any) -> Colour | None:
    key = stated.upper() if isinstance(stated, str) else stated
    return _COLOUR_NAMES.get(key) if isinstance(key, str | int) else None


def _is_delta(filters: Any) -> bool:
    """Whether the filters are the horizontal differences of TIFF predictor 2."""
    if not filters:
        return False
    match filters:
        case [{"id": "imagecodecs_delta", "axis": 1 | -2, **rest}] if rest.get("dist", 1) == 1:
            return True
    raise ValueError("filters other than horizontal differences (imagecodecs_delta, axis 1)")
