"""Parity with the DINO reference, on every case that GOLDEN_DIR holds, in float64 and float32.

The checks run the production classes. A case without a check here fails.
"""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import timm
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from PIL import Image, ImageFilter, ImageOps
from safetensors.torch import load_file
from ssl_train import DINO, MultiCrop, schedules
from ssl_train.backbone import create_backbone, embed_cls, resample_positions
from ssl_train.convert import convert
from ssl_train.crop_parameters import ColourSettings, ViewSettings, draw
from ssl_train.cutting import recolour, resize_crops
from ssl_train.heads import DINOHead
from ssl_train.losses import DINOLoss
from ssl_train.weights import read_weights
from torch import Tensor
from torchvision.transforms.v2 import functional as tvf

pytestmark = pytest.mark.golden_dino

_GIVEN = os.environ.get("GOLDEN_DIR")
GOLDEN_DIR = Path(_GIVEN) if _GIVEN else Path(__file__).parents[4] / "shared" / "golden"
CASES = sorted(
    path.stem
    for pattern in ("dino_*.json", "meta_checkpoint_dino.json", "meta_checkpoint_dino_*.json")
    for path in GOLDEN_DIR.glob(pattern)
)
# Float32 tolerances of the README beside the cases, relative to max(1, largest value); the longest prefix counts.
FLOAT32_TOLERANCE = {
    "dino_head": 2e-5,
    "dino_train_steps": 5e-5,
    "dino_loss": 2e-6,
    "dino_loss_world2": 5e-6,
    "dino_head_norm_last_true": 2e-5,
    "dino_head_norm_last_false": 2e-5,
    "dino_head_nlayers1": 1e-5,
    "dino_head_use_bn": 2e-4,
    "dino_vit_forward": 2e-5,
    "dino_train_steps_norm_last_true": 2e-5,
    "dino_train_steps_norm_last_false": 5e-5,
    "meta_checkpoint_dino": 5e-6,
}
Tensors = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class Golden:
    """A case: its settings and tensors, and the precision in which it is run."""

    name: str
    json: dict[str, Any]
    tensors: Tensors
    dtype: torch.dtype

    @property
    def hyper(self) -> dict[str, Any]:
        settings: dict[str, Any] = self.json["hyperparameters"]
        return settings

    def part(self, prefix: str) -> Tensors:
        """The tensors under a prefix, without it."""
        return {name.removeprefix(prefix): t for name, t in self.tensors.items() if name.startswith(prefix)}

    def image(self, name: str) -> Tensor:
        """A stored image as floats."""
        return (self.tensors[name].to(self.dtype) - 128) / 64

    def compare(self, got: Tensor, name: str, *, rows: slice | None = None) -> None:
        """With `out64.*` in float64: 1e-9, and 1e-7 relative where the value was stored in float32.

        In float32, and where a value exists in float32 only, at the tolerance of the README.
        """
        expected = self.tensors.get(f"out64.{name}", self.tensors.get(f"out.{name}"))
        assert expected is not None, f"{self.name} holds no {name}"
        assert got.dtype == self.dtype
        got, expected = got.detach().double(), expected.double()
        if rows is not None:
            got, expected = got[rows], expected[rows]
        if self.dtype == torch.float64 and f"out64.{name}" in self.tensors:
            rtol = 1e-7 if self.tensors[f"out64.{name}"].dtype == torch.float32 else 0.0
            torch.testing.assert_close(got, expected, rtol=rtol, atol=1e-9)
            return
        key = max((key for key in FLOAT32_TOLERANCE if self.name.startswith(key)), key=len)
        atol = FLOAT32_TOLERANCE[key] * max(1.0, float(expected.abs().max()))
        torch.testing.assert_close(got, expected, rtol=0.0, atol=atol)


def read_case(name: str, dtype: torch.dtype) -> Golden:
    path = GOLDEN_DIR / f"{name}.safetensors"
    tensors = load_file(path) if path.is_file() else {}
    return Golden(name, json.loads((GOLDEN_DIR / f"{name}.json").read_text()), tensors, dtype)


