"""What does the number in a label file mean?

A class map names the classes and the raw values of each; the first class is the background, which no DICE
counts. Raw values come from a PNG (class numbers, or instance numbers where any value above 0 is the one
foreground class) or from CoNSeP's `.mat` files. A value outside the map is an error: guessing would give
wrong numbers.

After: layouts, which pairs label files with images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fm_eval.errors import DatasetError
from fm_eval.transform import opened_image

LabelKind = Literal["semantic", "instance"]

MAX_CLASSES = 64
# Palette images give their indices; colours are no class numbers.
_PNG_MODES = {"1", "L", "P", "I", "I;16", "I;16B"}


@dataclass(frozen=True, slots=True)
class ClassMap:
    """Names of the classes and the raw label values of each.

    Attributes:
        names: C class names, background first.
        values: the raw values of each class; empty for all but the background of an instance map.
        kind: `instance` maps every value above 0 to class 1.
    """

    names: tuple[str, ...]
    values: tuple[tuple[int, ...], ...]
    kind: LabelKind = "semantic"

    @classmethod
    def semantic(cls, classes: Mapping[str, Sequence[int]]) -> ClassMap:
        """A map from class name to raw values, background first.

        Raises:
            DatasetError: fewer than two classes, a class without values, a value that is no int >= 0 or is
                claimed twice.
        """
        if not 2 <= len(classes) <= MAX_CLASSES:
            raise DatasetError(
                f"classes: got {len(classes)}, allowed are 2 to {MAX_CLASSES}, background first; "
                "for example {background: [0], nucleus: [1, 2]}"
            )
        owner: dict[int, str] = {}
        for name, values in classes.items():
            if not values:
                raise DatasetError(f"classes: {name!r} has no label values; list at least one")
            for value in values:
                if not isinstance(value, int) or isinstance(value, bool) or value < 0:
                    raise DatasetError(f"classes: {name!r} has the value {value!r}, expected an int of at least 0")
                if value in owner:
                    raise DatasetError(f"classes: value {value} is in {owner[value]!r} and in {name!r}; keep one")
                owner[value] = name
        return cls(tuple(classes), tuple(tuple(values) for values in classes.values()))

    @classmethod
    def instance(cls, *, background: str = "background", foreground: str = "foreground") -> ClassMap:
        """0 is background, every instance number above it the one foreground class."""
        return cls((background, foreground), ((0,), ()), "instance")

    def apply(self, raw: NDArray[Any], *, source: str | Path) -> NDArray[np.uint8]:
        """Map raw label values to class numbers.

        Args:
            raw: (H, W) of any integer type, or floats that hold integers (as `.mat` files do).
            source: named by errors.

        Returns:
            uint8 (H, W) class numbers below C.

        Raises:
            DatasetError: not two-dimensional, not integers, or a value outside the map.
        """
        if raw.ndim != 2 or raw.size == 0:
            raise DatasetError(f"label {source}: array of shape {raw.shape}, expected (height, width)")
        if raw.dtype.kind not in "buif" or (raw.dtype.kind == "f" and not (np.mod(raw, 1) == 0).all()):
            raise DatasetError(f"label {source}: values of type {raw.dtype} that are no class numbers")
        if self.kind == "instance":
            if raw.min() < 0:
                raise DatasetError(f"label {source}: instance number {int(raw.min())}, expected 0 or more")
            return (raw > 0).astype(np.uint8)
        known = {value: number for number, values in enumerate(self.values) for value in values}
        present = np.unique(raw)
        unknown = [int(value) for value in present if int(value) not in known]
        if unknown:
            raise DatasetError(
                f"label {source}: value {unknown[0]} is in no class (one of {len(unknown)}), known are "
                f"{', '.join(map(str, sorted(known)))}; add it to classes, or labels=instance if values count objects"
            )
        table = np.array([known[int(value)] for value in present], dtype=np.uint8)
        return table[np.searchsorted(present, raw)]


CONSEP_CLASSES = ClassMap.semantic(
    {"background": [0], "other": [1], "inflammatory": [2], "epithelial": [3, 4], "spindle-shaped": [5, 6, 7]}
)
"""CoNSeP's seven types in the four classes of the paper (section IV-A): 3 and 4 are healthy and malignant
epithelium, 5 to 7 fibroblast, muscle and endothelium."""


def read_label_png(path: Path) -> NDArray[Any]:
    """Raw values of a label image, (H, W).

    Raises:
        DatasetError: not an image, or one with colours instead of numbers.
    """
    with opened_image(path, kind="label", remedy="replace the file") as image:
        if image.mode not in _PNG_MODES:
            raise DatasetError(
                f"label {path}: pixel mode {image.mode}, expected one channel of class or instance numbers"
            )
        return np.asarray(image).copy()


def read_consep_mat(path: Path) -> NDArray[Any]:
    """`type_map` of one of CoNSeP's label files, (H, W) with values 0 to 7.

    Raises:
        DatasetError: not a MATLAB 5 file with `type_map` and an `inst_map` of the same size.
    """
    from scipy.io import loadmat

    try:
        content = loadmat(path, variable_names=["inst_map", "type_map"])
    except Exception as error:  # damage ends this reader in many kinds of exceptions
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DatasetError(f"label {path}: not a MATLAB 5 file ({reason}); download it again") from error
    missing = [name for name in ("inst_map", "type_map") if name not in content]
    if missing:
        raise DatasetError(f"label {path}: no {missing[0]}; CoNSeP's label files hold inst_map and type_map")
    instances, types = (np.asarray(content[name]) for name in ("inst_map", "type_map"))
    if instances.shape != types.shape:
        raise DatasetError(f"label {path}: inst_map is {instances.shape}, type_map {types.shape}; download it again")
    return types
