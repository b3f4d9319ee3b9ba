"""How are images divided when a dataset has no split?

Into train, val and test (about 60 : 20 : 20), or into folds of a cross-validation, so that a group is never
divided and classes keep their shares: scikit-learn's StratifiedGroupKFold. The same labels, groups and seed
give the same division. `by_image` ignores the groups: it exists to show how much a split that leaks flatters.

Called by datasets, which then checks the outcome like any other split.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from fm_eval.errors import DatasetError


def make_split(labels: Sequence[str], groups: Sequence[str], *, seed: int) -> list[str]:
    """Assign each row to train, val or test; a group stays whole.

    Five folds (fewer when there are fewer groups): one for test, one for val, the rest for train.

    Args:
        labels: class of each row.
        groups: group of each row; all rows of a group get the same split.
        seed: of the shuffling.

    Returns:
        Split name of each row.

    Raises:
        DatasetError: a class is in fewer than three groups, so it cannot be in all three splits.
    """
    count = min(5, _scarcest(labels, groups, at_least=3))
    fold = _folds(labels, groups, count=count, seed=seed)
    names = {0: "test", 1: "val"}
    return [names.get(number, "train") for number in fold]


def split_by_image(labels: Sequence[str], *, seed: int) -> list[str]:
    """Like `make_split`, but each image on its own: whatever groups there are end up on both sides.

    Raises:
        DatasetError: a class has fewer than three images.
    """
    return make_split(labels, [str(row) for row in range(len(labels))], seed=seed)


def make_folds(labels: Sequence[str], groups: Sequence[str], *, count: int, seed: int) -> list[int]:
    """Assign each row to one of `count` folds; a group stays whole.

    Args:
        labels: class of each row.
        groups: group of each row.
        count: folds, at least 2.
        seed: of the shuffling.

    Returns:
        Fold of each row, 0 to count - 1.

    Raises:
        DatasetError: fewer than 2 folds, or a class in fewer groups than folds.
    """
    if count < 2:
        raise DatasetError(f"folds: got {count}, at least 2 needed")
    _scarcest(labels, groups, at_least=count)
    return _folds(labels, groups, count=count, seed=seed)


def _scarcest(labels: Sequence[str], groups: Sequence[str], *, at_least: int) -> int:
    groups_of_class = Counter(label for label, _ in set(zip(labels, groups, strict=True)))
    scarce, count = min(groups_of_class.items(), key=lambda item: item[1])
    if count < at_least:
        raise DatasetError(
            f"split: class {scarce!r} is in {count} groups, at least {at_least} needed; add data or a split column"
        )
    return count


def _folds(labels: Sequence[str], groups: Sequence[str], *, count: int, seed: int) -> list[int]:
    # Imported here: most datasets bring a split, and this costs seconds.
    from sklearn.model_selection import StratifiedGroupKFold

    fold = np.zeros(len(labels), np.int64)
    division = StratifiedGroupKFold(n_splits=count, shuffle=True, random_state=seed)
    for number, (_, held_out) in enumerate(division.split(np.zeros(len(labels)), list(labels), list(groups))):
        fold[held_out] = number
    return [int(number) for number in fold]
