"""Which patches does inference see?

``GridStream`` gives every patch of a regular grid that has enough foreground, of every slide, once: slide by slide in
order of their ids, row by row. It keeps the contract of every stream, and it ends. How many patches a slide has is
told by its polygon; this is found when the stream comes to the slide, or for all slides at once when its length is
asked for.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from online_patching import loop
from online_patching.cache import BoundedCache
from online_patching.catalog import Catalog
from online_patching.errors import CorruptTileError
from online_patching.fork_lock import ForkLock
from online_patching.geometry import LevelPolicy, MissingMpp, footprint_level0_px
from online_patching.grid import grid_positions
from online_patching.patch_feed import PatchFeed
from online_patching.plan import DecodeMode, PatchRequest
from online_patching.sampler import PatchSampler, Sample
from online_patching.sampling import Position

Corners = tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]

# One for all streams, held for a moment.
_lock = ForkLock()
# Corners of the grids of a few slides: 1 MB for a slide of 120,000 patches.
KEPT_GRIDS = 16
# Slides whose polygons are read together, ahead of counting.
SLIDES_AT_ONCE = 32


class GridStream(PatchFeed):
    """Every grid patch with enough foreground of a catalog's slides, once.

    The grid begins at the upper left corner of the slide; patches that reach over its right or lower edge belong to it
    and are white there (see ``grid``).

    Args:
        catalog: An open catalog, or the URL of one.
        size_px: Side of the patches.
        mpp: um per pixel of the patches.
        stride_px: From one patch to the next, in pixels of the patches; the side of a patch where not given.
        min_foreground: Least share of a patch's area inside the foreground; patches without any never count.
        where: Only slides for which this holds, for example ``"split == 'test'"``; see ``slide_subset``.
        level_policy: Which stored level is read; see ``geometry.choose_level``.
        on_missing_mpp: What to do where a slide is coarser than ``mpp`` allows: ``skip`` (the slide is left out, with
            a warning), ``enlarge`` or ``error``.
        decode: ``fast`` lets tiles be decoded at reduced scale; see ``Slide.read_patches``.
        columns: Catalog columns to add to every patch.
        storage_options: Options for the catalog's store, where ``catalog`` is a URL.
        slide_storage_options: Options for the slides' store; the same where not given.

    Raises:
        CatalogError: A slide has no foreground yet, a column is unknown, or no slide serves the magnification.
        CorruptTileError: While reading: a tile does not decode. There is no other patch to take its place.
    """

    def __init__(
        self,
        catalog: Catalog | str,
        *,
        size_px: int = 256,
        mpp: float = 0.5,
        stride_px: float | None = None,
        min_foreground: float = 0.4,
        where: str | None = None,
        level_policy: LevelPolicy = "finer",
        on_missing_mpp: MissingMpp = "skip",
        decode: DecodeMode = "exact",
        columns: Sequence[str] = (),
        storage_options: Mapping[str, Any] | None = None,
        slide_storage_options: Mapping[str, Any] | None = None,
    ) -> None:
        if isinstance(catalog, str):
            catalog = Catalog.open(
                catalog, storage_options=storage_options, slide_storage_options=slide_storage_options
            )
        super().__init__(catalog, seed=0, columns=columns, level_policy=level_policy, decode=decode)
        # It knows which slides take part, and says which do not.
        sampler = PatchSampler(
            catalog,
            size_px=size_px,
            mpp=[mpp],
            min_foreground=min_foreground,
            seed=0,
            where=where,
            on_missing_mpp=on_missing_mpp,
        )
        self.size_px = size_px
        self.mpp = float(mpp)
        self.stride_px = float(size_px if stride_px is None else stride_px)
        self.min_foreground = min_foreground
        self.on_missing_mpp = on_missing_mpp
        rows, self.served = catalog.rows, sampler.served
        self._served_facts = sampler.chosen_facts()
        base_mpp = rows.numbers("mpp")[self.served]
        if not math.inf > self.stride_px * self.mpp >= base_mpp.max():
            raise ValueError(
                f"stride_px: got {self.stride_px:g}, allowed numbers that are at least one pixel of every slide"
                f" ({base_mpp.max() / self.mpp:g} here)"
            )
        self._grids = _Grids(
            catalog,
            self.served,
            size_level0_px=footprint_level0_px(size_px, self.mpp, base_mpp),
            stride_level0_px=self.stride_px * self.mpp / base_mpp,
            min_foreground=min_foreground,
        )

    def __len__(self) -> int:
        """Number of all patches; the first call reads the polygon of every slide."""
        return self._grids.total()

    def _exists(self, index: int) -> bool:
        return self._grids.exists(index)

    def fingerprint(self) -> str:
        """Short hash of all that decides which patch number *i* is: the catalog and the arguments."""
        facts = (
            *(
                "grid",
                self.catalog.fingerprint(),
                int(self.size_px),
                self.mpp,
                self.stride_px,
                float(self.min_foreground),
            ),
            *(self.on_missing_mpp, self.level_policy, self.decode),
            *self._served_facts,
        )
        return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]

    def sample(self, index: int) -> Sample:
        """Patch number ``index``, not yet its pixels.

        Raises:
            IndexError: There is none.
        """
        return self._sample(index)

    async def _read(self, numbers: Sequence[int]) -> list[dict[str, Any]]:
        samples = await asyncio.to_thread(lambda: [self._sample(number) for number in numbers])
        requests = [
            PatchRequest(s.slide_id, s.position.x_level0_px, s.position.y_level0_px, self.size_px, s.mpp)
            for s in samples
        ]
        patches = await self.catalog.read_or_report(
            requests, policy=self.level_policy, decode=self.decode, enlarge=self.on_missing_mpp == "enlarge"
        )
        found = []
        for sample, pixels in zip(samples, patches, strict=True):
            if isinstance(pixels, CorruptTileError):
                raise pixels
            found.append(self._item(sample, pixels))
        return found

    def _sample(self, index: int) -> Sample:
        slide_id, position = self._grids.position(index)
        return Sample(index, 0, slide_id, self.mpp, position)


class _Grids:
    """Numbers of the patches of all slides: how many each has, found in their order and only as far as asked for.

    Args:
        catalog: The slides' catalog.
        numbers: Row numbers of the slides that take part, int64 (N,).
        size_level0_px: Side of a patch on each of them, float64 (N,).
        stride_level0_px: From one patch to the next.
        min_foreground: Least share of foreground.
    """

    def __init__(
        self,
        catalog: Catalog,
        numbers: npt.NDArray[np.int64],
        *,
        size_level0_px: npt.NDArray[np.float64],
        stride_level0_px: npt.NDArray[np.float64],
        min_foreground: float,
    ) -> None:
        self._catalog = catalog
        self._numbers = numbers
        self._size, self._stride = size_level0_px, stride_level0_px
        self._min_foreground = min_foreground
        # Of the slides counted so far: number of the first patch behind each.
        self._ends: list[int] = []
        self._kept: BoundedCache[int, Corners] = BoundedCache(KEPT_GRIDS)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_ends": list(self._ends), "_kept": BoundedCache(KEPT_GRIDS)}

    def exists(self, index: int) -> bool:
        """Whether there is a patch of this number; counts as many slides as it takes."""
        while not self._ends or self._ends[-1] <= index:
            place = len(self._ends)
            if place == len(self._numbers):
                return False
            if place % SLIDES_AT_ONCE == 0:
                # Those of a remote catalog all at the same time.
                ahead = [self._slide_id(k) for k in range(place, min(place + SLIDES_AT_ONCE, len(self._numbers)))]
                loop.run(self._catalog.read_outlines(ahead))
            count = len(self._corners(place)[0])
            with _lock:
                # Another thread may have counted the same slide.
                if len(self._ends) == place:
                    self._ends.append((self._ends[-1] if self._ends else 0) + count)
        return True

    def total(self) -> int:
        """Number of all patches."""
        while self.exists(self._ends[-1] if self._ends else 0):
            pass
        return self._ends[-1]

    def position(self, index: int) -> tuple[str, Position]:
        """Slide and position of a patch that exists."""
        if index < 0 or not self.exists(index):
            raise IndexError(f"patch {index} of {self.total()}")
        place = bisect_right(self._ends, index)
        xs, ys = self._corners(place)
        number = index - (self._ends[place - 1] if place else 0)
        x, y = int(xs[number]), int(ys[number])
        slide_id = self._slide_id(place)
        return slide_id, Position(x, y, self._catalog.outline(slide_id).share(x, y, float(self._size[place])))

    def _slide_id(self, place: int) -> str:
        return str(self._catalog.rows.value(int(self._numbers[place]), "id"))

    def _corners(self, place: int) -> Corners:
        kept = self._kept.peek(place)
        if kept is not None:
            return kept
        number, rows = int(self._numbers[place]), self._catalog.rows
        corners = grid_positions(
            self._catalog.outline(self._slide_id(place)),
            size_level0_px=float(self._size[place]),
            stride_level0_px=float(self._stride[place]),
            width_level0_px=rows.value(number, "width_px"),
            height_level0_px=rows.value(number, "height_px"),
            min_foreground=self._min_foreground,
        )
        return self._kept.put(place, corners)
