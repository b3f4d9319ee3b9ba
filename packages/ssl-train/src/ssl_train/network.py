"""What do student and teacher consist of? A backbone and a head, run together on crops of several sizes.

Legend of shape suffixes: C crops, B patches, S pixels, D embedding dimension, K prototypes, P branches.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from ssl_train.backbone import PositionInterpolation, embed_cls
from ssl_train.heads import DINOHead
from ssl_train.stochastic_depth import StochasticDepth


class Network(nn.Module):
    """Backbone and head; the state dict has the reference's prefixes `backbone.` and `head.`.

    Args:
        backbone: the vision transformer.
        head: the projection head.
        position_interpolation: how positions are resized for other sizes, see `embed_cls`.

    Attributes:
        n_branches: residual branches that stochastic depth may skip, P.
    """

    def __init__(
        self, *, backbone: VisionTransformer, head: DINOHead, position_interpolation: PositionInterpolation
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self._position_interpolation = position_interpolation
        self._stochastic_depth = StochasticDepth(backbone)
        self.n_branches = self._stochastic_depth.n_branches

    @property
    def patch_size(self) -> int:
        """Side of the backbone's tokens in pixels."""
        return int(self.backbone.patch_embed.patch_size[0])

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights."""
        return next(self.backbone.parameters()).dtype

    def embed(self, images: Tensor) -> Tensor:
        """CLS embeddings (B, D) of normalised float images (B, 3, S, S)."""
        return embed_cls(self.backbone, images, position_interpolation=self._position_interpolation)

    def forward(self, *sizes: Tensor, branches_CBP: npt.NDArray[np.float32] | None = None) -> Tensor:
        """Prototype logits (C, B, K) of crops, one tensor (c, B, 3, S, S) for every size.

        One pass of the backbone for every size, one of the head for all crops.

        Args:
            *sizes: the crops.
            branches_CBP: uniform numbers that decide about stochastic depth (`draw_branches`); needed in training
                where the backbone has any.
        """
        embeddings: list[Tensor] = []
        done = 0
        for crops in sizes:
            if branches_CBP is not None and self.n_branches:
                drawn = branches_CBP[done : done + len(crops)].reshape(-1, self.n_branches)
                self._stochastic_depth.use(drawn, device=crops.device)
            if len(crops):
                embeddings.append(self.embed(crops.flatten(0, 1)).reshape(*crops.shape[:2], -1))
            done += len(crops)
        embeddings_CBD = torch.cat(embeddings)
        logits: Tensor = self.head(embeddings_CBD.flatten(0, 1))
        return logits.reshape(*embeddings_CBD.shape[:2], -1)
