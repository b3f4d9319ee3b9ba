"""TIFF files put together byte by byte, for tests that need a certain layout or a certain lie."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

Values = bytes | Sequence[int] | str
"""Raw bytes, whole numbers, or the name of an array that the writer fills in ("offsets", "counts", "sub")."""

SHORT, LONG, UNDEFINED, LONG8 = 3, 4, 7, 16
_SIZES = {2: 1, SHORT: 2, LONG: 4, 5: 8, UNDEFINED: 1, LONG8: 8}
_STRUCTS = {SHORT: "H", LONG: "I", LONG8: "Q"}


@dataclass
class Page:
    """One directory to write.

    Attributes:
        width_px, height_px, tile_px: Size and tile grid.
        tile: Stored bytes that every tile shares.
        tags: Further tags, or other values (and counts) for those that the writer sets: tag -> (type, values).
        claimed_counts: tag -> count to claim instead of the real one.
        padding: Bytes of other data between this page and the one before it.
        striped: Strips instead of tiles.
    """

    width_px: int
    height_px: int
    tile_px: int = 256
    tile: bytes = b"\0" * 100
    tags: dict[int, tuple[int, Values]] = field(default_factory=dict)
    claimed_counts: dict[int, int] = field(default_factory=dict)
    padding: int = 100_000
    striped: bool = False

    @property
    def tiles(self) -> int:
        if self.striped:
            return self.height_px
        return -(-self.width_px // self.tile_px) * -(-self.height_px // self.tile_px)


def tiff_bytes(
    pages: Sequence[Page],
    *,
    big: bool = False,
    order: Literal["<", ">"] = "<",
    sub: bool = False,
    arrays: Literal["behind", "before", "apart"] = "behind",
    ifd_first: bool = False,
    head_ifds: bool = False,
) -> bytes:
    """The file.

    Args:
        pages: Directories in order.
        big: BigTIFF.
        order: Byte order.
        sub: All pages but the first are sub-directories of the first.
        arrays: Whether values lie behind their directory, before it, or offsets and counts 50 KB from each other.
        ifd_first: A page's directory lies before its tile data.
        head_ifds: All directories with their arrays lie at the head of the file, tile data behind.
    """
    return _Writer(big, order, arrays).write(pages, sub=sub, ifd_first=ifd_first, head_ifds=head_ifds)


class _Writer:
    def __init__(self, big: bool, order: str, arrays: str) -> None:
        self.big, self.order, self.arrays = big, order, arrays
        self.offset_type, self.offset_format = (LONG8, order + "Q") if big else (LONG, order + "I")
        self.inline = 8 if big else 4
        self.out = bytearray((b"II" if order == "<" else b"MM") + struct.pack(order + "H", 43 if big else 42))
        if big:
            self.out += struct.pack(order + "HH", 8, 0)
        self.link = len(self.out)
        self.out += bytes(self.inline)

    def write(self, pages: Sequence[Page], *, sub: bool, ifd_first: bool, head_ifds: bool) -> bytes:
        patches: list[tuple[Page, int]] = []
        sub_place = 0
        for k, page in enumerate(pages):
            shared = 0
            if not head_ifds:
                self.out += b"\xee" * page.padding
                if not ifd_first:
                    shared = self._data(page)
            is_sub = sub and k > 0
            names = {"sub": [0] * (len(pages) - 1)} if sub and k == 0 else {}
            place, fields = self._directory(page, shared, names, chained=not is_sub)
            if is_sub:
                struct.pack_into(self.offset_format, self.out, sub_place + (k - 1) * self.inline, place)
            sub_place = fields.get(330, sub_place)
            if head_ifds or ifd_first:
                patches.append((page, fields[273 if page.striped else 324]))
            if ifd_first and not head_ifds:
                self._fill(*patches.pop())
        for page, field_place in patches:
            self.out += b"\xee" * page.padding
            self._fill(page, field_place)
        self.out += b"\xee" * 30_000
        return bytes(self.out)

    def _data(self, page: Page) -> int:
        place = len(self.out)
        self.out += page.tile
        return place

    def _fill(self, page: Page, field_place: int) -> None:
        place = self._data(page)
        values = np.full(page.tiles, place, self.order + ("u8" if self.big else "u4")).tobytes()
        self.out[field_place : field_place + len(values)] = values

    def _raw(self, type_code: int, values: Values) -> bytes:
        if isinstance(values, (bytes, str)):
            return values.encode() if isinstance(values, str) else values
        return struct.pack(f"{self.order}{len(values)}{_STRUCTS[type_code]}", *values)

    def _tags(self, page: Page, shared: int, names: dict[str, list[int]]) -> dict[int, tuple[int, bytes]]:
        kind = self.order + ("u8" if self.big else "u4")
        offsets = np.full(page.tiles, shared, kind).tobytes()
        counts = np.full(page.tiles, len(page.tile), kind).tobytes()
        tags: dict[int, tuple[int, Values]] = {
            256: (LONG, [page.width_px]),
            257: (LONG, [page.height_px]),
            258: (SHORT, [8, 8, 8]),
            259: (SHORT, [8]),
            262: (SHORT, [2]),
            277: (SHORT, [3]),
        }
        if page.striped:
            tags |= {273: (self.offset_type, offsets), 278: (SHORT, [1]), 279: (self.offset_type, counts)}
        else:
            tags |= {322: (LONG, [page.tile_px]), 323: (LONG, [page.tile_px])}
            tags |= {324: (self.offset_type, offsets), 325: (self.offset_type, counts)}
        if "sub" in names:
            tags[330] = (self.offset_type, names["sub"])
        return {tag: (code, self._raw(code, values)) for tag, (code, values) in sorted((tags | page.tags).items())}

    def _directory(
        self, page: Page, shared: int, names: dict[str, list[int]], *, chained: bool
    ) -> tuple[int, dict[int, int]]:
        """Writes it and returns its place and where the values of each tag lie."""
        tags = self._tags(page, shared, names)
        count_size, entry_size = (8, 20) if self.big else (2, 12)
        size = count_size + len(tags) * entry_size + self.inline
        outside = {tag: raw for tag, (_, raw) in tags.items() if len(raw) > self.inline}
        total = sum(len(raw) for raw in outside.values()) + (50_000 * len(outside) if self.arrays == "apart" else 0)
        values_at = len(self.out) if self.arrays == "before" else len(self.out) + size
        place = len(self.out) + (total if self.arrays == "before" else 0)
        places: dict[int, int] = {}
        values, body = bytearray(), bytearray(struct.pack(self.order + ("Q" if self.big else "H"), len(tags)))
        for tag, (code, raw) in tags.items():
            count = page.claimed_counts.get(tag, len(raw) // _SIZES[code])
            body += struct.pack(self.order + ("HHQ" if self.big else "HHI"), tag, code, count)
            if tag in outside:
                if self.arrays == "apart":
                    values += b"\xee" * 50_000
                places[tag] = values_at + len(values)
                body += struct.pack(self.offset_format, places[tag])
                values += raw
            else:
                places[tag] = place + len(body)
                body += raw.ljust(self.inline, b"\0")
        if chained:
            struct.pack_into(self.offset_format, self.out, self.link, place)
            self.link = place + len(body)
        body += bytes(self.inline)
        self.out += values + body if self.arrays == "before" else body + values
        return place, places
