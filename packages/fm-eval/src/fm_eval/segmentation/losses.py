"""How far are the decoder's queries from the truth?

The loss of Mask2Former (Cheng et al. 2022, section 3 and 4.1): after the matching, binary cross-entropy and
DICE of the matched masks at sampled points, three quarters of them where the prediction is least certain
(PointRend, Kirillov et al. 2020), and cross-entropy of the classes of all queries. Every decoder layer predicts
and is charged. `pixel_loss` is what decoders that score pixels directly are trained with.

Shapes: L predictions (layers and the first guess), B images, Q queries, C classes, M matched masks, P points.
Before: matching. After: decoder, baselines.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as functional
from torch import Tensor

from fm_eval.segmentation.matching import LossWeights, match, matching_costs, sample_at

_OVERSAMPLE, _UNCERTAIN_SHARE = 3, 0.75


@dataclass(frozen=True, slots=True)
class MaskLoss:
    """The weighted sum that is minimised, and its three terms, each summed over the L predictions."""

    total: Tensor
    mask: Tensor
    dice: Tensor
    classes: Tensor


def class_masks(labels_BHW: Tensor, *, classes: int) -> Tensor:
    """One mask a class, float32 (B, C, H, W), of class numbers int64 (B, H, W)."""
    return functional.one_hot(labels_BHW, classes).permute(0, 3, 1, 2).float()


def set_loss(
    class_logits_LBQC: Tensor,
    mask_logits_LBQhw: Tensor,
    masks_BCHW: Tensor,
    *,
    points: int,
    weights: LossWeights,
    generator: torch.Generator,
) -> MaskLoss:
    """Mask2Former's loss of L sets of predictions for the same images.

    Args:
        class_logits_LBQC: C + 1 logits, the last is "no object".
        mask_logits_LBQhw: at any resolution.
        masks_BCHW: true mask of each class, all zero where an image does not hold it.
        points: P, for the matching and for each mask's loss.
        weights: of the terms.
        generator: of the points; on the CPU, so that all devices draw the same.
    """
    layers, batch, queries, _ = class_logits_LBQC.shape
    height, width = mask_logits_LBQhw.shape[-2:]
    device = masks_BCHW.device
    present_BC = masks_BCHW.flatten(2).any(-1)
    class_logits = class_logits_LBQC.flatten(0, 1)
    with torch.no_grad():
        at_BP2 = torch.rand(batch, points, 2, generator=generator).to(device)
        # the points of an image are shared by its layers: their maps are sampled side by side
        maps = mask_logits_LBQhw.transpose(0, 1).reshape(batch, layers * queries, height, width)
        sampled = sample_at(maps, at_BP2).reshape(batch, layers, queries, points).transpose(0, 1).flatten(0, 1)
        targets = sample_at(masks_BCHW, at_BP2).repeat(layers, 1, 1)
        costs = matching_costs(class_logits, sampled, targets, weights=weights)
        rows, query, kind = match(costs, present_BC.repeat(layers, 1).cpu().numpy())
    mask, dice = mask_losses(
        mask_logits_LBQhw.flatten(0, 1)[rows, query],
        masks_BCHW[rows % batch, kind],
        points=points,
        normaliser=max(1, int(present_BC.sum())),
        generator=generator,
    )
    classes = layers * class_loss(class_logits, rows, query, kind, no_object=weights.no_object)
    total = weights.mask * mask + weights.dice * dice + weights.classes * classes
    return MaskLoss(total, mask, dice, classes)


def class_loss(
    class_logits_NQC: Tensor, rows_M: Tensor, query_M: Tensor, kind_M: Tensor, *, no_object: float
) -> Tensor:
    """Cross-entropy of all queries, weighted mean; unmatched ones are "no object" with a small weight."""
    outputs = class_logits_NQC.shape[-1]
    target_NQ = torch.full(class_logits_NQC.shape[:2], outputs - 1, device=class_logits_NQC.device)
    target_NQ[rows_M, query_M] = kind_M
    weight = class_logits_NQC.new_ones(outputs)
    weight[-1] = no_object
    return functional.cross_entropy(class_logits_NQC.flatten(0, 1).float(), target_NQ.flatten(), weight=weight.float())


def mask_losses(
    logits_Mhw: Tensor, targets_MHW: Tensor, *, points: int, normaliser: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Binary cross-entropy and DICE of matched masks at sampled points, each summed and divided by `normaliser`."""
    logits, targets = logits_Mhw[:, None].float(), targets_MHW[:, None]
    with torch.no_grad():
        at_MP2 = uncertain_points(logits, points=points, generator=generator)
        targets_MP = sample_at(targets, at_MP2)[:, 0]
    logits_MP = sample_at(logits, at_MP2)[:, 0]
    entropy = functional.binary_cross_entropy_with_logits(logits_MP, targets_MP, reduction="none").mean(1)
    masks = logits_MP.sigmoid()
    dice = 1.0 - (2.0 * (masks * targets_MP).sum(1) + 1.0) / (masks.sum(1) + targets_MP.sum(1) + 1.0)
    return entropy.sum() / normaliser, dice.sum() / normaliser


def uncertain_points(logits_M1hw: Tensor, *, points: int, generator: torch.Generator) -> Tensor:
    """Points of each mask, (M, P, 2): three quarters are the least certain of 3 P random ones, the rest random."""
    count = len(logits_M1hw)
    certain = int(_UNCERTAIN_SHARE * points)
    tried = torch.rand(count, _OVERSAMPLE * points, 2, generator=generator).to(logits_M1hw.device)
    closeness = -sample_at(logits_M1hw, tried)[:, 0].abs()
    chosen = closeness.topk(certain, dim=1).indices
    kept = tried.gather(1, chosen[..., None].expand(-1, -1, 2))
    others = torch.rand(count, points - certain, 2, generator=generator).to(logits_M1hw.device)
    return torch.cat([kept, others], dim=1)


def pixel_loss(logits_BChw: Tensor, masks_BCHW: Tensor) -> Tensor:
    """Cross-entropy plus DICE loss of scores for every pixel.

    Args:
        logits_BChw: brought to the size of the masks by bilinear interpolation.
        masks_BCHW: true mask of each class; the DICE is the batch's, over classes that it holds.
    """
    logits = functional.interpolate(logits_BChw.float(), masks_BCHW.shape[-2:], mode="bilinear")
    entropy = functional.cross_entropy(logits, masks_BCHW.argmax(1))
    shares = logits.softmax(1)
    overlap, size = (2.0 * (shares * masks_BCHW).sum((0, 2, 3)), (shares + masks_BCHW).sum((0, 2, 3)))
    held = masks_BCHW.sum((0, 2, 3)) > 0
    return entropy + (1.0 - (overlap + 1.0) / (size + 1.0))[held].mean()