@pytest.fixture(params=[torch.float64, torch.float32], ids=["float64", "float32"])
def dtype(request: pytest.FixtureRequest) -> Any:
    before = torch.get_default_dtype()
    torch.set_default_dtype(request.param)
    yield request.param
    torch.set_default_dtype(before)


def check_head(case: Golden) -> None:
    names = ("in_dim", "out_dim", "hidden_dim", "bottleneck_dim", "norm_last_layer", "use_bn", "nlayers")
    head = DINOHead(**{name: case.hyper[name] for name in names if name in case.hyper})
    head.load_state_dict(case.part("in.state."), strict=not case.hyper.get("use_bn", False))
    x = case.tensors["in.x"].to(case.dtype).requires_grad_()
    y = head(x)
    (y * case.tensors["in.cotangent"].to(case.dtype)).sum().backward()
    case.compare(y, "y")
    assert x.grad is not None
    case.compare(x.grad, "grad_x")
    frozen = set(case.json.get("frozen_parameters", []))
    for name, parameter in head.named_parameters():
        assert parameter.requires_grad == (name not in frozen)
        if name not in frozen:
            assert parameter.grad is not None
            case.compare(parameter.grad, f"grad.{name}")
    assert {name for name, p in head.named_parameters() if p.requires_grad} == set(case.part("out64.grad."))


def teacher_temperatures(hyper: dict[str, Any], epochs: Any) -> list[float]:
    return [
        schedules.teacher_temperature(
            epoch,
            warmup=hyper["warmup_teacher_temp"],
            final=hyper["teacher_temp"],
            warmup_epochs=hyper["warmup_teacher_temp_epochs"],
        )
        for epoch in epochs
    ]


def run_loss(case: Golden, prefix: str, student_logits: Tensor, teacher_logits: Tensor) -> None:
    hyper = case.hyper
    loss = DINOLoss(out_dim=hyper["out_dim"], student_temp=hyper["student_temp"])
    losses, centers, gradients = [], [], []
    for call, temperature in enumerate(teacher_temperatures(hyper, hyper["epochs"])):
        student = student_logits[call].to(case.dtype).requires_grad_()
        teacher = teacher_logits[call].to(case.dtype).unflatten(0, (2, hyper["B"]))
        value = loss(student.unflatten(0, (hyper["ncrops"], hyper["B"])), teacher, teacher_temp=temperature)
        value.backward()
        loss.observe(teacher)
        loss.update_center()
        assert student.grad is not None
        losses.append(value.detach())
        centers.append(loss.center.clone())
        gradients.append(student.grad)
    case.compare(torch.stack(losses), f"{prefix}loss")
    case.compare(torch.stack(centers), f"{prefix}center_after")
    case.compare(torch.stack(gradients), f"{prefix}grad_student")


def check_loss(case: Golden) -> None:
    run_loss(case, "", case.tensors["in.student_logits"], case.tensors["in.teacher_logits"])
    temperatures = torch.tensor(teacher_temperatures(case.hyper, range(case.hyper["nepochs"])), dtype=torch.float64)
    torch.testing.assert_close(temperatures, case.tensors["out.teacher_temp_schedule"], rtol=0, atol=1e-12)


def _loss_on_rank(rank: int, world_size: int, store: str, name: str, dtype: torch.dtype) -> None:
    torch.set_num_threads(1)
    torch.set_default_dtype(dtype)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world_size)
    case = read_case(name, dtype)
    run_loss(case, f"rank{rank}.", case.tensors["in.student_logits"][rank], case.tensors["in.teacher_logits"][rank])
    dist.destroy_process_group()


def check_schedules(case: Golden) -> None:
    for name, h in case.hyper.items():
        values = [
            schedules.cosine(
                step,
                base=h["base_value"],
                final=h["final_value"],
                total_steps=h["epochs"] * h["niter_per_ep"],
                warmup_steps=h["warmup_epochs"] * h["niter_per_ep"],
                warmup_start=h["start_warmup_value"],
            )
            for step in range(h["epochs"] * h["niter_per_ep"])
        ]
        got = torch.tensor(values, dtype=torch.float64)
        torch.testing.assert_close(got, case.tensors[f"out.{name}"], rtol=0, atol=1e-12)


