from __future__ import annotations

import torch
from ssl_train.koleo import koleo_loss


def gradient(x: torch.Tensor) -> tuple[float, torch.Tensor]:
    x = x.clone().requires_grad_()
    loss = koleo_loss(x)
    loss.backward()
    assert x.grad is not None
    return loss.item(), x.grad


def test_spread_embeddings_have_a_lower_loss_than_close_ones() -> None:
    spread, close = torch.eye(4), torch.eye(4) + 10
    assert koleo_loss(spread) < koleo_loss(close)


def test_it_pushes_nearest_neighbours_apart() -> None:
    x = torch.tensor([[1.0, 0.0], [0.9, 0.1], [-1.0, 0.0]])
    loss, grad = gradient(x)
    assert koleo_loss(x - 0.01 * grad) < loss


def test_duplicates_and_a_batch_of_one_are_finite() -> None:
    for x in (torch.ones(5, 8), torch.ones(1, 8), torch.zeros(3, 8)):
        for dtype in (torch.float32, torch.bfloat16):
            loss, grad = gradient(x.to(dtype))
            assert torch.tensor(loss).isfinite()
            assert grad.isfinite().all()
    _, grad = gradient(torch.ones(1, 8))
    assert not grad.any()


def test_it_calculates_in_single_precision_under_autocast() -> None:
    x = torch.randn(8, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert koleo_loss(x) == koleo_loss(x.clone())
        inside = koleo_loss(x)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, koleo_loss(x))
