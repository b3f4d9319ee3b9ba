"""Matching and losses against an independent implementation: Mask2Former of Hugging Face transformers.

The package is no dependency of the project; where it is installed these tests run.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fm_eval.segmentation.losses import class_masks, set_loss
from fm_eval.segmentation.matching import LossWeights, match, matching_costs, sample_at

pytest.importorskip("transformers", reason="transformers is not installed; it is no dependency of this project")

BATCH, QUERIES, CLASSES, POINTS = 4, 32, 5, 700
ABSOLUTE = 1e-4


def oracle() -> Any:
    from transformers import Mask2FormerConfig
    from transformers.models.mask2former.modeling_mask2former import Mask2FormerLoss

    config = Mask2FormerConfig(
        num_labels=CLASSES,
        train_num_points=POINTS,
        class_weight=2.0,
        mask_weight=5.0,
        dice_weight=5.0,
        no_object_weight=0.1,
    )
    return Mask2FormerLoss(config, {"loss_cross_entropy": 2.0, "loss_mask": 5.0, "loss_dice": 5.0})


def case(seed: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    kinds = torch.randn(1, BATCH, QUERIES, CLASSES + 1, generator=random, dtype=dtype)
    shapes = 3 * torch.randn(1, BATCH, QUERIES, 28, 28, generator=random, dtype=dtype)
    # image 0 holds one class, the others up to five
    labels = torch.stack([torch.randint(0, 1 + seen, (56, 56), generator=random) for seen in (0, 1, 3, 4)])
    return kinds, shapes, class_masks(labels, classes=CLASSES).to(dtype)


def as_lists(masks_BCHW: torch.Tensor) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    present = [mask.flatten(1).any(1).nonzero()[:, 0] for mask in masks_BCHW]
    return [mask[kinds] for mask, kinds in zip(masks_BCHW, present, strict=True)], present


@pytest.mark.parametrize("seed", range(5))
def test_the_same_queries_are_matched(seed: int) -> None:
    kinds, shapes, masks = case(seed, torch.float32)
    mask_list, class_list = as_lists(masks)
    torch.manual_seed(seed)
    expected = oracle().matcher(shapes[0], kinds[0], mask_list, class_list)
    torch.manual_seed(seed)
    points = torch.cat([torch.rand(1, POINTS, 2) for _ in range(BATCH)])
    costs = matching_costs(kinds[0], sample_at(shapes[0], points), sample_at(masks, points), weights=LossWeights())
    rows, queries, classes = match(costs, masks.flatten(2).any(-1).numpy())
    for image, (their_queries, their_targets) in enumerate(expected):
        assert queries[rows == image].tolist() == their_queries.tolist()
        assert classes[rows == image].tolist() == class_list[image][their_targets].tolist()


@pytest.mark.parametrize("seed", range(5))
def test_the_losses_and_their_gradients_agree(seed: int) -> None:
    kinds, shapes, masks = case(seed, torch.float32)
    mask_list, class_list = as_lists(masks)
    theirs_in = [kinds[0].clone().requires_grad_(), shapes[0].clone().requires_grad_()]
    torch.manual_seed(seed)
    theirs = oracle()(theirs_in[1], theirs_in[0], mask_list, class_list)
    total = 2 * theirs["loss_cross_entropy"] + 5 * theirs["loss_mask"] + 5 * theirs["loss_dice"]
    total.backward()

    ours_in = [kinds.clone().requires_grad_(), shapes.clone().requires_grad_()]
    generator = torch.Generator().manual_seed(seed)
    ours = set_loss(*ours_in, masks, points=POINTS, weights=LossWeights(), generator=generator)
    ours.total.backward()
    for mine, other in (
        (ours.classes, theirs["loss_cross_entropy"]),
        (ours.mask, theirs["loss_mask"]),
        (ours.dice, theirs["loss_dice"]),
        (ours.total, total),
        (ours_in[0].grad[0], theirs_in[0].grad),
        (ours_in[1].grad[0], theirs_in[1].grad),
    ):
        torch.testing.assert_close(mine, other, rtol=0, atol=ABSOLUTE)
