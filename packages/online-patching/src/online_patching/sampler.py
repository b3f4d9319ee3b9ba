"""Which slide, magnification and position is sample number *i*?

A ``PatchSampler`` binds the pure choices of ``sampling`` to a catalog: first a slide, then one of the magnifications it
serves, then a position with enough foreground. Every choice comes from the generator of (seed, *i*), so a sample is the
same on every machine, rank and worker.
"""

from __future__ import annotations

import itertools
import logging
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from online_patching.catalog import Catalog
from online_patching.catalog_files import SlideRow
from online_patching.errors import CatalogError, SamplingError
from online_patching.geometry import MissingMpp, footprint_level0_px, serves_mpp
from online_patching.sampling import Position, can_hold_patch, generator, sample_position

log = logging.getLogger(__name__)

# A sample that cannot be had (a sliver of tissue, a corrupt tile) is drawn anew this often before it is an error.
MAX_REDRAWS = 16

SlideSampling = Literal["uniform", "area"]


@dataclass(frozen=True, slots=True)
class Sample:
    """One drawn patch: which one it is, not yet its pixels."""

    index: int
    attempt: int
    slide_id: str
    mpp: float
    position: Position


class PatchSampler:
    """Draws samples from a catalog; see ``PatchStream`` for the arguments.

    Attributes:
        served: Slides that take part, each with the magnifications it serves.
    """

    def __init__(
        self,
        catalog: Catalog,
        *,
        size_px: int,
        mpp: Sequence[float],
        min_foreground: float,
        seed: int,
        slide_sampling: SlideSampling = "uniform",
        on_missing_mpp: MissingMpp = "skip",
    ) -> None:
        self.catalog = catalog
        self.size_px = size_px
        self.mpp = tuple(mpp)
        self.min_foreground = min_foreground
        self.seed = seed
        self.slide_sampling = slide_sampling
        self.on_missing_mpp = on_missing_mpp
        self._check_arguments()
        self.served = self._find_served()
        weights = (row.foreground_area_mm2 or 0.0 if slide_sampling == "area" else 1.0 for row, _ in self.served)
        self._cumulative_weights = list(itertools.accumulate(weights))

    def _check_arguments(self) -> None:
        for name, got, right, allowed in (
            ("size_px", self.size_px, self.size_px >= 1, "at least 1"),
            ("mpp", self.mpp, bool(self.mpp) and all(m > 0 for m in self.mpp), "numbers above 0 (um per pixel)"),
            ("min_foreground", self.min_foreground, 0 <= self.min_foreground <= 1, "0 to 1"),
            ("seed", self.seed, 0 <= self.seed < 2**64, "0 to 2^64 - 1"),
            (
                "slide_sampling",
                self.slide_sampling,
                self.slide_sampling in get_args(SlideSampling),
                get_args(SlideSampling),
            ),
            ("on_missing_mpp", self.on_missing_mpp, self.on_missing_mpp in get_args(MissingMpp), get_args(MissingMpp)),
        ):
            if not right:
                raise ValueError(f"{name}: got {got!r}, allowed {allowed}")

    def _find_served(self) -> list[tuple[SlideRow, tuple[float, ...]]]:
        """Slides that take part, each with the magnifications it serves."""
        served = []
        for row in self.catalog:
            if row.foreground_area_level0_px2 is None:
                raise CatalogError(
                    f"slide {row.id} has no foreground yet; run `online-patching foreground --catalog"
                    f" {self.catalog.shown_url}`"
                )
            if row.header.mpp is None:
                log.warning(
                    "slide %s left out: no mpp in its headers; give it when indexing: --mpp %s=VALUE", row.id, row.id
                )
                continue
            magnifications = tuple(value for value in self.mpp if self._serves(row, row.header.mpp, value))
            if magnifications:
                served.append((row, magnifications))
            else:
                log.warning("slide %s left out: it serves none of %s um/px with enough foreground", row.id, self.mpp)
        if not served:
            raise CatalogError(
                f"{self.catalog.shown_url}: none of {len(self.catalog)} slides serves patches of {self.size_px} px at"
                f" {self.mpp} um/px with {self.min_foreground:.0%} foreground; ask for coarser mpp or smaller patches"
            )
        return served

    def _serves(self, row: SlideRow, base_mpp: float, mpp: float) -> bool:
        if not serves_mpp(base_mpp, mpp) and self.on_missing_mpp == "skip":
            return False
        if not serves_mpp(base_mpp, mpp) and self.on_missing_mpp == "error":
            raise CatalogError(f"slide {row.id}: {base_mpp:g} um/px at level 0 cannot serve {mpp:g} um/px")
        size_level0_px = footprint_level0_px(self.size_px, mpp, base_mpp)
        return can_hold_patch(row.foreground_area_level0_px2 or 0.0, size_level0_px, self.min_foreground)

    def draw(self, index: int, attempt: int = 0) -> Sample:
        """Sample number ``index``: a pure function of the seed, the catalog and the index.

        Args:
            index: Global sample number.
            attempt: Number of the redraw, where an earlier draw could not be had.

        Raises:
            SamplingError: No position was found in any redraw.
        """
        last: SamplingError | None = None
        for redraw in range(attempt, attempt + MAX_REDRAWS):
            rng = generator(self.seed, index, redraw)
            number = bisect_right(self._cumulative_weights, rng.random() * self._cumulative_weights[-1])
            row, magnifications = self.served[number]
            mpp = magnifications[int(rng.integers(len(magnifications)))]
            base = row.header.levels[0]
            assert row.header.mpp is not None, "slides without mpp were left out"
            try:
                position = sample_position(
                    self.catalog.foreground(row.id),
                    size_level0_px=footprint_level0_px(self.size_px, mpp, row.header.mpp),
                    width_level0_px=base.width_px,
                    height_level0_px=base.height_px,
                    min_foreground=self.min_foreground,
                    rng=rng,
                )
            except SamplingError as error:
                last = error
                continue
            return Sample(index, redraw, row.id, mpp, position)
        raise SamplingError(f"sample {index}: {last}; lower min_foreground or the patch size") from last
