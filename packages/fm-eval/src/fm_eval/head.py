"""How does a linear head take one optimizer step?

Gradients are written out (softmax minus one-hot), so a step is a dozen tensor operations and no graph. The
runs of a
probe are trained side by side but each head keeps its own tensors: products and vectorised loops over a stack
of heads round differently in other places of the stack, and a run would then not be bit-identical to the same
run trained alone. Two products per head of the form (C, B) x (B, K) are also faster than their batched forms.

Shapes: B batch, K features, C outputs (one logit for two classes, one per class otherwise). After: probe.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as functional
from torch import Tensor

from fm_eval.protocol import ProbeProtocol

_BETA1, _BETA2, _EPS = 0.9, 0.999, 1e-8


def outputs_for(classes: int) -> int:
    """Outputs of a head: one logit (sigmoid) for two classes, as in eva; else one per class (softmax)."""
    return 1 if classes == 2 else classes


def initial_head(features: int, outputs: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw a head as `torch.nn.Linear` does: uniform within 1/sqrt(K).

    Returns:
        Weight (C, K) and bias (C,), float32.
    """
    bound = 1.0 / math.sqrt(features)
    weight_CK = torch.empty(outputs, features).uniform_(-bound, bound, generator=generator)
    return weight_CK, torch.empty(outputs).uniform_(-bound, bound, generator=generator)


class Head:
    """A linear head with its optimizer state.

    Args:
        weight_CK: initial weight.
        bias_C: initial bias.
        protocol: optimizer and its settings.
    """

    def __init__(self, weight_CK: Tensor, bias_C: Tensor, *, protocol: ProbeProtocol) -> None:
        self.weight_CK = weight_CK.clone()
        self.bias_C = bias_C.clone()
        self._protocol = protocol
        self._steps = 0
        # sgd: momentum; adamw: first and second moment
        moments = 1 if protocol.optimizer == "sgd" else 2
        self._weight_state = [torch.zeros_like(self.weight_CK) for _ in range(moments)]
        self._bias_state = [torch.zeros_like(self.bias_C) for _ in range(moments)]

    def step(self, batch_BK: Tensor, labels_B: Tensor, *, lr: float) -> None:
        """One optimizer step on the mean loss of a batch.

        Args:
            batch_BK: features, same type as the weight.
            labels_B: int64 classes.
            lr: learning rate.
        """
        error_CB = self.logits(batch_BK)
        if len(error_CB) == 1:
            error_CB.sigmoid_().sub_(labels_B)
        else:
            error_CB = torch.softmax(error_CB, dim=0)
            error_CB.scatter_add_(0, labels_B[None], torch.full_like(error_CB[:1], -1))
        error_CB /= len(batch_BK)
        self._steps += 1
        self._update(self.weight_CK, torch.mm(error_CB, batch_BK), self._weight_state, lr)
        self._update(self.bias_C, error_CB.sum(dim=1), self._bias_state, lr)

    def logits(self, features_NK: Tensor) -> Tensor:
        """(C, N) logits."""
        return torch.mm(self.weight_CK, features_NK.T).add_(self.bias_C[:, None])

    def loss(self, features_NK: Tensor, labels_N: Tensor) -> float:
        """Mean cross-entropy, binary for a head of one logit."""
        logits_CN = self.logits(features_NK)
        if len(logits_CN) == 1:
            return functional.binary_cross_entropy_with_logits(logits_CN[0], labels_N.to(logits_CN.dtype)).item()
        return functional.cross_entropy(logits_CN.T, labels_N).item()

    def predict(self, features_NK: Tensor) -> Tensor:
        """(N,) int64 predicted classes."""
        logits_CN = self.logits(features_NK)
        return (logits_CN[0] > 0).long() if len(logits_CN) == 1 else logits_CN.argmax(dim=0)

    def _update(self, parameter: Tensor, gradient: Tensor, state: list[Tensor], lr: float) -> None:
        protocol = self._protocol
        if protocol.optimizer == "adamw":
            first, second = state
            parameter.mul_(1 - lr * protocol.weight_decay)
            first.lerp_(gradient, 1 - _BETA1)
            second.mul_(_BETA2).addcmul_(gradient, gradient, value=1 - _BETA2)
            root = second.sqrt().div_(math.sqrt(1 - _BETA2**self._steps)).add_(_EPS)
            parameter.addcdiv_(first, root, value=-lr / (1 - _BETA1**self._steps))
            return
        if protocol.weight_decay:
            gradient = gradient + protocol.weight_decay * parameter
        momentum = state[0].mul_(protocol.momentum).add_(gradient)
        direction = gradient.add(momentum, alpha=protocol.momentum) if protocol.nesterov else momentum
        parameter.sub_(direction, alpha=lr)
