from __future__ import annotations

import pytest
import torch
from ssl_train.ema import update_teacher
from torch import nn


def test_teacher_moves_by_one_minus_momentum_and_keeps_its_own_statistics() -> None:
    student = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).double()
    teacher = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).double()
    student(torch.randn(8, 3, dtype=torch.float64))
    before = teacher[1].running_mean.clone()
    expected = [0.9 * t + 0.1 * s for t, s in zip(teacher.parameters(), student.parameters(), strict=True)]
    update_teacher(student=student, teacher=teacher, momentum=0.9)
    for parameter, value in zip(teacher.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter, value)
    assert torch.equal(teacher[1].running_mean, before)


def test_momentum_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match="momentum"):
        update_teacher(student=nn.Linear(1, 1), teacher=nn.Linear(1, 1), momentum=1.1)
