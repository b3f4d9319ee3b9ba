from __future__ import annotations

import numpy as np
import pytest
import torch
from ssl_train.embedding_metrics import knn_balanced_accuracy, off_diagonal_correlation, prototype_use, rankme


def test_rankme_counts_equal_directions() -> None:
    assert rankme(torch.eye(7)) == pytest.approx(7)
    assert rankme(torch.ones(5, 1) @ torch.randn(1, 9)) == pytest.approx(1)
    # Singular values 2, 1, 1: shares 1/2, 1/4, 1/4.
    expected = np.exp(0.5 * np.log(2) + 0.5 * np.log(4))
    assert rankme(torch.diag(torch.tensor([2.0, 1.0, 1.0]))) == pytest.approx(expected)


@pytest.mark.parametrize("shape", [(12, 5), (5, 12)])
def test_off_diagonal_correlation_is_that_of_numpy(shape: tuple[int, int]) -> None:
    embeddings = np.random.default_rng(0).normal(size=shape)
    correlations = np.corrcoef(embeddings)
    off = correlations[~np.eye(len(correlations), dtype=bool)]
    got = off_diagonal_correlation(torch.from_numpy(embeddings))
    assert got == pytest.approx(np.sqrt((off**2).mean()), abs=1e-12)


def test_off_diagonal_correlation_of_equal_samples_is_one() -> None:
    assert off_diagonal_correlation(torch.randn(1, 8).expand(6, 8)) == pytest.approx(1)


def test_knn_is_right_in_clusters_and_balanced() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.tensor([0] * 30 + [1] * 6)
    centres = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    embeddings = centres[labels] + 0.05 * torch.randn(36, 3, generator=generator)
    assert knn_balanced_accuracy(embeddings, labels, k=3) == 1.0
    # Every neighbour votes: the many always win, and the few, half of the classes, are always wrong.
    assert knn_balanced_accuracy(torch.ones(36, 3), labels, k=35) == 0.5


def test_near_neighbours_outvote_many_far_ones() -> None:
    labels = torch.tensor([0, 0, 1, 1, 1, 1])
    angles = torch.deg2rad(torch.tensor([0.0, 2.0, 80.0, 81.0, 82.0, 83.0]))
    embeddings = torch.stack([angles.cos(), angles.sin()], dim=1)
    assert knn_balanced_accuracy(embeddings, labels, k=5) == 1.0


def test_prototype_use() -> None:
    logits = torch.eye(8)[torch.tensor([0, 1, 1, 3])]
    assert prototype_use(logits) == 3 / 4
    assert prototype_use(torch.eye(2).repeat(3, 1)) == 1.0
    assert prototype_use(torch.zeros(6, 4) + torch.arange(4)) == 1 / 4
