"""What is a backbone, to everything that uses one?

Anything called with uint8 (B, H, W, 3) that returns float32 (B, K). This module holds that contract, the
wrappers that give it to a timm model and to any other torch model, and the one backbone without weights.

After: loading, which builds them by name; embed, which runs them.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from fm_eval.errors import BackboneError

Pooling = Literal["cls", "cls+mean", "mean"]


class Backbone(Protocol):
    """What fm_eval asks of a model.

    `input_size_px` (int, side of the squares it wants) and `provenance` (a JSON-able dict) are used when
    present.
    """

    def __call__(self, images_BHWC: Tensor, /) -> Tensor:
        """Map uint8 (B, H, W, 3) RGB to float32 (B, K)."""
        ...


@dataclass(frozen=True, slots=True)
class LoadedBackbone:
    """A backbone ready for `embed`.

    Attributes:
        model: maps uint8 (B, S, S, 3) to float32 (B, K).
        input_size_px: S.
        weights_sha256: hash of the weights; of class path and arguments when there are no weights.
        provenance: what the result records about it.
        recipe: what, beside weights and input size, decides the embeddings: architecture, pooling, mean, std.
        embed_dim: K; None where no image was tried yet.
    """

    model: Backbone
    input_size_px: int
    weights_sha256: str
    provenance: dict[str, Any] = field(default_factory=dict)
    recipe: dict[str, Any] = field(default_factory=dict)
    embed_dim: int | None = None

    @property
    def identity(self) -> str:
        """sha256 over all that decides the embeddings: two backbones of one identity embed alike."""
        parts = {"weights": self.weights_sha256, "input_size_px": self.input_size_px, "recipe": self.recipe}
        return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


class _Normalised(nn.Module):
    """Turns uint8 (B, H, W, 3) into what a torch model wants: scaled to [0, 1], normalised, channels first."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
            raise BackboneError(f"backbone: got mean {mean} and std {std}, expected 3 values each and std above 0")
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32), persistent=False)
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32), persistent=False)

    def normalise(self, images_BHWC: Tensor) -> Tensor:
        """Float32 (B, 3, H, W)."""
        scaled = (images_BHWC.float() / 255.0 - self.mean) / self.std
        return scaled.permute(0, 3, 1, 2)


