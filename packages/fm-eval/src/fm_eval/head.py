"""How do several linear heads take one optimizer step at once?

R heads of the same shape are trained side by side, each on its own batch of rows of one shared feature matrix.
Gradients are written out (softmax minus one-hot), so a step is a handful of tensor operations. Matrix products run
per head, everything else on the stack: a product over the whole stack picks other kernels for other R, and then a
run would not be bit-identical to the same run trained alone.

Shapes: R heads, B batch, K features, C outputs (one logit for two classes, one per class otherwise). After: probe.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from fm_eval.protocol import ProbeProtocol

_BETA1, _BETA2, _EPS = 0.9, 0.999, 1e-8


def outputs_for(classes: int) -> int:
    """Outputs of a head: one logit (sigmoid) for two classes, as in eva; otherwise one per class (softmax)."""
    return 1 if classes == 2 else classes


def initial_head(features: int, outputs: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw a head as `torch.nn.Linear` does: uniform within 1/sqrt(K).

    Returns:
        Weight (C, K) and bias (C,), float32.
    """
    bound = 1.0 / math.sqrt(features)
    weight_CK = torch.empty(outputs, features).uniform_(-bound, bound, generator=generator)
    return weight_CK, torch.empty(outputs).uniform_(-bound, bound, generator=generator)


class HeadStack:
    """R linear heads with their optimizer state.

    Args:
        weight_RCK: initial weights, float32.
        bias_RC: initial biases, float32.
        protocol: optimizer and its settings.
    """

    def __init__(self, weight_RCK: Tensor, bias_RC: Tensor, *, protocol: ProbeProtocol) -> None:
        self.weight_RCK = weight_RCK.clone()
        self.bias_RC = bias_RC.clone()
        self._protocol = protocol
        self._steps = 0
        # sgd: momentum; adamw: first and second moment
        moments = 1 if protocol.optimizer == "sgd" else 2
        self._state = [
            [torch.zeros_like(parameter) for _ in range(moments)] for parameter in (self.weight_RCK, self.bias_RC)
        ]

    def __len__(self) -> int:
        return len(self.weight_RCK)

    def step(self, features_NK: Tensor, labels_N: Tensor, rows_RB: Tensor, *, lr: float) -> Tensor:
        """One optimizer step of every head on its own rows.

        Args:
            features_NK: float32.
            labels_N: int64 classes.
            rows_RB: int64 row numbers, one batch per head.
            lr: learning rate.

        Returns:
            (R,) mean loss of each head before the step.
        """
        batches = [features_NK.index_select(0, rows_B) for rows_B in rows_RB]
        logits_RCB = self._logits(batches)
        labels_R1B = labels_N[rows_RB].unsqueeze(1)
        if logits_RCB.shape[1] == 1:
            target_R1B = labels_R1B.to(logits_RCB.dtype)
            loss_R = F.binary_cross_entropy_with_logits(logits_RCB, target_R1B, reduction="none").mean(dim=(1, 2))
            error_RCB = torch.sigmoid(logits_RCB) - target_R1B
        else:
            log_p_RCB = torch.log_softmax(logits_RCB, dim=1)
            loss_R = -log_p_RCB.gather(1, labels_R1B).mean(dim=(1, 2))
            error_RCB = log_p_RCB.exp_()
            error_RCB.scatter_add_(1, labels_R1B, torch.full_like(labels_R1B, -1, dtype=error_RCB.dtype))
        error_RCB /= rows_RB.shape[1]
        errors = [error_CB.clone() for error_CB in error_RCB]
        weight_gradients = [torch.mm(error_CB, batch_BK) for error_CB, batch_BK in zip(errors, batches, strict=True)]
        self._steps += 1
        self._update(self.weight_RCK, torch.stack(weight_gradients), self._state[0], lr)
        self._update(self.bias_RC, torch.stack([error_CB.sum(dim=1) for error_CB in errors]), self._state[1], lr)
        return loss_R

    def predict(self, features_NK: Tensor) -> Tensor:
        """(R, N) int64 predicted classes."""
        logits_RCN = self._logits([features_NK] * len(self))
        if logits_RCN.shape[1] == 1:
            return (logits_RCN[:, 0] > 0).long()
        return logits_RCN.argmax(dim=1)

    def keep(self, heads: list[int]) -> None:
        """Go on with these heads only."""
        self.weight_RCK, self.bias_RC = self.weight_RCK[heads], self.bias_RC[heads]
        self._state = [[moment[heads] for moment in moments] for moments in self._state]

    def _logits(self, batches: list[Tensor]) -> Tensor:
        # clone, here and for the errors: a slice of the stack may be aligned otherwise than a stack of one, and a
        # product may then differ in the last bits
        products = [torch.mm(w_CK.clone(), batch_BK.T) for w_CK, batch_BK in zip(self.weight_RCK, batches, strict=True)]
        return torch.stack(products) + self.bias_RC.unsqueeze(2)

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