def check_vit_forward(case: Golden) -> None:
    """Class token, interpolated positions, tokens of the last two blocks and attention of the last."""
    hyper = case.hyper
    backbone = create_backbone(
        "vit_tiny_patch16_224",
        img_size=hyper["native_img_size"],
        patch_size=hyper["patch"],
        embed_dim=hyper["dim"],
        depth=hyper["depth"],
        num_heads=hyper["heads"],
    )
    backbone.load_state_dict(case.part("in.state."))
    native = backbone.patch_embed.grid_size
    after_blocks: list[Tensor] = []
    backbone.blocks[-2].register_forward_hook(lambda _module, _inputs, tokens: after_blocks.append(tokens))
    for height, width in hyper["sizes"]:
        size = f"{height}x{width}"
        images = case.image(f"in.image_u8.{size}")
        case.compare(embed_cls(backbone, images, position_interpolation="dino"), f"cls.{size}")
        tokens, last = after_blocks.pop(), backbone.blocks[-1]
        position, grid = backbone.pos_embed, (height // hyper["patch"], width // hyper["patch"])
        if grid != native:
            position = resample_positions(position, native=native, grid=grid)
        for kind, got in {
            "inter0": backbone.norm(tokens),
            "inter1": backbone.norm(last(tokens)),
            "pos_embed": position,
            "attn": attention_of(last, tokens),
        }.items():
            if {f"out.{kind}.{size}", f"out64.{kind}.{size}"} & case.tensors.keys():
                case.compare(got, f"{kind}.{size}")


def attention_of(block: Any, tokens: Tensor) -> Tensor:
    """Attention (B, heads, N, N) that a block pays."""
    heads = block.attn.num_heads
    qkv = block.attn.qkv(block.norm1(tokens)).unflatten(-1, (3, heads, -1))
    query, key, _ = qkv.permute(2, 0, 3, 1, 4)
    weights: Tensor = (query @ key.mT * query.shape[-1] ** -0.5).softmax(-1)
    return weights


class RecordedCrops:
    """Hands out the crops of the golden case instead of cutting them from patches."""

    mean = std = (0.5, 0.5, 0.5)

    def __init__(self, case: Golden) -> None:
        self.global_size_px, self.local_size_px = case.hyper["img"], case.hyper["loc"]
        self._crops = [case.image(f"in.crops_{kind}_u8") for kind in ("global", "local")]

    def __call__(self, patches: Tensor, indices: Tensor, *, seed: int) -> tuple[Tensor, Tensor]:
        step = int(indices[0]) // len(indices)
        global_crops, local_crops = self._crops
        return global_crops[step], local_crops[step]


class Recorder(pl.Callback):
    def __init__(self) -> None:
        self.losses: list[Tensor] = []
        self.centers: list[Tensor] = []
        self.norms: list[Tensor] = []
        self.rates: list[list[float]] = []
        self.states: list[Tensors] = []

    def on_after_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        gradients = [p.grad for p in pl_module.student.parameters() if p.grad is not None]
        self.norms.append(torch.stack([g.norm() for g in gradients]))

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: Any, optimizer: Any) -> None:
        decayed, undecayed = optimizer.param_groups
        assert decayed["lr"] == undecayed["lr"]
        assert undecayed["weight_decay"] == 0
        self.rates.append([decayed["lr"], decayed["weight_decay"]])

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.losses.append(outputs["loss"].detach())
        self.centers.append(pl_module.loss.center.clone())
        self.states.append({name: t.clone() for name, t in pl_module.student.state_dict().items()})


