"""How does DINOv2 learn?

Source: arXiv 2304.07193; reference: facebookresearch/dinov2, train/train.py and train/ssl_meta_arch.py.

A step of the optimizer, in this order:

1. schedules at this step: learning rates, weight decay, teacher temperature,
2. for every micro-batch: crops and masks, teacher on the whole globals, student on masked globals and locals, loss,
   backward,
3. clipping per submodule, AdamW (prototypes with learning rate 0 while they are frozen),
4. the centres take up the step's teacher logits; the teacher moves with the same step's momentum.

"Epoch" is a unit of the schedules, `epoch_size` patches: training itself is one endless epoch of `max_steps` steps.

Legend of shape suffixes: see `dinov2_network`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from pytorch_lightning.core.optimizer import LightningOptimizer
from timm.layers.mlp import GluMlp
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from ssl_train.backbone import PositionInterpolation, create_backbone
from ssl_train.crops import MultiCrop
from ssl_train.dinov2_crops import DINOv2Crops
from ssl_train.dinov2_initial_weights import initialise_dinov2
from ssl_train.dinov2_loss import Centering, DINOv2Loss, LossTerms, Targets
from ssl_train.dinov2_network import DINOv2Network, HeadSettings, NetworkOutput
from ssl_train.dinov2_schedules import DINOv2Schedules, Rates
from ssl_train.distillation import SelfDistillation
from ssl_train.ema import update_teacher
from ssl_train.layer_decay import ParameterGroup, clip_gradients_by_norm, layer_decay_groups
from ssl_train.masking import BlockMasks, TokenMasks, rank_share
from ssl_train.optim import adamw
from ssl_train.packed import KeptSamples, PackedBlock, PositionResampling
from ssl_train.sharding import FullySharded, check_agreement

_RESAMPLING = {"timm": PositionResampling(0.0, antialias=True), "dino": PositionResampling(0.1, antialias=False)}
_DEFAULT_HEAD = HeadSettings()
# Keys of the random numbers of a step, beside its seed and number.
_MASKS, _STOCHASTIC_DEPTH = 0, 1


class DINOv2(SelfDistillation):
    """Self-distillation of views and of masked patches.

    Args:
        architecture: timm name of the vision transformer.
        architecture_kwargs: further arguments of the backbone, for example `img_size`, `depth`, `reg_tokens`.
        init_weights: weights to start from: a checkpoint folder, a file (Meta's DINOv2 files, timm's state dicts, a
            training checkpoint of another run or stage) or a timm name; random where absent.
        init_heads: take heads and centres too where `init_weights` has them.
        drop_path_rate: stochastic depth of the student, the same in all blocks.
        position_interpolation: how positions are resized for other sizes than the native one: `timm` as timm does
            (exact size, antialiased; DINOv2 with registers), `dino` as the other DINO and DINOv2 models were
            trained (offset 0.1).
        crops: the multi-crop augmentation; `DINOv2Crops` where absent.
        masks: the masks of global crops; those of the reference where absent.
        dino_head: head of [CLS].
        ibot_head: head of masked patches; `dino_head` serves both where absent.
        centering: how targets are made: `softmax` with a running centre, or `sinkhorn_knopp`.
        dino_weight: weight of the [CLS] losses.
        ibot_weight: weight of the masked-patch loss.
        koleo_weight: weight of KoLeo.
        kde_weight: weight of the kernel density, see `kde_loss`: in place of KoLeo or beside it (not in the reference).
        epoch_size: patches in an epoch, the unit of the arguments below.
        base_learning_rate: peak for 1024 patches a step, scaled by the square root.
        min_learning_rate: learning rate at the end.
        warmup_epochs: linear warm-up of the learning rate.
        layer_decay: factor of the learning rate from one layer to the one before it.
        patch_embed_multiplier: further factor for the patch embedding.
        weight_decay: at the start.
        weight_decay_end: at the end.
        clip_grad: largest gradient norm of the backbone and of each head; 0 is off.
        teacher_momentum: at the start; 1 at the end.
        student_temp: temperature of the student.
        warmup_teacher_temp: temperature of the teacher at the start.
        teacher_temp: temperature of the teacher after the warm-up.
        warmup_teacher_temp_epochs: length of that warm-up.
        center_momentum: of the centres' running means.
        freeze_last_layer_epochs: epochs during which the prototypes do not move; their moments do.
        checkpoint_activations: less memory for about a third more time, see `DINOv2Network`.
        compile_blocks: compile the blocks of both backbones (`torch.compile`).
        input_size_px: side at which an exported backbone is to be used, a multiple of the patch size; that of the
            global crops where absent.
        seed: of initial weights, crops, masks and stochastic depth.

    Raises:
        ValueError: an argument out of range, or sizes that do not fit the backbone.
    """

    method = "dinov2"

    def __init__(
        self,
        *,
        architecture: str = "vit_large_patch14_reg4_dinov2",
        architecture_kwargs: dict[str, Any] | None = None,
        init_weights: str | None = None,
        init_heads: bool = True,
        drop_path_rate: float = 0.3,
        position_interpolation: PositionInterpolation = "timm",
        crops: MultiCrop | None = None,
        masks: BlockMasks | None = None,
        dino_head: HeadSettings = _DEFAULT_HEAD,
        ibot_head: HeadSettings | None = None,
        centering: Centering = "softmax",
        dino_weight: float = 1.0,
        ibot_weight: float = 1.0,
        koleo_weight: float = 0.1,
        kde_weight: float = 0.0,
        epoch_size: int = 1_280_000,
        base_learning_rate: float = 4e-3,
        min_learning_rate: float = 1e-6,
        warmup_epochs: float = 10,
        layer_decay: float = 0.9,
        patch_embed_multiplier: float = 0.2,
        weight_decay: float = 0.04,
        weight_decay_end: float = 0.4,
        clip_grad: float = 3.0,
        teacher_momentum: float = 0.992,
        student_temp: float = 0.1,
        warmup_teacher_temp: float = 0.04,
        teacher_temp: float = 0.07,
        warmup_teacher_temp_epochs: float = 30,
        center_momentum: float = 0.9,
        freeze_last_layer_epochs: float = 1,
        checkpoint_activations: bool = False,
        compile_blocks: bool = False,
        input_size_px: int | None = None,
        seed: int = 0,
    ) -> None:
        settings = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        super().__init__()
        if epoch_size < 1 or seed < 0 or min(warmup_teacher_temp, teacher_temp) <= 0:
            raise ValueError(
                "DINOv2: epoch_size must be at least 1, seed at least 0 and temperatures above 0, got "
                f"epoch_size={epoch_size}, seed={seed}, temperatures {warmup_teacher_temp} and {teacher_temp}"
            )
        if not 0 <= teacher_momentum <= 1 or not 0 <= drop_path_rate < 1 or not 0 < layer_decay <= 1:
            raise ValueError(
                "DINOv2: teacher_momentum must be between 0 and 1, drop_path_rate at least 0 and below 1, layer_decay "
                f"above 0 and at most 1, got {teacher_momentum}, {drop_path_rate} and {layer_decay}"
            )
        self.architecture = architecture
        self.architecture_kwargs = dict(architecture_kwargs or {})
        self.crops = crops or DINOv2Crops()
        self.masks = masks or BlockMasks()
        self.seed = seed
        # What all ranks have to agree on.
        self._settings = {**settings, "crops": vars(self.crops), "masks": vars(self.masks)}

        def network() -> DINOv2Network:
            return DINOv2Network(
                backbone=_backbone(architecture, self.architecture_kwargs),
                dino_head=dino_head,
                ibot_head=ibot_head,
                resampling=_RESAMPLING[position_interpolation],
                checkpoint_activations=checkpoint_activations,
            )

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.student, self.teacher = network(), network()
        self.teacher.load_state_dict(self.student.state_dict())
        self.teacher.requires_grad_(False)
        self.teacher.eval()
        if compile_blocks:
            for block in [*self.student.backbone.blocks, *self.teacher.backbone.blocks]:
                block.compile()
        self.loss = DINOv2Loss(
            out_dim=dino_head.out_dim,
            patch_out_dim=(ibot_head or dino_head).out_dim,
            centering=centering,
            dino_weight=dino_weight,
            ibot_weight=ibot_weight,
            koleo_weight=koleo_weight,
            kde_weight=kde_weight,
            student_temp=student_temp,
            center_momentum=center_momentum,
        )
        if init_weights is not None:
            initialise_dinov2(
                student=self.student,
                teacher=self.teacher,
                loss=self.loss,
                source=init_weights,
                heads=init_heads,
                position_interpolation=position_interpolation,
            )
        self.input_size_px = self.crops.global_size_px if input_size_px is None else input_size_px
        self.check_sizes(patch_size=self.student.patch_size)
        self.epoch_size = epoch_size
        self._schedules = DINOv2Schedules(
            epoch_size=epoch_size,
            base_learning_rate=base_learning_rate,
            min_learning_rate=min_learning_rate,
            warmup_epochs=warmup_epochs,
            freeze_last_layer_epochs=freeze_last_layer_epochs,
            weight_decay=weight_decay,
            weight_decay_end=weight_decay_end,
            teacher_momentum=teacher_momentum,
            warmup_teacher_temp=warmup_teacher_temp,
            teacher_temp=teacher_temp,
            warmup_teacher_temp_epochs=warmup_teacher_temp_epochs,
        )
        self._drop_path_rate = drop_path_rate
        self._layer_decay = layer_decay
        self._patch_embed_multiplier = patch_embed_multiplier
        self._clip_grad = clip_grad
        self._groups: list[ParameterGroup] = []

    def train(self, mode: bool = True) -> DINOv2:
        """Puts the student into training mode; the teacher stays in evaluation mode."""
        super().train(mode)
        self.teacher.eval()
        return self

    def setup(self, stage: str) -> None:
        """Refuses to start where ranks were given different settings: their collectives would not fit."""
        check_agreement(
            {
                **{f"model.{name}": str(value) for name, value in self._settings.items()},
                "trainer.max_steps": str(self.trainer.max_steps),
                "trainer.accumulate_grad_batches": str(self.trainer.accumulate_grad_batches),
            }
        )

    def configure_model(self) -> None:
        """Shards both networks where the trainer's strategy says so."""
        strategy = self.trainer.strategy
        if isinstance(strategy, FullySharded):
            for network in (self.student, self.teacher):
                if not isinstance(network, FSDPModule):
                    strategy.shard(network)

    def on_train_batch_start(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Sets the rates of this step; all micro-batches of a step agree on them."""
        self.count_patches(batch)
        rates = self._rates()
        for optimizer in self.trainer.optimizers:
            for group, factors in zip(optimizer.param_groups, self._groups, strict=True):
                peak = rates.last_layer_learning_rate if factors.is_last_layer else rates.learning_rate
                group["lr"] = peak * factors.lr_multiplier
                group["weight_decay"] = rates.weight_decay * factors.wd_multiplier

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Loss of one micro-batch of patches: `image` uint8 (B, H, W, 3), `index` (B,)."""
        patches, indices = batch["image"], batch["index"]
        micro_batch = batch_idx % self.trainer.accumulate_grad_batches
        # Drawn before the device is given work, so that the copies do not wait for it.
        shard = (self.global_rank, self.trainer.world_size)
        masks = self.shard_masks(len(patches), micro_batch, shard).to(self.device)
        kept = self.shard_kept(len(patches), micro_batch, shard)
        global_2BHW, local_LBHW = (c.to(self.student.dtype) for c in self.crops(patches, indices, seed=self.seed))
        teacher_temp = self._rates().teacher_temp
        targets = self.targets(global_2BHW, masks, teacher_temp=teacher_temp)
        terms = self.losses(global_2BHW, local_LBHW, masks, targets, kept=kept)
        self._log(targets, terms)
        return terms.total

    @torch.no_grad()
    def targets(self, global_2BHW: Tensor, masks: TokenMasks, *, teacher_temp: float) -> Targets:
        """What the teacher makes of the whole globals (2, B, 3, S, S); the centres will take up its logits.

        Its logits are large and gone with the return, before the student needs the memory.
        """
        teacher: NetworkOutput = self.teacher(global_2BHW, global_2BHW[:0], masked_M=masks.index)
        targets = self.loss.targets(teacher, teacher_temp=teacher_temp)
        self.loss.observe(teacher)
        return targets

    def losses(
        self,
        global_2BHW: Tensor,
        local_LBHW: Tensor,
        masks: TokenMasks,
        targets: Targets,
        *,
        kept: KeptSamples | None = None,
    ) -> LossTerms:
        """The loss on crops (2, B, 3, S, S) and (L, B, 3, s, s); spends `targets.masked`, see `DINOv2Loss`."""
        student = self.student(global_2BHW, local_LBHW, masked_M=masks.index, mask_CN=masks.mask, kept=kept)
        terms: LossTerms = self.loss(student, targets, masks)
        return terms

    def shard_masks(self, n_images: int, micro_batch: int, shard: tuple[int, int]) -> TokenMasks:
        """A shard's part of the masks, which are drawn for the whole batch and so do not depend on the shards.

        Args:
            n_images: patches of the shard.
            micro_batch: number of the micro-batch in its step.
            shard: (rank, number of ranks).
        """
        rank, world_size = shard
        mask_CN = self.masks(
            2 * n_images * world_size,
            crop_size_px=self.crops.global_size_px,
            patch_size_px=self.student.patch_size,
            key=(self.seed, self.global_step, micro_batch, _MASKS),
        )
        return TokenMasks.of(rank_share(mask_CN, rank=rank, world_size=world_size))

    def shard_kept(self, n_images: int, micro_batch: int, shard: tuple[int, int]) -> KeptSamples | None:
        """The samples of a shard that stochastic depth keeps; arguments as for `shard_masks`."""
        key = (self.seed, self.global_step, micro_batch, _STOCHASTIC_DEPTH, *shard)
        generator = torch.Generator().manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1))
        n_locals = self.crops.n_locals
        return KeptSamples.draw(
            [2 * n_images] + ([n_locals * n_images] if n_locals else []),
            rate=self._drop_path_rate,
            n_blocks=len(self.student.backbone.blocks),
            generator=generator,
            device=self.device,
        )

    def _log(self, targets: Targets, terms: LossTerms) -> None:
        rates = self._rates()
        entropy = torch.special.entr(targets.cls).sum(-1).mean()
        self.log("loss", terms.total.detach(), prog_bar=True)
        self.log_dict(
            {
                "dino_loss": terms.dino.detach(),
                "dino_global_crops_loss": terms.dino_global.detach(),
                "dino_local_crops_loss": terms.dino_local.detach(),
                "ibot_loss": terms.ibot.detach(),
                "koleo_loss": terms.koleo.detach(),
                "kde_loss": terms.kde.detach(),
                "teacher_entropy": entropy,
                "teacher_std": targets.spread,
                "teacher_temp": rates.teacher_temp,
                "learning_rate": rates.learning_rate,
                "weight_decay": rates.weight_decay,
            }
        )

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW with layer-wise groups; their rates are set anew at every step."""
        self._groups = layer_decay_groups(
            self.student, decay=self._layer_decay, patch_embed_multiplier=self._patch_embed_multiplier
        )
        groups = [{"params": group.parameters} for group in self._groups]
        return adamw(groups, precision=self.trainer.precision)

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clips backbone and heads apart, each by its own norm, and logs the norms before."""
        if gradient_clip_val is not None:
            raise ValueError(
                f"trainer.gradient_clip_val={gradient_clip_val}: DINOv2 clips per submodule; "
                "set the model's clip_grad instead"
            )
        for name, parameters in self.student.submodules.items():
            self.log(f"grad_norm/{name}", clip_gradients_by_norm(parameters, self._clip_grad))

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: torch.optim.Optimizer | LightningOptimizer,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """One step of the order above; called once per step, not per micro-batch."""
        momentum = self._rates().teacher_momentum
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        self.loss.update_center()
        update_teacher(student=self.student, teacher=self.teacher, momentum=momentum)

    def _rates(self) -> Rates:
        return self._schedules.at(
            self.global_step, total_steps=self.total_steps(), patches_per_step=self.patches_in_a_step()
        )


def _backbone(architecture: str, kwargs: dict[str, Any]) -> VisionTransformer:
    backbone = create_backbone(architecture, block_fn=PackedBlock, **kwargs)
    for module in backbone.modules():
        if isinstance(module, GluMlp):
            # timm starts one half of a gated MLP at zero; DINOv2 (layers/swiglu_ffn.py) like any linear layer.
            nn.init.trunc_normal_(module.fc1.weight, std=0.02)
            if module.fc1.bias is not None:
                nn.init.zeros_(module.fc1.bias)
    return backbone
