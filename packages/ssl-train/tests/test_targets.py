from __future__ import annotations

import pytest
import torch
from ssl_train.targets import SoftmaxCentering, sinkhorn_knopp


def test_the_centre_is_that_of_the_steps_before() -> None:
    centering = SoftmaxCentering(out_dim=3, momentum=0.5)
    logits = torch.tensor([[1.0, 2.0, 3.0], [3.0, 2.0, 1.0]])
    centering.observe(logits)
    torch.testing.assert_close(centering(logits, temp=1.0), logits.softmax(-1))
    centering.update()
    torch.testing.assert_close(centering.center, torch.full((1, 3), 1.0))


def test_micro_batches_move_the_centre_as_one_batch() -> None:
    whole, parts = SoftmaxCentering(out_dim=4), SoftmaxCentering(out_dim=4)
    logits = torch.randn(6, 4)
    whole.observe(logits)
    for part in logits.split([1, 5]):
        parts.observe(part)
    whole.update()
    parts.update()
    torch.testing.assert_close(whole.center, parts.center)
    assert not parts.pending_count.any()


def test_a_step_without_samples_leaves_the_centre() -> None:
    centering = SoftmaxCentering(out_dim=4)
    centering.center.fill_(2.0)
    centering.observe(torch.zeros(0, 4))
    centering.update()
    assert torch.equal(centering.center, torch.full((1, 4), 2.0))


def test_sinkhorn_assigns_samples_evenly() -> None:
    torch.manual_seed(0)
    assigned = sinkhorn_knopp(torch.randn(64, 8, dtype=torch.float64), temp=0.5, iterations=50)
    torch.testing.assert_close(assigned.sum(1), torch.ones(64, dtype=torch.float64))
    torch.testing.assert_close(assigned.sum(0), torch.full((8,), 8.0, dtype=torch.float64), rtol=1e-6, atol=0)


def test_sinkhorn_of_extreme_logits_and_of_none_is_finite() -> None:
    """exp(200 / 0.04) is far beyond float32, and a prototype that no sample comes near has no weight at all."""
    logits = torch.tensor([[200.0, -200.0, 0.0], [190.0, -200.0, 1.0]])
    assigned = sinkhorn_knopp(logits, temp=0.04)
    assert assigned.isfinite().all()
    assert sinkhorn_knopp(torch.zeros(0, 3), temp=0.04).shape == (0, 3)


def test_half_precision_logits_are_promoted() -> None:
    logits = torch.randn(4, 5).bfloat16()
    assert sinkhorn_knopp(logits, temp=0.1).dtype == torch.float32
    assert SoftmaxCentering(out_dim=5)(logits, temp=0.1).dtype == torch.float32


def test_wrong_momentum_is_refused() -> None:
    with pytest.raises(ValueError, match="center_momentum 2"):
        SoftmaxCentering(out_dim=2, momentum=2)