def check_train_steps(case: Golden, make_trainer: Callable[..., pl.Trainer]) -> None:
    """The whole module inside a Lightning trainer, with recorded crops."""
    hyper = case.hyper
    batch = hyper["B"]
    model = DINO(
        architecture="vit_tiny_patch16_224",
        architecture_kwargs={
            "img_size": hyper["img"],
            "patch_size": hyper["patch"],
            "embed_dim": hyper["dim"],
            "depth": hyper["depth"],
            "num_heads": hyper["heads"],
        },
        drop_path_rate=hyper["drop_path"],
        crops=RecordedCrops(case),  # type: ignore[arg-type]
        out_dim=hyper["out_dim"],
        head_hidden_dim=hyper["hidden"],
        head_bottleneck_dim=hyper["bott"],
        norm_last_layer=hyper["norm_last_layer"],
        epoch_size=hyper["niter"] * batch,
        base_learning_rate=hyper["lr"] * 256 / batch,
        min_learning_rate=hyper["min_lr"],
        warmup_epochs=hyper["warmup_epochs"],
        weight_decay=hyper["wd"],
        weight_decay_end=hyper["wd_end"],
        clip_grad=hyper["clip_grad"],
        teacher_momentum=hyper["mom"],
        student_temp=hyper["student_temp"],
        warmup_teacher_temp=hyper["wtt"],
        teacher_temp=hyper["tt"],
        warmup_teacher_temp_epochs=hyper["wtte"],
        center_momentum=hyper["center_momentum"],
        freeze_last_layer_epochs=hyper["freeze"],
    )
    student = case.part("in.student_init.")
    model.student.load_state_dict(student)
    model.teacher.load_state_dict(case.part("in.teacher_init.") or student)
    batches = [
        {"image": torch.zeros(batch, 1, 1, 3, dtype=torch.uint8), "index": torch.arange(batch) + step * batch}
        for step in range(hyper["steps"])
    ]
    recorder = Recorder()
    precision = "64-true" if case.dtype == torch.float64 else "32-true"
    trainer = make_trainer(precision=precision, max_steps=hyper["epochs"] * hyper["niter"], callbacks=[recorder])
    trainer.fit(model, torch.utils.data.DataLoader(batches, batch_size=None))  # type: ignore[arg-type]
    assert trainer.global_step == hyper["steps"]
    case.compare(torch.stack(recorder.losses), "loss")
    case.compare(torch.stack(recorder.centers), "center_after")
    case.compare(torch.stack(recorder.norms), "grad_norms_before_clip")
    rates = torch.tensor(recorder.rates, dtype=torch.float64)
    scheduled = torch.stack([case.tensors[f"in.schedule.{name}"][: hyper["steps"]] for name in ("lr", "wd")], dim=1)
    torch.testing.assert_close(rates, scheduled, rtol=0, atol=1e-12)
    frozen = hyper["frozen_last_layer_steps"]
    after_freeze = recorder.states[frozen - 1]
    case.compare(after_freeze["backbone.cls_token"], f"student_after_{frozen}_cls_token")
    case.compare(after_freeze["head.last_layer.weight_v"], f"student_after_{frozen}_last_layer_v")
    for network in ("student", "teacher"):
        state = getattr(model, network).state_dict()
        held = case.part(f"out64.{network}.").keys()
        assert held, "the case holds no weights"
        for name in held:
            # The gradient of the key part is zero: in float32, Adam makes steps of its rounding noise.
            dim = hyper["dim"]
            keys = case.dtype == torch.float32 and name.endswith("qkv.bias")
            for rows in (slice(0, dim), slice(2 * dim, None)) if keys else (slice(None),):
                case.compare(state[name], f"{network}.{name}", rows=rows)


