from __future__ import annotations

import math

import pytest
import torch
from ssl_train.losses import DINOLoss


def naive(student: torch.Tensor, teacher: torch.Tensor, center: torch.Tensor, temp: float) -> torch.Tensor:
    terms = [
        -(((teacher[g] - center) / temp).softmax(-1) * (student[c] / 0.1).log_softmax(-1)).sum(-1).mean()
        for g in range(2)
        for c in range(len(student))
        if c != g
    ]
    return torch.stack(terms).mean()


def test_equals_the_sum_over_pairs_of_different_crops() -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(5, 3, 7, dtype=torch.float64), torch.randn(2, 3, 7, dtype=torch.float64)
    loss = DINOLoss(out_dim=7).double()
    loss.center.normal_()
    got = loss(student, teacher, teacher_temp=0.05)
    torch.testing.assert_close(got, naive(student, teacher, loss.center, 0.05))


def test_equal_outputs_give_ln_k() -> None:
    loss = DINOLoss(out_dim=16)
    assert float(loss(torch.zeros(4, 2, 16), torch.zeros(2, 2, 16), teacher_temp=0.04)) == pytest.approx(math.log(16))


def test_micro_batches_give_the_centre_of_the_whole_batch() -> None:
    teacher = torch.randn(2, 8, 5, dtype=torch.float64)
    whole, parts = DINOLoss(out_dim=5).double(), DINOLoss(out_dim=5).double()
    whole.observe(teacher)
    for part in teacher.split(2, dim=1):
        parts.observe(part)
    for loss in (whole, parts):
        loss.update_center()
        loss.update_center()  # nothing new was observed
    torch.testing.assert_close(whole.center, parts.center)
    torch.testing.assert_close(whole.center, 0.1 * teacher.mean((0, 1))[None])


def test_half_precision_logits_give_a_float32_loss() -> None:
    loss = DINOLoss(out_dim=8)
    value = loss(torch.randn(4, 2, 8).bfloat16(), torch.randn(2, 2, 8).bfloat16(), teacher_temp=0.04)
    assert value.dtype == torch.float32
