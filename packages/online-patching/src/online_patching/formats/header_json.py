"""How is a slide's header written as JSON and read back?

JPEG tables and headers, which the levels of a slide mostly share, are written once each.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import asdict
from functools import lru_cache
from typing import Any

from online_patching.bytesource import ObjectInfo, PinnedObject
from online_patching.formats.header import Codec, Colour, SlideHeader, TileEncoding
from online_patching.geometry import LevelGeometry

# A cohort has a few for every scanner and setting.
KEPT_ENCODINGS = 256


def header_to_json(header: SlideHeader, objects: Sequence[PinnedObject]) -> dict[str, Any]:
    """A header and the slide's objects as plain JSON values."""
    blobs = sorted({blob for encoding in header.encodings for blob in (encoding.jpeg_tables, encoding.jpeg_header)})
    return {
        "objects": [[each.url, each.info.size, each.info.version] for each in objects],
        "level_objects": list(header.level_objects),
        "vendor": header.vendor,
        "mpp": header.mpp,
        "levels": [asdict(level) for level in header.levels],
        "jpeg_blobs": [base64.b64encode(blob).decode() for blob in blobs],
        "encodings": [
            {
                "codec": encoding.codec.value,
                "colour": encoding.colour.value,
                "jpeg_tables": blobs.index(encoding.jpeg_tables),
                "predictor": encoding.predictor,
                "jpeg_header": blobs.index(encoding.jpeg_header),
            }
            for encoding in header.encodings
        ],
        "properties": header.properties,
    }


def header_from_json(record: dict[str, Any]) -> tuple[SlideHeader, tuple[PinnedObject, ...]]:
    """The header and objects of ``header_to_json``.

    Raises:
        KeyError: A value is missing.
        TypeError: A value of the wrong type, or an unknown one.
        ValueError: A value that is not allowed.
    """
    blobs = record["jpeg_blobs"]
    header = SlideHeader(
        vendor=record["vendor"],
        mpp=record["mpp"],
        levels=tuple([LevelGeometry(**level) for level in record["levels"]]),
        encodings=tuple(
            [
                _encoding(e["codec"], e["colour"], blobs[e["jpeg_tables"]], e["predictor"], blobs[e["jpeg_header"]])
                for e in record["encodings"]
            ]
        ),
        properties=record["properties"],
        level_objects=tuple(record["level_objects"]),
    )
    return header, tuple(PinnedObject(url, ObjectInfo(size, version)) for url, size, version in record["objects"])


@lru_cache(maxsize=KEPT_ENCODINGS)
def _encoding(codec: str, colour: str, jpeg_tables: str, predictor: int, jpeg_header: str) -> TileEncoding:
    """One object for the many slides that a scanner encodes alike."""
    return TileEncoding(
        codec=Codec(codec),
        colour=Colour(colour),
        jpeg_tables=base64.b64decode(jpeg_tables),
        predictor=predictor,
        jpeg_header=base64.b64decode(jpeg_header),
    )
