"""How are images divided when an index has no split?

Into train, val and test (about 60 : 20 : 20) so that a group is never divided and classes keep their shares:
scikit-learn's StratifiedGroupKFold with five folds (fewer when there are fewer groups), one fold for test,
one for val, the rest for train. The same labels, groups and seed give the same split.

Called by datasets, which then checks the outcome like any other split.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from fm_eval.errors import DatasetError


def make_split(labels: Sequence[str], groups: Sequence[str], *, seed: int) -> list[str]:
    """Assign each row to train, val or test.

    Args:
        labels: class of each row.
        groups: group of each row; all rows of a group get the same split.
        seed: of the shuffling.

    Returns:
        Split name of each row.

    Raises:
        DatasetError: a class is in fewer than three groups, so it cannot be in all three splits.
    """
    # Imported here: most indices bring a split, and this costs seconds.
    from sklearn.model_selection import StratifiedGroupKFold

    groups_of_class = Counter(label for label, _ in set(zip(labels, groups, strict=True)))
    scarce, count = min(groups_of_class.items(), key=lambda item: item[1])
    if count < 3:
        raise DatasetError(
            f"split: class {scarce!r} is in {count} groups, at least 3 needed; add data or a split column"
        )
    folds = StratifiedGroupKFold(n_splits=min(5, count), shuffle=True, random_state=seed)
    split = np.full(len(labels), "train", dtype=object)
    held_out = [fold for _, fold in folds.split(np.zeros(len(labels)), list(labels), list(groups))]
    split[held_out[0]] = "test"
    split[held_out[1]] = "val"
    return [str(name) for name in split]
