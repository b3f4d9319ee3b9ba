"""How do the pixels of the next samples reach the consumer without making it wait?

``PatchStream`` joins three things: a ``PatchSampler`` says which patch sample *i* is, a ``Shard`` which samples are
this consumer's, and the reader fetches them in chunks, a few chunks ahead.
"""

from __future__ import annotations

import asyncio
import copy
import hashlib
import itertools
import logging
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, Literal, Self, get_args

from online_patching import loop
from online_patching.catalog import Catalog
from online_patching.decode import Pixels
from online_patching.errors import CatalogError, CorruptTileError
from online_patching.geometry import LevelPolicy, MissingMpp
from online_patching.plan import DecodeMode, PatchRequest
from online_patching.sampler import MAX_REDRAWS, PatchSampler, Sample, SlideSampling
from online_patching.shard import Shard

log = logging.getLogger(__name__)

FORMAT_VERSION = 1
# 32 patches a chunk fill the decoding threads and merge well; 12 chunks under way keep 200 requests in flight, which a
# store 100 ms away needs, and take 75 MB.
CHUNK_PATCHES = 32
CHUNKS_AHEAD = 12

CorruptPolicy = Literal["resample", "raise"]


class PatchStream:
    """Endless, exact stream of foreground patches of a catalog's slides.

    Args:
        catalog: An open catalog, or the URL of one.
        size_px: Side of the patches.
        mpp: um per pixel of the patches; one value, or several that are drawn with equal probability (5x, 10x, 20x and
            40x are 2.0, 1.0, 0.5 and 0.25).
        min_foreground: Least share of a patch's area inside the foreground (0.4 in the paper, section IV-C).
        seed: Of every random choice.
        slide_sampling: ``uniform`` over slides (paper, section IV-B) or proportional to their foreground ``area``.
        level_policy: Which stored level is read; see ``geometry.choose_level``.
        on_missing_mpp: What to do where a slide is coarser than a magnification allows: ``skip`` (the slide does not
            serve it), ``enlarge`` or ``error``.
        on_corrupt: ``resample`` draws another patch in place of one whose tile does not decode (counted in
            ``corrupt_patches``); ``raise`` stops.
        decode: ``fast`` lets tiles be decoded at reduced scale; see ``Slide.read_patches``.
        columns: Catalog columns to add to every patch.
        storage_options: Options for the catalog's store, where ``catalog`` is a URL.
        slide_storage_options: Options for the slides' store; the same where not given.

    Raises:
        CatalogError: A slide has no foreground yet, a column is unknown, or no slide serves any magnification.
    """

    def __init__(
        self,
        catalog: Catalog | str,
        *,
        size_px: int = 256,
        mpp: float | Sequence[float] = (2.0, 1.0, 0.5, 0.25),
        min_foreground: float = 0.4,
        seed: int = 0,
        slide_sampling: SlideSampling = "uniform",
        level_policy: LevelPolicy = "finer",
        on_missing_mpp: MissingMpp = "skip",
        on_corrupt: CorruptPolicy = "resample",
        decode: DecodeMode = "exact",
        columns: Sequence[str] = (),
        storage_options: Mapping[str, Any] | None = None,
        slide_storage_options: Mapping[str, Any] | None = None,
    ) -> None:
        for name, value, allowed in (
            ("level_policy", level_policy, get_args(LevelPolicy)),
            ("on_corrupt", on_corrupt, get_args(CorruptPolicy)),
            ("decode", decode, get_args(DecodeMode)),
        ):
            if value not in allowed:
                raise ValueError(f"{name}: got {value!r}, allowed {allowed}")
        if isinstance(catalog, str):
            catalog = Catalog.open(
                catalog, storage_options=storage_options, slide_storage_options=slide_storage_options
            )
        _check_columns(catalog, columns)
        self.catalog = catalog
        self.sampler = PatchSampler(
            catalog,
            size_px=size_px,
            mpp=[mpp] if isinstance(mpp, (int, float)) else mpp,
            min_foreground=min_foreground,
            seed=seed,
            slide_sampling=slide_sampling,
            on_missing_mpp=on_missing_mpp,
        )
        self.level_policy = level_policy
        self.on_corrupt = on_corrupt
        self.decode = decode
        self.columns = tuple(columns)
        self.corrupt_patches: dict[str, int] = {}
        self._shard = Shard()
        self._position = 0

    def shard(self, *, global_batch_size: int, rank: int, world_size: int, worker: int, num_workers: int) -> Self:
        """The part of this stream that worker ``worker`` of rank ``rank`` serves, at the same position.

        Raises:
            ValueError: Numbers that do not fit together.
        """
        part = copy.copy(self)
        # The count of corrupt patches stays shared: whoever made the stream sees what its shards met in this process.
        part._shard = Shard(global_batch_size, rank, world_size, worker, num_workers)
        return part

    def state_dict(self) -> dict[str, Any]:
        """Where the stream stands, as JSON values."""
        return {
            "format_version": FORMAT_VERSION,
            "position": self._position,
            "seed": self.sampler.seed,
            "fingerprint": self.fingerprint(),
        }

    def fingerprint(self) -> str:
        """Short hash of all that decides which patch sample *i* of a seed is: the catalog and the arguments."""
        sampler = self.sampler
        facts = (
            *(self.catalog.fingerprint(), sampler.size_px, sampler.mpp, sampler.min_foreground),
            *(sampler.slide_sampling, sampler.on_missing_mpp, self.level_policy, self.decode),
        )
        return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state of ``state_dict``, also one of another number of ranks or workers.

        Raises:
            ValueError: The state is of a newer format, another seed, catalog or choice of patches.
        """
        if state.get("format_version", 0) > FORMAT_VERSION:
            raise ValueError(f"stream state format_version {state['format_version']}, allowed up to {FORMAT_VERSION}")
        for name, own in (("seed", self.sampler.seed), ("fingerprint", self.fingerprint())):
            if state.get(name) != own:
                raise ValueError(
                    f"stream state has {name} {state.get(name)!r}, this stream {own!r}: it would continue with other"
                    " patches; use the same seed, catalog and arguments, or start at position 0"
                )
        position = state.get("position")
        if not isinstance(position, int) or position < 0:
            raise ValueError(f"stream state has position {position!r}, allowed a whole number of at least 0")
        self._position = position

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Patches of this shard, from its position on, without end (see the contract for the keys)."""
        batch = self._shard.global_batch_size
        if self._position % batch:
            raise ValueError(
                f"position {self._position} is not a multiple of global_batch_size {batch}: it would cut a batch"
            )
        indices = self._shard.indices(self._position)
        ahead = deque(self._start_chunk(indices) for _ in range(CHUNKS_AHEAD))
        try:
            while True:
                patches = loop.wait_for(ahead.popleft())
                ahead.append(self._start_chunk(indices))
                for patch in patches:
                    # Advance before handing over: the consumer may never come back for another.
                    self._position = self._shard.position_after(patch["index"])
                    yield patch
        finally:
            for chunk in ahead:
                chunk.cancel()

    def _start_chunk(self, indices: Iterator[int]) -> Future[list[dict[str, Any]]]:
        return loop.submit(self._read(list(itertools.islice(indices, CHUNK_PATCHES))))

    async def _read(self, numbers: Sequence[int]) -> list[dict[str, Any]]:
        # Slides of a remote catalog all at once: drawing itself would read one outline after the other.
        await self.catalog.read_outlines(list({self.sampler.slide_of(number) for number in numbers}))
        # Drawing may still read one, for a redraw, which blocks: not on the loop.
        samples = await asyncio.to_thread(lambda: [self.sampler.draw(number) for number in numbers])
        patches = await self._pixels_of(samples)
        found: list[dict[str, Any]] = []
        for drawn, read in zip(samples, patches, strict=True):
            sample, pixels = drawn, read
            while isinstance(pixels, CorruptTileError):
                sample = await asyncio.to_thread(self._redraw, sample, pixels)
                (pixels,) = await self._pixels_of([sample])
            found.append(self._item(sample, pixels))
        return found

    async def _pixels_of(self, samples: Sequence[Sample]) -> list[Pixels | CorruptTileError]:
        requests = [
            PatchRequest(s.slide_id, s.position.x_level0_px, s.position.y_level0_px, self.sampler.size_px, s.mpp)
            for s in samples
        ]
        return await self.catalog.read_or_report(
            requests, policy=self.level_policy, decode=self.decode, enlarge=self.sampler.on_missing_mpp == "enlarge"
        )

    def _redraw(self, sample: Sample, error: CorruptTileError) -> Sample:
        if self.on_corrupt == "raise" or sample.attempt + 1 >= MAX_REDRAWS:
            raise error
        if sample.slide_id not in self.corrupt_patches:
            log.warning("%s; another patch is drawn in its place", error)
        self.corrupt_patches[sample.slide_id] = self.corrupt_patches.get(sample.slide_id, 0) + 1
        return self.sampler.draw(sample.index, sample.attempt + 1)

    def _item(self, sample: Sample, pixels: Pixels) -> dict[str, Any]:
        return {
            "image": pixels,
            "index": sample.index,
            "slide_id": sample.slide_id,
            "x_level0_px": sample.position.x_level0_px,
            "y_level0_px": sample.position.y_level0_px,
            "mpp": sample.mpp,
            "foreground": sample.position.foreground,
            **(self.catalog.values(sample.slide_id, self.columns) if self.columns else {}),
        }


def _check_columns(catalog: Catalog, columns: Sequence[str]) -> None:
    table = catalog.table()
    for name in columns:
        if name not in table.column_names:
            own = list(catalog.rows.user_columns)
            raise CatalogError(f"{catalog.shown_url}: no catalog column {name!r} (columns of the user: {own})")
        if table[name].null_count:
            number = table[name].is_null().index(True).as_py()
            raise CatalogError(
                f"slide {catalog.rows.value(number, 'id')}: catalog column {name!r} has no value here and in"
                f" {table[name].null_count} slides; give it for every slide when indexing (--metadata)"
            )
