"""How does a user read one slide?

``open_slide(url)`` reads its headers; the ``Slide`` then gives stored pixels (``read_level``) and resampled patches
(``read_patch``, ``read_patches``), each with an async twin. A slide holds no open file and no connection of its own,
so it needs no closing and may be used from any thread.
"""

from __future__ import annotations

import os
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from online_patching import loop
from online_patching.batch_plan import WindowRequest
from online_patching.bytesource import shown_url
from online_patching.decode import Pixels
from online_patching.errors import CorruptTileError
from online_patching.formats.header import SlideHeader
from online_patching.geometry import LevelGeometry, LevelPolicy, LevelWindow
from online_patching.health import HealthLog, SlideHealth
from online_patching.index import index_slide
from online_patching.plan import DecodeMode, LevelRead, PatchRequest, check_patch_size, choose_read, patch_window
from online_patching.reader import check_fits, read_windows
from online_patching.storage import Store
from online_patching.tile_source import InMemoryLookup, SlideHandle, open_handle

if TYPE_CHECKING:
    import zarr

    from online_patching.zarr_view import SlideEntry

# The name of the one slide in the store behind Slide.zarr: a URL is no good key.
ZARR_NAME = "slide"


def open_slide(
    url: str | os.PathLike[str],
    *,
    mpp: float | None = None,
    storage_options: Mapping[str, Any] | None = None,
    experimental: bool = False,
) -> Slide:
    """Open a slide by reading its headers only.

    Args:
        url: Local path or URL (``s3://``, ``az://``, ``gs://``, ``http(s)://``).
        mpp: um per pixel of level 0 to use instead of what the file states.
        storage_options: Options of the storage client, in fsspec's dialect.
        experimental: Open formats as well that were tested on no file of another's making (see the README).

    Raises:
        StorageError: The object cannot be reached.
        SlideFormatError: It is not a slide that can be read with certain colours.
        ValueError: No path or URL was given, or an mpp that cannot be.
    """
    if not isinstance(url, (str, os.PathLike)) or not str(url):
        raise ValueError(f"url: got {url!r}, allowed a path or URL")
    store = Store(storage_options)
    indexed = loop.run(index_slide(str(url), store, experimental=experimental))
    header = replace(indexed.header, mpp=_checked_mpp(mpp)) if mpp is not None else indexed.header
    return Slide(
        open_handle(store, indexed.objects, header, InMemoryLookup(indexed.tiles)), slide_id=str(url), url=str(url)
    )


def _checked_mpp(mpp: float) -> float:
    if not isinstance(mpp, (int, float)) or not 0 < mpp < 1000:
        raise ValueError(f"mpp: got {mpp!r}, allowed above 0 and below 1000 (um per pixel)")
    return mpp


