"""Which query stands for which class of an image?

Each image's present classes are assigned to queries, one to one, at the least total cost (Hungarian matching;
Cheng et al. 2022, Mask2Former, section 3). Costs compare predicted and true masks at the same random points:
binary cross-entropy, DICE, and minus the probability of the class.

Shapes: N images (or images of several layers), Q queries, T classes, P points. Before: decoder. After: losses.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as functional
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class LossWeights:
    """Weights of the three terms, in the matching as in the loss (Mask2Former's values)."""

    mask: float = 5.0
    dice: float = 5.0
    classes: float = 2.0
    no_object: float = 0.1


def sample_at(maps_NMhw: Tensor, points_NP2: Tensor) -> Tensor:
    """Bilinear values of maps at points in [0, 1]^2, (x, y) over the whole map.

    Args:
        maps_NMhw: N x M maps.
        points_NP2: P points for each N, shared by its M maps.

    Returns:
        (N, M, P).
    """
    grid = 2.0 * points_NP2[:, :, None] - 1.0
    return functional.grid_sample(maps_NMhw, grid, align_corners=False)[..., 0]


def matching_costs(
    class_logits_NQC: Tensor, mask_logits_NQP: Tensor, targets_NTP: Tensor, *, weights: LossWeights
) -> Tensor:
    """Cost of assigning each query to each class.

    Args:
        class_logits_NQC: one class more than T: the last is "no object".
        mask_logits_NQP: predicted masks at the points.
        targets_NTP: masks of all T classes at the same points, in [0, 1].
        weights: of the three terms.

    Returns:
        (N, Q, T).
    """
    probabilities = class_logits_NQC.softmax(dim=-1)[..., : targets_NTP.shape[1]]
    targets_NPT = targets_NTP.transpose(1, 2)
    # BCE(x, t) = softplus(x) - x t, so all pairs are one product
    points = mask_logits_NQP.shape[-1]
    entropy = (functional.softplus(mask_logits_NQP).sum(-1, keepdim=True) - mask_logits_NQP @ targets_NPT) / points
    masks = mask_logits_NQP.sigmoid()
    overlap = 2.0 * masks @ targets_NPT
    size = masks.sum(-1)[..., None] + targets_NTP.sum(-1)[:, None]
    dice = 1.0 - (overlap + 1.0) / (size + 1.0)
    return weights.mask * entropy + weights.dice * dice - weights.classes * probabilities


def match(costs_NQT: Tensor, present_NT: NDArray[np.bool_]) -> tuple[Tensor, Tensor, Tensor]:
    """Assign each image's present classes to queries at the least total cost.

    Args:
        costs_NQT: from `matching_costs`. What is not finite counts as the largest number.
        present_NT: which classes each image holds; at most Q of them.

    Returns:
        Image, query and class numbers of all pairs, int64 (M,) each, by image and then by query.
    """
    from scipy.optimize import linear_sum_assignment

    largest = torch.finfo(torch.float32).max
    costs = torch.nan_to_num(costs_NQT.float(), nan=largest, posinf=largest, neginf=largest).cpu().numpy()
    images, queries, classes = [], [], []
    for number, present in enumerate(present_NT):
        columns = np.flatnonzero(present)
        rows, chosen = linear_sum_assignment(costs[number][:, columns])
        images.append(np.full(len(rows), number))
        queries.append(rows)
        classes.append(columns[chosen])
    device = costs_NQT.device
    as_tensors = [torch.from_numpy(np.concatenate(part)).to(device) for part in (images, queries, classes)]
    return as_tensors[0], as_tensors[1], as_tensors[2]
