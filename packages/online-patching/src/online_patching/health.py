"""What went otherwise than asked while slides were read?

``HealthLog`` counts, by slide, the tiles that did not decode or were never stored, and the patches that reach outside
of the slide or had to be enlarged. Slides without any of these have no entry, so that it stays small for any cohort.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from online_patching.fork_lock import ForkLock

# One for all logs, held for a moment.
_lock = ForkLock()


@dataclass(frozen=True, slots=True)
class SlideHealth:
    """Counts of one slide since it was opened.

    Attributes:
        corrupt_tiles: Reads of tiles that do not decode.
        missing_tiles: Reads of tiles that were not stored, white in the patches.
        outside_patches: Windows that reach outside of the slide, white there.
        enlarged_patches: Patches whose target is finer than the finest level by more than 5 %.
    """

    corrupt_tiles: int = 0
    missing_tiles: int = 0
    outside_patches: int = 0
    enlarged_patches: int = 0


class HealthLog:
    """Counts by slide; any thread may add to it."""

    def __init__(self) -> None:
        self._slides: dict[str, SlideHealth] = {}

    def __getstate__(self) -> dict[str, dict[str, SlideHealth]]:
        # A copy, to which no thread adds while it is written.
        return {"_slides": self.report()}

    def add(
        self,
        slide_id: str,
        *,
        corrupt_tiles: int = 0,
        missing_tiles: int = 0,
        outside_patches: int = 0,
        enlarged_patches: int = 0,
    ) -> None:
        """Count what was met in one slide."""
        with _lock:
            known = self._slides.get(slide_id) or SlideHealth()
            self._slides[slide_id] = replace(
                known,
                corrupt_tiles=known.corrupt_tiles + corrupt_tiles,
                missing_tiles=known.missing_tiles + missing_tiles,
                outside_patches=known.outside_patches + outside_patches,
                enlarged_patches=known.enlarged_patches + enlarged_patches,
            )

    def report(self) -> dict[str, SlideHealth]:
        """The counts of every slide that has any, by id."""
        with _lock:
            return dict(sorted(self._slides.items()))
