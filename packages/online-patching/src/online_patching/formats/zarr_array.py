"""Which uint8 array does a Zarr metadata document describe, and can its chunks be decoded safely?

``checked_array`` takes the parsed JSON of ``.zarray`` (Zarr v2) or of an array's ``zarr.json`` (v3) and rebuilds it
from the fields that decoding needs, each one checked: the document that the zarr library sees later holds nothing
else. Codecs are taken from a list, because some that a document may name (pickled objects) run what a stranger wrote.

Sources: the Zarr v2 and v3 specifications (zarr-specs.readthedocs.io), sections "Metadata" and "Array metadata".
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from online_patching.errors import SlideFormatError
from online_patching.formats.pyramid import MAX_SIDE_PX

MAX_AXES = 5
MAX_CHUNK_PX = 1 << 14
MAX_CHUNK_BYTES = 1 << 28
MAX_CHUNKS_A_SHARD = 1 << 20
MAX_CODECS = 8
WHITE = 255

_NUMCODECS = ("blosc", "zlib", "gzip", "zstd", "lz4")
_CHECKS_AND_FILTERS = ("shuffle", "delta", "crc32", "crc32c", "adler32")
_IMAGE = ("jpeg", "jpeg8", "jpeg2k", "jpegls", "jpegxl", "webp", "png")
_V2_COMPRESSORS = (*_NUMCODECS, *(f"imagecodecs_{name}" for name in _IMAGE))
_V3_COMPRESSORS = ("blosc", "gzip", "zstd", *(f"numcodecs.{name}" for name in _NUMCODECS))
COMPRESSORS = {*_V2_COMPRESSORS, *_V3_COMPRESSORS}
V2_CODECS = (*_V2_COMPRESSORS, *_CHECKS_AND_FILTERS, "fletcher32")
V3_CODECS = (
    "bytes",
    "transpose",
    "crc32c",
    *_V3_COMPRESSORS,
    *(f"numcodecs.{name}" for name in _CHECKS_AND_FILTERS),
)
SHARDING = "sharding_indexed"

_V3_KEYS = {
    "zarr_format", "node_type", "shape", "data_type", "chunk_grid", "chunk_key_encoding", "fill_value", "codecs",
    "attributes", "dimension_names", "storage_transformers", "consolidated_metadata",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class ZarrArray:
    """One array whose metadata was checked.

    Attributes:
        name: Path of the array in the slide's folder.
        zarr_format: 2 or 3.
        document: The metadata, rebuilt from the fields that were checked.
        shape: Length of every axis.
        chunks: Shape of the chunks; of the inner ones where they lie in shards.
        codecs: Names of all codecs.
        shard_index: Whether the array has shards, and at which end of them their index lies.
    """

    name: str
    zarr_format: Literal[2, 3]
    document: dict[str, Any]
    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    codecs: tuple[str, ...]
    shard_index: Literal["start", "end"] | None = None

    @property
    def chunk_bytes(self) -> int:
        """Bytes of a chunk's pixels."""
        return math.prod(self.chunks)

    @property
    def max_stored_bytes(self) -> int:
        """More than a chunk's stored bytes can be; what is larger is damaged, or a bomb."""
        return 2 * self.chunk_bytes + (1 << 12)


def checked_array(document: object, *, name: str, where: str) -> ZarrArray:
    """The array that a metadata document describes.

    Args:
        document: Parsed JSON.
        name: Path of the array in the slide's folder.
        where: The document's URL as it may appear in messages.

    Raises:
        SlideFormatError: Not the metadata of a uint8 array, or one that cannot be decoded safely.
    """
    check = _Checks(where)
    fields = check.mapping(document, "the document")
    zarr_format = fields.get("zarr_format")
    if zarr_format not in (2, 3) or isinstance(zarr_format, bool):
        raise check.error(f"zarr_format is {_shown(zarr_format)}, allowed: 2 and 3")
    return _v2_array(fields, check, name) if zarr_format == 2 else _v3_array(fields, check, name)