class Slide:
    """One slide that can be read at any place and magnification; made by ``open_slide`` or ``Catalog.slide``."""

    def __init__(self, handle: SlideHandle, *, slide_id: str, url: str, health: HealthLog | None = None) -> None:
        self.handle = handle
        self.slide_id = slide_id
        self.url = url
        self._health = health or HealthLog()

    def __repr__(self) -> str:
        base = self.levels[0]
        return f"<Slide {self.slide_id}: {self.header.vendor}, {base.width_px} x {base.height_px} px, mpp {self.mpp}>"

    @property
    def header(self) -> SlideHeader:
        """Vendor, levels, encodings and properties."""
        return self.handle.header

    @property
    def levels(self) -> tuple[LevelGeometry, ...]:
        """Geometry of every level, finest first."""
        return self.header.levels

    @property
    def mpp(self) -> float | None:
        """Resolution of level 0 in um per pixel, or None where it is not known."""
        return self.header.mpp

    def health(self) -> SlideHealth:
        """What went otherwise than asked while it was read: corrupt and missing tiles, patches outside or enlarged."""
        return self._health.report().get(self.slide_id, SlideHealth())

    async def aread_level(self, *, level: int, x_px: int, y_px: int, width_px: int, height_px: int) -> Pixels:
        """Async twin of ``read_level``."""
        return await loop.on_loop(self._read_level(level, x_px, y_px, width_px, height_px))

    def read_level(self, *, level: int, x_px: int, y_px: int, width_px: int, height_px: int) -> Pixels:
        """Stored pixels of one level, exactly.

        Args:
            level: 0 is the finest.
            x_px: Left edge in pixels of that level; may lie outside (white there).
            y_px: Upper edge in pixels of that level.
            width_px: Width, at least 1.
            height_px: Height, at least 1.

        Returns:
            uint8 (height_px, width_px, 3) RGB.

        Raises:
            CorruptTileError: A tile there does not decode.
            StorageError: The slide cannot be fetched.
        """
        return loop.run(self._read_level(level, x_px, y_px, width_px, height_px))

    async def _read_level(self, level: int, x_px: int, y_px: int, width_px: int, height_px: int) -> Pixels:
        for name, value in (("level", level), ("x", x_px), ("y", y_px), ("width", width_px), ("height", height_px)):
            if not isinstance(value, (int, np.integer)):
                raise ValueError(f"slide {self.slide_id}: {name} {value!r}, allowed whole numbers")
        if not 0 <= level < len(self.levels):
            raise ValueError(f"slide {self.slide_id}: level {level}, allowed 0 to {len(self.levels) - 1}")
        if width_px < 1 or height_px < 1:
            raise ValueError(f"slide {self.slide_id}: a window of {width_px} x {height_px} px, allowed at least 1 x 1")
        window = LevelWindow(level, int(x_px), int(y_px), int(width_px), int(height_px))
        (pixels,) = await read_windows([WindowRequest(self.handle, self.slide_id, window, None)], self._health)
        return _raised(pixels)

    def read_patch(
        self,
        *,
        x_level0_px: float,
        y_level0_px: float,
        size_px: int,
        mpp: float,
        policy: LevelPolicy = "finer",
        decode: DecodeMode = "exact",
    ) -> Pixels:
        """One resampled patch, uint8 (size_px, size_px, 3); see ``read_patches``."""
        corner = x_level0_px, y_level0_px
        return np.asarray(self.read_patches([corner], size_px=size_px, mpp=mpp, policy=policy, decode=decode)[0])

    async def aread_patch(
        self,
        *,
        x_level0_px: float,
        y_level0_px: float,
        size_px: int,
        mpp: float,
        policy: LevelPolicy = "finer",
        decode: DecodeMode = "exact",
    ) -> Pixels:
        """Async twin of ``read_patch``."""
        corner = x_level0_px, y_level0_px
        patches = await self.aread_patches([corner], size_px=size_px, mpp=mpp, policy=policy, decode=decode)
        return np.asarray(patches[0])

    def read_patches(
        self,
        corners_level0_px: Sequence[tuple[float, float]],
        *,
        size_px: int,
        mpp: float,
        policy: LevelPolicy = "finer",
        decode: DecodeMode = "exact",
        out: Pixels | None = None,
    ) -> Pixels:
        """Patches at a magnification, read together so that shared tiles are fetched and decoded once.

        Args:
            corners_level0_px: (x, y) of each upper left corner in level-0 pixels.
            size_px: Side of the patches.
            mpp: um per pixel of the patches.
            policy: Which stored level is read; see ``geometry.choose_level``.
            decode: ``fast`` lets JPEG and JPEG 2000 decode at 1/2, 1/4 or 1/8 scale where the patches are that much
                coarser than the level: faster, with slightly other pixels (see ``decode``), at a place that is off by
                up to half a pixel of the patch.
            out: Where the patches go, uint8 (N, size_px, size_px, 3), C-contiguous: memory that is reused costs less
                than new memory. Undefined after an error.

        Returns:
            uint8 (N, size_px, size_px, 3) RGB, white outside of the slide; ``out`` where it was given.

        Raises:
            MissingMppError: The slide states no mpp and none was given.
            MagnificationError: The slide is coarser than 1.25 x the target.
            CorruptTileError: A tile that is needed does not decode.
            StorageError: The slide cannot be fetched.
            ValueError: Sizes or ``out`` that cannot be.
        """
        return loop.run(self._read_patches(corners_level0_px, size_px, mpp, policy, decode, out))

    async def aread_patches(
        self,
        corners_level0_px: Sequence[tuple[float, float]],
        *,
        size_px: int,
        mpp: float,
        policy: LevelPolicy = "finer",
        decode: DecodeMode = "exact",
        out: Pixels | None = None,
    ) -> Pixels:
        """Async twin of ``read_patches``."""
        return await loop.on_loop(self._read_patches(corners_level0_px, size_px, mpp, policy, decode, out))

    async def _read_patches(
        self,
        corners: Sequence[tuple[float, float]],
        size_px: int,
        mpp: float,
        policy: LevelPolicy,
        decode: DecodeMode,
        out: Pixels | None,
    ) -> Pixels:
        check_patch_size(size_px, mpp)
        try:
            pairs = [(x, y) for x, y in corners]
        except (TypeError, ValueError):
            raise ValueError(
                f"slide {self.slide_id}: corners_level0_px {reprlib.repr(corners)}, allowed pairs (x, y)"
            ) from None
        requests = [PatchRequest(self.slide_id, x, y, size_px, mpp) for x, y in pairs]
        # All are of one size: refused before memory for them is asked for.
        check_fits(patch_windows(requests[:1], {self.slide_id: self.handle}, HealthLog(), policy, decode))
        patches = _checked_out(out, (len(requests), size_px, size_px, 3))
        windows = patch_windows(requests, {self.slide_id: self.handle}, self._health, policy, decode, outs=patches)
        for pixels in await read_windows(windows, self._health):
            _raised(pixels)
        return patches

    def zarr(self) -> zarr.Group:
        """The slide as a lazy, read-only Zarr group of one array a level: ``slide.zarr()["0"][2000:2256, 1000:1256]``.

        Returns:
            Arrays of shape (height, width, 3), uint8 RGB, whose chunks are the stored tiles; places that the scanner
            did not store are 255. Reading them raises what ``read_level`` raises.
        """
        # Costs more than the rest of the package to import.
        from online_patching.zarr_view import ZarrSlides, open_group

        slides = ZarrSlides(shown_url(self.url), self._zarr_names, self._zarr_entry, self._zarr_handle)
        return open_group(slides, ZARR_NAME)

    def _zarr_names(self) -> tuple[str, ...]:
        return (ZARR_NAME,)

    def _zarr_entry(self, name: str) -> SlideEntry | None:
        from online_patching.zarr_view import SlideEntry

        return SlideEntry(self.slide_id, self.url, self.header) if name == ZARR_NAME else None

    def _zarr_handle(self, _: str) -> SlideHandle:
        return self.handle


