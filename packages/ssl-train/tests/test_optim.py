from __future__ import annotations

import torch
from ssl_train.backbone import create_backbone
from ssl_train.optim import clip_gradients_per_parameter, parameter_groups
from torch import nn


def test_tokens_and_positions_decay_and_biases_and_norms_do_not() -> None:
    model = create_backbone("vit_tiny_patch16_224", img_size=32, depth=1, embed_dim=12, num_heads=1)
    names = {id(p): name for name, p in model.named_parameters()}
    decayed, undecayed = ({names[id(p)] for p in group["params"]} for group in parameter_groups(model))
    assert {"cls_token", "pos_embed", "patch_embed.proj.weight", "blocks.0.attn.qkv.weight"} <= decayed
    assert {"patch_embed.proj.bias", "blocks.0.norm1.weight", "norm.weight", "norm.bias"} <= undecayed
    assert decayed | undecayed == set(names.values())


def test_parameters_without_gradient_are_left_out() -> None:
    layer = nn.Linear(2, 2)
    layer.weight.requires_grad_(False)
    decayed, undecayed = parameter_groups(layer)
    assert decayed["params"] == []
    assert undecayed["params"] == [layer.bias]


def test_each_gradient_is_clipped_by_its_own_norm() -> None:
    small, large, none = (nn.Parameter(torch.zeros(2)) for _ in range(3))
    small.grad, large.grad = torch.tensor([0.3, 0.4]), torch.tensor([30.0, 40.0])
    clip_gradients_per_parameter([small, large, none], 2.0)
    assert torch.equal(small.grad, torch.tensor([0.3, 0.4]))
    torch.testing.assert_close(large.grad, torch.tensor([1.2, 1.6]))
    assert none.grad is None
    clip_gradients_per_parameter([none], 2.0)
