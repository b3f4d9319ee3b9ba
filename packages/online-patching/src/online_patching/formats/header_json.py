"""How is a slide's header written as JSON and read back?

JPEG tables, which the levels of a slide mostly share, are written once each.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from online_patching.bytesource import ObjectInfo, PinnedObject
from online_patching.formats.header import Codec, Colour, SlideHeader, TileEncoding
from online_patching.geometry import LevelGeometry


def header_to_json(header: SlideHeader, objects: Sequence[PinnedObject]) -> dict[str, Any]:
    """A header and the slide's objects as plain JSON values."""
    tables = sorted({encoding.jpeg_tables for encoding in header.encodings})
    return {
        "objects": [[each.url, each.info.size, each.info.version] for each in objects],
        "level_objects": list(header.level_objects),
        "vendor": header.vendor,
        "mpp": header.mpp,
        "levels": [asdict(level) for level in header.levels],
        "jpeg_tables": [base64.b64encode(table).decode() for table in tables],
        "encodings": [
            {
                "codec": encoding.codec.value,
                "colour": encoding.colour.value,
                "jpeg_tables": tables.index(encoding.jpeg_tables),
                "predictor": encoding.predictor,
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
    tables = [base64.b64decode(table) for table in record["jpeg_tables"]]
    header = SlideHeader(
        vendor=record["vendor"],
        mpp=record["mpp"],
        levels=tuple(LevelGeometry(**level) for level in record["levels"]),
        encodings=tuple(
            TileEncoding(Codec(e["codec"]), Colour(e["colour"]), tables[e["jpeg_tables"]], e["predictor"])
            for e in record["encodings"]
        ),
        properties=record["properties"],
        level_objects=tuple(record["level_objects"]),
    )
    return header, tuple(PinnedObject(url, ObjectInfo(size, version)) for url, size, version in record["objects"])
