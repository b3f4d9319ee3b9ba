"""What do student and teacher of DINOv2 consist of, and which of their outputs does a step need?

A backbone, a mask token, a head for [CLS] and, unless it is shared, one for masked patches. Only tokens that the
losses look at pass the last block's MLP and a head. timm's backbones with registers have no position of the class
token, which the reference trains: here it lies beside the backbone and becomes part of the token when that leaves
training (`meta_dinov2`).

Legend of shape suffixes: 2 global crops, L local crops, B images, C = 2B, N tokens, M masked tokens, D embedding
dimension, K prototypes.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import NamedTuple

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ssl_train.heads import DINOHead
from ssl_train.packed import KeptSamples, PackedBlock, PositionResampling, WantedTokens, embed_tokens


# Without slots: jsonargparse reads defaults with vars().
@dataclass(frozen=True, kw_only=True)
class HeadSettings:
    """A projection head, see `DINOHead`; its prototypes' lengths are trained, as in DINOv2.

    Args:
        out_dim: number of prototypes K.
        hidden_dim: width of the MLP.
        bottleneck_dim: dimension of the prototypes.
        nlayers: linear layers of the MLP.
    """

    out_dim: int = 65_536
    hidden_dim: int = 2_048
    bottleneck_dim: int = 256
    nlayers: int = 3

    def build(self, embed_dim: int) -> DINOHead:
        """A fresh head for embeddings of this dimension."""
        return DINOHead(in_dim=embed_dim, norm_last_layer=False, **asdict(self))


class NetworkOutput(NamedTuple):
    """What a step needs of one network.

    A tuple, because sharded training has to find the tensors in it.

    Attributes:
        cls: [CLS] embeddings of the global crops, before the head, (2, B, D).
        global_logits: their logits, (2, B, K).
        local_logits: logits of the local crops, (L, B, K).
        masked_logits: logits of the masked tokens of the global crops, (M, K).
    """

    cls: Tensor
    global_logits: Tensor
    local_logits: Tensor
    masked_logits: Tensor


class DINOv2Network(nn.Module):
    """Backbone, mask token and heads.

    Args:
        backbone: vision transformer whose blocks are `PackedBlock`.
        dino_head: head of [CLS].
        ibot_head: head of masked patches; shares `dino_head` where absent.
        resampling: how positions reach other sizes than the native one.
        checkpoint_activations: keep only the inputs of each block and calculate the rest again in the backward
            pass: less memory for about a third more time.
    """

    def __init__(
        self,
        *,
        backbone: VisionTransformer,
        dino_head: HeadSettings,
        ibot_head: HeadSettings | None,
        resampling: PositionResampling,
        checkpoint_activations: bool = False,
    ) -> None:
        super().__init__()
        assert all(isinstance(block, PackedBlock) for block in backbone.blocks), "give timm block_fn=PackedBlock"
        self.backbone = backbone
        self.mask_token = nn.Parameter(torch.zeros(1, backbone.embed_dim))
        self.cls_position: nn.Parameter | None = None
        if backbone.no_embed_class:
            self.cls_position = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, 1, backbone.embed_dim), std=0.02))
        self.dino_head = dino_head.build(backbone.embed_dim)
        self.ibot_head = None if ibot_head is None else ibot_head.build(backbone.embed_dim)
        self._resampling = resampling
        self._checkpoint_activations = checkpoint_activations

    @property
    def patch_size(self) -> int:
        """Side of the backbone's tokens in pixels."""
        return int(self.backbone.patch_embed.patch_size[0])

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights."""
        return self.mask_token.dtype

    @property
    def head(self) -> DINOHead:
        """The head of [CLS]."""
        return self.dino_head

    @property
    def submodules(self) -> dict[str, list[nn.Parameter]]:
        """Parameters that are clipped together, as in the reference: backbone (with its tokens) and each head."""
        parts = {"backbone": [self.mask_token, *self.backbone.parameters()]}
        if self.cls_position is not None:
            parts["backbone"].append(self.cls_position)
        parts["dino_head"] = list(self.dino_head.parameters())
        if self.ibot_head is not None:
            parts["ibot_head"] = list(self.ibot_head.parameters())
        return parts

    def embed(self, images: Tensor) -> Tensor:
        """[CLS] embeddings (B, D) of normalised float images (B, 3, H, W)."""
        wanted = [WantedTokens.class_tokens(len(images), device=images.device)]
        return self.tokens([images], mask_CN=None, kept=None, wanted=wanted)[0]

    def tokens(
        self,
        sizes: list[Tensor],
        *,
        mask_CN: Tensor | None,
        kept: KeptSamples | None,
        wanted: list[WantedTokens] | None = None,
    ) -> list[Tensor]:
        """Normed tokens of crops of several sizes, (B, P + N, D) each, or the wanted ones alone, (M, D) each.

        Masks are those of the first size.
        """
        backbone = self.backbone
        tokens = [
            embed_tokens(
                backbone,
                images,
                resampling=self._resampling,
                mask_BN=mask_CN if number == 0 else None,
                mask_token_1D=self.mask_token,
                cls_position_11D=self.cls_position,
            )
            for number, images in enumerate(sizes)
        ]
        for number, block in enumerate(backbone.blocks):
            rows = None if kept is None else kept.of_block(number)
            left = wanted if number == len(backbone.blocks) - 1 else None
            if self._checkpoint_activations and torch.is_grad_enabled():
                tokens = checkpoint(block, tokens, rows, left, use_reentrant=False)
            else:
                tokens = block(tokens, rows, left)
        return [backbone.norm(t) for t in tokens]

    def forward(
        self,
        global_2BHW: Tensor,
        local_LBHW: Tensor,
        *,
        masked_M: Tensor,
        mask_CN: Tensor | None = None,
        kept: KeptSamples | None = None,
    ) -> NetworkOutput:
        """Logits of global crops (2, B, 3, S, S), local crops (L, B, 3, s, s) and masked tokens.

        Args:
            global_2BHW: two global crops of every image.
            local_LBHW: local crops of every image; L may be 0.
            masked_M: places of the masked tokens in the flattened (2B * N) tokens of the global crops.
            mask_CN: tokens to hide, bool; the student's only.
            kept: samples that stochastic depth keeps; all where absent.
        """
        n_local, n_images, device = len(local_LBHW), global_2BHW.shape[1], masked_M.device
        sizes = [global_2BHW.flatten(0, 1)] + ([local_LBHW.flatten(0, 1)] if n_local else [])
        class_tokens = [WantedTokens.class_tokens(len(images), device=device) for images in sizes]
        n_patches = (global_2BHW.shape[-1] // self.patch_size) * (global_2BHW.shape[-2] // self.patch_size)
        masked = WantedTokens(masked_M // n_patches, masked_M % n_patches + self.backbone.num_prefix_tokens)
        of_globals = WantedTokens(*(torch.cat(both) for both in zip(class_tokens[0], masked, strict=True)))
        tokens = self.tokens(sizes, mask_CN=mask_CN, kept=kept, wanted=[of_globals, *class_tokens[1:]])
        cls_CD, masked_MD = torch.split(tokens[0], [2 * n_images, len(masked_M)])
        cls = torch.cat([cls_CD, *tokens[1:]])
        if self.ibot_head is None:
            logits, masked_MK = self.dino_head(torch.cat([cls, masked_MD])).split([len(cls), len(masked_MD)])
        else:
            logits, masked_MK = self.dino_head(cls), self.ibot_head(masked_MD)
        global_2BK, local_LBK = logits.reshape(2 + n_local, n_images, -1).split([2, n_local])
        return NetworkOutput(cls_CD.reshape(2, n_images, -1), global_2BK, local_LBK, masked_MK)
