"""How well does an unhurried linear classifier tell the classes apart?

L2-regularised multinomial logistic regression, run to its optimum by L-BFGS (scikit-learn) on standardised features,
at several strengths of regularisation; the selection split chooses. Unlike the linear probe it depends on no learning
rate, batch or order of rows, so there is one run and no spread. Before: embed, scaling. After: scores.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from fm_eval.checks import check_embeddings, check_labelled
from fm_eval.errors import ProbeError
from fm_eval.metrics import AnyFloatArray, FloatArray, IntArray, balanced_accuracies, confusion_matrices
from fm_eval.scaling import FeatureScale

# Of the gradient of the mean loss: a hundredth of scikit-learn's default, which stops early at strong regularisation.
_TOLERANCE = 1e-6
STRENGTHS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class LogisticFit:
    """One strength of regularisation.

    Attributes:
        inverse_strength: C of the objective C * (sum of losses) + |W|^2 / 2; the bias is not penalised.
        iterations: of L-BFGS.
        converged: whether it met its tolerance within the iterations allowed.
        selection_balanced_accuracy: on the selection split.
    """

    inverse_strength: float
    iterations: int
    converged: bool
    selection_balanced_accuracy: float


class LogisticProbe:
    """Logistic regression whose regularisation is chosen on a selection split.

    Args:
        classes: number of classes C.
        inverse_strengths: values of C tried, ascending: each starts from the optimum of the one before.
        max_iterations: of L-BFGS for each.

    Attributes:
        fits_: one for each strength tried.
        best_: the one of the largest balanced accuracy on the selection split, the most regularised of equals.
    """

    fits_: list[LogisticFit]
    best_: LogisticFit

    def __init__(
        self, *, classes: int, inverse_strengths: Sequence[float] = STRENGTHS, max_iterations: int = 1000
    ) -> None:
        if not inverse_strengths or min(inverse_strengths) <= 0 or max_iterations < 1:
            raise ProbeError(
                f"logistic: got inverse_strengths {tuple(inverse_strengths)} and max_iterations {max_iterations}, "
                "allowed are values above 0"
            )
        self.classes = classes
        self.inverse_strengths = tuple(sorted(inverse_strengths))
        self.max_iterations = max_iterations

    def fit(
        self, embeddings: AnyFloatArray, labels: IntArray, selection: AnyFloatArray, selection_labels: IntArray
    ) -> Self:
        """Fit every strength on (N, K) rows with (N,) labels and choose on (V, K) rows with (V,) labels.

        Raises:
            ProbeError: empty, non-finite or mismatched arrays, or training rows of one class.
        """
        # Imported here: it costs seconds, and most evaluations need none of it.
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression

        classes, width = self.classes, embeddings.shape[-1]
        check_labelled(embeddings, labels, classes=classes, what="logistic: training", several_classes=True)
        check_labelled(selection, selection_labels, classes=classes, what="logistic: selection", width=width)
        self._scale = FeatureScale.of(embeddings)
        features, selection_features = self._scale.apply(embeddings), self._scale.apply(selection)
        model = LogisticRegression(tol=_TOLERANCE, max_iter=self.max_iterations, warm_start=True)
        self.fits_, best = [], -1.0
        for strength in self.inverse_strengths:
            model.set_params(C=strength)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)  # said by `converged`
                model.fit(features, labels)
            predicted = model.predict(selection_features)
            confusions = confusion_matrices(selection_labels, predicted[None], classes=classes)
            balanced = float(balanced_accuracies(confusions)[0])
            iterations = int(model.n_iter_.max())
            self.fits_.append(
                LogisticFit(
                    inverse_strength=strength,
                    iterations=iterations,
                    converged=iterations < self.max_iterations,
                    selection_balanced_accuracy=balanced,
                )
            )
            if balanced > best:
                best, self.best_ = balanced, self.fits_[-1]
                self._known: IntArray = model.classes_.copy()
                self._weight, self._bias = model.coef_.astype(np.float64), model.intercept_.astype(np.float64)
        return self

    def predict_proba(self, embeddings: AnyFloatArray) -> FloatArray:
        """(N, C) probabilities for (N, K) embeddings; 0 for a class without a training row."""
        check_embeddings(embeddings, what="logistic", error=ProbeError)
        logits = self._scale.apply(embeddings) @ self._weight.T + self._bias
        if len(self._weight) == 1:
            logits = np.concatenate([np.zeros_like(logits), logits], axis=1)
        weights = np.exp(logits - logits.max(axis=1, keepdims=True))
        probabilities: NDArray[np.float64] = np.zeros((len(embeddings), self.classes))
        probabilities[:, self._known] = weights / weights.sum(axis=1, keepdims=True)
        return probabilities
