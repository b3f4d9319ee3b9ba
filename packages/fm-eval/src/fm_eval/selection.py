"""Which training rows may select an epoch when no reported row should?

An inner part of train, about a fifth, in which groups stay whole and classes keep their shares (scikit-learn's
StratifiedGroupKFold); it selects and is not trained on. Called by heads for protocols whose `selection` is `inner`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fm_eval.errors import ProbeError
from fm_eval.metrics import IntArray

_FOLDS = 5


def inner_selection(
    labels: IntArray, groups: Sequence[str] | NDArray[np.str_], *, seed: int
) -> tuple[IntArray, IntArray]:
    """Divide training rows into rows to train on and rows to select on.

    Args:
        labels: (N,) classes of the training rows.
        groups: (N,) group of each row; a group is never divided.
        seed: of the shuffling.

    Returns:
        Ascending row numbers of both parts; every class is in both.

    Raises:
        ProbeError: a class is in one group only, or no division has every class on both sides.
    """
    # Imported here: it costs seconds, and most protocols need none of it.
    from sklearn.model_selection import StratifiedGroupKFold

    groups = np.asarray(groups, dtype=str)
    spread = {int(one): len(np.unique(groups[labels == one])) for one in np.unique(labels)}
    scarce = min(spread, key=lambda one: spread[one])
    if spread[scarce] >= 2:
        folds = StratifiedGroupKFold(n_splits=min(_FOLDS, spread[scarce]), shuffle=True, random_state=seed)
        for kept, held_out in folds.split(np.zeros(len(labels)), labels, groups):
            if len(np.unique(labels[kept])) == len(np.unique(labels[held_out])) == len(spread):
                return kept.astype(np.int64), held_out.astype(np.int64)
    raise ProbeError(
        f"selection: class {scarce} is in {spread[scarce]} groups of train: no inner, group-disjoint selection split "
        "has every class on both sides; use the protocol without -honest"
    )
