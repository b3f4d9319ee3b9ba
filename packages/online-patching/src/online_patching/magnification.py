"""At which resolution is a patch of a slide drawn?

Either one of some magnifications, each with its weight, or any between two, uniform in its logarithm (as many patches
between 0.25 and 0.5 um/px as between 0.5 and 1). A slide gives only what it serves: nothing finer than its level 0
allows (``geometry.serves_mpp``), and nothing of which its foreground cannot fill a patch. What it lacks goes to its
other magnifications; how often a slide is drawn does not depend on it.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


class ListedMpp:
    """Some magnifications with weights.

    Args:
        mpp: um per pixel.
        weights: As many numbers above 0; None: all alike.

    Raises:
        ValueError: Numbers that are not allowed.
    """

    def __init__(self, mpp: Sequence[float], weights: Sequence[float] | None = None) -> None:
        self.mpp = tuple(map(float, mpp))
        self.weights = (1.0,) * len(self.mpp) if weights is None else tuple(map(float, weights))
        if not self.mpp or not all(0 < each < math.inf for each in self.mpp):
            raise ValueError(f"mpp: got {self.mpp!r}, allowed numbers above 0 (um per pixel)")
        if len(self.weights) != len(self.mpp) or not all(0 < each < math.inf for each in self.weights):
            raise ValueError(f"mpp_weights: got {self.weights!r}, allowed {len(self.mpp)} numbers above 0, one a mpp")
        self.shown = f"{self.mpp} um/px"
        # Which of them a slide serves: the same few choices for all slides.
        self._choices: list[tuple[list[float], list[float]]] = []
        self._choice_of: npt.NDArray[np.intp] = np.empty(0, np.intp)

    def limit(self, serves: Callable[[float], Bools], _least: Floats, _most: Floats) -> Bools:
        """Which slides serve any of it."""
        self._serves = np.stack([serves(mpp) for mpp in self.mpp], axis=1)
        any_of_them: Bools = np.logical_or.reduce(self._serves, axis=1)
        return any_of_them

    def keep(self, numbers: npt.NDArray[np.int64]) -> None:
        """Of the slides that were limited, only these are drawn, by their places here."""
        patterns, self._choice_of = np.unique(self._serves[numbers], axis=0, return_inverse=True)
        del self._serves
        for pattern in patterns.tolist():
            mpp = [each for each, served in zip(self.mpp, pattern, strict=True) if served]
            weights = [each for each, served in zip(self.weights, pattern, strict=True) if served]
            self._choices.append((mpp, np.cumsum(weights).tolist()))

    def choose(self, place: int, number: float) -> float:
        """A magnification of a slide for a random number in [0, 1)."""
        mpp, ends = self._choices[self._choice_of[place]]
        chosen: float = mpp[min(bisect_right(ends, number * ends[-1]), len(mpp) - 1)] if len(mpp) > 1 else mpp[0]
        return chosen


class RangeOfMpp:
    """Any magnification between two.

    Args:
        ends: Finest and coarsest um per pixel.

    Raises:
        ValueError: Numbers that are not allowed.
    """

    def __init__(self, ends: Sequence[float]) -> None:
        if len(ends) != 2 or not 0 < ends[0] <= ends[1] < math.inf:
            raise ValueError(
                f"mpp_range: got {tuple(ends)!r}, allowed two numbers above 0, the finer (smaller) one first"
            )
        self.mpp = tuple(map(float, ends))
        self.weights: tuple[float, ...] = ()
        self.shown = f"{ends[0]:g} to {ends[1]:g} um/px"

    def limit(self, _serves: Callable[[float], Bools], least: Floats, most: Floats) -> Bools:
        """Which slides serve any of it, and from where to where."""
        self._least = np.maximum(least, self.mpp[0])
        self._most = np.minimum(most, self.mpp[1])
        # NaN, of slides without a resolution, compares false.
        any_of_it: Bools = self._least <= self._most
        return any_of_it

    def keep(self, numbers: npt.NDArray[np.int64]) -> None:
        """Of the slides that were limited, only these are drawn, by their places here."""
        self._least, self._most = self._least[numbers], self._most[numbers]

    def choose(self, place: int, number: float) -> float:
        """A magnification of a slide for a random number in [0, 1)."""
        least, most = float(self._least[place]), float(self._most[place])
        # Rounded where libraries of logarithms still agree: the same number on all machines.
        mpp = float(f"{least * math.exp(number * math.log(most / least)):.9g}")
        return min(max(mpp, least), most)
