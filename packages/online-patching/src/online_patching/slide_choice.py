"""How often is each slide drawn?

A choice of slides gives every slide that takes part a weight; slides are drawn in proportion to these. The names
``uniform`` and ``area`` stand for the two that need no argument; ``ByWeight`` and ``ByGroup`` read a column of the
catalog; any other class with the method of ``SlideChoice`` does as well, given in Python or by its ``class_path``::

    slide_sampling:
      class_path: online_patching.slide_choice.ByGroup
      init_args: {column: diagnosis}

What decides the draws of a stream, and enters its fingerprint, are the weights themselves.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args, runtime_checkable

import numpy as np
import numpy.typing as npt

from online_patching.errors import CatalogError
from online_patching.slide_table import OWN_COLUMNS, SlideTable

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

NamedChoice = Literal["uniform", "area"]


@runtime_checkable
class SlideChoice(Protocol):
    """Tells how often slides are drawn; it travels to workers, so it can be pickled."""

    def weights(self, rows: SlideTable, numbers: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """Weights of the slides that take part, float64 (N,), at least 0 each: one of 0 is never drawn.

        Args:
            rows: The slide table.
            numbers: Row numbers of the slides that take part, int64 (N,).
        """
        ...


@dataclass(frozen=True, slots=True)
class ByWeight:
    """Slides in proportion to a column of the catalog.

    Args:
        column: Of numbers of at least 0.
    """

    column: str

    def weights(self, rows: SlideTable, numbers: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """The column's values."""
        values = _values(rows, self.column, numbers)
        for number, value in zip(numbers, values, strict=True):
            if isinstance(value, str) or not 0 <= value < float("inf"):
                raise CatalogError(
                    f"slide {rows.value(int(number), 'id')}: column {self.column!r} holds {value!r}, allowed are"
                    " weights: numbers of at least 0"
                )
        return np.array(values, np.float64)


@dataclass(frozen=True, slots=True)
class ByGroup:
    """Groups equally often, and within a group all its slides.

    Args:
        column: Whose values tell the groups, for example of diagnoses or patients.
    """

    column: str

    def weights(self, rows: SlideTable, numbers: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """One over the number of slides of the slide's group that take part."""
        values = _values(rows, self.column, numbers)
        sizes = Counter(values)
        return np.array([1 / sizes[value] for value in values])


def weights_of(choice: NamedChoice | SlideChoice, rows: SlideTable, numbers: Ints) -> Floats:
    """Weights of the slides that take part, checked.

    Raises:
        ValueError: An unknown choice, or weights that are none.
    """
    if choice == "uniform":
        return np.ones(len(numbers))
    if choice == "area":
        return rows.numbers("foreground_area_mm2")[numbers]
    check_choice(choice)
    assert not isinstance(choice, str), "names were dealt with"
    weights = np.asarray(choice.weights(rows, numbers), np.float64)
    right = weights.shape == numbers.shape and bool((weights >= 0).all()) and np.isfinite(weights).all()
    if not right or not weights.sum() > 0:
        raise ValueError(
            f"slide_sampling: {choice!r} gave weights of shape {weights.shape}, allowed {len(numbers)} finite numbers"
            " of at least 0, not all 0"
        )
    return weights


def check_choice(choice: object) -> None:
    """Refuse what is no choice of slides.

    Raises:
        ValueError: It is none.
    """
    if choice in get_args(NamedChoice) if isinstance(choice, str) else isinstance(choice, SlideChoice):
        return
    raise ValueError(
        f"slide_sampling: got {choice!r}, allowed {get_args(NamedChoice)}, or an object with the method of SlideChoice"
    )


def _values(rows: SlideTable, column: str, numbers: Ints) -> list[Any]:
    if column not in rows.user_columns and column not in OWN_COLUMNS:
        raise CatalogError(f"slide_sampling: no catalog column {column!r} (columns of the user: {rows.user_columns})")
    values: list[Any] = rows.arrow[column].take(numbers).to_pylist()
    if None in values:
        number = int(numbers[values.index(None)])
        raise CatalogError(
            f"slide {rows.value(number, 'id')}: catalog column {column!r} has no value; give it for every slide when"
            " indexing (--metadata)"
        )
    return values
