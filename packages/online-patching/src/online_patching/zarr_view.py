"""How do slides look as Zarr?

``SlidesStore`` is a read-only Zarr store (format 3) that keeps nothing: metadata are made from the slides' headers when
they are asked for, and the value of a chunk is the *decoded* tile, read through the slide's ``TileSource``. So every
format looks the same, colours are exactly those of ``read_level``, and no codec has to be registered.

::

    zarr.json                        the cohort: number of slides
    <slide>/zarr.json                id, url, vendor, mpp, and downsample and mpp of every level
    <slide>/<level>/zarr.json        shape (height, width, 3) uint8, chunks = stored tiles, fill value 255
    <slide>/<level>/c/<row>/<column>/0

A slide's key is its id, percent-quoted as its folder in a catalog is (``a/b`` is ``a%2Fb``).
OME-NGFF demands channels before space, which stored RGB tiles have last, so no ``multiscales`` are claimed.

Zarr asks for chunks one by one, but many in one turn of its event loop: those are read together, so that neighbours
share a range request (waiting a millisecond longer joined no more). Zarr has ten in flight by default;
``zarr.config.set({"async.concurrency": 64})`` joins more.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, unquote

import zarr
from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest, Store
from zarr.core.buffer import Buffer, BufferPrototype

from online_patching import loop
from online_patching.bytesource import shown_url
from online_patching.decode import Pixels
from online_patching.errors import CorruptTileError
from online_patching.formats.header import SlideHeader
from online_patching.formats.zarr_codecs import FILL_VALUE
from online_patching.geometry import LevelGeometry
from online_patching.tile_source import SlideHandle

METADATA = "zarr.json"

# Tiles asked for, each with the future of who waits for it.
_Waiting = list[tuple[int, asyncio.Future[Pixels | None]]]


@dataclass(frozen=True, slots=True)
class SlideEntry:
    """What the store tells of a slide before a pixel is read.

    Attributes:
        id: The slide's id.
        url: Where it lies.
        header: Its levels.
    """

    id: str
    url: str
    header: SlideHeader


@dataclass(frozen=True, slots=True)
class ZarrSlides:
    """The slides behind a store.

    Attributes:
        name: Names them in messages; no credentials.
        ids: Ids of all slides, known without opening any.
        entry: Header of a slide, without reading the slide; None where there is no such slide.
        handle: Pixels of a slide.
    """

    name: str
    ids: Callable[[], Collection[str]]
    entry: Callable[[str], SlideEntry | None]
    handle: Callable[[str], SlideHandle]


def zarr_key(slide_id: str) -> str:
    """The key of a slide's group: its id, percent-quoted except for letters, digits, spaces and ``_.-~``."""
    quoted = quote(slide_id, safe=" ")
    # Names that Zarr keeps to itself get their first character quoted as well.
    if quoted == METADATA or quoted.startswith("__") or not quoted.strip("."):
        return f"%{ord(quoted[0]):02X}{quoted[1:]}" if quoted else quoted
    return quoted


def open_group(slides: ZarrSlides, slide_id: str | None = None) -> zarr.Group:
    """The lazy group of a cohort, or of one of its slides."""
    path = None if slide_id is None else zarr_key(slide_id)
    return zarr.open_group(SlidesStore(slides), mode="r", path=path, zarr_format=3, use_consolidated=False)


def cohort_attributes(slides: ZarrSlides) -> dict[str, Any]:
    """Attributes of the cohort's group."""
    return {"slides": len(slides.ids())}


def slide_attributes(entry: SlideEntry) -> dict[str, Any]:
    """Attributes of a slide's group: JSON values only, and no credentials."""
    header = entry.header
    return {
        "id": shown_url(entry.id),
        "url": shown_url(entry.url),
        "vendor": header.vendor,
        "mpp": header.mpp,
        "levels": [{"path": str(k), **level_attributes(header, k)} for k in range(len(header.levels))],
    }


def level_attributes(header: SlideHeader, level: int) -> dict[str, Any]:
    """Attributes of a level's array."""
    downsample = header.levels[level].downsample
    return {"downsample": downsample, "mpp": None if header.mpp is None else header.mpp * downsample}


