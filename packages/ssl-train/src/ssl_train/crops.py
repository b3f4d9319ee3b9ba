"""Which views of a patch do student and teacher see?

Multi-crop of DINO (arXiv 2104.14294, section 3.1; main_dino.py, DataAugmentationDINO): two global crops and several
local ones, of a whole batch, on the device of the batch. `crop_parameters` draws all random choices, `cutting` carries
them out; order: random resized crop, flips, colour jitter, grey, blur, solarise, normalise. Two more for tissue, off by
default: stains, before the colour jitter, and crops that keep the scale of the patch.

Legend of shape suffixes: B patches, N crops of one size.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from ssl_train import colour
from ssl_train.crop_parameters import N_GLOBALS, ColourSettings, CropParameters, ViewSettings, draw
from ssl_train.cutting import make_crops

# Of crops with extended context: area in units of the crop's, and width over height.
_CONTEXT_SCALE, _CONTEXT_RATIO = (0.9, 1.1), (0.95, 1.05)


class MultiCrop:
    """Turns a batch of patches into global and local crops.

    Args:
        global_size_px: side of the two global crops.
        local_size_px: side of the local crops.
        n_locals: number of local crops.
        global_scale: relative area of a global crop, (smallest, largest).
        local_scale: relative area of a local crop.
        dihedral: also flip vertically and turn by quarters: tissue has no up or down (not in the reference).
        jitter_p: probability of the colour jitter.
        brightness: strength of the jitter.
        contrast: strength of the jitter.
        saturation: strength of the jitter.
        hue: strength of the jitter, at most 0.5.
        grey_p: probability of grey.
        blur_p: probability of blur in (first global, second global, local) crops.
        solarise_p: probability of solarisation in the second global crop.
        hed_p: probability of other amounts of haematoxylin, eosin and DAB (Tellez et al., arXiv 1808.05896 and
            1902.06543; not in the reference); each view draws its own.
        hed_sigma: their factors are uniform in 1 - sigma..1 + sigma, their shifts in -sigma..sigma of optical density
            (natural logarithm); 0.05 is "light", 0.2 "strong" in 1902.06543.
        extended_context: cut crops of about their own size out of larger patches instead of enlarging or shrinking
            parts of the patch, so that cells keep their size and form: an area of 0.9 to 1.1 times that of the crop, a
            ratio of 0.95 to 1.05; `global_scale` and `local_scale` play no part. Virchow2 (arXiv 2408.00738, section
            on extended-context translation) takes crops of 224 and 98 px from patches of 392 px.
        mean: channel means, in [0, 1].
        std: channel standard deviations, in [0, 1].

    Raises:
        ValueError: a size, scale, strength or probability out of range.
    """

    def __init__(
        self,
        *,
        global_size_px: int = 224,
        local_size_px: int = 96,
        n_locals: int = 8,
        global_scale: tuple[float, float] = (0.4, 1.0),
        local_scale: tuple[float, float] = (0.05, 0.4),
        dihedral: bool = False,
        jitter_p: float = 0.8,
        brightness: float = 0.4,
        contrast: float = 0.4,
        saturation: float = 0.2,
        hue: float = 0.1,
        grey_p: float = 0.2,
        blur_p: tuple[float, float, float] = (1.0, 0.1, 0.5),
        solarise_p: float = 0.2,
        hed_p: float = 0.0,
        hed_sigma: float = 0.05,
        extended_context: bool = False,
        mean: tuple[float, float, float] = (0.5, 0.5, 0.5),
        std: tuple[float, float, float] = (0.5, 0.5, 0.5),
    ) -> None:
        if global_size_px < 1 or local_size_px < 1 or n_locals < 0:
            raise ValueError(
                "crops: sizes must be at least 1 and n_locals at least 0, got "
                f"global_size_px={global_size_px}, local_size_px={local_size_px}, n_locals={n_locals}"
            )
        for name, (low, high) in {"global_scale": global_scale, "local_scale": local_scale}.items():
            if not 0 < low <= high <= 1:
                raise ValueError(f"crops: {name} must satisfy 0 < low <= high <= 1, got ({low}, {high})")
        probabilities = {"jitter_p": jitter_p, "grey_p": grey_p, "solarise_p": solarise_p, "hed_p": hed_p}
        probabilities |= {f"blur_p[{i}]": p for i, p in enumerate(blur_p)}
        for name, p in probabilities.items():
            if not 0 <= p <= 1:
                raise ValueError(f"crops: {name} must be between 0 and 1, got {p}")
        if min(brightness, contrast, saturation, hue) < 0 or hue > 0.5:
            raise ValueError(f"crops: jitter strengths must be at least 0 and hue at most 0.5, got hue={hue}")
        if not 0 <= hed_sigma <= 1:
            raise ValueError(f"crops: hed_sigma must be between 0 and 1, got {hed_sigma}")
        if min(std) <= 0:
            raise ValueError(f"crops: std must be above 0, got {std}")
        self.global_size_px = global_size_px
        self.local_size_px = local_size_px
        self.n_locals = n_locals
        self.mean = mean
        self.std = std
        self._dihedral = dihedral
        self._extended_context = extended_context
        self._views = [
            ViewSettings(scale=global_scale, blur_p=blur_p[0], solarise_p=0.0),
            ViewSettings(scale=global_scale, blur_p=blur_p[1], solarise_p=solarise_p),
            *[ViewSettings(scale=local_scale, blur_p=blur_p[2], solarise_p=0.0)] * n_locals,
        ]
        self._colours = ColourSettings(
            brightness=brightness,
            contrast=contrast,
            saturation=saturation,
            hue=hue,
            jitter_p=jitter_p,
            grey_p=grey_p,
            hed_p=hed_p,
            hed_sigma=hed_sigma,
        )

    @torch.no_grad()
    def __call__(self, patches: Tensor, indices: Tensor, *, seed: int) -> tuple[Tensor, Tensor]:
        """Cuts all crops of a batch.

        Args:
            patches: uint8 (B, H, W, 3).
            indices: global sample numbers (B,).
            seed: first half of the key of the random numbers.

        Returns:
            Global crops (2, B, 3, G, G) and local crops (n, B, 3, L, L), float32, normalised.

        Raises:
            ValueError: no uint8 images, or too small for crops with extended context.
        """
        check_patches(patches)
        drawn = draw(
            [int(i) for i in indices.tolist()],
            seed=seed,
            patch_size_px=(patches.shape[1], patches.shape[2]),
            views=self._views_of(patches.shape[1], patches.shape[2]),
            colours=self._colours,
            dihedral=self._dihedral,
        )
        with torch.autocast(patches.device.type, enabled=False):
            cut = [
                self._one_size(patches, drawn.views(0, N_GLOBALS), self.global_size_px),
                self._one_size(patches, drawn.views(N_GLOBALS, len(self._views)), self.local_size_px),
            ]
        return cut[0], cut[1]

    def _views_of(self, height_px: int, width_px: int) -> list[ViewSettings]:
        """The views of patches of a size."""
        if not self._extended_context:
            return self._views
        largest = max(self.global_size_px, self.local_size_px)
        needed = math.ceil(largest * math.sqrt(_CONTEXT_SCALE[1] * _CONTEXT_RATIO[1]))
        if min(height_px, width_px) < needed:
            raise ValueError(
                f"crops: extended_context needs patches of at least {needed} px for crops of {largest} px, got "
                f"{height_px} x {width_px}; set the stream's size_px (Virchow2: 392 for 224) or extended_context: false"
            )
        sizes = [self.global_size_px] * N_GLOBALS + [self.local_size_px] * self.n_locals
        shares = [size**2 / (height_px * width_px) for size in sizes]
        return [
            replace(view, scale=(_CONTEXT_SCALE[0] * share, _CONTEXT_SCALE[1] * share), ratio=_CONTEXT_RATIO)
            for view, share in zip(self._views, shares, strict=True)
        ]

    def _one_size(self, patches: Tensor, parameters: CropParameters, size: int) -> Tensor:
        crops = make_crops(patches, parameters, size)
        mean, std = (torch.tensor(values, device=crops.device)[:, None, None] for values in (self.mean, self.std))
        crops.sub_(mean * colour.WHITE).div_(std * colour.WHITE)
        n_views = len(crops) // len(patches)
        views_first = crops.reshape(len(patches), n_views, *crops.shape[1:]).transpose(0, 1)
        return views_first.contiguous()


def check_patches(patches: Tensor) -> None:
    """Refuses what is no batch of uint8 images (B, H, W, 3)."""
    if patches.dtype != torch.uint8 or patches.ndim != 4 or patches.shape[-1] != 3:
        raise ValueError(
            f"patches must be uint8 (B, H, W, 3), got {patches.dtype} {tuple(patches.shape)}; check the stream"
        )
