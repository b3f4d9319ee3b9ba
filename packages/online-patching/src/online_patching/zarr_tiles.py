"""How do chunks of an OME-Zarr slide become tiles?

At the first read in a process the slide's metadata documents are read again and compared with those that were pinned,
so a pyramid that changed since it was indexed is an error; chunks, which are objects of their own, are not pinned.
After that each tile is one selection of zarr's asynchronous array: fetched, decoded and, at the right and lower edges,
padded with white to a whole tile. A chunk that was never written is the array's fill value, as the Zarr standard says
(0, black, in most files), and white where Zarr v2 leaves that undefined (``null``).
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from online_patching.bytesource import PinnedObject, check_unchanged, shown_url
from online_patching.decode import Pixels
from online_patching.errors import CorruptTileError, SlideChangedError, StorageError
from online_patching.formats.header import SlideHeader
from online_patching.formats.ome_zarr import OmeZarrSlide, read_ome_zarr
from online_patching.storage import Store

# Chunks are objects of their own: this many of a slide's tiles are under way at a time.
TILES_IN_FLIGHT = 64
WHITE = 255


class ZarrTiles:
    """Tiles of an OME-Zarr slide, a ``TileSource``; nothing is requested before the first read.

    It may be pickled: a copy opens the arrays anew.

    Args:
        store: Opens objects.
        objects: The slide's metadata documents, pinned; the group's is the first.
        header: Levels and encodings.
    """

    def __init__(self, store: Store, objects: Sequence[PinnedObject], header: SlideHeader) -> None:
        self._store = store
        self._objects = tuple(objects)
        self._header = header
        self._opened: tuple[int, asyncio.Future[OmeZarrSlide]] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}

    async def read(self, level: int, tiles: Sequence[int]) -> dict[int, Pixels | CorruptTileError]:
        """Pixels by tile number, in its place the error of a tile whose chunk does not decode.

        Raises:
            SlideChangedError: The metadata is no longer what was indexed.
            StorageError: A chunk cannot be fetched.
        """
        if not tiles:
            return {}
        slide = await self._open()
        gate = asyncio.Semaphore(TILES_IN_FLIGHT)

        async def one(number: int) -> Pixels | CorruptTileError:
            async with gate:
                return await self._read_tile(slide, level, number)

        tasks = [asyncio.ensure_future(one(number)) for number in tiles]
        try:
            return dict(zip(tiles, await asyncio.gather(*tasks), strict=True))
        finally:
            for task in tasks:
                task.cancel()

    async def _read_tile(self, slide: OmeZarrSlide, level: int, number: int) -> Pixels | CorruptTileError:
        geometry = self._header.levels[level]
        row, column = divmod(number, geometry.tiles_x)
        x, y = column * geometry.tile_width_px, row * geometry.tile_height_px
        place = {"x": slice(x, x + geometry.tile_width_px), "y": slice(y, y + geometry.tile_height_px)}
        selection = tuple(place.get(axis, slice(None) if axis == "c" else 0) for axis in slide.axes)
        try:
            # Slices of zarr end where the array ends.
            stored = np.asarray(await slide.arrays[level].getitem(selection))
            pixels = _as_rgb(stored, slide.axes)
        except StorageError:
            raise
        except Exception as error:
            reason = " ".join(str(error).split())[:160] or type(error).__name__
            where = f"{shown_url(slide.folder_url)}: level {level}, tile {number}"
            return CorruptTileError(
                f"{where}: its chunk does not decode ({reason}); copy the slide again or leave it out"
            )
        height, width = pixels.shape[:2]
        if (height, width) == (geometry.tile_height_px, geometry.tile_width_px):
            return pixels
        tile = np.full((geometry.tile_height_px, geometry.tile_width_px, 3), WHITE, np.uint8)
        tile[:height, :width] = pixels
        return tile

    async def _open(self) -> OmeZarrSlide:
        """The arrays, opened once in a process however many reads come at the same time."""
        if self._opened is None or self._opened[0] != os.getpid():
            # A fork copies the future, but not the loop that would fulfil it.
            self._opened = (os.getpid(), asyncio.ensure_future(self._read_again()))
        mine = self._opened
        try:
            # Who gives up must not take it away from the others who wait.
            return await asyncio.shield(mine[1])
        except BaseException:
            if mine[1].done() and self._opened is mine:
                self._opened = None
            raise

    async def _read_again(self) -> OmeZarrSlide:
        pinned = self._objects
        slide = await read_ome_zarr(self._store, pinned[0].url.rpartition("/")[0])
        for now, then in zip(slide.found.objects, pinned, strict=False):
            check_unchanged(now.info, then.info, then.url)
        same_objects = [each.url for each in slide.found.objects] == [each.url for each in pinned]
        if not same_objects or slide.found.header.levels != self._header.levels:
            raise SlideChangedError(
                f"{shown_url(slide.folder_url)}: its levels changed; run `online-patching index` again"
            )
        return slide


def _as_rgb(stored: Pixels, axes: str) -> Pixels:
    """A selection without t and z as (h, w, 3); a view of it, not a copy."""
    kept = [axis for axis in axes if axis in "cyx"]
    pixels = stored.transpose([kept.index(axis) for axis in "yxc" if axis in kept])
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    return np.broadcast_to(pixels, (*pixels.shape[:2], 3))
