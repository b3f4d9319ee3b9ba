"""How good, and how varied, are embeddings?

Small measures for watching a training run: the full evaluation is another package's. Pure functions of arrays.

Legend of shape suffixes: N samples, D embedding dimension, K prototypes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as nnf
from torch import Tensor

# Temperature of the votes of neighbours (DINO reference, eval_knn.py).
_VOTE_TEMPERATURE = 0.07


def rankme(embeddings_ND: Tensor) -> float:
    """Effective rank: the exponential of the entropy of the singular values (RankMe, arXiv 2210.02885, equation 1).

    Between 1 (all embeddings on one line) and min(N, D).
    """
    singular = torch.linalg.svdvals(embeddings_ND.double())
    share = singular / singular.sum().clamp_min(torch.finfo(singular.dtype).tiny)
    return float(torch.special.entr(share).sum().exp())


def off_diagonal_correlation(embeddings_ND: Tensor) -> float:
    """Root mean square of the correlations between the embeddings of different samples (paper, equation 1).

    Between 0 (no two samples alike) and 1 (all the same). An embedding whose entries are all equal correlates with
    nothing.
    """
    n = len(embeddings_ND)
    centred_ND = embeddings_ND.double() - embeddings_ND.double().mean(1, keepdim=True)
    unit_ND = nnf.normalize(centred_ND, dim=1)
    # The squared Frobenius norms of U U^T (N x N) and U^T U (D x D) are equal: take the smaller.
    gram = unit_ND.T @ unit_ND if unit_ND.shape[1] < n else unit_ND @ unit_ND.T
    on_diagonal = unit_ND.square().sum(1).square().sum()
    return float(((gram.square().sum() - on_diagonal).clamp_min(0) / (n * (n - 1))).sqrt())


def knn_balanced_accuracy(embeddings_ND: Tensor, labels_N: Tensor, *, k: int = 20) -> float:
    """Mean over classes of the share of samples that their k nearest others classify rightly.

    Leave one out, cosine similarity, votes weighted by exp(similarity / 0.07) as in DINO's k-NN evaluation.

    Args:
        embeddings_ND: embeddings.
        labels_N: class numbers, 0 and up.
        k: neighbours, at most N - 1 of them.
    """
    unit_ND = nnf.normalize(embeddings_ND.double(), dim=1)
    similarity_NN = (unit_ND @ unit_ND.T).fill_diagonal_(-torch.inf)
    nearest = similarity_NN.topk(min(k, len(unit_ND) - 1), dim=1)
    votes_NC = torch.zeros(len(unit_ND), int(labels_N.max()) + 1, dtype=unit_ND.dtype, device=unit_ND.device)
    weight = ((nearest.values - 1) / _VOTE_TEMPERATURE).exp()
    votes_NC.scatter_add_(1, labels_N[nearest.indices], weight)
    right_N = (votes_NC.argmax(1) == labels_N).double()
    per_class = [right_N[labels_N == label].mean() for label in torch.unique(labels_N)]
    return float(torch.stack(per_class).mean())


def prototype_use(logits_NK: Tensor) -> float:
    """Number of different most likely prototypes, as a share of the largest number possible, min(N, K).

    1 / min(N, K) where every sample gets the same answer.
    """
    n, k = logits_NK.shape
    return len(torch.unique(logits_NK.argmax(1))) / min(n, k)
