from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as functional
from fm_eval.segmentation.losses import class_masks, mask_losses, pixel_loss, set_loss, uncertain_points
from fm_eval.segmentation.matching import LossWeights, match, matching_costs, sample_at


def test_points_are_sampled_at_the_centres_of_pixels() -> None:
    maps = torch.arange(12.0).reshape(1, 1, 3, 4)
    centres = torch.tensor([[(x + 0.5) / 4, (y + 0.5) / 3] for y in range(3) for x in range(4)])[None]
    torch.testing.assert_close(sample_at(maps, centres)[0, 0], torch.arange(12.0))
    between = torch.tensor([[[2 / 4, 1.5 / 3]]])  # half way between pixels 1 and 2 of row 1
    torch.testing.assert_close(sample_at(maps, between), torch.tensor([[[5.5]]]))


def test_costs_are_those_of_each_pair_alone() -> None:
    torch.manual_seed(0)
    classes, logits = torch.randn(2, 4, 4), torch.randn(2, 4, 50)
    targets = (torch.rand(2, 3, 50) > 0.5).float()
    costs = matching_costs(classes, logits, targets, weights=LossWeights())
    for image, query, kind in itertools.product(range(2), range(4), range(3)):
        x, t = logits[image, query], targets[image, kind]
        dice = 1 - (2 * (x.sigmoid() * t).sum() + 1) / (x.sigmoid().sum() + t.sum() + 1)
        entropy = functional.binary_cross_entropy_with_logits(x, t)
        expected = 5 * entropy + 5 * dice - 2 * classes[image, query].softmax(0)[kind]
        torch.testing.assert_close(costs[image, query, kind], expected)


def test_the_matching_is_the_best_of_all_assignments() -> None:
    random = np.random.default_rng(0)
    costs = torch.from_numpy(random.normal(size=(6, 5, 4)))
    present = np.array([[1, 1, 1, 1], [1, 0, 1, 1], [0, 0, 0, 0], [0, 1, 0, 0], [1, 1, 0, 0], [1, 1, 1, 1]], bool)
    rows, queries, kinds = match(costs, present)
    for image in range(6):
        mine = rows == image
        assert sorted(kinds[mine].tolist()) == np.flatnonzero(present[image]).tolist()
        columns = np.flatnonzero(present[image])
        least = min(
            sum(costs[image, q, k].item() for q, k in zip(some, columns, strict=True))
            for some in itertools.permutations(range(5), len(columns))
        )
        assert costs[image, queries[mine], kinds[mine]].sum().item() == pytest.approx(least)


def test_costs_that_are_not_finite_are_matched_last() -> None:
    costs = torch.tensor([[[torch.nan], [3.0], [torch.inf]]])
    assert match(costs, np.array([[True]]))[1].tolist() == [1]


def test_uncertain_points_lie_where_the_mask_is_undecided() -> None:
    logits = torch.linspace(-8, 8, 64).expand(64, 64)[None, None]  # zero at the middle column
    points = uncertain_points(logits, points=400, generator=torch.Generator().manual_seed(0))
    assert points.shape == (1, 400, 2)
    certain, random = points[0, :300], points[0, 300:, 0]
    inside = (certain[:, 1] - 0.5).abs() < 0.5 - 1 / 64  # beyond the outermost centres values fade to zero
    # the closest 300 of 1,200 uniform points are a quarter of the width
    assert (certain[inside, 0] - 0.5).abs().max() < 0.15
    assert (random - 0.5).abs().max() > 0.4


def test_losses_of_perfect_and_opposite_masks() -> None:
    labels = torch.zeros(1, 16, 16, dtype=torch.long)
    labels[:, 4:12, 4:12] = 1
    masks = class_masks(labels, classes=2)
    generator = torch.Generator()
    good = mask_losses((masks[0] - 0.5) * 60, masks[0], points=256, normaliser=2, generator=generator)
    bad = mask_losses((0.5 - masks[0]) * 60, masks[0], points=256, normaliser=2, generator=generator)
    # points on the border are undecided, even for a perfect mask
    assert good[0] < bad[0] / 5
    assert good[1] < bad[1] / 3


def test_a_class_that_an_image_does_not_hold_is_matched_to_nothing() -> None:
    labels = torch.zeros(2, 16, 16, dtype=torch.long)
    labels[1, 4:12, 4:12] = 2
    masks = class_masks(labels, classes=3)
    torch.manual_seed(0)
    kinds = torch.randn(1, 2, 5, 4, requires_grad=True)
    shapes = torch.randn(1, 2, 5, 8, 8, requires_grad=True)
    loss = set_loss(kinds, shapes, masks, points=64, weights=LossWeights(), generator=torch.Generator())
    loss.total.backward()
    assert shapes.grad is not None
    touched = shapes.grad.flatten(3).abs().sum(-1)[0] > 0
    assert touched.sum(1).tolist() == [1, 2]  # background alone; background and class 2
    assert torch.isclose(loss.total, 5 * loss.mask + 5 * loss.dice + 2 * loss.classes)


def test_the_loss_of_several_layers_is_the_sum_of_each() -> None:
    """Masks of zero logits cost log 2 wherever the points lie, so that nothing random is left."""
    torch.manual_seed(0)
    masks = class_masks(torch.ones(2, 8, 8, dtype=torch.long), classes=2)
    kinds, shapes = torch.randn(3, 2, 4, 3), torch.zeros(3, 2, 4, 8, 8)
    alone = [
        set_loss(kind[None], shape[None], masks, points=32, weights=LossWeights(), generator=torch.Generator())
        for kind, shape in zip(kinds, shapes, strict=True)
    ]
    together = set_loss(kinds, shapes, masks, points=32, weights=LossWeights(), generator=torch.Generator())
    torch.testing.assert_close(together.classes, torch.stack([each.classes for each in alone]).sum())
    assert together.mask.item() == pytest.approx(3 * np.log(2))
    assert alone[0].mask.item() == pytest.approx(np.log(2))


def test_the_pixel_loss_is_cross_entropy_plus_dice() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 3, 8, 8), torch.randint(0, 2, (2, 8, 8))  # class 2 is absent
    shares, masks = logits.softmax(1), functional.one_hot(labels, 3).permute(0, 3, 1, 2).float()
    dice = [
        1 - (2 * (shares[:, k] * masks[:, k]).sum() + 1) / (shares[:, k].sum() + masks[:, k].sum() + 1)
        for k in range(2)
    ]
    expected = functional.cross_entropy(logits, labels) + torch.stack(dice).mean()
    torch.testing.assert_close(pixel_loss(logits, class_masks(labels, classes=3)), expected)
