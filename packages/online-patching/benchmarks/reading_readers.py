"""Who can read patches from local slides: this package, its peers, and bare decoding, behind one small protocol.

A ``Task`` says which patches; ``read`` does a slice of a round of it and is what is timed. This package gets a task's
catalog, and draws the positions itself where the task is a cohort; the others get the same positions ready made. What
was opened in a round, catalogs and slides, stays open until the next begins.
"""

from __future__ import annotations

import asyncio
import inspect
import itertools
import os
import sys
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]
Source = Literal["slide", "drawn"]
SIZE_PX = 256
MIN_FOREGROUND = 0.4
# Patches that this package reads together where a task hands it ready positions.
BATCH_PATCHES = 128
BATCHES_AT_ONCE = 3
# Windows that a peer's thread takes at a time.
_PEER_PART = 16
OURS, OURS_NVIMGCODEC, OURS_FAST = "online-patching", "online-patching[nvimgcodec]", "online-patching, decode=fast"
CEILING = "pure decoding, whole tiles"
CEILING_PARTS = "pure decoding, parts"
CEILING_PARTS_NVIMGCODEC = "pure decoding, parts[nvimgcodec]"
CEILINGS = (CEILING, CEILING_PARTS, CEILING_PARTS_NVIMGCODEC)


class Window(NamedTuple):
    """A square of level 0 that becomes a patch of ``SIZE_PX``."""

    path: str
    x_level0_px: int
    y_level0_px: int
    side_level0_px: int


@dataclass(frozen=True, slots=True)
class Task:
    """Which patches are read.

    Attributes:
        name: For the report.
        codec: How the tiles are stored.
        source: ``slide`` (ready positions of one slide) or ``drawn`` (a cold catalog through ``PatchSampler`` and
            ``Catalog.aread_patches``).
        mpp: um per pixel of the patches.
        patches: How many.
        catalog: Folder of the catalog.
        slide_id: The slide of a task of one slide.
        anywhere: Whether its patches lie anywhere on the slide, glass and all; else in the foreground.
    """

    name: str
    codec: str
    source: Source
    mpp: float
    patches: int
    catalog: str
    slide_id: str = ""
    anywhere: bool = False


class MissingReaderError(RuntimeError):
    """This reader is not installed, or cannot do the task."""


class Reader(ABC):
    """Reads the patches of a task, a slice of a round a call."""

    def __init__(self, threads: int) -> None:
        self.threads = threads

    @abstractmethod
    def read(
        self, task: Task, windows: Sequence[Window], seed: int, first: int, take: Callable[[Pixels], object]
    ) -> None:
        """Read the patches from number ``first`` on of a round and give each to ``take``; 0 begins a round anew."""

    def pixels(self, task: Task, windows: Sequence[Window], seed: int) -> list[Pixels]:
        """The first patches of a round themselves, in order."""
        found: list[Pixels] = []
        self.read(task, windows, seed, 0, found.append)
        return found


class _Peer(Reader):
    """A reader of regions, by threads that share its open slides."""

    def __init__(self, threads: int) -> None:
        super().__init__(threads)
        import cv2

        # The threads are counted: none may be added to them.
        cv2.setNumThreads(0)
        self._resize, self._area = cv2.resize, cv2.INTER_AREA
        self._lock = threading.Lock()
        self._slides: dict[str, Any] = {}

    @abstractmethod
    def open(self, path: str) -> Any:
        """An open slide."""

    @abstractmethod
    def region(self, slide: Any, x_px: int, y_px: int, side_px: int) -> Pixels:
        """A square of level 0 as RGB."""

    def read(
        self, _task: Task, windows: Sequence[Window], _seed: int, first: int, take: Callable[[Pixels], object]
    ) -> None:
        """Every patch by a call of its own, which is how these libraries are used."""
        if first == 0:
            self._close()
        parts = [windows[k : k + _PEER_PART] for k in range(0, len(windows), _PEER_PART)]
        if self.threads == 1:
            for part in parts:
                self._read_part(part, take)
        else:
            found: list[list[Pixels]] = [[] for _ in parts]
            with ThreadPoolExecutor(self.threads) as pool:
                list(pool.map(lambda k: self._read_part(parts[k], found[k].append), range(len(parts))))
            for each in itertools.chain.from_iterable(found):
                take(each)

    def _read_part(self, part: Sequence[Window], take: Callable[[Pixels], object]) -> None:
        for path, x, y, side in part:
            slide = self._slides.get(path)
            if slide is None:
                with self._lock:
                    slide = self._slides.get(path) or self._slides.setdefault(path, self.open(path))
            pixels = self.region(slide, x, y, side)
            take(pixels if side == SIZE_PX else self._resize(pixels, (SIZE_PX, SIZE_PX), interpolation=self._area))

    def _close(self) -> None:
        for slide in self._slides.values():
            if hasattr(slide, "close"):
                slide.close()
        self._slides.clear()


