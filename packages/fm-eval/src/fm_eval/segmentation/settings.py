"""How is a segmentation evaluation run, and which decoder does that ask for?

Settings are checked when they are made, before any image is read. After: evaluate.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fm_eval.errors import SegmentationError
from fm_eval.segmentation.baselines import ConvDecoder, LinearDecoder
from fm_eval.segmentation.decoder import Decoder, DecoderName, MaskDecoder


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentSettings:
    """How an evaluation is run; the defaults are the paper's where it names them.

    Attributes:
        decoder: mask2former, conv or linear.
        window_px: side of crops and of the test grid's windows.
        stride_px: of the test grid.
        crops_per_image: random crops of each training image whose tokens are kept; 0 draws new crops at every
            step and runs the backbone on each.
        runs: converged runs that are wanted.
        max_runs: runs after which it is given up.
        steps: of each run.
        batch_size: crops a step.
        learning_rate: highest rate.
        weight_decay: of AdamW.
        clip_norm: largest norm of the gradients.
        decoder_layers: of mask2former.
        points: that mask2former's matching and losses sample.
        seed: of crops, orders, decoders and points.
        device: for backbone and decoder.
        bf16: autocast to bfloat16.
        pictures: test images that the result shows.
        progress: show progress bars.
    """

    decoder: DecoderName = "mask2former"
    window_px: int = 224
    stride_px: int = 194
    crops_per_image: int = 32
    runs: int = 3
    max_runs: int = 6
    steps: int = 2000
    batch_size: int = 16
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    clip_norm: float = 1.0
    decoder_layers: int = 9
    points: int = 12_544
    seed: int = 0
    device: str = "cpu"
    bf16: bool = False
    pictures: int = 6
    progress: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.stride_px <= self.window_px:
            raise SegmentationError(f"segment: stride_px={self.stride_px}, allowed is 1 to window_px={self.window_px}")
        if not 1 <= self.runs <= self.max_runs:
            raise SegmentationError(f"segment: runs={self.runs}, allowed is 1 to max_runs={self.max_runs}")
        if min(self.steps, self.batch_size, self.points) < 1 or min(self.crops_per_image, self.pictures, self.seed) < 0:
            raise SegmentationError(
                f"segment: got steps={self.steps}, batch_size={self.batch_size}, points={self.points}, at least 1; "
                f"crops_per_image={self.crops_per_image}, pictures={self.pictures}, seed={self.seed}, at least 0"
            )
        if not (self.learning_rate > 0 and self.clip_norm > 0 and self.weight_decay >= 0):
            raise SegmentationError(
                f"segment: got learning_rate={self.learning_rate}, clip_norm={self.clip_norm}, above 0; "
                f"weight_decay={self.weight_decay}, at least 0"
            )
        try:
            torch.empty(0, device=self.device)
        except (RuntimeError, AssertionError) as error:
            reason = str(error).strip().split("\n")[0]
            raise SegmentationError(f"device {self.device}: not available ({reason}); use cpu") from error


def build_decoder(settings: SegmentSettings, *, embed_dim: int, grid: int, classes: int, run: int) -> Decoder:
    """A decoder whose first weights depend on (seed, run) alone; the global generator stays as it was.

    Args:
        settings: which decoder, and its sizes.
        embed_dim: K of the tokens.
        grid: tokens a side.
        classes: C, background among them.
        run: number of the run.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed * 1_000_003 + run)
        if settings.decoder == "linear":
            return LinearDecoder(embed_dim=embed_dim, classes=classes)
        if settings.decoder == "conv":
            return ConvDecoder(embed_dim=embed_dim, classes=classes)
        return MaskDecoder(
            embed_dim=embed_dim,
            grid=grid,
            classes=classes,
            window_px=settings.window_px,
            decoder_layers=settings.decoder_layers,
            points=settings.points,
        )