def patch_windows(
    requests: Sequence[PatchRequest],
    handles: Mapping[str, SlideHandle],
    health: HealthLog,
    policy: LevelPolicy,
    decode: DecodeMode,
    *,
    enlarge: bool = False,
    outs: Sequence[Pixels | None] | Pixels | None = None,
) -> list[WindowRequest]:
    """The window of each request; patches that must be enlarged are counted.

    Raises:
        MissingMppError: A slide states no mpp.
        MagnificationError: A slide is too coarse.
    """
    reads: dict[tuple[str, float], LevelRead] = {}
    windows = []
    for number, request in enumerate(requests):
        slide_id = request.slide_id
        handle = handles[slide_id]
        header = handle.header
        read = reads.get((slide_id, request.mpp))
        if read is None:
            read = choose_read(header, slide_id, request.mpp, policy=policy, enlarge=enlarge, decode=decode)
            reads[slide_id, request.mpp] = read
        if read.enlarged:
            health.add(slide_id, enlarged_patches=1)
        assert header.mpp is not None, "choose_read refuses a slide without"
        window = patch_window(request, header.mpp, read)
        out = None if outs is None else outs[number]
        windows.append(WindowRequest(handle, slide_id, window, request.size_px, read.reduction, out))
    return windows


def check_outs(requests: Sequence[PatchRequest], outs: Sequence[Pixels]) -> None:
    """Refuse arrays that the patches cannot go to.

    Raises:
        ValueError: Another number of them, another shape or type, or one that is not contiguous.
    """
    if len(outs) != len(requests):
        raise ValueError(f"outs: got {len(outs)} arrays for {len(requests)} patches")
    for request, out in zip(requests, outs, strict=True):
        _checked_out(out, (request.size_px, request.size_px, 3))


def _checked_out(out: Pixels | None, shape: tuple[int, ...]) -> Pixels:
    if out is None:
        try:
            return np.empty(shape, np.uint8)
        except MemoryError:
            raise ValueError(f"{shape[0]} patches of {shape[1:]} uint8 do not fit in memory; read fewer") from None
    if not isinstance(out, np.ndarray):
        raise ValueError(f"out: got a {type(out).__name__}, allowed a numpy array {shape} uint8")
    if out.shape != shape or out.dtype != np.uint8 or not out.flags.c_contiguous or not out.flags.writeable:
        raise ValueError(f"out: got {out.shape} {out.dtype}, allowed writable C-contiguous {shape} uint8")
    return out


def _raised(pixels: Pixels | CorruptTileError) -> Pixels:
    if isinstance(pixels, CorruptTileError):
        raise pixels
    return pixels