def _group_json(attributes: dict[str, Any]) -> bytes:
    return json.dumps({"zarr_format": 3, "node_type": "group", "attributes": attributes}).encode()


def _array_json(geometry: LevelGeometry, attributes: dict[str, Any]) -> bytes:
    return json.dumps(
        {
            "zarr_format": 3,
            "node_type": "array",
            "shape": [geometry.height_px, geometry.width_px, 3],
            "data_type": "uint8",
            "chunk_grid": {
                "name": "regular",
                "configuration": {"chunk_shape": [geometry.tile_height_px, geometry.tile_width_px, 3]},
            },
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
            "fill_value": FILL_VALUE,
            "codecs": [{"name": "bytes"}],
            "attributes": attributes,
            "dimension_names": ["y", "x", "c"],
        }
    ).encode()


@dataclass(frozen=True, slots=True)
class _Key:
    """A parsed key: how deep it reaches and what it names."""

    slide: SlideEntry | None = None
    level: int | None = None
    tile: int | None = None
    metadata: bool = False


class SlidesStore(Store):
    """The read-only store; made by ``open_group``."""

    supports_writes = False
    supports_deletes = False
    supports_listing = True
    supports_consolidated_metadata = False

    def __init__(self, slides: ZarrSlides) -> None:
        super().__init__(read_only=True)
        self._slides = slides
        self._gathering: dict[_Place, _Waiting] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def __getstate__(self) -> dict[str, Any]:
        return {"slides": self._slides}

    def __setstate__(self, state: dict[str, Any]) -> None:
        SlidesStore.__init__(self, state["slides"])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SlidesStore) and self._slides == other._slides

    def __hash__(self) -> int:
        return hash(self._slides.name)

    def __str__(self) -> str:
        return f"online-patching:{self._slides.name}"

    def __repr__(self) -> str:
        return f"<SlidesStore {self._slides.name}>"

    def with_read_only(self, read_only: bool = False) -> SlidesStore:
        """This store, if it is to be read only.

        Raises:
            ValueError: It is to be written.
        """
        if not read_only:
            raise ValueError(f"{self._slides.name}: slides are read only")
        return self

    async def get(
        self, key: str, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """The metadata or the decoded tile under a key, or None where there is none.

        Raises:
            CorruptTileError: The tile does not decode.
            StorageError: The slide cannot be fetched.
        """
        if prototype is None:
            prototype = zarr.core.buffer.default_buffer_prototype()
        parsed = self._parse(key)
        if parsed is None:
            return None
        data: bytes | None
        if parsed.metadata:
            data = self._metadata(parsed)
        elif parsed.slide is None or parsed.level is None or parsed.tile is None:
            return None
        else:
            pixels = await self._tile(parsed.slide.id, parsed.level, parsed.tile)
            data = None if pixels is None else pixels.tobytes()
        if data is None:
            return None
        return prototype.buffer.from_bytes(data[_slice_of(byte_range)])

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        """Parts of values, read together."""
        return list(await asyncio.gather(*(self.get(key, prototype, part) for key, part in key_ranges)))

    async def exists(self, key: str) -> bool:
        """Whether there is a value under a key; a tile is read to know."""
        return await self.get(key) is not None

    async def set(self, key: str, value: Buffer) -> None:  # noqa: ARG002
        """Slides are read only.

        Raises:
            ValueError: Always.
        """
        self._check_writable()

    async def delete(self, key: str) -> None:  # noqa: ARG002
        """Slides are read only.

        Raises:
            ValueError: Always.
        """
        self._check_writable()

    async def list(self) -> AsyncIterator[str]:
        """All keys; tiles that a scanner did not store are among them, and read as absent."""
        async for key in self.list_prefix(""):
            yield key

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        """All keys that start with a prefix."""
        for key in self._below(prefix.rpartition("/")[0]):
            if key.startswith(prefix):
                yield key

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        """Names directly below a prefix; slides are named without opening them."""
        for name in self._names(prefix.strip("/")):
            yield name

    def _parse(self, key: str) -> _Key | None:
        """What a key names, or None where it names nothing."""
        parts = key.strip("/").split("/")
        metadata = parts[-1] == METADATA
        names = parts[:-1] if metadata else parts
        if not names:
            return _Key(metadata=True)
        slide = self._entry(names[0])
        if slide is None or len(names) == 1:
            return None if slide is None else _Key(slide, metadata=metadata)
        level = _number(names[1], len(slide.header.levels))
        if level is None or len(names) == 2:
            return None if level is None else _Key(slide, level, metadata=metadata)
        geometry = slide.header.levels[level]
        if metadata or len(names) != 6 or names[2] != "c" or names[5] != "0":
            return None
        row, column = _number(names[3], geometry.tiles_y), _number(names[4], geometry.tiles_x)
        return None if row is None or column is None else _Key(slide, level, row * geometry.tiles_x + column)

    def _entry(self, name: str) -> SlideEntry | None:
        return self._slides.entry(unquote(name))

    def _metadata(self, key: _Key) -> bytes:
        if key.slide is None:
            return _group_json(cohort_attributes(self._slides))
        header = key.slide.header
        if key.level is None:
            return _group_json(slide_attributes(key.slide))
        return _array_json(header.levels[key.level], level_attributes(header, key.level))

    def _names(self, folder: str) -> Iterable[str]:
        if not folder:
            return [METADATA, *map(zarr_key, self._slides.ids())]
        parts = folder.split("/")
        slide = self._entry(parts[0])
        if slide is None:
            return []
        if len(parts) == 1:
            return [METADATA, *(str(k) for k in range(len(slide.header.levels)))]
        level = _number(parts[1], len(slide.header.levels))
        if level is None:
            return []
        geometry = slide.header.levels[level]
        match parts[2:]:
            case []:
                return [METADATA, "c"]
            case ["c"]:
                return map(str, range(geometry.tiles_y))
            case ["c", row] if _number(row, geometry.tiles_y) is not None:
                return map(str, range(geometry.tiles_x))
            case ["c", row, column] if None not in (_number(row, geometry.tiles_y), _number(column, geometry.tiles_x)):
                return ["0"]
        return []

    def _below(self, folder: str) -> Iterable[str]:
        for name in self._names(folder):
            path = f"{folder}/{name}" if folder else name
            # A value has nothing below it: metadata, or the last step (channel) of a chunk's key.
            if name == METADATA or path.count("/") == 5:
                yield path
            else:
                yield from self._below(path)

    async def _tile(self, slide_id: str, level: int, number: int) -> Pixels | None:
        """Pixels of a tile, read together with those asked for in the same turn of this event loop."""
        running = asyncio.get_running_loop()
        place = _Place(running, slide_id, level)
        if place not in self._gathering:
            self._gathering[place] = []
            running.call_soon(self._start, place)
        future: asyncio.Future[Pixels | None] = running.create_future()
        self._gathering[place].append((number, future))
        return await future

    def _start(self, place: _Place) -> None:
        task = place.loop.create_task(self._read(place, self._gathering.pop(place)))
        # The loop itself keeps no strong reference to a task.
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _read(self, place: _Place, wanted: _Waiting) -> None:
        answers: dict[int, Pixels | CorruptTileError] = {}
        failure: Exception | None = None
        try:
            numbers = sorted({number for number, _ in wanted})
            answers = await loop.on_loop(self._slides.handle(place.slide_id).tiles.read(place.level, numbers))
        except Exception as error:
            failure = error
        for number, future in wanted:
            answer = answers.get(number) if failure is None else failure
            if future.done():
                continue
            if isinstance(answer, Exception):
                future.set_exception(answer)
            else:
                future.set_result(answer)


@dataclass(frozen=True, slots=True)
class _Place:
    """A level of a slide, as asked for from one event loop."""

    loop: asyncio.AbstractEventLoop
    slide_id: str
    level: int


def _number(text: str, end: int) -> int | None:
    """The number that a part of a key is, if it is one below ``end`` in its one spelling."""
    number = int(text) if text.isascii() and text.isdigit() and len(text) < 16 else -1
    return number if 0 <= number < end and str(number) == text else None


def _slice_of(part: ByteRequest | None) -> slice:
    if part is None:
        return slice(None)
    if isinstance(part, RangeByteRequest):
        return slice(part.start, part.end)
    if isinstance(part, OffsetByteRequest):
        return slice(part.offset, None)
    return slice(-part.suffix, None) if part.suffix else slice(0, 0)