class _OpenSlide(_Peer):
    """OpenSlide: its handles are made to be shared between threads."""

    def open(self, path: str) -> Any:
        import openslide

        return openslide.OpenSlide(path)

    def region(self, slide: Any, x_px: int, y_px: int, side_px: int) -> Pixels:
        return np.asarray(slide.read_region((x_px, y_px), 0, (side_px, side_px)).convert("RGB"))


class _CuCim(_Peer):
    """cuCIM on the CPU."""

    def open(self, path: str) -> Any:
        from cucim import CuImage

        return CuImage(path)

    def region(self, slide: Any, x_px: int, y_px: int, side_px: int) -> Pixels:
        return np.asarray(slide.read_region((x_px, y_px), (side_px, side_px), 0))


class _TiffSlide(_Peer):
    """tiffslide, which reads through tifffile and zarr."""

    def open(self, path: str) -> Any:
        import tiffslide

        return tiffslide.TiffSlide(path)

    def region(self, slide: Any, x_px: int, y_px: int, side_px: int) -> Pixels:
        return np.asarray(slide.read_region((x_px, y_px), 0, (side_px, side_px), as_array=True))


class _FastSlide(_Peer):
    """fastslide."""

    def open(self, path: str) -> Any:
        import fastslide

        return fastslide.FastSlide.from_file_path(path)

    def region(self, slide: Any, x_px: int, y_px: int, side_px: int) -> Pixels:
        region = slide.read_region(location=(x_px, y_px), level=0, size=(side_px, side_px))
        return np.asarray(region.numpy()[..., :3])


class _Ours(Reader):
    """This package, with or without what its extra installs."""

    nvimgcodec = False
    decode = "exact"

    def __init__(self, threads: int) -> None:
        super().__init__(threads)
        if not self.nvimgcodec:
            # As if it were not installed: whoever looks for it finds nothing.
            sys.modules["nvidia.nvimgcodec"] = None  # type: ignore[assignment]
        import online_patching

        self._package = online_patching
        takes_decode = "decode" in inspect.signature(online_patching.PatchStream.__init__).parameters
        if self.decode != "exact" and not takes_decode:
            raise MissingReaderError("this version has no decode='fast'")
        self._options: dict[str, Any] = {"decode": self.decode} if takes_decode else {}
        self._slides: dict[tuple[str, str], Any] = {}
        self._round: tuple[Any, Any] | None = None

    def read(
        self, task: Task, windows: Sequence[Window], seed: int, first: int, take: Callable[[Pixels], object]
    ) -> None:
        """Through the asynchronous interface, so that planning one batch hides behind decoding another."""
        if task.source == "slide":
            self._read_slide(task, windows, take)
        else:
            self._read_drawn(task, len(windows), seed, first, take)
        self._check_nvimgcodec()

    def _check_nvimgcodec(self) -> None:
        if self.nvimgcodec and "nvidia.nvimgcodec" not in sys.modules:
            raise MissingReaderError("this version does not use nvImageCodec, or it is not installed")

    def _read_slide(self, task: Task, windows: Sequence[Window], take: Callable[[Pixels], object]) -> None:
        key = (task.catalog, task.slide_id)
        if key not in self._slides:
            self._slides[key] = self._package.Catalog.open(task.catalog).slide(task.slide_id)
        slide, corners = self._slides[key], [(window.x_level0_px, window.y_level0_px) for window in windows]

        async def read(first: int) -> Sequence[Pixels]:
            batch = corners[first : first + BATCH_PATCHES]
            found: Sequence[Pixels] = await slide.aread_patches(batch, size_px=SIZE_PX, mpp=task.mpp, **self._options)
            return found

        _in_order(len(corners), read, take)

    def _read_drawn(self, task: Task, count: int, seed: int, first: int, take: Callable[[Pixels], object]) -> None:
        from online_patching.sampler import PatchSampler

        if first == 0 or self._round is None:
            cold = self._package.Catalog.open(task.catalog)
            self._round = (
                cold,
                PatchSampler(cold, size_px=SIZE_PX, mpp=[task.mpp], min_foreground=MIN_FOREGROUND, seed=seed),
            )
        catalog, sampler = self._round

        async def read(start: int) -> Sequence[Pixels]:
            numbers = range(first + start, first + min(start + BATCH_PATCHES, count))
            requests = [
                self._package.PatchRequest(
                    s.slide_id, s.position.x_level0_px, s.position.y_level0_px, SIZE_PX, task.mpp
                )
                for s in map(sampler.draw, numbers)
            ]
            found: Sequence[Pixels] = await catalog.aread_patches(requests, **self._options)
            return found

        _in_order(count, read, take)


