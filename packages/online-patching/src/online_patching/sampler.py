"""Which slide, magnification and position is sample number *i*?

A ``PatchSampler`` binds the pure choices of ``sampling`` to a catalog: first a slide, then one of the magnifications it
serves, then a position with enough foreground. Every choice comes from the generator of (seed, *i*), so a sample is the
same on every machine, rank and worker.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from online_patching.catalog import Catalog
from online_patching.errors import CatalogError, SamplingError
from online_patching.geometry import MissingMpp, footprint_level0_px, serves_mpp
from online_patching.sampling import Position, can_hold_patch, generator, sample_position

log = logging.getLogger(__name__)

# A sample that cannot be had (a sliver of tissue, a corrupt tile) is drawn anew this often before it is an error.
MAX_REDRAWS = 16
# So many slides that are left out are named; of the others the number is told.
NAMED_SLIDES = 5

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
        served: Row numbers in the slide table of the slides that take part, int64 (N,).
        serves: Which of the magnifications each of them serves, bool (N, len(mpp)).
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
        rows = catalog.rows
        self._base_mpp = rows.numbers("mpp")
        self._width_level0_px = rows.numbers("width_px")
        self._height_level0_px = rows.numbers("height_px")
        self.served, self.serves = self._find_served(rows.numbers("foreground_area_level0_px2"))
        by_area = slide_sampling == "area"
        weights = rows.numbers("foreground_area_mm2")[self.served] if by_area else np.ones(len(self.served))
        self._cumulative_weights = np.cumsum(weights)
        self._total_weight = float(self._cumulative_weights[-1])

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

    def _find_served(
        self, area_level0_px2: npt.NDArray[np.float64]
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
        """Slides that take part, and the magnifications that each of them serves."""
        without_foreground = np.flatnonzero(np.isnan(area_level0_px2))
        if len(without_foreground):
            raise CatalogError(
                f"{self._named(without_foreground)} has no foreground yet; run `online-patching foreground --catalog"
                f" {self.catalog.shown_url}`"
            )
        with_mpp = ~np.isnan(self._base_mpp)
        self._warn(
            np.flatnonzero(~with_mpp), "no mpp in its headers; give it when indexing: --mpp ID=VALUE or a column 'mpp'"
        )
        serves = np.stack([self._serves(area_level0_px2, mpp) for mpp in self.mpp], axis=1)
        reason = f"it serves none of {self.mpp} um/px with enough foreground"
        self._warn(np.flatnonzero(with_mpp & ~serves.any(axis=1)), reason)
        served = np.flatnonzero(serves.any(axis=1))
        if not len(served):
            raise CatalogError(
                f"{self.catalog.shown_url}: none of {len(self.catalog)} slides serves patches of {self.size_px} px at"
                f" {self.mpp} um/px with {self.min_foreground:.0%} foreground; ask for coarser mpp or smaller patches"
            )
        return served, serves[served]

    def _serves(self, area_level0_px2: npt.NDArray[np.float64], mpp: float) -> npt.NDArray[np.bool_]:
        """Which slides serve one magnification; one without mpp serves none (NaN compares false)."""
        fine_enough = serves_mpp(self._base_mpp, mpp)
        coarse = np.flatnonzero(~fine_enough & ~np.isnan(self._base_mpp))
        if self.on_missing_mpp == "error" and len(coarse):
            raise CatalogError(
                f"{self._named(coarse)}: {self._base_mpp[coarse[0]]:g} um/px at level 0 cannot serve {mpp:g} um/px"
            )
        sides_level0_px = footprint_level0_px(self.size_px, mpp, self._base_mpp)
        enough = can_hold_patch(area_level0_px2, sides_level0_px, self.min_foreground)
        return enough & (fine_enough | (self.on_missing_mpp == "enlarge"))

    def _named(self, numbers: npt.NDArray[np.int64]) -> str:
        """The first of some slides, and how many others there are."""
        others = f" (and {len(numbers) - 1} others)" if len(numbers) > 1 else ""
        return f"slide {self.catalog.rows.value(int(numbers[0]), 'id')}{others}"

    def _warn(self, left_out: npt.NDArray[np.int64], reason: str) -> None:
        for number in left_out[:NAMED_SLIDES]:
            log.warning("slide %s left out: %s", self.catalog.rows.value(int(number), "id"), reason)
        if len(left_out) > NAMED_SLIDES:
            log.warning("%d more slides left out: %s", len(left_out) - NAMED_SLIDES, reason)

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
            number, mpp = self._choose(rng)
            slide_id = str(self.catalog.rows.value(number, "id"))
            try:
                position = sample_position(
                    self.catalog.outline(slide_id),
                    size_level0_px=footprint_level0_px(self.size_px, mpp, float(self._base_mpp[number])),
                    width_level0_px=int(self._width_level0_px[number]),
                    height_level0_px=int(self._height_level0_px[number]),
                    min_foreground=self.min_foreground,
                    rng=rng,
                )
            except SamplingError as error:
                last = error
                continue
            return Sample(index, redraw, slide_id, mpp, position)
        raise SamplingError(f"sample {index}: {last}; lower min_foreground or the patch size") from last

    def slide_of(self, index: int, attempt: int = 0) -> str:
        """The slide that ``draw`` tries first, so that what it needs of it can be read beforehand."""
        number, _ = self._choose(generator(self.seed, index, attempt))
        return str(self.catalog.rows.value(number, "id"))

    def _choose(self, rng: np.random.Generator) -> tuple[int, float]:
        """Row number of a slide, and one of the magnifications that it serves."""
        share = rng.random() * self._total_weight
        place = int(self._cumulative_weights.searchsorted(share, side="right"))
        served = [mpp for mpp, serves in zip(self.mpp, self.serves[place].tolist(), strict=True) if serves]
        # A choice of one takes no random number.
        return self.served.item(place), served[int(rng.integers(len(served)))] if len(served) > 1 else served[0]
