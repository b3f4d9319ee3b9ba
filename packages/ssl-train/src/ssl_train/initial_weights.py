"""With which weights does a run start?

From a folder, a file or a timm name (`weights`), for student and teacher at once:

- backbone only: both start from it, with fresh heads;
- backbone and head of one network: both start from them;
- both networks (Meta's full checkpoints, training checkpoints of this package): each from its own, and the loss from
  the recorded centre. So one phase of training goes on where another ended, while optimizer, schedules and stream
  start anew.

Before: network, losses. After: dino.
"""

from __future__ import annotations

from ssl_train.architectures import misfit
from ssl_train.backbone import PositionInterpolation, load_backbone
from ssl_train.losses import DINOLoss
from ssl_train.network import Network
from ssl_train.weights import NetworkWeights, read_weights


def initialise(
    *,
    student: Network,
    teacher: Network,
    loss: DINOLoss,
    source: str,
    heads: bool,
    position_interpolation: PositionInterpolation,
) -> None:
    """Loads what a source holds into student, teacher and centre.

    Args:
        student: takes the student's weights, or the teacher's where the source holds one network.
        teacher: the same for the teacher; a fresh head is the student's.
        loss: takes the centre, where heads are taken and the source has one.
        source: checkpoint folder, weights file or timm name.
        heads: take heads where the source has them; else they stay fresh.
        position_interpolation: how positions are resized for another input or patch size.

    Raises:
        ValueError: a source that cannot be read or does not fit.
    """
    found = read_weights(source)
    for network, weights in ((student, found.student or found.teacher), (teacher, found.teacher)):
        load_backbone(network.backbone, weights.backbone, source=source, position_interpolation=position_interpolation)
        if heads and weights.head:
            _load_head(network, weights, source)
    if not (heads and found.teacher.head):
        teacher.head.load_state_dict(student.head.state_dict())
    elif found.center is not None:
        loss.center.copy_(found.center.reshape(loss.center.shape))


def _load_head(network: Network, weights: NetworkWeights, source: str) -> None:
    problem = misfit(weights.head, network.head.state_dict())
    if problem is not None:
        raise ValueError(
            f"weights {source}: the head does not fit: {problem}; set out_dim and head_* to its sizes, or "
            "init_heads: false for a fresh one"
        )
    network.head.load_state_dict(weights.head)
