"""Parity with the DINOv2 reference, on every case that GOLDEN_DIR holds, in float64 and in float32.

Tolerances are those of the README beside the cases. A case without a check here fails.
"""

from __future__ import annotations

import json
import os
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors.torch import load_file
from ssl_train import DINOv2
from ssl_train.backbone import create_backbone
from ssl_train.convert import convert
from ssl_train.dinov2_network import DINOv2Network, HeadSettings
from ssl_train.dinov2_schedules import DINOv2Schedules
from ssl_train.heads import DINOHead
from ssl_train.ibot import cls_losses, masked_patch_loss
from ssl_train.koleo import koleo_loss
from ssl_train.layer_decay import layer_decay_groups
from ssl_train.masking import TokenMasks, block_mask, draw_masks, largest_rectangle
from ssl_train.meta_dinov2 import from_reference, to_reference
from ssl_train.packed import PackedBlock, PositionResampling
from ssl_train.schedules import cosine
from ssl_train.targets import SoftmaxCentering, sinkhorn_knopp
from ssl_train.weights import load_file_safely, read_weights
from torch import Tensor

pytestmark = pytest.mark.golden_dinov2

_GIVEN = os.environ.get("GOLDEN_DIR")
GOLDEN_DIR = Path(_GIVEN) if _GIVEN else Path(__file__).parents[4] / "shared" / "golden"
PATTERNS = ("dinov2_*.json", "meta_checkpoint_dinov2*.json")
CASES = sorted(path.stem for pattern in PATTERNS for path in GOLDEN_DIR.glob(pattern))
Tensors = dict[str, Tensor]
SMALL_HEAD = HeadSettings(out_dim=8, hidden_dim=8, bottleneck_dim=8)


def strip(tensors: Tensors, prefix: str) -> Tensors:
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


@dataclass(frozen=True)
class Golden:
    """A case, and how closely a result of one precision has to meet it."""

    name: str
    about: dict[str, Any]
    t: Tensors
    dtype: torch.dtype
    float32_atol: float

    @classmethod
    def load(cls, name: str, dtype: torch.dtype) -> Golden:
        about = json.loads((GOLDEN_DIR / f"{name}.json").read_text())
        path = GOLDEN_DIR / f"{name}.safetensors"
        return cls(name, about, load_file(path) if path.is_file() else {}, dtype, float32_tolerance(name))

    @property
    def hyper(self) -> Any:
        return self.about["hyperparameters"]

    def input(self, name: str) -> Tensor:
        return self.t[f"in.{name}"].to(self.dtype)

    def check(self, got: Tensor, name: str, *, without: slice | None = None, atol: float | None = None) -> None:
        """Compares with `out64.*`, or `out.*` where there is no other; `without` leaves rows out in float32."""
        expected = self.t.get(f"out64.{name}")
        low_precision = expected is None or self.dtype == torch.float32
        expected = self.t[f"out.{name}"] if expected is None else expected
        got, expected = got.detach().double(), expected.double()
        if low_precision:
            if without is not None:
                got, expected = got.clone(), expected.clone()
                got[without] = expected[without] = 0
            scale = max(1.0, float(expected.abs().max())) if expected.numel() else 1.0
            torch.testing.assert_close(got, expected, rtol=0, atol=atol or self.float32_atol * scale)
        else:
            rounded = self.t[f"out64.{name}"].dtype == torch.float32
            torch.testing.assert_close(got, expected, rtol=1e-7 if rounded else 0.0, atol=1e-9)


