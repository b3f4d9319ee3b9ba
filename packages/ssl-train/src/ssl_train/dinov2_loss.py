"""What does DINOv2 minimise?

    dino_weight * (global + local [CLS] cross-entropy) + ibot_weight * masked-patch cross-entropy
        + koleo_weight * (KoLeo of the first views + KoLeo of the second views)
        + kde_weight * (KDE of the first views + KDE of the second views; not in the reference)

(arXiv 2304.07193, section 4; dinov2/train/ssl_meta_arch.py, forward_backward.)

Legend of shapes: 2 global crops, B images, M masked tokens, K prototypes.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from ssl_train.dinov2_network import NetworkOutput
from ssl_train.ibot import cls_losses, masked_patch_loss
from ssl_train.kde import kde_loss
from ssl_train.koleo import koleo_loss
from ssl_train.masking import TokenMasks
from ssl_train.targets import SoftmaxCentering, sinkhorn_knopp

Centering = Literal["softmax", "sinkhorn_knopp"]


class Targets(NamedTuple):
    """The teacher's distributions.

    Attributes:
        cls: of [CLS], each global crop's own, (2, B, K).
        masked: of the masked tokens, (M, K).
        spread: standard deviation of the [CLS] logits over samples, mean over prototypes: 0 where they all are alike.
    """

    cls: Tensor
    masked: Tensor
    spread: Tensor


class LossTerms(NamedTuple):
    """The loss and its parts.

    The parts are scaled as the reference displays them: `ibot`, `koleo` and `kde` are half of what enters the total.
    `dino` is the mean [CLS] cross-entropy of a pair of views, whatever their number: ln K for uniform answers.
    """

    total: Tensor
    dino: Tensor
    dino_global: Tensor
    dino_local: Tensor
    ibot: Tensor
    koleo: Tensor
    kde: Tensor


class DINOv2Loss(nn.Module):
    """All objectives of DINOv2.

    As in `DINOLoss`, `forward` leaves the centres alone, `observe` gathers teacher logits and `update_center` moves
    the centres, once a step. With Sinkhorn-Knopp the centres are not used and do not move.

    Args:
        out_dim: prototypes of the [CLS] head.
        patch_out_dim: prototypes of the head of masked patches.
        centering: how targets are made.
        dino_weight: weight of the [CLS] losses.
        ibot_weight: weight of the masked-patch loss.
        koleo_weight: weight of KoLeo.
        kde_weight: weight of the kernel density, see `kde_loss`.
        student_temp: temperature of the student.
        center_momentum: share of the old centre that an update keeps.

    Raises:
        ValueError: a temperature, momentum or weight out of range.
    """

    def __init__(
        self,
        *,
        out_dim: int,
        patch_out_dim: int,
        centering: Centering = "softmax",
        dino_weight: float = 1.0,
        ibot_weight: float = 1.0,
        koleo_weight: float = 0.1,
        kde_weight: float = 0.0,
        student_temp: float = 0.1,
        center_momentum: float = 0.9,
    ) -> None:
        super().__init__()
        if student_temp <= 0 or min(dino_weight, ibot_weight, koleo_weight, kde_weight) < 0:
            raise ValueError(
                "DINOv2: student_temp must be above 0 and weights at least 0, got "
                f"student_temp={student_temp}, dino_weight={dino_weight}, ibot_weight={ibot_weight}, "
                f"koleo_weight={koleo_weight}, kde_weight={kde_weight}"
            )
        self.out_dim = out_dim
        self.cls_centering = SoftmaxCentering(out_dim=out_dim, momentum=center_momentum)
        self.patch_centering = SoftmaxCentering(out_dim=patch_out_dim, momentum=center_momentum)
        self._centering = centering
        self._weights = (dino_weight, ibot_weight, koleo_weight, kde_weight)
        self._student_temp = student_temp

    @property
    def center(self) -> Tensor:
        """The centre of the [CLS] logits, (1, K)."""
        return self.cls_centering.center

    def targets(self, teacher: NetworkOutput, *, teacher_temp: float) -> Targets:
        """The teacher's distributions, without gradient; all processes take part."""
        logits_MK = teacher.global_logits.detach().flatten(0, 1)
        if self._centering == "softmax":
            cls = self.cls_centering(logits_MK, temp=teacher_temp)
            masked = self.patch_centering(teacher.masked_logits, temp=teacher_temp)
        else:
            cls = sinkhorn_knopp(logits_MK, temp=teacher_temp)
            masked = sinkhorn_knopp(teacher.masked_logits, temp=teacher_temp)
        centred_MK = logits_MK.float() - logits_MK.float().mean(0)
        # The standard deviation over the first dimension, which `std` takes number by number on the CPU.
        spread = (centred_MK.square_().sum(0) / (len(centred_MK) - 1)).sqrt().mean()
        return Targets(cls.reshape(teacher.global_logits.shape), masked, spread)

    def forward(self, student: NetworkOutput, targets: Targets, masks: TokenMasks) -> LossTerms:
        """The loss of one micro-batch; the targets of masked tokens are spent, their memory takes the gradient."""
        dino_weight, ibot_weight, koleo_weight, kde_weight = self._weights
        dino_global, dino_local = cls_losses(
            student.global_logits, student.local_logits, targets.cls, student_temp=self._student_temp
        )
        patch = masked_patch_loss(
            student.masked_logits,
            targets.masked,
            masks.weight,
            n_crops=len(masks.mask),
            student_temp=self._student_temp,
            spend_targets=True,
        )
        koleo = kde = torch.zeros_like(patch)
        if koleo_weight > 0:
            koleo = koleo_weight * sum((koleo_loss(view_BD) for view_BD in student.cls), start=koleo)
        if kde_weight > 0:
            kde = kde_weight * sum((kde_loss(view_BD) for view_BD in student.cls), start=kde)
        total = dino_weight * (dino_local + dino_global) + koleo + kde + ibot_weight * patch
        dino = dino_global + dino_local
        if not len(student.local_logits):
            # The reference divides the two pairs by three.
            dino = dino * 3 / 2
        return LossTerms(total, dino, dino_global, dino_local, ibot=patch / 2, koleo=koleo / 2, kde=kde / 2)

    def observe(self, teacher: NetworkOutput) -> None:
        """Gathers teacher logits for the next update of the centres."""
        if self._centering == "softmax":
            self.cls_centering.observe(teacher.global_logits)
            self.patch_centering.observe(teacher.masked_logits)

    def update_center(self) -> None:
        """Moves the centres by what was observed since the last update; all processes take part."""
        if self._centering == "softmax":
            self.cls_centering.update()
            self.patch_centering.update()
