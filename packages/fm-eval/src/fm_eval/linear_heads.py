"""How do many linear heads take one optimizer step together?

A probe trains a head for every run and learning rate. Their parameters lie side by side in one array, so that the
optimizer is a handful of operations for all of them; gradients are written out (softmax minus one-hot), so there is
no graph. Heads of one run see the same rows: these are gathered once.

What is computed for a head does not depend on which heads stand beside it, to the bit: products are one per head,
and the parameters of a head fill whole vector registers, so that no head is computed by the scalar end of a loop.

Shapes: H heads, R runs, B batch, K features, C outputs (one logit for two classes, one per class otherwise). After:
training.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional

from fm_eval.protocol import ProbeProtocol

_BETA1, _BETA2, _EPS = 0.9, 0.999, 1e-8
# Two AVX-512 registers of float32: the unit in which torch steps through an array.
_VECTOR = 32
# Rows of a batch taken at once, in bytes: they stay in a core's cache from the logits to the gradient.
_BLOCK_BYTES = 600_000
_PREDICTED_ROWS = 4096


def outputs_for(classes: int) -> int:
    """Outputs of a head: one logit (sigmoid) for two classes, as in eva; else one per class (softmax)."""
    return 1 if classes == 2 else classes


def drawn_head(features: int, outputs: int, generator: torch.Generator) -> LinearHead:
    """Draw a head as `torch.nn.Linear` does: weight and bias uniform within 1/sqrt(K), float32."""
    bound = 1.0 / math.sqrt(features)
    weight_CK = torch.empty(outputs, features).uniform_(-bound, bound, generator=generator)
    return LinearHead(weight_CK, torch.empty(outputs).uniform_(-bound, bound, generator=generator))


@dataclass(frozen=True, slots=True)
class LinearHead:
    """One linear layer.

    Attributes:
        weight: (C, K), a row for each output.
        bias: (C,).
    """

    weight: Tensor
    bias: Tensor

    def logits(self, features_NK: Tensor) -> Tensor:
        """(C, N) logits."""
        return torch.mm(self.weight, features_NK.T).add_(self.bias[:, None])

    def loss(self, features_NK: Tensor, labels_N: Tensor) -> float:
        """Mean cross-entropy, binary for a head of one logit."""
        logits_CN = self.logits(features_NK)
        if len(logits_CN) == 1:
            return functional.binary_cross_entropy_with_logits(logits_CN[0], labels_N.to(logits_CN.dtype)).item()
        return functional.cross_entropy(logits_CN.T, labels_N).item()

    def probabilities(self, features_NK: Tensor) -> Tensor:
        """(N, classes) float64 probabilities; the two of a head of one logit are its sigmoid and the rest."""
        logits_CN = self.logits(features_NK).double()
        if len(logits_CN) == 1:
            logits_CN = torch.cat([torch.zeros_like(logits_CN), logits_CN])
        return torch.softmax(logits_CN, dim=0).T


class HeadStack:
    """Linear heads of one shape with their optimizer states.

    Args:
        heads: H initial heads, copied.
        runs: run of each head, ascending from 0: the rows of a batch that it sees. None: one run for all.
        rates: multiple of the step's learning rate for each head. None: 1 for all.
        protocol: optimizer and its settings.
    """

    def __init__(
        self,
        heads: Sequence[LinearHead],
        *,
        protocol: ProbeProtocol,
        runs: Sequence[int] | None = None,
        rates: Sequence[float] | None = None,
    ) -> None:
        first = heads[0].weight
        self._outputs, self._features = first.shape
        self._protocol = protocol
        self._runs = list(runs) if runs is not None else [0] * len(heads)
        self._rates_H1 = first.new_tensor(rates if rates is not None else [1.0] * len(heads))[:, None]
        length = math.ceil(self._outputs * (self._features + 1) / _VECTOR) * _VECTOR
        self._parameters_HQ = first.new_zeros(len(heads), length)
        for head, weight_CK, bias_C in zip(heads, *self._parts(self._parameters_HQ), strict=True):
            weight_CK.copy_(head.weight)
            bias_C.copy_(head.bias)
        # sgd: momentum; adamw: first and second moment
        moments = 1 if protocol.optimizer == "sgd" else 2
        self._state = [torch.zeros_like(self._parameters_HQ) for _ in range(moments)]
        self._steps = 0
        self._prepare()

    def __len__(self) -> int:
        return len(self._parameters_HQ)

    @property
    def runs(self) -> int:
        """Number R of distinct runs among the heads."""
        return max(self._runs) + 1

    def head(self, number: int) -> LinearHead:
        """A copy of one head as it is now."""
        weights, biases = self._parts(self._parameters_HQ)
        return LinearHead(weights[number].clone(), biases[number].clone())

    def finite(self) -> list[bool]:
        """Whether all parameters of each head are finite numbers."""
        return torch.isfinite(self._parameters_HQ).all(dim=1).tolist()

    def keep(self, numbers: Sequence[int]) -> None:
        """Go on with these heads only; runs are numbered anew in their order."""
        self._parameters_HQ = self._parameters_HQ[list(numbers)]
        self._state = [state[list(numbers)] for state in self._state]
        self._rates_H1 = self._rates_H1[list(numbers)]
        left = [self._runs[number] for number in numbers]
        self._runs = [sorted(set(left)).index(run) for run in left]
        self._prepare()

    def step(self, features_NK: Tensor, labels_N: Tensor, rows_RB: Tensor, *, lr: float) -> None:
        """One optimizer step of every head on the mean loss of its run's batch.

        Args:
            features_NK: all training features, same type as the weights.
            labels_N: int64 classes of all training rows; of two classes also float32.
            rows_RB: int64 rows of each run's batch.
            lr: learning rate.
        """
        batch, most = rows_RB.shape[1], self._gathered.shape[0]
        for heads, rows_B in zip(self._of_run, rows_RB.unbind(), strict=True):
            labels_B = labels_N.index_select(0, rows_B)
            for start in range(0, batch, most):
                rows = min(most, batch - start)
                rows_b, labels_b = _part(rows_B, 0, start, rows), _part(labels_B, 0, start, rows)
                features_bK = torch.index_select(features_NK, 0, rows_b, out=_part(self._gathered, 0, 0, rows))
                error_hCb = heads.errors(features_bK, labels_b, rows)
                heads.add_gradient(error_hCb, features_bK, 1 / batch, first=start == 0)
        self._steps += 1
        self._update(lr)

    def predict(self, features_VK: Tensor) -> Tensor:
        """(H, V) int64 classes that each head predicts."""
        weights_HCK, biases_HC = self._parts(self._parameters_HQ)
        heads = list(zip(weights_HCK.unbind(), biases_HC[:, :, None].unbind(), strict=True))
        predicted = []
        for rows_VK in torch.split(features_VK, _PREDICTED_ROWS):
            logits_HCV = torch.stack([torch.addmm(bias_C1, weight_CK, rows_VK.T) for weight_CK, bias_C1 in heads])
            predicted.append((logits_HCV[:, 0] > 0).long() if self._outputs == 1 else logits_HCV.argmax(dim=1))
        return torch.cat(predicted, dim=1)

    def _update(self, lr: float) -> None:
        protocol, parameters, gradient = self._protocol, self._parameters_HQ, self._gradient_HQ
        rates_H1 = self._rates_H1 * lr
        if protocol.optimizer == "adamw":
            if protocol.weight_decay:
                parameters.mul_(1 - rates_H1 * protocol.weight_decay)
            first, second = self._state
            first.lerp_(gradient, 1 - _BETA1)
            second.mul_(_BETA2).addcmul_(gradient, gradient, value=1 - _BETA2)
            root = second.sqrt().div_(math.sqrt(1 - _BETA2**self._steps)).add_(_EPS)
            parameters.sub_((first / root).mul_(rates_H1 / (1 - _BETA1**self._steps)))
            return
        if protocol.weight_decay:
            gradient = gradient + protocol.weight_decay * parameters
        momentum = self._state[0].mul_(protocol.momentum).add_(gradient)
        direction = gradient.add(momentum, alpha=protocol.momentum) if protocol.nesterov else momentum
        parameters.sub_(direction * rates_H1)

    def _prepare(self) -> None:
        """Views of the parameters, and room for their gradient and for gathered rows."""
        self._gradient_HQ = torch.zeros_like(self._parameters_HQ)
        weights, biases = self._parts(self._parameters_HQ)
        weight_gradients, bias_gradients = self._parts(self._gradient_HQ)
        starts = [*(self._runs.index(run) for run in range(self.runs)), len(self)]
        self._of_run = [
            _HeadsOfRun(
                weights[start:stop], biases[start:stop], weight_gradients[start:stop], bias_gradients[start:stop]
            )
            for start, stop in pairwise(starts)
        ]
        # Of the length of a row alone, so that sums are the same in any stack.
        rows = _BLOCK_BYTES // (self._features * self._parameters_HQ.element_size())
        rows = max(_VECTOR, rows // _VECTOR * _VECTOR)
        self._gathered = self._parameters_HQ.new_empty(rows, self._features)

    def _parts(self, array_HQ: Tensor) -> tuple[Tensor, Tensor]:
        """Views of the weights (H, C, K) and the biases (H, C) in an array of parameters."""
        weights = self._outputs * self._features
        return (
            array_HQ[:, :weights].view(-1, self._outputs, self._features),
            array_HQ[:, weights : weights + self._outputs],
        )


class _HeadsOfRun:
    """Views of the h heads that see the same rows, and of their gradients."""

    def __init__(self, weights_hCK: Tensor, biases_hC: Tensor, gradients_hCK: Tensor, bias_gradients_hC: Tensor):
        self._outputs = weights_hCK.shape[1]
        self._weights = list(weights_hCK)
        self._biases_C1 = list(biases_hC[:, :, None])
        self._gradients = list(gradients_hCK)
        self._bias_gradients_hC = bias_gradients_hC
        self._minus_one = weights_hCK.new_full((), -1.0)

    def errors(self, features_bK: Tensor, labels_b: Tensor, rows: int) -> Tensor:
        """(h, C, b) derivative of each of the b `rows`' loss by its logits."""
        features_Kb = features_bK.t()
        # Whole vector registers for each head here too; what stands beyond the rows is never used.
        padded = math.ceil(rows / _VECTOR) * _VECTOR
        logits_hCp = features_bK.new_empty(len(self._weights), self._outputs, padded)
        for weight_CK, bias_C1, logits_Cp in zip(self._weights, self._biases_C1, logits_hCp.unbind(), strict=True):
            torch.addmm(bias_C1, weight_CK, features_Kb, out=_part(logits_Cp, 1, 0, rows))
        if self._outputs == 1:
            return _part(logits_hCp.sigmoid_(), 2, 0, rows).sub_(labels_b)
        error_hCb = _part(torch.softmax(logits_hCp, dim=1), 2, 0, rows)
        labels_h1b = labels_b.expand(len(self._weights), 1, rows)
        return error_hCb.scatter_add_(1, labels_h1b, self._minus_one.expand(labels_h1b.shape))

    def add_gradient(self, error_hCb: Tensor, features_bK: Tensor, share: float, *, first: bool) -> None:
        """Add a block's part of the gradient of the mean loss, `share` a row; the first one replaces what is there."""
        for gradient_CK, error_Cb in zip(self._gradients, error_hCb.unbind(), strict=True):
            gradient_CK.addmm_(error_Cb, features_bK, beta=0 if first else 1, alpha=share)
        if first:
            torch.mul(error_hCb.sum(dim=2), share, out=self._bias_gradients_hC)
        else:
            self._bias_gradients_hC.add_(error_hCb.sum(dim=2), alpha=share)


def _part(tensor: Tensor, dim: int, start: int, length: int) -> Tensor:
    """A slice; the tensor itself where the slice is all of it, which costs a view less."""
    return tensor if tensor.shape[dim] == length else tensor.narrow(dim, start, length)