def check_meta_checkpoint(case: Golden, folder: Path) -> None:
    """Files in the reference's structure, converted and as the start of a run, give its embeddings."""
    hyper = case.hyper
    kwargs = {name: hyper[given] for name, given in (("embed_dim", "dim"), ("depth", "depth"), ("num_heads", "heads"))}
    kwargs |= {"patch_size": hyper["patch"], "img_size": hyper["img"]}
    files = {("full" if "full" in name else "backbone"): GOLDEN_DIR / name for name in case.json["checkpoint_files"]}
    sizes = [name.removeprefix("in.image_u8.") for name in case.tensors if name.startswith("in.image_u8.")]
    assert len(sizes) > 1

    for network in ("teacher", "student"):
        for source in files.values() if network == "teacher" else [files["full"]]:
            for size in sizes:
                height, width = (int(side) for side in size.split("x"))
                converted = convert(
                    source=str(source),
                    output=str(folder / f"{network}-{source.stem}-{size}"),
                    network=network,  # type: ignore[arg-type]
                    architecture="vit_tiny_patch16_224",
                    architecture_kwargs={**kwargs, "img_size": [height, width]},
                    mean=(0.485, 0.456, 0.406),
                    std=(0.229, 0.224, 0.225),
                )
                described = json.loads((converted / "backbone.json").read_text())
                model = timm.create_model(described["architecture"], **described["architecture_kwargs"])
                model.load_state_dict(load_file(converted / "backbone.safetensors"))
                cls = model.eval()(case.image(f"in.image_u8.{size}"))
                if (height, width) == (hyper["img"], hyper["img"]):
                    case.compare(cls, f"{network}.cls.{size}")
                else:  # positions were resized in the float32 of the file
                    expected = case.tensors[f"out64.{network}.cls.{size}"]
                    torch.testing.assert_close(cls.double(), expected, rtol=0, atol=5e-6 * max(1, expected.abs().max()))

    small = MultiCrop(global_size_px=hyper["img"], local_size_px=hyper["patch"])
    run = DINO(
        architecture="vit_tiny_patch16_224",
        architecture_kwargs=kwargs,
        init_weights=str(files["full"]),
        crops=small,
        out_dim=hyper["out_dim"],
        head_hidden_dim=hyper["hidden"],
        head_bottleneck_dim=hyper["bott"],
    ).eval()
    center = read_weights(str(files["full"])).center
    assert center is not None
    assert torch.equal(run.loss.center, center.to(case.dtype))
    for network in ("teacher", "student"):
        module = getattr(run, network)
        for size in sizes:
            images = case.image(f"in.image_u8.{size}")
            case.compare(module.embed(images), f"{network}.cls.{size}")
            case.compare(module(images[None])[0], f"{network}.head_out.{size}")


def check_augmentation(case: Golden) -> None:
    """Defaults, order and frequencies of `MultiCrop` are those of the reference."""
    recipe = case.json
    ours = {name: p.default for name, p in inspect.signature(MultiCrop.__init__).parameters.items()}
    defaults = recipe["defaults"]
    assert [ours["global_size_px"], ours["local_size_px"], ours["n_locals"]] == [
        defaults[name] for name in ("global_size", "local_size", "local_crops_number")
    ]
    colours = ColourSettings(**{field.name: ours[field.name] for field in fields(ColourSettings)})
    views = []
    for number, name in enumerate(("global_1", "global_2", "local")):
        steps = {step["op"]: step for step in recipe[name]}
        crop, jitter, blur = (steps[op] for op in ("RandomResizedCrop", "ColorJitter", "GaussianBlur"))
        kind = "local" if name == "local" else "global"
        assert [ours[f"{kind}_size_px"], list(ours[f"{kind}_scale"])] == [crop["size"], crop["scale"]]
        assert [jitter[key] for key in ("p", "brightness", "contrast", "saturation", "hue")] == [
            ours[key] for key in ("jitter_p", "brightness", "contrast", "saturation", "hue")
        ]
        assert steps["RandomGrayscale"]["p"] == ours["grey_p"]
        assert blur["p"] == ours["blur_p"][number]
        solarise_p = steps.get("Solarize", {"p": 0.0})["p"]
        assert solarise_p == (ours["solarise_p"] if name == "global_2" else 0.0)
        views.append(ViewSettings(scale=tuple(crop["scale"]), blur_p=blur["p"], solarise_p=solarise_p))
    assert ours["dihedral"] is False

    drawn = draw(range(4000), seed=0, patch_size_px=(256, 256), views=views, colours=colours, dihedral=False)
    measured = recipe["measured_change_frequency"]
    shares = drawn.blurs.mean(0).tolist()
    assert shares == pytest.approx([measured[f"GaussianBlur({p})"] for p in (1.0, 0.1, 0.5)], abs=0.03)
    assert drawn.solarises.mean(0).tolist() == pytest.approx([0, measured["Solarization(0.2)"], 0], abs=0.03)
    assert drawn.flip_x.mean() == pytest.approx(0.5, abs=0.03)
    low, high = recipe["global_1"][0]["ratio"]
    ratio = drawn.width / drawn.height
    # Sides are whole pixels, of which the smallest crops have about 50.
    assert low - 0.02 < ratio.min() < low + 0.02
    assert high - 0.03 < ratio.max() < high + 0.03
    assert 0.1 <= drawn.blur_radius.min() < 0.12
    assert 1.98 < drawn.blur_radius.max() <= 2.0
    check_order(recipe["global_2"], views, colours)


