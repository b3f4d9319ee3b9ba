from __future__ import annotations

import pytest
import torch
from ssl_train.kde import kde_loss


def test_equal_embeddings_have_the_largest_loss_and_spread_ones_less() -> None:
    assert kde_loss(torch.ones(4, 3), concentration=5.0).item() == pytest.approx(5.0)
    assert kde_loss(torch.eye(4)).item() == pytest.approx(0.0, abs=1e-6)
    assert kde_loss(torch.tensor([[1.0, 0.0], [-1.0, 0.0]])).item() == pytest.approx(-5.0)


def test_a_step_downhill_spreads_the_embeddings() -> None:
    torch.manual_seed(0)
    x = (torch.randn(16, 8) + 2.0).requires_grad_()
    kde_loss(x).backward()
    assert x.grad is not None

    def mean_cosine(y: torch.Tensor) -> float:
        unit = torch.nn.functional.normalize(y, dim=-1)
        return float((unit @ unit.T).mean())

    assert mean_cosine(x.detach() - x.grad) < mean_cosine(x.detach())


def test_duplicates_and_a_batch_of_one_are_finite() -> None:
    for x in (torch.ones(5, 8), torch.ones(1, 8), torch.zeros(3, 8)):
        leaf = x.bfloat16().requires_grad_()
        loss = kde_loss(leaf)
        loss.backward()
        assert loss.isfinite()
        assert leaf.grad is not None
        assert leaf.grad.isfinite().all()
    assert kde_loss(torch.ones(1, 8)) == 0
