"""How is the same fetched by other means: bare obstore, this package without decoding, and tiffslide over fsspec?"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from online_patching import loop
from online_patching.storage import open_object
from reading_readers import SIZE_PX, Window
from tile_layout import TileLayout

# Range requests at a time, of bare obstore and of this package.
IN_FLIGHT = 64
# Ranges of one call, as a patch needs them.
RANGES_A_CALL = 4


class RangeRequest(NamedTuple):
    """Bytes of one object."""

    url: str
    start: int
    length: int


def tile_requests(windows: Sequence[Window], urls: dict[str, str]) -> list[RangeRequest]:
    """One tile of each window: far apart, so that nobody can merge them.

    Args:
        windows: Squares of local files.
        urls: The same files in the store, by path.
    """
    layouts: dict[str, TileLayout] = {}
    requests = []
    for path, x, y, side in windows:
        layout = layouts.get(path) or layouts.setdefault(path, TileLayout.of_file(path))
        number, _ = layout.parts(x, y, side)[0]
        requests.append(RangeRequest(urls[path], layout.offsets[number], layout.lengths[number]))
    return requests


class BareObstore:
    """``get_async`` with range and ``if_match``, and ``bytes_async``: the least that a pinned read can do."""

    def __init__(self, base_url: str, requests: Sequence[RangeRequest]) -> None:
        import obstore
        from obstore.store import HTTPStore

        self._store = HTTPStore(base_url, client_options={"allow_http": True})
        self._requests = [(url.removeprefix(base_url + "/"), start, length) for url, start, length in requests]
        names = {name for name, _, _ in self._requests}
        self._tags = {name: obstore.head(self._store, name)["e_tag"] for name in names}

    def run(self) -> None:
        """All requests once."""
        asyncio.run(self._run())

    async def _run(self) -> None:
        import obstore

        remaining = iter(self._requests)

        async def work() -> None:
            for name, start, length in remaining:
                options: Any = {"range": (start, start + length), "if_match": self._tags[name]}
                answer = await obstore.get_async(self._store, name, options=options)
                assert len(await answer.bytes_async()) == length, "a short answer"

        await asyncio.gather(*(work() for _ in range(IN_FLIGHT)))


class OurFetching:
    """This package's range reads, with everything that they check, and no decoding."""

    def __init__(self, requests: Sequence[RangeRequest]) -> None:
        by_url: dict[str, list[tuple[int, int]]] = {}
        for url, start, length in requests:
            by_url.setdefault(url, []).append((start, length))
        self._sources = {url: open_object(url) for url in by_url}
        self._infos = {url: loop.run(source.info()) for url, source in self._sources.items()}
        self._calls = [
            (url, ranges[k : k + RANGES_A_CALL])
            for url, ranges in by_url.items()
            for k in range(0, len(ranges), RANGES_A_CALL)
        ]

    def run(self) -> None:
        """All requests once."""
        loop.run(self._run())

    async def _run(self) -> None:
        remaining = iter(self._calls)

        async def work() -> None:
            for url, ranges in remaining:
                bodies = await self._sources[url].read_ranges(ranges, expected=self._infos[url])
                assert len(bodies) == len(ranges), "a short answer"

        await asyncio.gather(*(work() for _ in range(IN_FLIGHT // RANGES_A_CALL)))


def cpu_seconds(work: BareObstore | OurFetching) -> float:
    """CPU time of all of this process's threads."""
    started = time.process_time()
    work.run()
    return time.process_time() - started


def read_with_tiffslide(windows: Sequence[Window], urls: dict[str, str]) -> float:
    """Seconds of reading windows over fsspec's HTTP, each slide opened at its first use."""
    import cv2
    import tiffslide

    started = time.perf_counter()
    slides: dict[str, Any] = {}
    for path, x, y, side in windows:
        slide = slides.get(path) or slides.setdefault(path, tiffslide.TiffSlide(urls[path]))
        pixels = np.asarray(slide.read_region((x, y), 0, (side, side), as_array=True))
        assert pixels.shape == (side, side, 3), "tiffslide gives RGB"
        if side != SIZE_PX:
            cv2.resize(pixels, (SIZE_PX, SIZE_PX), interpolation=cv2.INTER_AREA)
    seconds = time.perf_counter() - started
    for slide in slides.values():
        slide.close()
    return seconds
