"""Which views would the reference's own augmentation show, image by image on the CPU?

The pipeline of main_dino.py (DataAugmentationDINO) out of torchvision's v2 transforms on Pillow images: the yardstick
of `MultiCrop`, which draws from the same distributions in batches on the training device. Choose it by `class_path`
where a run is to use the reference's operations to the last rounding; it is slower, and its random numbers are its own.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torchvision.transforms.v2 as v2
from PIL import Image, ImageFilter
from torch import Tensor

from ssl_train.crop_parameters import BLUR_RADIUS, N_GLOBALS, ViewSettings
from ssl_train.crops import MultiCrop, check_patches

# Apart from the key of `MultiCrop`, whose generator is another one.
_STREAM = 1


def pillow_blur(image: Image.Image) -> Image.Image:
    """Pillow's Gaussian blur with a radius drawn from `BLUR_RADIUS` (reference utils.py, GaussianBlur)."""
    radius = float(torch.empty(1).uniform_(*BLUR_RADIUS))
    return image.filter(ImageFilter.GaussianBlur(radius=radius))


def transpose(image: Image.Image) -> Image.Image:
    """Exchanges rows and columns: with both flips, every quarter turn."""
    return image.transpose(Image.Transpose.TRANSPOSE)


class ReferenceMultiCrop(MultiCrop):
    """`MultiCrop` as the reference computes it: one image and one view at a time, in 8 bits, on the CPU.

    Takes the arguments of `MultiCrop`. The crops of a sample depend on (seed, sample index) only.

    Raises:
        ValueError: as `MultiCrop`; also where an augmentation is asked for that the reference does not have.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if self._extended_context or self._colours.hed_p:
            raise ValueError(
                "crops: ReferenceMultiCrop has neither hed_p nor extended_context, as the reference; take MultiCrop"
            )
        sizes = [self.global_size_px] * N_GLOBALS + [self.local_size_px] * self.n_locals
        self._pipelines = [self._pipeline(view, size) for view, size in zip(self._views, sizes, strict=True)]

    def _pipeline(self, view: ViewSettings, size_px: int) -> v2.Transform:
        colours = self._colours
        jitter = v2.ColorJitter(
            brightness=colours.brightness, contrast=colours.contrast, saturation=colours.saturation, hue=colours.hue
        )
        turns = [v2.RandomVerticalFlip(p=0.5), v2.RandomApply([v2.Lambda(transpose)], p=0.5)] if self._dihedral else []
        return v2.Compose(
            [
                v2.RandomResizedCrop(size_px, scale=view.scale, interpolation=v2.InterpolationMode.BICUBIC),
                v2.RandomHorizontalFlip(p=0.5),
                *turns,
                v2.RandomApply([jitter], p=colours.jitter_p),
                v2.RandomGrayscale(p=colours.grey_p),
                v2.RandomApply([v2.Lambda(pillow_blur)], p=view.blur_p),
                v2.RandomSolarize(threshold=128, p=view.solarise_p),
                v2.ToImage(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(mean=self.mean, std=self.std),
            ]
        )

    @torch.no_grad()
    def __call__(self, patches: Tensor, indices: Tensor, *, seed: int) -> tuple[Tensor, Tensor]:
        """Cuts all crops of a batch; arguments and result are those of `MultiCrop`."""
        check_patches(patches)
        images = [Image.fromarray(patch) for patch in patches.cpu().numpy()]
        n = len(images)
        global_crops = torch.empty(N_GLOBALS, n, 3, self.global_size_px, self.global_size_px)
        local_crops = torch.empty(self.n_locals, n, 3, self.local_size_px, self.local_size_px)
        with torch.random.fork_rng(devices=[]):
            for row, (image, index) in enumerate(zip(images, indices.tolist(), strict=True)):
                key = np.random.SeedSequence([seed, int(index), _STREAM])
                torch.manual_seed(int(key.generate_state(1, np.uint64)[0] >> 1))
                for view, pipeline in enumerate(self._pipelines):
                    target = global_crops[view] if view < N_GLOBALS else local_crops[view - N_GLOBALS]
                    target[row] = pipeline(image)
        return global_crops.to(patches.device), local_crops.to(patches.device)
