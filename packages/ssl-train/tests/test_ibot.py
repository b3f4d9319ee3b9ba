"""Does the masked-patch loss give the same gradient when it may use the memory of the targets?"""

from __future__ import annotations

import pytest
import torch
from ssl_train.ibot import masked_patch_loss


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_spent_targets_change_neither_loss_nor_gradient(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(7, 33, generator=generator, dtype=torch.float64)
    targets = torch.randn(7, 33, generator=generator, dtype=torch.float64).softmax(-1).to(dtype)
    weight = torch.tensor([0.5, 0.5, 1.0, 0.25, 0.25, 0.25, 0.25])
    results = []
    for spend in (False, True):
        student, given = logits.to(dtype).requires_grad_(), targets.clone()
        loss = masked_patch_loss(student, given, weight, n_crops=4, student_temp=0.1, spend_targets=spend)
        loss.backward()
        assert student.grad is not None
        results.append((loss.detach(), student.grad, torch.equal(given, targets)))
    (loss, gradient, kept), (loss_spent, gradient_spent, kept_spent) = results
    assert torch.equal(loss, loss_spent)
    assert torch.equal(gradient, gradient_spent)
    assert gradient.abs().max() > 0
    assert kept
    # In lower precision the gradient is calculated in another one than the targets have.
    assert kept_spent == (dtype == torch.bfloat16)
