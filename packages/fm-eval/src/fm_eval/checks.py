"""Which arrays may heads and metrics be computed from?

Embeddings are (N, K) with at least one row and one feature and finite values; labels are one class a row. What is not
so is refused by row before anything is computed. Before: embed. After: every head and metric.
"""

from __future__ import annotations

import numpy as np

from fm_eval.errors import FmEvalError, MetricError, ProbeError
from fm_eval.metrics import AnyFloatArray, IntArray

CHUNK_ROWS = 4096


def check_embeddings(
    embeddings: AnyFloatArray, *, what: str = "embeddings", error: type[FmEvalError] = MetricError
) -> None:
    """Refuse what is not a finite matrix.

    Raises:
        MetricError: or the error asked for: not (N, K) with N and K above 0, or a value is NaN or infinite.
    """
    if embeddings.ndim != 2 or 0 in embeddings.shape:
        raise error(f"{what}: got shape {embeddings.shape}, expected (N, K) with N and K above 0")
    for start in range(0, len(embeddings), CHUNK_ROWS):
        bad = ~np.isfinite(embeddings[start : start + CHUNK_ROWS]).all(axis=1)
        if bad.any():
            row = start + int(bad.argmax())
            raise error(f"{what}: row {row} holds NaN or infinity; check the backbone and its precision")


def check_labelled(
    embeddings: AnyFloatArray,
    labels: IntArray,
    *,
    classes: int,
    what: str,
    width: int | None = None,
    several_classes: bool = False,
) -> None:
    """Refuse embeddings and labels that no head can be trained or selected on.

    Args:
        embeddings: (N, K).
        labels: (N,) classes in [0, classes).
        classes: number of classes.
        what: names the arrays in the message.
        width: K that the embeddings must have.
        several_classes: also refuse labels of one class only.

    Raises:
        ProbeError: in one line, what is wrong.
    """
    check_embeddings(embeddings, what=what, error=ProbeError)
    if labels.shape != (len(embeddings),):
        raise ProbeError(f"{what}: arrays of shape {embeddings.shape} and {labels.shape}, expected (N, K) and (N,)")
    if width is not None and embeddings.shape[1] != width:
        raise ProbeError(f"{what}: {embeddings.shape[1]} features, expected {width} as in training")
    if labels.min() < 0 or labels.max() >= classes:
        raise ProbeError(f"{what}: labels span {labels.min()}..{labels.max()}, allowed are 0..{classes - 1}")
    if several_classes and labels.min() == labels.max():
        raise ProbeError(f"{what}: all rows are of class {labels.min()}, at least 2 classes needed; check the split")
