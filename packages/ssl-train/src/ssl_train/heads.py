"""What stands between the backbone's embedding and the prototypes?

Legend of shape suffixes: B samples, D embedding dimension, N bottleneck dimension, K prototypes.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn


class WeightNormLinear(nn.Module):
    """Linear layer without bias whose row k is `weight_g[k] * weight_v[k] / |weight_v[k]|` (arXiv
    1602.07868).

    The parameters keep the names and shapes of the DINO reference, so that its checkpoints load unchanged.
    """

    def __init__(self, in_dim: int, out_dim: int, *, train_norm: bool) -> None:
        super().__init__()
        self.weight_g = nn.Parameter(torch.ones(out_dim, 1), requires_grad=train_norm)
        # The direction keeps torch's default initialisation of a linear layer, as in the reference.
        self.weight_v = nn.Parameter(nn.Linear(in_dim, out_dim, bias=False).weight.detach().clone())

    def forward(self, x_BN: Tensor) -> Tensor:
        """Maps (B, N) to (B, K)."""
        if torch.is_autocast_enabled(x_BN.device.type):
            norm_K1 = self.weight_v.norm(dim=1, keepdim=True)
            return nnf.linear(x_BN, self.weight_v * (self.weight_g / norm_K1))
        y_BK: Tensor = _WeightNormProduct.apply(x_BN, self.weight_v, self.weight_g)
        return y_BK


class _WeightNormProduct(torch.autograd.Function):
    """The same product with the lengths applied to its result.

    With K = 65,536 the weights are nearly as many as those of a ViT-S, and every operation on them moves them all. Here
    there is one forward and one backward, beside the matrix products, and of the size of the result nothing is kept:
    with thousands of masked patches that is what counts.
    """

    @staticmethod
    def forward(ctx: Any, x_BN: Tensor, weight_v: Tensor, weight_g: Tensor) -> Tensor:
        norm_K: Tensor = torch.linalg.vector_norm(weight_v, dim=1)
        ctx.save_for_backward(x_BN, weight_v, weight_g, norm_K)
        return (x_BN @ weight_v.T).mul_(weight_g[:, 0] / norm_K)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x_BN, weight_v, weight_g, norm_K = ctx.saved_tensors
        (grad_BK,) = gradients
        scale_K = weight_g[:, 0] / norm_K
        grad_x = grad_v = grad_g = None
        if ctx.needs_input_grad[0]:
            grad_x = grad_BK @ (weight_v * scale_K[:, None])
        if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
            grad_KN = grad_BK.T @ x_BN
            along_K = torch.einsum("kn,kn->k", grad_KN, weight_v)
            grad_g = (along_K / norm_K)[:, None]
            # Less what would only change the length of a row.
            grad_v = grad_KN.mul_(scale_K[:, None]).addcmul_(
                weight_v, (along_K * scale_K / norm_K**2)[:, None], value=-1
            )
        return grad_x, grad_v, grad_g if ctx.needs_input_grad[2] else None


class DINOHead(nn.Module):
    """Projection head of DINO: GELU MLP, L2 norm, weight-normalised prototypes (arXiv 2104.14294, appendix
    C).

    Args:
        in_dim: embedding dimension D.
        out_dim: number of prototypes K.
        hidden_dim: width of the MLP.
        bottleneck_dim: dimension N in which the prototypes live.
        nlayers: number of linear layers of the MLP, at least 1.
        norm_last_layer: keep the length of every prototype at 1 (`weight_g` fixed). Advised for larger
            backbones.
        use_bn: batch normalisation after every hidden layer.
        mlp_bias: biases in the MLP.

    Raises:
        ValueError: `nlayers` below 1.
    """

    def __init__(
        self,
        *,
        in_dim: int,
        out_dim: int = 65_536,
        hidden_dim: int = 2_048,
        bottleneck_dim: int = 256,
        nlayers: int = 3,
        norm_last_layer: bool = True,
        use_bn: bool = False,
        mlp_bias: bool = True,
    ) -> None:
        super().__init__()
        if nlayers < 1:
            raise ValueError(f"head with nlayers={nlayers}: must be at least 1")
        self.mlp: nn.Module
        if nlayers == 1:
            self.mlp = nn.Linear(in_dim, bottleneck_dim, bias=mlp_bias)
        else:
            widths = [in_dim] + [hidden_dim] * (nlayers - 1)
            layers: list[nn.Module] = []
            for width, next_width in pairwise(widths):
                layers.append(nn.Linear(width, next_width, bias=mlp_bias))
                if use_bn:
                    layers.append(nn.BatchNorm1d(next_width))
                layers.append(nn.GELU())
            layers.append(nn.Linear(hidden_dim, bottleneck_dim, bias=mlp_bias))
            self.mlp = nn.Sequential(*layers)
        self.mlp.apply(_init_linear)
        self.last_layer = WeightNormLinear(bottleneck_dim, out_dim, train_norm=not norm_last_layer)

    def forward(self, x_BD: Tensor) -> Tensor:
        """Maps embeddings (B, D) to prototype logits (B, K)."""
        logits_BK: Tensor = self.last_layer(nnf.normalize(self.mlp(x_BD), dim=-1))
        return logits_BK


def _init_linear(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