def check_order(recipe: list[dict[str, Any]], views: list[ViewSettings], colours: ColourSettings) -> None:
    """The second global view equals Pillow and torchvision, one operation after the other as the case lists them."""
    coarse = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    patch = Image.fromarray(coarse).resize((128, 128), Image.Resampling.BICUBIC)
    drawn = draw(range(200), seed=1, patch_size_px=(128, 128), views=views[1:2], colours=colours, dihedral=False)
    flat = drawn.views(0, 1)
    busy = np.flatnonzero(flat.jitters & flat.solarises & (flat.blurs | flat.greys))
    assert len(busy) >= 3
    images = torch.from_numpy(np.array(patch)).float()[None].expand(200, -1, -1, -1)
    crops = resize_crops(images, flat, 64)
    recolour(crops, flat)
    jitters = (tvf.adjust_brightness, tvf.adjust_contrast, tvf.adjust_saturation, tvf.adjust_hue)
    for row in busy:
        image = patch
        for step in recipe:
            if step["op"] == "RandomResizedCrop":
                box = [int(v[row]) for v in (flat.top, flat.left, flat.height, flat.width)]
                image = tvf.resized_crop(image, *box, size=[64, 64], interpolation=tvf.InterpolationMode.BICUBIC)
            elif step["op"] == "RandomHorizontalFlip" and flat.flip_x[row]:
                image = ImageOps.mirror(image)
            elif step["op"] == "ColorJitter":
                for number in flat.jitter_order[row]:
                    image = jitters[number](image, float(flat.jitter[row, number]))
            elif step["op"] == "RandomGrayscale" and flat.greys[row]:
                image = image.convert("L").convert("RGB")
            elif step["op"] == "GaussianBlur" and flat.blurs[row]:
                image = image.filter(ImageFilter.GaussianBlur(float(flat.blur_radius[row])))
            elif step["op"] == "Solarize":
                image = ImageOps.solarize(image, threshold=step["threshold"])
        expected = torch.from_numpy(np.array(image)).permute(2, 0, 1).float()
        # Pillow rounds after every operation, and what it rounds to the other side of the threshold of solarisation
        # differs by up to 255; another order of operations changes most pixels.
        difference = (crops[row] - expected).abs()
        assert difference.median() < 2
        assert (difference > 16).float().mean() < 0.03


# Cases that compute nothing in the precision of the run.
OF_ONE_PRECISION = {"dino_schedules": check_schedules, "dino_augmentation": check_augmentation}


@pytest.mark.skipif(_GIVEN is None and not GOLDEN_DIR.is_dir(), reason="no golden files and GOLDEN_DIR unset")
def test_golden_dir_holds_cases() -> None:
    assert CASES, f"GOLDEN_DIR {GOLDEN_DIR} holds no dino_* case"


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith(tuple(OF_ONE_PRECISION))])
def test_golden_recipe(name: str) -> None:
    check = next(check for prefix, check in OF_ONE_PRECISION.items() if name.startswith(prefix))
    check(read_case(name, torch.float64))


@pytest.mark.parametrize("name", [name for name in CASES if not name.startswith(tuple(OF_ONE_PRECISION))])
def test_golden_case(name: str, dtype: torch.dtype, make_trainer: Callable[..., pl.Trainer], tmp_path: Path) -> None:
    case = read_case(name, dtype)
    if name.startswith("dino_train_steps_"):
        check_train_steps(case, make_trainer)
    elif name.startswith("meta_checkpoint_dino"):
        check_meta_checkpoint(case, tmp_path)
    elif name.startswith("dino_loss") and "world_size" in case.hyper:
        world = case.hyper["world_size"]
        arguments = (world, str(tmp_path / "store"), name, dtype)
        mp.start_processes(_loss_on_rank, args=arguments, nprocs=world, start_method="fork")
    elif name.startswith("dino_loss"):
        check_loss(case)
    elif name.startswith("dino_head_"):
        check_head(case)
    elif name.startswith("dino_vit_forward_"):
        check_vit_forward(case)
    else:
        pytest.fail(f"golden case {name} has no check here")