class TimmBackbone(_Normalised):
    """A timm model behind the backbone contract: normalises with the model's own mean/std, then pools tokens.

    Args:
        model: timm model without classifier.
        mean: per channel, for pixels in [0, 1].
        std: per channel.
        pooling: `cls`, `mean` (of the patch tokens) or `cls+mean` (concatenated). None: `cls` if the model
            has a class token, else `mean`.

    Raises:
        BackboneError: the model has no class token but one is asked for.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        pooling: Pooling | None = None,
    ) -> None:
        super().__init__(mean, std)
        has_cls = getattr(model, "cls_token", None) is not None
        if pooling in {"cls", "cls+mean"} and not has_cls:
            raise BackboneError(
                f"backbone: pooling {pooling} needs a class token, this model has none; use pooling mean"
            )
        self.model = model.eval().requires_grad_(False)
        self.pooling: Pooling = pooling or ("cls" if has_cls else "mean")

    def forward(self, images_BHWC: Tensor) -> Tensor:
        """Embed uint8 (B, H, W, 3) as float32 (B, K)."""
        features: Tensor = self.model.forward_features(self.normalise(images_BHWC))  # type: ignore[operator]
        if features.ndim == 4:  # convolutional: timm knows where the channels are
            return self.model.forward_head(features, pre_logits=True).float()  # type: ignore[operator, no-any-return]
        prefix = int(getattr(self.model, "num_prefix_tokens", 0))
        cls, patches = features[:, 0], features[:, prefix:].mean(dim=1)
        pooled = {
            "cls": lambda: cls,
            "mean": lambda: patches,
            "cls+mean": lambda: torch.cat([cls, patches], dim=1),
        }
        return pooled[self.pooling]().float()

    @property
    def patch_px(self) -> int:
        """Side of the square of pixels that one patch token stands for.

        Raises:
            BackboneError: the model has no grid of patch tokens.
        """
        patch = getattr(getattr(self.model, "patch_embed", None), "patch_size", None)
        if not isinstance(patch, tuple) or patch[0] != patch[1] or not hasattr(self.model, "num_prefix_tokens"):
            raise BackboneError(
                f"backbone: {type(self.model).__name__} has no grid of patch tokens; use a vision transformer"
            )
        return int(patch[0])

    def patch_tokens(self, images_BSSC: Tensor) -> Tensor:
        """Map uint8 (B, S, S, 3) to the patch tokens of the last block after its norm, float32 (B, K, h, h).

        Raises:
            BackboneError: the model has no square grid of tokens, or its patches do not divide the image.
        """
        side_px = images_BSSC.shape[1]
        if side_px % self.patch_px:
            raise BackboneError(f"backbone: patch size {self.patch_px} does not divide an image of {side_px} pixels")
        features: Tensor = self.model.forward_features(self.normalise(images_BSSC))  # type: ignore[operator]
        tokens_BLK = features[:, int(self.model.num_prefix_tokens) :].float()  # type: ignore[arg-type]
        side = math.isqrt(tokens_BLK.shape[1])
        if side**2 != tokens_BLK.shape[1]:
            raise BackboneError(f"backbone: {tokens_BLK.shape[1]} patch tokens are no square grid")
        return tokens_BLK.transpose(1, 2).reshape(len(images_BSSC), -1, side, side)


class TensorBackbone(_Normalised):
    """Any torch model that maps normalised float32 (B, 3, H, W) to (B, K), behind the backbone contract.

    Args:
        model: for example what a torch hub entry returns.
        mean: per channel, for pixels in [0, 1].
        std: per channel.
    """

    def __init__(self, model: nn.Module, *, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__(mean, std)
        self.model = model.eval().requires_grad_(False)

    def forward(self, images_BHWC: Tensor) -> Tensor:
        """Embed uint8 (B, H, W, 3) as float32 (B, K)."""
        embeddings: Tensor = self.model(self.normalise(images_BHWC))
        return embeddings.float() if isinstance(embeddings, Tensor) else embeddings


class ColourHistogram:
    """Joint RGB histogram, square-rooted: the floor which no model should fall below.

    Args:
        bins: bins a channel; the embedding has bins^3 values.
        input_size_px: side the images are brought to before counting.
    """

    def __init__(self, *, bins: int = 8, input_size_px: int = 224) -> None:
        if not 2 <= bins <= 32 or input_size_px < 1:
            raise BackboneError(f"ColourHistogram: got bins={bins}, input_size_px={input_size_px}; bins must be 2..32")
        self.bins = bins
        self.input_size_px = input_size_px
        self.provenance = {"weights": "none", "bins": bins, "input_size_px": input_size_px}

    def __call__(self, images_BHWC: Tensor, /) -> Tensor:
        """Map uint8 (B, H, W, 3) to float32 (B, bins^3); each row has unit length."""
        batch, height, width, _ = images_BHWC.shape
        level = (images_BHWC.long() * self.bins) // 256
        cell = (level[..., 0] * self.bins + level[..., 1]) * self.bins + level[..., 2]
        counts = torch.zeros(batch, self.bins**3, device=images_BHWC.device)
        counts.scatter_add_(
            1, cell.reshape(batch, -1), torch.ones(1, device=counts.device).expand(batch, height * width)
        )
        return (counts / (height * width)).sqrt()


def hash_state_dict(model: nn.Module) -> str:
    """sha256 over names, shapes, types and bytes of all tensors, in order of the names."""
    total = hashlib.sha256()
    for key, value in sorted(model.state_dict().items()):
        total.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
        total.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()
