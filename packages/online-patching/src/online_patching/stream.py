"""Which patches does training see?

``PatchStream`` joins a ``PatchSampler``, which says which patch sample *i* is, with the reading ahead of a
``PatchFeed``. A patch with a tile that does not decode, or that a filter refuses, is drawn anew: its redraws are
numbered, so they too are the same on every machine, rank and worker.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from online_patching.catalog import Catalog
from online_patching.decode import Pixels
from online_patching.errors import CorruptTileError, SamplingError, SlideFormatError
from online_patching.fork_lock import ForkLock
from online_patching.geometry import LevelPolicy, MissingMpp
from online_patching.patch_cache import PatchCache
from online_patching.patch_feed import CHUNK_PATCHES, CHUNKS_AHEAD, PatchFeed, check_choices
from online_patching.patch_filters import PatchFilter, check_filters
from online_patching.plan import DecodeMode, PatchRequest
from online_patching.sampler import MAX_REDRAWS, PatchSampler, Sample
from online_patching.slide_choice import NamedChoice, SlideChoice
from online_patching.slide_subset import without_slides
from online_patching.stream_metrics import StreamMetrics

__all__ = ["CHUNKS_AHEAD", "CHUNK_PATCHES", "CorruptPolicy", "PatchStream"]

log = logging.getLogger(__name__)
# Of all streams, for their counts.
_lock = ForkLock()

CorruptPolicy = Literal["resample", "raise"]
# 5x, 10x, 20x and 40x (paper, section IV-C).
DEFAULT_MPP = (2.0, 1.0, 0.5, 0.25)
# Fewer corrupt patches than this say nothing about their share.
LEAST_CORRUPT = 16
# So many slides are named when too much is corrupt.
NAMED_SLIDES = 5


class PatchStream(PatchFeed):
    """Endless, exact stream of foreground patches of a catalog's slides.

    Args:
        catalog: An open catalog, or the URL of one.
        size_px: Side of the patches.
        mpp: um per pixel of the patches; one value, or several, of which each slide gives those that it serves (5x,
            10x, 20x and 40x are 2.0, 1.0, 0.5 and 0.25).
        mpp_weights: How often each of several ``mpp`` is drawn, in proportion; all alike where not given.
        mpp_range: In place of ``mpp``: any resolution between these two, uniform in its logarithm; of each slide, the
            part of the range that it serves.
        min_foreground: Least share of a patch's area inside the foreground (0.4 in the paper, section IV-C).
        seed: Of every random choice.
        where: Only slides for which this holds, for example ``"split == 'train' and preservation == 'FFPE'"``; see
            ``slide_subset``.
        slide_share: Only this share of these slides, chosen by chance; smaller shares of one ``slide_share_seed`` are
            parts of larger ones (paper, section IV-D1).
        slide_share_seed: Of that chance, which ``seed`` does not change.
        distinct_patches: Only so many different patches: the first so many are sampled as ever, all later ones drawn
            from these (paper, section IV-D2); None: every patch is a new one.
        cache: Folder on the local disk that keeps these patches, shared by the processes of a machine; what is not in
            it is read from the slides again, so that it changes no patch.
        cache_gib: How large the cache may get.
        slide_sampling: ``uniform`` over slides (paper, section IV-B), proportional to their foreground ``area``, or a
            class of ``slide_choice``: by a column of weights, balanced by a column of groups, or one's own.
        level_policy: Which stored level is read; see ``geometry.choose_level``.
        on_missing_mpp: What to do where a slide is coarser than a magnification allows: ``skip`` (the slide does not
            serve it), ``enlarge`` or ``error``.
        on_corrupt: ``resample`` draws another patch in place of one whose tile does not decode (counted in
            ``corrupt_patches``); ``raise`` stops.
        most_corrupt_share: Above this share of corrupt patches, of those read so far in a process, the stream stops.
        filters: Of ``patch_filters`` or one's own: a patch that one of them refuses is drawn anew (counted in
            ``filtered_patches``).
        decode: ``fast`` lets tiles be decoded at reduced scale; see ``Slide.read_patches``.
        columns: Catalog columns to add to every patch.
        storage_options: Options for the catalog's store, where ``catalog`` is a URL.
        slide_storage_options: Options for the slides' store; the same where not given.

    Raises:
        CatalogError: A slide has no foreground yet, a column is unknown, or no slide serves any magnification.
        SlideFormatError: While reading: more than ``most_corrupt_share`` of the patches are corrupt.
    """

    def __init__(
        self,
        catalog: Catalog | str,
        *,
        size_px: int = 256,
        mpp: float | Sequence[float] = DEFAULT_MPP,
        mpp_weights: Sequence[float] | None = None,
        mpp_range: Sequence[float] | None = None,
        min_foreground: float = 0.4,
        seed: int = 0,
        where: str | None = None,
        slide_share: float = 1.0,
        slide_share_seed: int = 0,
        distinct_patches: int | None = None,
        cache: str | Path | None = None,
        cache_gib: float = 100.0,
        slide_sampling: NamedChoice | SlideChoice = "uniform",
        level_policy: LevelPolicy = "finer",
        on_missing_mpp: MissingMpp = "skip",
        on_corrupt: CorruptPolicy = "resample",
        most_corrupt_share: float = 0.01,
        filters: Sequence[PatchFilter] = (),
        decode: DecodeMode = "exact",
        columns: Sequence[str] = (),
        storage_options: Mapping[str, Any] | None = None,
        slide_storage_options: Mapping[str, Any] | None = None,
    ) -> None:
        check_choices(("on_corrupt", on_corrupt, get_args(CorruptPolicy)))
        if not 0 <= most_corrupt_share <= 1:
            raise ValueError(f"most_corrupt_share: got {most_corrupt_share!r}, allowed 0 to 1")
        if cache is not None and distinct_patches is None:
            raise ValueError("cache: got a folder without distinct_patches, but such a stream sees no patch twice")
        if isinstance(catalog, str):
            catalog = Catalog.open(
                catalog, storage_options=storage_options, slide_storage_options=slide_storage_options
            )
        super().__init__(catalog, seed=seed, columns=columns, level_policy=level_policy, decode=decode)
        mpp = (float(mpp),) if isinstance(mpp, (int, float, np.number)) else tuple(mpp)
        if mpp_range is not None and mpp == DEFAULT_MPP:
            mpp = ()
        self.sampler = PatchSampler(
            catalog,
            size_px=size_px,
            mpp=mpp,
            mpp_weights=mpp_weights,
            mpp_range=mpp_range,
            min_foreground=min_foreground,
            seed=seed,
            where=where,
            slide_share=slide_share,
            slide_share_seed=slide_share_seed,
            slide_sampling=slide_sampling,
            on_missing_mpp=on_missing_mpp,
            distinct_patches=distinct_patches,
        )
        self.on_corrupt = on_corrupt
        self.most_corrupt_share = most_corrupt_share
        self.filters = check_filters(filters)
        self.corrupt_patches: dict[str, int] = {}
        self.filtered_patches: dict[str, int] = {}
        self._read_patches = {"patches": 0}
        self._cache: PatchCache | None = None
        if cache is not None:
            name = f"{_short_hash(self._facts())}-{seed}"
            self._cache = PatchCache(cache, name=name, size_px=size_px, max_bytes=int(cache_gib * 2**30))

    def _facts(self) -> tuple[object, ...]:
        """All that decides which patch is drawn for a number."""
        own = self.level_policy, self.decode, repr(self.filters)
        return (self.catalog.fingerprint(), *self.sampler.facts(), *own)

    def fingerprint(self) -> str:
        """Short hash of all that decides which patch sample *i* of a seed is: the catalog and the arguments."""
        distinct = self.sampler.distinct_patches
        return _short_hash(self._facts() if distinct is None else (*self._facts(), distinct))

    def metrics(self) -> StreamMetrics:
        """What this stream and its shards did in this process so far; subtract two for what lies between."""
        with _lock:
            corrupt, filtered = dict(self.corrupt_patches), dict(self.filtered_patches)
        return replace(
            super().metrics(),
            corrupt_patches=corrupt,
            filtered_patches=filtered,
            impossible_patches=dict(self.sampler.impossible),
        )

    async def _read(self, numbers: Sequence[int]) -> list[dict[str, Any]]:
        sources = [self.sampler.source_of(number) for number in numbers]
        wanted = list(dict.fromkeys(sources))
        found = await asyncio.to_thread(self._cache.read, wanted) if self._cache is not None else {}
        cached = sum(source in found for source in sources)
        drawn = await self._draw_and_read([number for number in wanted if number not in found])
        if self._cache is not None:
            await asyncio.to_thread(self._cache.write, drawn)
            self._meter.add(cached_patches=cached)
        found |= drawn
        items = []
        for number, source in zip(numbers, sources, strict=True):
            sample, pixels = found[source]
            # Whoever shows a patch twice gets two arrays: a consumer may write into them.
            items.append(self._item(replace(sample, index=number), pixels if source == number else pixels.copy()))
        return items

    async def _draw_and_read(self, numbers: Sequence[int]) -> dict[int, tuple[Sample, Pixels]]:
        """Samples and their pixels by number; drawn anew where a patch cannot be had."""
        # Slides of a remote catalog all at once: drawing itself would read one outline after the other.
        await self.catalog.read_outlines(list({self.sampler.slide_of(number) for number in numbers}))
        # Drawing may still read one, for a redraw, which blocks: not on the loop.
        samples = await asyncio.to_thread(lambda: [self.sampler.draw(number) for number in numbers])
        found: dict[int, tuple[Sample, Pixels]] = {}
        while samples:
            patches = await self._pixels_of(samples)
            refused: list[tuple[Sample, CorruptTileError | PatchFilter]] = []
            for sample, pixels, refusal in zip(samples, patches, await self._refusals(patches), strict=True):
                if refusal is not None:
                    refused.append((sample, refusal))
                elif not isinstance(pixels, CorruptTileError):
                    found[sample.index] = sample, pixels
            samples = await asyncio.to_thread(lambda: [self._redraw(*each) for each in refused]) if refused else []  # noqa: B023
        return found

    async def _refusals(
        self, patches: Sequence[Pixels | CorruptTileError]
    ) -> list[CorruptTileError | PatchFilter | None]:
        """Why each patch cannot be handed over, or None."""

        def refusal(pixels: Pixels | CorruptTileError) -> CorruptTileError | PatchFilter | None:
            if isinstance(pixels, CorruptTileError):
                return pixels
            return next((each for each in self.filters if not each.keeps(pixels)), None)

        if not self.filters:
            return [refusal(pixels) for pixels in patches]
        return await asyncio.to_thread(lambda: [refusal(pixels) for pixels in patches])

    async def _pixels_of(self, samples: Sequence[Sample]) -> list[Pixels | CorruptTileError]:
        requests = [
            PatchRequest(s.slide_id, s.position.x_level0_px, s.position.y_level0_px, self.sampler.size_px, s.mpp)
            for s in samples
        ]
        with _lock:
            self._read_patches["patches"] += len(samples)
        return await self.catalog.read_or_report(
            requests, policy=self.level_policy, decode=self.decode, enlarge=self.sampler.on_missing_mpp == "enlarge"
        )

    def _redraw(self, sample: Sample, refusal: CorruptTileError | PatchFilter) -> Sample:
        slide_id = sample.slide_id
        if isinstance(refusal, CorruptTileError):
            if self.on_corrupt == "raise" or sample.attempt + 1 >= MAX_REDRAWS:
                raise refusal
            if slide_id not in self.corrupt_patches:
                log.warning("%s; another patch is drawn in its place", refusal)
        elif sample.attempt + 1 >= MAX_REDRAWS:
            raise SamplingError(
                f"sample {sample.index}: {MAX_REDRAWS} draws gave no patch that all filters keep (the last one, of"
                f" slide {slide_id}, was refused by {refusal!r}); give it a wider range, or leave slides out"
            )
        counts = self.corrupt_patches if isinstance(refusal, CorruptTileError) else self.filtered_patches
        with _lock:
            counts[slide_id] = counts.get(slide_id, 0) + 1
        if isinstance(refusal, CorruptTileError):
            self._check_corrupt_share(refusal)
        return self.sampler.draw(sample.index, sample.attempt + 1)

    def _check_corrupt_share(self, last: CorruptTileError) -> None:
        with _lock:
            corrupt, patches = dict(self.corrupt_patches), self._read_patches["patches"]
        total = sum(corrupt.values())
        if total < LEAST_CORRUPT or total <= self.most_corrupt_share * patches:
            return
        worst = sorted(corrupt, key=lambda slide_id: -corrupt[slide_id])[:NAMED_SLIDES]
        named = ", ".join(f"{slide_id} ({corrupt[slide_id]})" for slide_id in worst)
        raise SlideFormatError(
            f"{total} of {patches} patches had tiles that do not decode, allowed {self.most_corrupt_share:.1%}"
            f" (most_corrupt_share); most of them in {named} of {len(corrupt)} slides; restore these files and index"
            f" them again, or leave them out: where={without_slides(worst)!r}"
        ) from last


def _short_hash(facts: tuple[object, ...]) -> str:
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]
