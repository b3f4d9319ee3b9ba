"""How does DINO learn?

Source: arXiv 2104.14294; reference: facebookresearch/dino, main_dino.py.

A step of the optimizer, in this order:

1. schedules at this step: learning rate, weight decay; teacher temperature by epoch,
2. for every micro-batch: crops, student on all crops, teacher on the globals, loss, backward,
3. per-parameter clipping, gradients of the frozen last layer removed, AdamW,
4. the centre takes up the step's teacher logits; the teacher moves with the same step's momentum.

"Epoch" is a unit of the schedules, `epoch_size` patches: training itself is one endless epoch of `max_steps`
steps.

Legend of shape suffixes: B patches, C crops, K prototypes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pytorch_lightning.core.optimizer import LightningOptimizer
from torch import Tensor, nn

from ssl_train import schedules
from ssl_train.backbone import PositionInterpolation, create_backbone
from ssl_train.crops import MultiCrop
from ssl_train.distillation import SelfDistillation
from ssl_train.ema import update_teacher
from ssl_train.heads import DINOHead
from ssl_train.initial_weights import initialise
from ssl_train.losses import DINOLoss
from ssl_train.network import Network
from ssl_train.optim import adamw, clip_gradients_per_parameter, parameter_groups
from ssl_train.stochastic_depth import draw_branches

# Linear scaling: the base learning rates are stated for this many patches a step.
_REFERENCE_BATCH = 256


class DINO(SelfDistillation):
    """Self-distillation with no labels.

    Args:
        architecture: timm name of the vision transformer.
        architecture_kwargs: further arguments of the backbone, for example `img_size`, `patch_size`, `depth`.
        init_weights: weights to start from: a checkpoint folder, a file (Meta's DINO checkpoints, timm's state
            dicts, a training checkpoint of another run) or a timm name; random where absent.
        init_heads: take heads and centre too where `init_weights` has them.
        drop_path_rate: stochastic depth of the student.
        position_interpolation: how positions are resized for other sizes than the native one, see
            `embed_cls`; `dino` is the reference's, `timm` that of the exported weights in timm.
        crops: the multi-crop augmentation.
        out_dim: number of prototypes K.
        head_hidden_dim: width of the head's MLP.
        head_bottleneck_dim: dimension of the prototypes.
        head_nlayers: linear layers of the head's MLP.
        head_use_bn: batch normalisation in the head's MLP (`use_bn_in_head`); spreads the outputs of young
            networks, so that short runs do not stay at the uniform answer. Several devices need
            `trainer.sync_batchnorm`.
        norm_last_layer: keep prototypes at unit length.
        epoch_size: patches in an epoch, the unit of the arguments below.
        base_learning_rate: peak for 256 patches a step, scaled linearly.
        min_learning_rate: learning rate at the end.
        warmup_epochs: linear warm-up of the learning rate.
        weight_decay: at the start.
        weight_decay_end: at the end.
        clip_grad: largest norm of each gradient tensor; 0 is off.
        teacher_momentum: at the start; 1 at the end.
        student_temp: temperature of the student.
        warmup_teacher_temp: temperature of the teacher at the start.
        teacher_temp: temperature of the teacher after the warm-up.
        warmup_teacher_temp_epochs: length of that warm-up.
        center_momentum: of the centre's running mean.
        freeze_last_layer_epochs: epochs during which the prototypes do not move.
        input_size_px: side at which an exported backbone is to be used, a multiple of the patch size; that
            of the global crops where absent.
        seed: of initial weights, crops and stochastic depth.

    Raises:
        ValueError: an argument out of range, or sizes that do not fit the backbone.
    """

    method = "dino"

    def __init__(
        self,
        *,
        architecture: str = "vit_small_patch16_224",
        architecture_kwargs: dict[str, Any] | None = None,
        init_weights: str | None = None,
        init_heads: bool = True,
        drop_path_rate: float = 0.1,
        position_interpolation: PositionInterpolation = "dino",
        crops: MultiCrop | None = None,
        out_dim: int = 65_536,
        head_hidden_dim: int = 2_048,
        head_bottleneck_dim: int = 256,
        head_nlayers: int = 3,
        head_use_bn: bool = False,
        norm_last_layer: bool = True,
        epoch_size: int = 1_280_000,
        base_learning_rate: float = 5e-4,
        min_learning_rate: float = 1e-6,
        warmup_epochs: float = 10,
        weight_decay: float = 0.04,
        weight_decay_end: float = 0.4,
        clip_grad: float = 3.0,
        teacher_momentum: float = 0.996,
        student_temp: float = 0.1,
        warmup_teacher_temp: float = 0.04,
        teacher_temp: float = 0.04,
        warmup_teacher_temp_epochs: int = 0,
        center_momentum: float = 0.9,
        freeze_last_layer_epochs: float = 1,
        input_size_px: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if epoch_size < 1 or seed < 0 or min(warmup_teacher_temp, teacher_temp) <= 0:
            raise ValueError(
                "DINO: epoch_size must be at least 1, seed at least 0 and temperatures above 0, got "
                f"epoch_size={epoch_size}, seed={seed}, temperatures {warmup_teacher_temp} and {teacher_temp}"
            )
        if not 0 <= teacher_momentum <= 1:
            raise ValueError(f"DINO: teacher_momentum must be between 0 and 1, got {teacher_momentum}")
        if "drop_path_rate" in (architecture_kwargs or {}):
            raise ValueError("architecture_kwargs 'drop_path_rate': not accepted; it is an argument of its own")
        self.architecture = architecture
        self.architecture_kwargs = dict(architecture_kwargs or {})
        self.crops = crops or MultiCrop()
        self.seed = seed
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.student, self.teacher = (
                self._network(
                    rate,
                    position_interpolation,
                    out_dim=out_dim,
                    hidden_dim=head_hidden_dim,
                    bottleneck_dim=head_bottleneck_dim,
                    nlayers=head_nlayers,
                    use_bn=head_use_bn,
                    norm_last_layer=norm_last_layer,
                )
                for rate in (drop_path_rate, 0.0)
            )
            # timm starts the class token near zero, the reference as it starts the positions.
            assert self.student.backbone.cls_token is not None, "create_backbone refuses architectures without it"
            nn.init.trunc_normal_(self.student.backbone.cls_token, std=0.02)
        self.teacher.load_state_dict(self.student.state_dict())
        self.teacher.requires_grad_(False)
        self.teacher.backbone.eval()
        self.loss = DINOLoss(out_dim=out_dim, student_temp=student_temp, center_momentum=center_momentum)
        if init_weights is not None:
            initialise(
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
        self._learning_rate = (base_learning_rate, min_learning_rate)
        self._warmup_epochs = warmup_epochs
        self._weight_decay = (weight_decay, weight_decay_end)
        self._clip_grad = clip_grad
        self._teacher_momentum = teacher_momentum
        self._teacher_temp = (warmup_teacher_temp, teacher_temp, warmup_teacher_temp_epochs)
        self._freeze_last_layer_epochs = freeze_last_layer_epochs

    def _network(self, drop_path_rate: float, position_interpolation: PositionInterpolation, **head: Any) -> Network:
        backbone = create_backbone(self.architecture, drop_path_rate=drop_path_rate, **self.architecture_kwargs)
        return Network(
            backbone=backbone,
            head=DINOHead(in_dim=backbone.embed_dim, **head),
            position_interpolation=position_interpolation,
        )

    def train(self, mode: bool = True) -> DINO:
        """Puts the student into training mode; the teacher's backbone stays in evaluation mode.

        Batch normalisation in the teacher's head, where asked for, works on the batch, as in the reference.
        """
        super().train(mode)
        self.teacher.backbone.eval()
        return self

    def on_train_batch_start(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Sets the rates of this step; all micro-batches of a step agree on them."""
        self.count_patches(batch)
        learning_rate, weight_decay = self._rates(self.global_step)
        for optimizer in self.trainer.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate
            optimizer.param_groups[0]["weight_decay"] = weight_decay

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Loss of one micro-batch of patches: `image` uint8 (B, H, W, 3), `index` (B,)."""
        patches, indices = batch["image"], batch["index"]
        drawn = self.crops(patches, indices, seed=self.seed)
        global_crops, local_crops = (crops.to(self.student.dtype) for crops in drawn)
        branches_CBP = draw_branches(
            indices.tolist(),
            seed=self.seed,
            n_crops=len(global_crops) + len(local_crops),
            n_branches=self.student.n_branches,
        )
        student_CBK = self.student(global_crops, local_crops, branches_CBP=branches_CBP)
        with torch.no_grad():
            teacher_2BK = self.teacher(global_crops)
        teacher_temp = self._teacher_temp_now()
        q_2BK = self.loss.teacher_probabilities(teacher_2BK, teacher_temp=teacher_temp)
        loss = self.loss.cross_entropy(student_CBK, q_2BK)
        self._log(loss, teacher_2BK, q_2BK, teacher_temp)
        self.loss.observe(teacher_2BK)
        return loss

    def _log(self, loss: Tensor, teacher_2BK: Tensor, q_2BK: Tensor, teacher_temp: float) -> None:
        with torch.no_grad():
            entropy = torch.special.entr(q_2BK).sum(-1).mean()
            spread = teacher_2BK.flatten(0, -2).float().std(0).mean()
        self.log("loss", loss.detach(), prog_bar=True)
        learning_rate, weight_decay = self._rates(self.global_step)
        self.log_dict(
            {
                "teacher_entropy": entropy,
                "teacher_std": spread,
                "teacher_temp": teacher_temp,
                "learning_rate": learning_rate,
                "weight_decay": weight_decay,
            }
        )

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW with the reference's parameter groups; its rates are set anew at every step."""
        normalised = any(isinstance(module, nn.BatchNorm1d) for module in self.modules())
        if normalised and self.trainer.world_size > 1:
            raise ValueError(
                f"head_use_bn on {self.trainer.world_size} devices needs the statistics of the whole batch: set "
                "trainer.sync_batchnorm (GPUs only) or head_use_bn: false"
            )
        return adamw(parameter_groups(self.student), precision=self.trainer.precision)

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: torch.optim.Optimizer | LightningOptimizer,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """One step of the order above; called once per step, not per micro-batch."""
        step = self.global_step
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        self.loss.update_center()
        momentum = schedules.cosine(step, base=self._teacher_momentum, final=1.0, total_steps=self.total_steps())
        update_teacher(student=self.student, teacher=self.teacher, momentum=momentum)

    def _rates(self, step: int) -> tuple[float, float]:
        """Learning rate and weight decay at a step."""
        total = self.total_steps()
        peak, lowest = self._learning_rate
        learning_rate = schedules.cosine(
            step,
            base=peak * self.patches_in_a_step() / _REFERENCE_BATCH,
            final=lowest,
            total_steps=total,
            warmup_steps=round(self._warmup_epochs * self.epoch_size / self.patches_in_a_step()),
        )
        start, end = self._weight_decay
        return learning_rate, schedules.cosine(step, base=start, final=end, total_steps=total)

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clips tensor by tensor, then takes the gradients of a frozen last layer away.

        Without a gradient AdamW skips the layer altogether: no decay, no moments (unlike a learning rate of 0).
        """
        if gradient_clip_val is not None:
            raise ValueError(
                f"trainer.gradient_clip_val={gradient_clip_val}: DINO clips per tensor; "
                "set the model's clip_grad instead"
            )
        if self._clip_grad > 0:
            clip_gradients_per_parameter(self.student.parameters(), self._clip_grad)
        if self._patches_done() < self._freeze_last_layer_epochs * self.epoch_size:
            for parameter in self.student.head.last_layer.parameters():
                parameter.grad = None

    def _teacher_temp_now(self) -> float:
        warmup, final, epochs = self._teacher_temp
        epoch = self._patches_done() // self.epoch_size
        return schedules.teacher_temperature(epoch, warmup=warmup, final=final, warmup_epochs=epochs)

    def _patches_done(self) -> int:
        return self.global_step * self.patches_in_a_step()