def _v2_array(fields: dict[str, Any], check: _Checks, name: str) -> ZarrArray:
    if fields.get("dtype") not in ("|u1", "<u1", ">u1", "u1"):
        raise check.error(f"dtype {_shown(fields.get('dtype'))}: only 8-bit images (|u1) are read")
    shape = check.lengths(fields.get("shape"), "shape", MAX_SIDE_PX)
    chunks = check.chunk_shape(fields.get("chunks"), shape)
    check.chunk_bytes(chunks)
    stages = [fields["compressor"]] if fields.get("compressor") is not None else []
    filters = fields.get("filters") or []
    if not isinstance(filters, list) or len(filters) > MAX_CODECS:
        raise check.error(f"filters are {_shown(filters)}, allowed: a list of at most {MAX_CODECS}")
    names = tuple(check.codec_name(stage, "id", V2_CODECS) for stage in [*filters, *stages])
    check.one_compressor(names)
    order = check.choice(fields, "order", ("C", "F"), "C")
    separator = check.choice(fields, "dimension_separator", (".", "/"), ".")
    fill = fields.get("fill_value")
    document = {
        "zarr_format": 2,
        "shape": shape,
        "chunks": chunks,
        "dtype": "|u1",
        "compressor": stages[0] if stages else None,
        "filters": filters or None,
        "order": order,
        "dimension_separator": separator,
        # The standard leaves what was never written undefined where this is null; elsewhere here that is white.
        "fill_value": WHITE if fill is None else check.sample(fill, "fill_value"),
    }
    return ZarrArray(name, 2, document, shape, chunks, names)


def _v3_array(fields: dict[str, Any], check: _Checks, name: str) -> ZarrArray:
    if fields.get("node_type") != "array":
        raise check.error(f"node_type is {_shown(fields.get('node_type'))}, allowed: 'array'")
    if fields.get("data_type") != "uint8":
        raise check.error(f"data_type {_shown(fields.get('data_type'))}: only 8-bit images (uint8) are read")
    for key in sorted(set(fields) - _V3_KEYS):
        extension = fields[key]
        if not (isinstance(extension, dict) and extension.get("must_understand") is False):
            raise check.error(f"the field {_shown(key)} is not known and must be understood")
    if fields.get("storage_transformers"):
        raise check.error("storage transformers are not supported: write the image again without them")
    shape = check.lengths(fields.get("shape"), "shape", MAX_SIDE_PX)
    grid = check.extension(fields.get("chunk_grid"), "chunk_grid", ("regular",))
    stored = check.chunk_shape(grid["configuration"].get("chunk_shape"), shape)
    keys = check.extension(fields.get("chunk_key_encoding"), "chunk_key_encoding", ("default", "v2"))
    separator = "/" if keys["name"] == "default" else "."
    separator = check.choice(keys["configuration"], "separator", (".", "/"), separator)
    codecs, names = check.v3_codecs(fields.get("codecs"))
    sharding = codecs[0]["configuration"] if names[0] == SHARDING else None
    if (SHARDING in names and sharding is None) or (sharding is not None and len(codecs) > 1):
        raise check.error("shards beside other codecs are not supported: put those codecs into the shards")
    chunks = stored if sharding is None else check.inner_chunks(sharding, stored)
    check.chunk_bytes(chunks)
    document = {
        "zarr_format": 3,
        "node_type": "array",
        "shape": shape,
        "data_type": "uint8",
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": stored}},
        "chunk_key_encoding": {"name": keys["name"], "configuration": {"separator": separator}},
        "fill_value": check.sample(fields.get("fill_value"), "fill_value"),
        "codecs": codecs,
        "attributes": {},
    }
    location: Literal["start", "end"] = "start" if (sharding or {}).get("index_location") == "start" else "end"
    return ZarrArray(name, 3, document, shape, chunks, names, None if sharding is None else location)


def _shown(value: object) -> str:
    text = repr(value) if isinstance(value, (str, int, float, bool, type(None))) else type(value).__name__
    return text[:80]