def float32_tolerance(name: str) -> float:
    """From the table of the README: the first number of the row's fifth column."""
    for line in (GOLDEN_DIR / "README.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.split("|")]
        if f"`{name}.json`" in line and len(cells) > 5:
            number = re.match(r"[\d.]+e-?\d+", cells[5])
            return float(number.group()) if number else 0.0
    raise AssertionError(f"the README of {GOLDEN_DIR} has no row for {name}")


@pytest.fixture(params=["float64", "float32"])
def dtype(request: pytest.FixtureRequest) -> Iterator[torch.dtype]:
    before = torch.get_default_dtype()
    chosen: torch.dtype = getattr(torch, request.param)
    torch.set_default_dtype(chosen)
    yield chosen
    torch.set_default_dtype(before)


def as_images(u8: Tensor, dtype: torch.dtype) -> Tensor:
    return (u8.to(dtype) - 128) / 64


def run_centering(g: Golden, logits: Tensor, centering: SoftmaxCentering, temp: float) -> tuple[Tensor, Tensor]:
    """A step of the teacher: (targets, centre used)."""
    used = centering.center.clone()
    targets = centering(logits, temp=temp)
    centering.observe(logits)
    centering.update()
    return targets, used


def check_cls_loss(g: Golden) -> None:
    h, names = g.hyper, ("targets", "center_used", "loss_local", "loss_global", "grad_student_local")
    centering = SoftmaxCentering(out_dim=h["K"], momentum=h["center_momentum"]).to(g.dtype)
    got: dict[str, list[Tensor]] = {name: [] for name in (*names, "grad_student_global", "targets_sk", "loss_local_sk")}
    n_pairs = 2 + 2 * h["nloc"]
    for call, temp in enumerate(h["temps"]):
        logits = g.input("student_logits")[call].requires_grad_()
        local, views = logits.unflatten(0, (-1, h["B"])).split([h["nloc"], 2])
        teacher = g.input("teacher_logits")[call]
        targets, used = run_centering(g, teacher, centering, temp)
        assigned = sinkhorn_knopp(teacher, temp=temp, iterations=h["sinkhorn_iterations"])
        # The case compares view 0 with target 0; a step with the other view's.
        pair = targets.unflatten(0, (2, h["B"])).flip(0)
        global_loss, local_loss = cls_losses(views, local, pair, student_temp=h["student_temp"])
        global_loss, local_loss = global_loss * n_pairs / 2, local_loss * n_pairs
        _, local_sk = cls_losses(
            views, local, assigned.unflatten(0, (2, h["B"])).flip(0), student_temp=h["student_temp"]
        )
        (global_loss + local_loss).backward()
        assert logits.grad is not None
        values = (targets, used, local_loss, global_loss, logits.grad[: -2 * h["B"]], logits.grad[-2 * h["B"] :])
        for name, value in zip([*names, "grad_student_global"], values, strict=True):
            got[name].append(value.detach())
        got["targets_sk"].append(assigned)
        got["loss_local_sk"].append(local_sk.detach() * n_pairs)
    for name, parts in got.items():
        g.check(torch.stack(parts), name)
    g.check(centering.center, "center_final")


def check_patch_loss(g: Golden) -> None:
    h, masks = g.hyper, TokenMasks.of(g.t["in.masks"])
    assert torch.equal(masks.index, g.t["in.mask_indices"])
    centering = SoftmaxCentering(out_dim=h["K"], momentum=h["center_momentum"]).to(g.dtype)
    got: dict[str, list[Tensor]] = {}
    for call, temp in enumerate(h["temps"]):
        full = g.input("student_logits")[call].requires_grad_()
        teacher = g.input("teacher_logits")[call].flatten(0, 1)[masks.index]
        targets, used = run_centering(g, teacher, centering, temp)

        def loss(student: Tensor, targets: Tensor) -> Tensor:
            return masked_patch_loss(
                student, targets, masks.weight, n_crops=len(masks.mask), student_temp=h["student_temp"]
            )

        student = full.detach().flatten(0, 1)[masks.index].requires_grad_()
        masked = loss(student, targets)
        masked.backward()
        # All tokens with uncentred targets: unmasked ones have no part in it.
        whole = loss(full.flatten(0, 1)[masks.index], (teacher / temp).softmax(-1))
        whole.backward()
        assigned = sinkhorn_knopp(teacher, temp=temp)
        assert student.grad is not None
        assert full.grad is not None
        values = {
            "targets": targets,
            "center_used": used[None],
            "loss_masked": masked,
            "loss_masked_noweight": masked,
            "grad_student_masked": student.grad,
            "loss_full": whole,
            "grad_student_full": full.grad,
            "targets_sk": assigned,
            "loss_masked_sk": loss(student, assigned),
        }
        for name, value in values.items():
            got.setdefault(name, []).append(value.detach())
    for name, parts in got.items():
        g.check(torch.stack(parts), name)
    g.check(centering.center[None], "center_final")


def _losses_on_rank(rank: int, store: str, name: str, dtype: torch.dtype) -> None:
    torch.set_num_threads(1)
    torch.set_default_dtype(dtype)
    g = Golden.load(name, dtype)
    world, temp = g.hyper["world_size"], g.hyper["teacher_temp"]
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    cls_logits, patch_logits = g.input("teacher_cls_logits")[rank], g.input(f"rank{rank}.teacher_patch_logits")
    cls = SoftmaxCentering(out_dim=cls_logits.shape[-1]).to(dtype)
    patch = SoftmaxCentering(out_dim=patch_logits.shape[-1]).to(dtype)
    cls_steps, patch_steps = [], []
    for call in range(g.hyper["calls"]):
        cls_steps.append(run_centering(g, cls_logits[call], cls, temp))
        patch_steps.append(run_centering(g, patch_logits * (1 + 0.1 * call), patch, temp))
    g.check(torch.stack([sinkhorn_knopp(logits, temp=temp) for logits in cls_logits]), f"rank{rank}.cls_sinkhorn")
    g.check(sinkhorn_knopp(patch_logits, temp=temp), f"rank{rank}.ibot_sinkhorn")
    g.check(torch.stack([targets for targets, _ in cls_steps]), f"rank{rank}.cls_targets")
    g.check(torch.stack([targets for targets, _ in patch_steps]), f"rank{rank}.ibot_targets")
    g.check(torch.stack([*(c for _, c in cls_steps), cls.center]), f"rank{rank}.cls_centers")
    g.check(torch.stack([*(c for _, c in patch_steps), patch.center])[:, None], f"rank{rank}.ibot_centers")
    dist.destroy_process_group()


def check_world2(g: Golden, tmp_path: Path) -> None:
    mp.start_processes(
        _losses_on_rank,
        args=(str(tmp_path / "store"), g.name, g.dtype),
        nprocs=g.hyper["world_size"],
        start_method="fork",
    )


def check_koleo(g: Golden) -> None:
    tolerances = g.about["recommended_tolerance_fp32"]
    for name in strip(g.t, "in."):
        x = g.input(name).requires_grad_()
        loss = koleo_loss(x) if name != "two_chunks" else koleo_loss(x.chunk(2)[0]) + koleo_loss(x.chunk(2)[1])
        loss.backward()
        assert x.grad is not None
        assert x.grad.isfinite().all()
        for kind, value in ((f"loss.{name}", loss), (f"grad.{name}", x.grad)):
            if g.dtype == torch.float64 and "duplicates" in name:
                # The README's 1e-6 for duplicates; gradients there are differences of huge numbers.
                expected = g.t[f"out64.{kind}"]
                torch.testing.assert_close(value.detach(), expected.double(), rtol=0, atol=1e-6)
            elif g.dtype == torch.float64 or kind != "grad.exact_duplicates":
                scale = max(1.0, float(g.t[f"out64.{kind}"].abs().max()))
                g.check(value, kind, atol=tolerances[kind]["atol"] + tolerances[kind]["rtol"] * scale)


def check_head(g: Golden) -> None:
    h = g.hyper
    head = DINOHead(
        **{name: h[name] for name in ("in_dim", "out_dim", "hidden_dim", "bottleneck_dim", "nlayers")},
        norm_last_layer=not h["weight_g_trainable"],
        mlp_bias=h.get("mlp_bias", True),
    ).to(g.dtype)
    head.load_state_dict(strip(g.t, "in.state."))
    optimizer = torch.optim.AdamW(head.parameters(), lr=h["lr"], weight_decay=h["wd"])
    for step in range(h["steps"]):
        x = g.input("x").requires_grad_()
        y = head(x)
        g.check(y, f"y_step{step}")
        optimizer.zero_grad()
        (y * g.input("cotangents")[step]).sum().backward()
        if step == 0:
            assert x.grad is not None
            g.check(x.grad, "grad_x")
            gradients = {name: p.grad for name, p in head.named_parameters() if p.grad is not None}
            assert gradients.keys() == strip(g.t, "out64.grad.").keys()
            for name, gradient in gradients.items():
                g.check(gradient, f"grad.{name}")
        optimizer.step()
    for name, value in head.state_dict().items():
        if f"out64.final.{name}" in g.t:
            g.check(value, f"final.{name}")


def architecture_of(network: Tensors, *, heads: int) -> tuple[str, dict[str, Any]]:
    """What a user gives for a network of unusual sizes: timm's name and arguments."""
    kernel, registers = network["backbone.patch_embed.proj.weight"], network.get("backbone.reg_token")
    hidden, last = (network[f"backbone.blocks.0.mlp.{name}.weight"] for name in ("fc1", "fc2"))
    gated = hidden.shape[0] == 2 * last.shape[1]
    n_positions = network["backbone.pos_embed"].shape[1] - (registers is None)
    kwargs = {
        "img_size": round(n_positions**0.5) * kernel.shape[-1],
        "patch_size": kernel.shape[-1],
        "embed_dim": kernel.shape[0],
        "depth": 1 + max(int(name.split(".")[2]) for name in network if name.startswith("backbone.blocks.")),
        "num_heads": heads,
        "mlp_ratio": (hidden.shape[0] + 0.5) / kernel.shape[0],
        # 0 is no LayerScale; None would be timm's own default for the name.
        "init_values": 1e-5 if "backbone.blocks.0.ls1.gamma" in network else 0.0,
        "reg_tokens": 0 if registers is None else registers.shape[1],
        "no_embed_class": registers is not None,
        "qkv_bias": "backbone.blocks.0.attn.qkv.bias" in network,
        "proj_bias": "backbone.blocks.0.attn.proj.bias" in network,
    }
    return f"vit_{'giant' if gated else 'small'}_patch14_dinov2", kwargs


def network_of(state: Tensors, *, heads: int, resampling: PositionResampling, dtype: torch.dtype) -> DINOv2Network:
    """The production network with a backbone of the reference."""
    exact = from_reference({name: tensor.to(dtype) for name, tensor in state.items()})
    architecture, kwargs = architecture_of(exact, heads=heads)
    backbone = create_backbone(architecture, block_fn=PackedBlock, **kwargs)
    network = DINOv2Network(backbone=backbone, dino_head=SMALL_HEAD, ibot_head=None, resampling=resampling).to(dtype)
    network.load_state_dict({**network.state_dict(), **{k: t for k, t in exact.items() if "_head." not in k}})
    return network.eval()


def check_tokens(g: Golden, network: DINOv2Network, images: Tensor, mask: Tensor | None, tag: str) -> None:
    tokens = network.tokens([images], mask_CN=mask, kept=None)[0]
    n_prefix = network.backbone.num_prefix_tokens
    g.check(tokens[:, 0], f"x_norm_clstoken.{tag}")
    g.check(tokens[:, n_prefix:], f"x_norm_patchtokens.{tag}")
    if f"out.x_norm_regtokens.{tag}" in g.t:
        g.check(tokens[:, 1:n_prefix], f"x_norm_regtokens.{tag}")


def check_vit_forward(g: Golden) -> None:
    h = g.hyper
    state = strip(g.t, "in.state.")
    resampling = PositionResampling(h["off"], antialias=h["aa"])
    network = network_of(state, heads=h["heads"], resampling=resampling, dtype=g.dtype)
    native = tuple(network.backbone.patch_embed.grid_size)
    for height, width in h["sizes"]:
        size = f"{height}x{width}"
        images = as_images(g.t[f"in.image_u8.{size}"], g.dtype)
        seen: list[Tensor] = []
        hooks = [
            block.register_forward_hook(lambda _m, _i, out, seen=seen: seen.append(out[0]))
            for block in network.backbone.blocks
        ]
        check_tokens(g, network, images, None, size)
        for hook in hooks:
            hook.remove()
        for number, tokens in enumerate(seen[-2:]):
            if f"out.inter{number}.cls.{size}" in g.t:
                normed = network.backbone.norm(tokens)
                g.check(normed[:, 0], f"inter{number}.cls.{size}")
                g.check(normed[:, network.backbone.num_prefix_tokens :], f"inter{number}.patch.{size}")
        if f"in.mask.{size}" in g.t:
            check_tokens(g, network, images, g.t[f"in.mask.{size}"], f"{size}.masked")
        position = state["pos_embed"].to(g.dtype)
        grid = (height // h["patch"], width // h["patch"])
        patches = resampling(position[:, 1:], native=native, grid=grid)
        g.check(torch.cat([position[:, :1], patches], dim=1), f"pos_embed.{size}")


def check_stochastic_depth(g: Golden) -> None:
    h = g.hyper
    block = PackedBlock(dim=h["dim"], num_heads=h["heads"], qkv_bias=True, init_values=1.0, mlp_ratio=h["mlp_ratio"])
    block.load_state_dict(strip(g.t, "in.state."))
    for module in block.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = h["norm_eps"]
    block = block.to(g.dtype).train()
    checked = 0
    for tag, rate in (("subset", h["ratio"]), ("small", h["small"])):
        inputs = [g.input(f"{tag}.x{i}") for i in range(2)]
        for kind, sizes in (("single", inputs[:1]), ("list", inputs)):
            if f"in.{tag}.{kind}.randperm0" not in g.t:
                continue
            drawn = [g.t[f"in.{tag}.{kind}.randperm{i}"] for i in range(2 * len(sizes))]
            kept = []
            for i, x in enumerate(sizes):
                k = max(int(len(x) * (1 - rate)), 1)
                kept.append(torch.stack([drawn[i][:k], drawn[len(sizes) + i][:k]]))
            for i, y in enumerate(block(sizes, kept)):
                g.check(y, f"{tag}.{kind}.y{i}")
                checked += 1
    assert checked == len(strip(g.t, "out64."))


def check_masking(g: Golden) -> None:
    for rows, columns, largest in g.hyper["grids"]:
        facts = g.about["facts"][f"{rows}x{columns}"]
        generator = random.Random(facts["random_seed"])
        masks = [
            torch.from_numpy(block_mask(n, grid=(rows, columns), largest=largest, generator=generator))
            for n in facts["targets"]
        ]
        assert torch.equal(torch.stack(masks), g.t[f"out.masks_{rows}x{columns}"])
        for target, statistics in facts["statistics_by_target"].items():
            counts = [
                block_mask(int(target), grid=(rows, columns), largest=largest, generator=generator).sum()
                for _ in range(200)
            ]
            # Five standard errors of 200 draws.
            assert abs(sum(counts) / 200 - statistics["mean"]) < 5 * statistics["std"] / 200**0.5
    h, collate = g.hyper, g.about["facts"]["collate"]
    side = round(h["n_tokens"] ** 0.5)
    masks = TokenMasks.of(
        draw_masks(
            2 * h["B"],
            probability=h["prob"],
            ratio=tuple(h["ratio"]),
            grid=(side, side),
            largest=g.about["facts"][f"{side}x{side}"]["max_num_patches"],
            generator=random.Random(collate["random_seed"]),
        )
    )
    assert torch.equal(masks.mask, g.t["out.collate.collated_masks"])
    assert torch.equal(masks.index, g.t["out.collate.mask_indices_list"])
    assert torch.equal(masks.weight.float(), g.t["out.collate.masks_weight"])
    assert len(masks.index) == g.t["out.collate.n_masked_patches"]
    for sizes, expected in g.about["facts"]["max_num_patches_expression"]["values"].items():
        crop, patch = map(int, sizes.split("/"))
        assert largest_rectangle(crop_size_px=crop, patch_size_px=patch) == expected


def check_param_groups(g: Golden) -> None:
    h = g.hyper
    expected = g.about["groups"]["backbone_flat"]
    shapes = {name: tuple(e["shape"]) for name, e in expected.items()}
    architecture, kwargs = architecture_of(
        from_reference({name: torch.zeros(shape) for name, shape in shapes.items()}), heads=1
    )
    backbone = create_backbone(architecture, block_fn=PackedBlock, **kwargs)
    network = DINOv2Network(backbone=backbone, dino_head=SMALL_HEAD, ibot_head=None, resampling=PositionResampling())
    groups = layer_decay_groups(network, decay=h["decay"], patch_embed_multiplier=h["pe"])
    names = {id(p): name for name, p in network.named_parameters()}
    got = {names[id(p)]: group for group in groups for p in group.parameters}
    assert got.keys() == {name for name, p in network.named_parameters()}
    renamed = {"register_tokens": "backbone.reg_token", "mask_token": "mask_token"}
    wanted = {renamed.get(name, f"backbone.{name}"): e for name, e in expected.items()}
    wanted |= {f"dino_head.{name}": e for name, e in g.about["groups"]["dino_head"].items()}
    # Part of the reference's pos_embed.
    wanted["cls_position"] = expected["pos_embed"]
    assert got.keys() == wanted.keys()
    for name, e in wanted.items():
        assert got[name].lr_multiplier == pytest.approx(e["lr_multiplier"], rel=1e-12)
        assert got[name].wd_multiplier == e["wd_multiplier"]
        assert got[name].is_last_layer == e["is_last_layer"]
    # The same groups, whatever the order; the heads' are fused with the backbone's of rate 1.
    fused = {(e["lr_multiplier"], e["wd_multiplier"]): e["n_params"] for e in g.about["groups"]["backbone_flat_fused"]}
    apart = ("dino_head.", "cls_position")
    backbone_only = [[p for p in group.parameters if not names[id(p)].startswith(apart)] for group in groups]
    counted = {
        (group.lr_multiplier, group.wd_multiplier): len(parameters)
        for group, parameters in zip(groups, backbone_only, strict=True)
        if parameters
    }
    assert sorted(counted.items()) == [((pytest.approx(lr), wd), n) for (lr, wd), n in sorted(fused.items())]


def check_schedules(g: Golden) -> None:
    for number, h in enumerate(g.hyper["schedules"]):
        expected = g.t[f"out.schedule{number}"]
        frozen = h.get("freeze_iters", 0)
        values = [
            0.0
            if step < frozen
            else cosine(
                step - frozen,
                base=h["base_value"],
                final=h["final_value"],
                total_steps=h["total_iters"] - frozen,
                warmup_steps=h.get("warmup_iters", 0),
                warmup_start=h.get("start_warmup_value", 0.0),
            )
            for step in range(len(expected))
        ]
        torch.testing.assert_close(torch.tensor(values, dtype=torch.float64), expected, rtol=0, atol=1e-12)
    b = g.hyper["build"]
    batch, total = b["bs"] * b["world_size"], b["epochs"] * b["OFFICIAL_EPOCH_LENGTH"]
    schedules = DINOv2Schedules(
        epoch_size=b["OFFICIAL_EPOCH_LENGTH"] * batch,
        base_learning_rate=b["base_lr"],
        min_learning_rate=1e-6,
        warmup_epochs=b["warmup"],
        freeze_last_layer_epochs=b["freeze"],
        weight_decay=0.04,
        weight_decay_end=0.4,
        teacher_momentum=0.992,
        warmup_teacher_temp=0.04,
        teacher_temp=0.07,
        warmup_teacher_temp_epochs=b["wtt_epochs"],
    )
    check_build(g, schedules, total, batch, "out.build")


def check_build(g: Golden, schedules: DINOv2Schedules, total: int, batch: int, prefix: str) -> None:
    names = ("lr", "last_layer_lr", "wd", "momentum", "teacher_temp")
    rows = [schedules.at(step, total_steps=total, patches_per_step=batch) for step in range(total)]
    for name, values in zip(names, zip(*rows, strict=True), strict=True):
        got = torch.tensor(values, dtype=torch.float64)
        torch.testing.assert_close(got, g.t[f"{prefix}.{name}"], rtol=0, atol=1e-12)


class RecordedCrops:
    """Hands out the crops of the golden case instead of cutting them from patches."""

    mean = std = (0.5, 0.5, 0.5)

    def __init__(self, g: Golden) -> None:
        self.global_size_px, self.local_size_px, self.n_locals = g.hyper["img"], g.hyper["loc"], g.hyper["nloc"]
        self._g = g

    def __call__(self, patches: Tensor, indices: Tensor, *, seed: int) -> tuple[Tensor, Tensor]:
        return crops_of(self._g, f"step{int(indices[0]) // len(indices)}.")


class RecordedMasks:
    """Hands out the masks of the golden case instead of drawing them."""

    def __init__(self, g: Golden) -> None:
        self._g = g

    def __call__(self, n_crops: int, *, crop_size_px: int, patch_size_px: int, key: tuple[int, ...]) -> Tensor:
        _seed, step, *_ = key
        return self._g.t[f"in.step{step}.masks"]


def crops_of(g: Golden, prefix: str = "") -> tuple[Tensor, Tensor]:
    views = (as_images(g.t[f"in.{prefix}{kind}_crops_u8"], g.dtype) for kind in ("global", "local"))
    first, second = (crops.unflatten(0, (-1, g.hyper["B"])) for crops in views)
    return first, second


def dinov2_of(g: Golden, *, student: Tensors, teacher: Tensors, **changes: Any) -> DINOv2:
    """The production module with the settings and weights of a case."""
    h = g.hyper
    start = from_reference(student)
    architecture, kwargs = architecture_of(start, heads=h["heads"])
    offset_as_dino = h["interpolate_offset"] == 0.1 and not h["interpolate_antialias"]
    assert offset_as_dino or (h["interpolate_offset"] == 0.0 and h["interpolate_antialias"])
    separate = HeadSettings(out_dim=h["K2"], hidden_dim=h["hidden2"], bottleneck_dim=h["bott2"])
    settings: dict[str, Any] = {
        "architecture": architecture,
        "architecture_kwargs": kwargs,
        "drop_path_rate": h.get("drop_path", 0.0),
        "position_interpolation": "dino" if offset_as_dino else "timm",
        "crops": RecordedCrops(g),
        "masks": RecordedMasks(g),
        "dino_head": HeadSettings(out_dim=h["K"], hidden_dim=h["hidden"], bottleneck_dim=h["bott"]),
        "ibot_head": separate if h["separate_head"] else None,
        "koleo_weight": h["koleo"],
        "student_temp": h["student_temp"],
        "epoch_size": h["EL"] * h["B"],
        "base_learning_rate": h["lr"] / (h["B"] / 1024) ** 0.5,
        "min_learning_rate": h["min_lr"],
        "warmup_epochs": h["warmup"],
        "layer_decay": h["decay"],
        "patch_embed_multiplier": h["pe"],
        "weight_decay": h["wd"],
        "weight_decay_end": h["wd_end"],
        "teacher_momentum": h["mom"],
        "warmup_teacher_temp": h["wtt"],
        "teacher_temp": h["tt"],
        "warmup_teacher_temp_epochs": h["wtte"],
        "freeze_last_layer_epochs": h["freeze"],
    }
    model = DINOv2(**{**settings, **changes})
    model.student.load_state_dict(start)
    model.teacher.load_state_dict(from_reference(teacher))
    return model


CENTERING = {"centering": "softmax", "sinkhorn_knopp": "sinkhorn_knopp"}
LOSSES = {
    "total_loss": "total",
    "loss.dino_global_crops_loss": "dino_global",
    "loss.dino_local_crops_loss": "dino_local",
    "loss.ibot_loss": "ibot",
    "loss.koleo_loss": "koleo",
}


def check_named(g: Golden, prefix: str, got: Tensors, *, without_keys: bool = False) -> None:
    """Compares everything that a case has under a prefix, also where its blocks lie in chunks.

    In float32 `without_keys` leaves out the key part of `qkv.bias`, of which Adam makes steps of rounding noise.
    """
    expected = {re.sub(r"blocks\.\d+\.(\d+)\.", r"blocks.\1.", name): name for name in strip(g.t, f"out64.{prefix}")}
    assert got.keys() == expected.keys()
    dim = g.hyper["dim"]
    for name, in_case in expected.items():
        keys = slice(dim, 2 * dim) if without_keys and name.endswith("qkv.bias") else None
        g.check(got[name], prefix + in_case, without=keys)


def check_loss_step(g: Golden) -> None:
    h = g.hyper
    masks = TokenMasks.of(g.t["in.masks"])
    assert torch.equal(masks.index, g.t["in.mask_indices"])
    for mode, centering in CENTERING.items():
        model = dinov2_of(
            g, student=strip(g.t, "in.student."), teacher=strip(g.t, "in.teacher."), centering=centering
        ).to(g.dtype)
        model.train()
        model.loss.cls_centering.center.copy_(g.t["in.dino_center"])
        model.loss.patch_centering.center.copy_(g.t["in.ibot_center"][0])
        global_crops, local_crops = crops_of(g)
        targets = model.targets(global_crops, masks, teacher_temp=h["teacher_temp"])
        # The reference keeps the targets of view 1 first: A is matched to B.
        g.check(targets.cls.flip(0), f"{mode}.dino_targets")
        g.check(targets.masked, f"{mode}.ibot_targets")
        terms = model.losses(global_crops, local_crops, masks, targets)
        terms.total.backward()
        for name, field in LOSSES.items():
            g.check(getattr(terms, field), f"{mode}.{name}")
        gradients = {name: p.grad for name, p in model.student.named_parameters()}
        assert all(gradient is not None for gradient in gradients.values())
        check_named(g, f"{mode}.grad.", to_reference(gradients))  # type: ignore[arg-type]
        for part, parameters in model.student.submodules.items():
            norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
            g.check(norm, f"{mode}.grad_norm.{part}")
        model.loss.update_center()
        g.check(model.loss.cls_centering.center, f"{mode}.dino_center_next")
        g.check(model.loss.patch_centering.center[None], f"{mode}.ibot_center_next")


class Recorder(pl.Callback):
    """The losses, norms and prototypes of every step."""

    def __init__(self) -> None:
        self.terms: list[Any] = []
        self.norms: dict[str, list[Tensor]] = {}
        self.prototypes: list[Tensor] = []
        self.centers: list[tuple[Tensor, Tensor]] = []

    def on_fit_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        pl_module.loss.register_forward_hook(lambda _m, _i, terms: self.terms.append(terms))

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        for name in pl_module.student.submodules:
            self.norms.setdefault(name, []).append(trainer.callback_metrics[f"grad_norm/{name}"])
        self.prototypes.append(pl_module.student.dino_head.last_layer.weight_v.detach().clone())
        self.centers.append(
            (pl_module.loss.cls_centering.center.clone(), pl_module.loss.patch_centering.center.clone())
        )


def check_train_steps(g: Golden, make_trainer: Callable[..., pl.Trainer]) -> None:
    """The whole module inside a Lightning trainer, with recorded crops and masks."""
    h, batch = g.hyper, g.hyper["B"]
    student = strip(g.t, "in.student_init.")
    model = dinov2_of(
        g,
        student=student,
        teacher=strip(g.t, "in.teacher_init.") or student,
        centering=CENTERING[h["centering"]],
        clip_grad=h["clip_grad"],
        center_momentum=h["center_momentum"],
    )
    check_build(g, model._schedules, h["epochs"] * h["EL"], batch, "in.schedule")
    batches = [
        {"image": torch.zeros(batch, 1, 1, 3, dtype=torch.uint8), "index": torch.arange(batch) + step * batch}
        for step in range(h["steps"])
    ]
    recorder = Recorder()
    trainer = make_trainer(
        precision="64-true" if g.dtype == torch.float64 else "32-true",
        max_steps=h["epochs"] * h["EL"],
        limit_train_batches=h["steps"],
        callbacks=[recorder],
    )
    trainer.fit(model, torch.utils.data.DataLoader(batches, batch_size=None))  # type: ignore[arg-type]
    assert trainer.global_step == h["steps"]
    for name, field in LOSSES.items():
        g.check(torch.stack([getattr(terms, field) for terms in recorder.terms]), name)
    for part, norms in recorder.norms.items():
        g.check(torch.stack(norms), f"grad_norm_before_clip.{part}")
    for number, name in enumerate(("dino_center_final", "ibot_center_final")):
        got = recorder.centers[-1][number]
        g.check(got[None] if number else got, name)
    first_moved = h["freeze"] * h["EL"]
    g.check(recorder.prototypes[first_moved - 1], "student_dino_last_layer_v_when_freeze_ends")
    for network in ("student", "teacher"):
        check_named(g, f"{network}.", to_reference(getattr(model, network).state_dict()), without_keys=True)


def check_augmentation(g: Golden) -> None:
    """The default crops draw what the reference draws; its order of operations is that of `MultiCrop`."""
    crops = DINOv2(architecture="vit_tiny_patch16_224", architecture_kwargs={"depth": 1}, dino_head=SMALL_HEAD).crops
    views = [g.about[name] for name in ("global_1", "global_2", "local")]
    order = [
        "RandomResizedCrop", "RandomHorizontalFlip", "ColorJitter", "RandomGrayscale", "GaussianBlur",
        "RandomSolarize", "ToTensor", "Normalize",
    ]  # fmt: skip
    for number, (settings, operations) in enumerate(zip(crops._views[:3], views, strict=True)):
        assert [op["op"] for op in operations] == [name for name in order if number == 1 or name != "RandomSolarize"]
        by_name = {op["op"]: op for op in operations}
        assert list(settings.scale) == by_name["RandomResizedCrop"]["scale"]
        assert settings.blur_p == pytest.approx(by_name["GaussianBlur"]["effective_probability"])
        assert settings.solarise_p == by_name.get("RandomSolarize", {"p": 0.0})["p"]
        jitter, colours = by_name["ColorJitter"], crops._colours
        assert colours.jitter_p == jitter["p"]
        for name in ("brightness", "contrast", "saturation", "hue"):
            assert getattr(colours, name) == jitter[name]
        assert colours.grey_p == by_name["RandomGrayscale"]["p"]
    defaults = g.about["defaults"]
    assert (crops.n_locals, crops.global_size_px) == (defaults["local_crops_number"], defaults["global_size"])
    assert crops.local_size_px == defaults["local_size"]


def check_meta_checkpoint(g: Golden, tmp_path: Path) -> None:
    """In float32 through `ssl-train convert` and a checkpoint folder, which add up the class token and its position."""
    for file_name, about in g.about["checkpoint_files"].items():
        h, source = about["model"], GOLDEN_DIR / file_name
        content = load_file_safely(source)
        meta = content.get("teacher", content)
        if g.dtype == torch.float32:
            architecture, kwargs = architecture_of(from_reference(meta), heads=h["heads"])
            convert(
                source=str(source),
                output=str(tmp_path / file_name),
                architecture=architecture,
                architecture_kwargs=kwargs,
            )
            weights = read_weights(str(tmp_path / file_name)).teacher
            meta = to_reference({**{f"backbone.{k}": t for k, t in weights.backbone.items()}, **weights.dinov2})
        resampling = PositionResampling(h["off"], antialias=h["aa"])
        network = network_of(meta, heads=h["heads"], resampling=resampling, dtype=g.dtype)
        tag = file_name.removeprefix(f"{g.name}_").removesuffix(".pth")
        sizes = [key.rsplit(".", 1)[1] for key in g.t if key.startswith(f"in.image_u8.{tag}.")]
        assert sizes
        for size in sizes:
            images = as_images(g.t[f"in.image_u8.{tag}.{size}"], g.dtype)
            check_tokens(g, network, images, None, f"{tag}.{size}")


CHECKS: dict[str, Callable[..., None]] = {
    "dinov2_dino_clstoken_loss": check_cls_loss,
    "dinov2_ibot_patch_loss": check_patch_loss,
    "dinov2_losses_world": check_world2,
    "dinov2_koleo": check_koleo,
    "dinov2_head_": check_head,
    "dinov2_vit_forward_": check_vit_forward,
    "dinov2_block_stochastic_depth": check_stochastic_depth,
    "dinov2_masking": check_masking,
    "dinov2_param_groups": check_param_groups,
    "dinov2_schedules": check_schedules,
    "dinov2_loss_step_": check_loss_step,
    "dinov2_train_steps_": check_train_steps,
    "dinov2_augmentation": check_augmentation,
    "meta_checkpoint_dinov2": check_meta_checkpoint,
}
NEEDS: dict[Callable[..., None], str] = {
    check_world2: "tmp_path",
    check_meta_checkpoint: "tmp_path",
    check_train_steps: "make_trainer",
}


@pytest.mark.skipif(_GIVEN is None and not GOLDEN_DIR.is_dir(), reason="no golden files and GOLDEN_DIR unset")
def test_golden_dir_holds_cases() -> None:
    assert CASES, f"GOLDEN_DIR {GOLDEN_DIR} holds no dinov2_* case"


@pytest.mark.parametrize("case_name", CASES)
def test_golden_case(case_name: str, dtype: torch.dtype, request: pytest.FixtureRequest) -> None:
    check = next((c for prefix, c in CHECKS.items() if case_name.startswith(prefix)), None)
    assert check is not None, f"golden case {case_name} has no check here"
    needed = [request.getfixturevalue(NEEDS[check])] if check in NEEDS else []
    check(Golden.load(case_name, dtype), *needed)
