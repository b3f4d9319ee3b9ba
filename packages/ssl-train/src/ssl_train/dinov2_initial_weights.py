"""With which weights does a run of DINOv2 start?

As for DINO (`initial_weights`): a backbone alone, with its mask token where the source has one, starts both networks
with fresh heads; sources with heads, or with student and teacher, hand on those too. So a stage at a higher resolution
goes on where another ended.

Before: weights, dinov2_network, dinov2_loss. After: dinov2.
"""

from __future__ import annotations

from ssl_train.architectures import misfit
from ssl_train.backbone import PositionInterpolation, load_backbone
from ssl_train.dinov2_loss import DINOv2Loss
from ssl_train.dinov2_network import DINOv2Network
from ssl_train.meta_dinov2 import MASK_TOKEN, beside_backbone
from ssl_train.weights import NetworkWeights, read_weights


def initialise_dinov2(
    *,
    student: DINOv2Network,
    teacher: DINOv2Network,
    loss: DINOv2Loss,
    source: str,
    heads: bool,
    position_interpolation: PositionInterpolation,
) -> None:
    """Loads what a source holds into student, teacher and centres.

    Args:
        student: takes the student's weights, or the teacher's where the source holds one network.
        teacher: the same for the teacher; fresh heads are the student's.
        loss: takes the centres, where heads are taken and the source has them.
        source: checkpoint folder, weights file or timm name.
        heads: take heads where the source has them; else they stay fresh.
        position_interpolation: how positions are resized for another input or patch size.

    Raises:
        ValueError: a source that cannot be read or does not fit.
    """
    found = read_weights(source)
    for network, weights in ((student, found.student or found.teacher), (teacher, found.teacher)):
        load_backbone(network.backbone, weights.backbone, source=source, position_interpolation=position_interpolation)
        if network.cls_position is not None:
            # A backbone alone has it in its class token.
            network.cls_position.detach().zero_()
        _load_beside(network, weights, heads=heads, source=source)
    if not (heads and found.teacher.has_dinov2_heads):
        for name in ("dino_head", "ibot_head"):
            head = getattr(student, name)
            if head is not None:
                getattr(teacher, name).load_state_dict(head.state_dict())
    else:
        for centering, center in ((loss.cls_centering, found.center), (loss.patch_centering, found.patch_center)):
            if center is not None:
                centering.center.copy_(center.reshape(centering.center.shape))


def _load_beside(network: DINOv2Network, weights: NetworkWeights, *, heads: bool, source: str) -> None:
    wanted = {name: tensor for name, tensor in weights.dinov2.items() if heads or name == MASK_TOKEN}
    if not wanted:
        return
    own = beside_backbone(network.state_dict())
    if not any(name != MASK_TOKEN for name in wanted):
        wanted = {**own, **wanted}
    problem = misfit(wanted, own)
    if problem is not None:
        raise ValueError(
            f"weights {source}: the heads do not fit: {problem}; set dino_head and ibot_head to their sizes, or "
            "init_heads: false for fresh ones"
        )
    network.load_state_dict(wanted, strict=False)