@dataclass(frozen=True, slots=True)
class _Checks:
    """Checks of single fields, whose errors name the document."""

    where: str

    def error(self, message: str) -> SlideFormatError:
        return SlideFormatError(f"{self.where}: {message}")

    def mapping(self, value: object, what: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise self.error(f"{what} is {_shown(value)}, allowed: a JSON object: the file is damaged")
        return value

    def choice(self, fields: dict[str, Any], key: str, allowed: tuple[str, ...], default: str) -> str:
        value = fields.get(key, default)
        if not isinstance(value, str) or value not in allowed:
            raise self.error(f"{key} is {_shown(value)}, allowed: {', '.join(map(repr, allowed))}")
        return value

    def lengths(self, value: object, what: str, maximum: int) -> tuple[int, ...]:
        """A tuple of 1 to ``MAX_AXES`` lengths."""
        if not isinstance(value, list) or not 0 < len(value) <= MAX_AXES:
            raise self.error(f"{what} is {_shown(value)}, allowed: a list of 1 to {MAX_AXES} lengths")
        for length in value:
            if isinstance(length, bool) or not isinstance(length, int) or not 0 < length <= maximum:
                raise self.error(f"a length in {what} is {_shown(length)}, allowed: 1 to {maximum}")
        return tuple(value)

    def chunk_shape(self, value: object, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of stored chunks (or shards)."""
        chunks = self.lengths(value, "the chunk shape", MAX_SIDE_PX)
        if len(chunks) != len(shape):
            raise self.error(f"chunks of {len(chunks)} axes in an array of {len(shape)}: the file is damaged")
        return chunks

    def inner_chunks(self, configuration: dict[str, Any], shard: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the chunks in a shard."""
        chunks = self.chunk_shape(configuration.get("chunk_shape"), shard)
        if any(outer % inner for outer, inner in zip(shard, chunks, strict=True)):
            raise self.error(f"chunks of {chunks} do not fill shards of {shard}: the file is damaged")
        count = math.prod(shard) // math.prod(chunks)
        if count > MAX_CHUNKS_A_SHARD:
            raise self.error(f"{count} chunks a shard, allowed: at most {MAX_CHUNKS_A_SHARD}")
        return chunks

    def chunk_bytes(self, chunks: tuple[int, ...]) -> None:
        if math.prod(chunks) > MAX_CHUNK_BYTES or max(chunks) > MAX_CHUNK_PX:
            raise self.error(
                f"chunks of {chunks}, allowed: sides up to {MAX_CHUNK_PX} and {MAX_CHUNK_BYTES} bytes; write the image"
                " again with chunks of some 256 to 1024 pixels"
            )

    def sample(self, value: object, what: str) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= WHITE:
            raise self.error(f"{what} is {_shown(value)}, allowed: 0 to {WHITE}")
        return value

    def codec_name(self, codec: object, key: str, allowed: tuple[str, ...]) -> str:
        """The name of a codec that may be used."""
        name = self.mapping(codec, "a codec").get(key)
        if not isinstance(name, str) or name not in allowed:
            raise self.error(
                f"the codec {_shown(name)} is not supported; write the image again with one of {', '.join(allowed)}"
            )
        return name

    def shard_index(self, configuration: dict[str, Any]) -> None:
        """Indexes are stored as they are, with a checksum or without."""
        self.choice(configuration, "index_location", ("start", "end"), "end")
        first, *others = configuration["index_codecs"]
        if first != {"name": "bytes", "configuration": {"endian": "little"}} or others not in (
            [],
            [{"name": "crc32c"}],
        ):
            raise self.error("the index of its shards is not stored as little-endian bytes (and crc32c)")

    def one_compressor(self, names: tuple[str, ...]) -> None:
        """A bomb within a bomb would pass every bound."""
        if sum(name in COMPRESSORS for name in names) > 1:
            raise self.error(f"the codecs {', '.join(names)} compress twice, allowed: once")

    def extension(self, value: object, what: str, allowed: tuple[str, ...]) -> dict[str, Any]:
        """A v3 extension point (name and configuration); a bare name has an empty configuration."""
        fields = {"name": value} if isinstance(value, str) else self.mapping(value, what)
        name = self.choice(fields, "name", allowed, "")
        return {"name": name, "configuration": self.mapping(fields.get("configuration", {}), what)}

    def v3_codecs(self, value: object, *, in_shard: bool = False) -> tuple[list[dict[str, Any]], tuple[str, ...]]:
        """A chain of v3 codecs, and the names of all that occur in it."""
        if not isinstance(value, list) or not 0 < len(value) <= MAX_CODECS:
            raise self.error(f"codecs are {_shown(value)}, allowed: a list of 1 to {MAX_CODECS}")
        chain: list[dict[str, Any]] = []
        names: tuple[str, ...] = ()
        for each in value:
            fields = {"name": each} if isinstance(each, str) else each
            name = self.codec_name(fields, "name", V3_CODECS if in_shard else (*V3_CODECS, SHARDING))
            configuration = dict(self.mapping(fields.get("configuration", {}), f"the configuration of {name}"))
            names = (*names, name)
            if name == SHARDING:
                for key in ("codecs", "index_codecs"):
                    configuration[key], inner = self.v3_codecs(configuration.get(key), in_shard=True)
                    names = (*names, *inner)
                self.shard_index(configuration)
            chain.append({"name": name} | ({"configuration": configuration} if configuration else {}))
        self.one_compressor(tuple(codec["name"] for codec in chain))
        return chain, names
