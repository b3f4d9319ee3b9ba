"""Which slide, magnification and position is sample number *i*?

A ``PatchSampler`` binds the pure choices of ``sampling`` to a catalog: first a slide, then one of the magnifications it
serves, then a position with enough foreground. Every choice comes from the generator of (seed, *i*), so a sample is the
same on every machine, rank and worker.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np
import numpy.typing as npt

from online_patching.catalog import Catalog
from online_patching.errors import CatalogError, SamplingError
from online_patching.geometry import MAX_ENLARGEMENT, MissingMpp, footprint_level0_px, serves_mpp
from online_patching.magnification import ListedMpp, RangeOfMpp
from online_patching.sampling import Position, can_hold_patch, generator, sample_position
from online_patching.slide_choice import NamedChoice, SlideChoice, check_choice, weights_of
from online_patching.slide_subset import chosen_slides

Floats = npt.NDArray[np.float64]

log = logging.getLogger(__name__)

# A sample that cannot be had (a sliver of tissue, a corrupt tile, one that a filter refuses) is drawn anew this often
# before it is an error: a filter that keeps one patch in five fails once in a million samples.
MAX_REDRAWS = 64
# In place of a redraw's number: the random numbers that choose among a limited number of patches.
REUSE = 2**64 - 1
# So many slides that are left out are named; of the others the number is told.
NAMED_SLIDES = 5


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
        weights: How often each of them is drawn, in proportion, float64 (N,).
        mpp: The magnifications, or both ends of their range.
        impossible: Draws by slide that its foreground, though large enough by its area, had no place for.
    """

    def __init__(
        self,
        catalog: Catalog,
        *,
        size_px: int,
        mpp: Sequence[float] = (),
        mpp_weights: Sequence[float] | None = None,
        mpp_range: Sequence[float] | None = None,
        min_foreground: float,
        seed: int,
        where: str | None = None,
        slide_share: float = 1.0,
        slide_share_seed: int = 0,
        slide_sampling: NamedChoice | SlideChoice = "uniform",
        on_missing_mpp: MissingMpp = "skip",
        distinct_patches: int | None = None,
    ) -> None:
        if mpp_range is not None and (mpp or mpp_weights is not None):
            raise ValueError("mpp_range: got mpp or mpp_weights too, allowed is one of a range and a list")
        self.catalog = catalog
        self.size_px = size_px
        self.min_foreground = min_foreground
        self.seed = seed
        self.slide_sampling = slide_sampling
        self.on_missing_mpp = on_missing_mpp
        self.distinct_patches = distinct_patches
        self.impossible: dict[str, int] = {}
        self._check_arguments()
        self._magnification = ListedMpp(mpp, mpp_weights) if mpp_range is None else RangeOfMpp(mpp_range)
        self.mpp = self._magnification.mpp
        rows = catalog.rows
        self._base_mpp = rows.numbers("mpp")
        self._width_level0_px = rows.numbers("width_px")
        self._height_level0_px = rows.numbers("height_px")
        self._chosen = chosen_slides(rows, where=where, share=slide_share, seed=slide_share_seed)
        self.served = self._find_served(rows.numbers("foreground_area_level0_px2"))
        self._magnification.keep(self.served)
        self.weights = weights_of(slide_sampling, rows, self.served)
        self._cumulative_weights = np.cumsum(self.weights)
        self._total_weight = float(self._cumulative_weights[-1])

    def facts(self) -> tuple[object, ...]:
        """All that decides which patch sample *i* of a seed is, but for the catalog."""
        return (
            *self.chosen_facts(),
            *(int(self.size_px), type(self._magnification).__name__, self.mpp, self._magnification.weights),
            *(float(self.min_foreground), self.on_missing_mpp),
            hashlib.sha256(self.weights.astype("<f8").tobytes()).hexdigest(),
        )

    def chosen_facts(self) -> tuple[object, ...]:
        """Which slides were chosen from the catalog; nothing where it is all of them."""
        return () if self._chosen.all() else (hashlib.sha256(np.packbits(self._chosen).tobytes()).hexdigest(),)

    def _check_arguments(self) -> None:
        for name, got, right, allowed in (
            ("size_px", self.size_px, self.size_px >= 1, "at least 1"),
            ("min_foreground", self.min_foreground, 0 <= self.min_foreground <= 1, "0 to 1"),
            (
                "distinct_patches",
                self.distinct_patches,
                self.distinct_patches is None or self.distinct_patches >= 1,
                "at least 1",
            ),
            ("seed", self.seed, 0 <= self.seed < 2**64, "0 to 2^64 - 1"),
            ("on_missing_mpp", self.on_missing_mpp, self.on_missing_mpp in get_args(MissingMpp), get_args(MissingMpp)),
        ):
            if not right:
                raise ValueError(f"{name}: got {got!r}, allowed {allowed}")
        check_choice(self.slide_sampling)

    def _find_served(self, area_level0_px2: Floats) -> npt.NDArray[np.int64]:
        """Slides that take part."""
        without_foreground = np.flatnonzero(np.isnan(area_level0_px2) & self._chosen)
        if len(without_foreground):
            raise CatalogError(
                f"{self._named(without_foreground)} has no foreground yet; run `online-patching foreground --catalog"
                f" {self.catalog.shown_url}`, and leave out what it cannot read by"
                ' where="foreground_area_level0_px2 is not None"'
            )
        with_mpp = ~np.isnan(self._base_mpp)
        self._warn(
            np.flatnonzero(~with_mpp & self._chosen),
            "no mpp in its headers; give it when indexing: --mpp ID=VALUE or a column 'mpp'",
        )
        # Just above the bound, so that rounding does not lead below it.
        finest = self._base_mpp / MAX_ENLARGEMENT * (1 + 1e-9)
        if self.on_missing_mpp == "error":
            self._refuse_coarse(min(self.mpp))
        elif self.on_missing_mpp == "enlarge":
            finest = np.zeros_like(finest)
        # The largest patch that the foreground can fill.
        with np.errstate(divide="ignore", invalid="ignore"):
            side_level0_px = np.sqrt(area_level0_px2 / np.float64(self.min_foreground))
        coarsest = np.where(area_level0_px2 > 0, self._base_mpp * side_level0_px / self.size_px, np.nan)
        any_of_it = self._magnification.limit(lambda mpp: self._serves(area_level0_px2, mpp), finest, coarsest)
        asked = self._magnification.shown
        takes_part = with_mpp & self._chosen
        self._warn(np.flatnonzero(takes_part & ~any_of_it), f"it serves none of {asked} with enough foreground")
        served = np.flatnonzero(any_of_it & takes_part)
        if not len(served):
            raise CatalogError(
                f"{self.catalog.shown_url}: none of {int(self._chosen.sum())} slides serves patches of {self.size_px}"
                f" px at {asked} with {self.min_foreground:.0%} foreground; ask for coarser mpp or smaller patches"
            )
        return served

    def _refuse_coarse(self, mpp: float) -> None:
        coarse = np.flatnonzero(~serves_mpp(self._base_mpp, mpp) & ~np.isnan(self._base_mpp) & self._chosen)
        if len(coarse):
            raise CatalogError(
                f"{self._named(coarse)}: {self._base_mpp[coarse[0]]:g} um/px at level 0 cannot serve {mpp:g} um/px"
            )

    def _serves(self, area_level0_px2: Floats, mpp: float) -> npt.NDArray[np.bool_]:
        """Which slides serve one magnification; one without mpp serves none (NaN compares false)."""
        fine_enough = serves_mpp(self._base_mpp, mpp)
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

    def source_of(self, index: int) -> int:
        """Number of the sample whose patch sample ``index`` shows: its own, or of a limited number any one of these.

        As in the paper's study of data size (section IV-D2): once ``distinct_patches`` have been seen, each one is
        drawn from those, uniformly.
        """
        if self.distinct_patches is None or index < self.distinct_patches:
            return index
        return int(generator(self.seed, index, REUSE).integers(self.distinct_patches))

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
                self._count_impossible(slide_id, error)
                continue
            return Sample(index, redraw, slide_id, mpp, position)
        raise SamplingError(f"sample {index}: {last}; lower min_foreground or the patch size") from last

    def _count_impossible(self, slide_id: str, error: SamplingError) -> None:
        if slide_id not in self.impossible:
            log.warning("slide %s: %s; another patch is drawn in its place", slide_id, error)
        self.impossible[slide_id] = self.impossible.get(slide_id, 0) + 1

    def slide_of(self, index: int, attempt: int = 0) -> str:
        """The slide that ``draw`` tries first, so that what it needs of it can be read beforehand."""
        number, _ = self._choose(generator(self.seed, index, attempt))
        return str(self.catalog.rows.value(number, "id"))

    def _choose(self, rng: np.random.Generator) -> tuple[int, float]:
        """Row number of a slide, and a magnification that it serves."""
        for_slide, for_mpp = rng.random(2).tolist()
        place = int(self._cumulative_weights.searchsorted(for_slide * self._total_weight, side="right"))
        # Rounding may lead just beyond the last.
        place = min(place, len(self.served) - 1)
        return self.served.item(place), self._magnification.choose(place, for_mpp)