def _in_order(count: int, read: Callable[[int], Awaitable[Sequence[Pixels]]], take: Callable[[Pixels], object]) -> None:
    """Read batches, a few at the same time, and take their patches in order."""

    async def run() -> None:
        under_way: deque[asyncio.Future[Sequence[Pixels]]] = deque()
        for first in range(0, count + BATCHES_AT_ONCE * BATCH_PATCHES, BATCH_PATCHES):
            if first < count:
                under_way.append(asyncio.ensure_future(read(first)))
            if under_way and (first >= count or len(under_way) == BATCHES_AT_ONCE):
                for pixels in await under_way.popleft():
                    take(pixels)

    asyncio.run(run())


class _OursNvimgcodec(_Ours):
    nvimgcodec = True


class _OursFast(_Ours):
    decode = "fast"


class _Ceiling(_Ours):
    """The package's own decoder over the same tiles in a tight loop: no look-up, no file, no crop.

    Bytes are read before ``read`` is timed, by ``prepare``.
    """

    function = "decode_tile"

    def __init__(self, threads: int) -> None:
        super().__init__(threads)
        from online_patching import decode

        self._jobs: list[tuple[Any, ...]] = []
        self._decode: Callable[..., Pixels] | None = getattr(decode, self.function, None)
        if self._decode is None:
            raise MissingReaderError(f"this version has no {self.function}")

    def prepare(self, task: Task, windows: Sequence[Window]) -> int:
        """Bytes and encoding of every tile of the windows, a tile once a window; returns their number."""
        from online_patching.decode import TilePart
        from tile_layout import TileLayout

        catalog = self._package.Catalog.open(task.catalog)
        encodings = {catalog.row(each).url: catalog.header(each).encodings[0] for each in catalog.ids()}
        layouts: dict[str, TileLayout] = {}
        self._jobs = []
        for window in windows:
            layout = layouts.get(window.path) or layouts.setdefault(window.path, TileLayout.of_file(window.path))
            descriptor = os.open(window.path, os.O_RDONLY)
            try:
                for number, part in layout.parts(window.x_level0_px, window.y_level0_px, window.side_level0_px):
                    data = os.pread(descriptor, layout.lengths[number], layout.offsets[number])
                    job = (data, encodings[window.path], layout.tile_width_px, layout.tile_height_px)
                    self._jobs.append(job if self.function == "decode_tile" else (TilePart(*job, tuple(part)),))
            finally:
                os.close(descriptor)
        return len(self._jobs)

    def read(
        self, _task: Task, _windows: Sequence[Window], _seed: int, _first: int, _take: Callable[[Pixels], object]
    ) -> None:
        """Decode what was prepared, on as many threads."""
        parts = [self._jobs[k : k + _PEER_PART] for k in range(0, len(self._jobs), _PEER_PART)]
        if self.threads == 1:
            for part in parts:
                self._decode_part(part)
        else:
            with ThreadPoolExecutor(self.threads) as pool:
                list(pool.map(self._decode_part, parts))
        self._check_nvimgcodec()

    def _decode_part(self, jobs: Sequence[tuple[Any, ...]]) -> None:
        assert self._decode is not None, "checked when it was made"
        for job in jobs:
            self._decode(*job)


class _CeilingParts(_Ceiling):
    function = "decode_region"


class _CeilingPartsNvimgcodec(_CeilingParts):
    nvimgcodec = True


READERS: dict[str, type[Reader]] = {
    OURS: _Ours,
    OURS_NVIMGCODEC: _OursNvimgcodec,
    OURS_FAST: _OursFast,
    "OpenSlide": _OpenSlide,
    "cuCIM": _CuCim,
    "fastslide": _FastSlide,
    "tiffslide": _TiffSlide,
    CEILING: _Ceiling,
    CEILING_PARTS: _CeilingParts,
    CEILING_PARTS_NVIMGCODEC: _CeilingPartsNvimgcodec,
}
