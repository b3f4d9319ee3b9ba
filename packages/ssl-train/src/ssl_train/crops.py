"""Which views of a patch do student and teacher see?

Multi-crop of DINO (arXiv 2104.14294, section 3.1; main_dino.py, DataAugmentationDINO): two global crops and
several local ones, in batched operations on the device of the batch. Two steps:

1. `draw`: all random numbers of a batch, from generators keyed by (seed, sample index) and nothing else, so
   that they do not depend on batch, rank or worker. Pure NumPy.
2. `MultiCrop.__call__`: uint8 patches in, normalised float crops out. Order: random resized crop, flips,
   colour jitter, grey, blur, solarise, normalise.

Legend of shape suffixes: B patches, V views (2 globals first), N crops of one size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import permutations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ssl_train import colour
from ssl_train.resample import blur_matrix, crop_resize_matrix

N_GLOBALS = 2
_TRIES = 10
_JITTER_ORDERS = np.array(list(permutations(range(4))))
# Uniform numbers per view: tries x (area, ratio, top, left), then one for each of the choices below.
_CHOICES = 13
_PER_VIEW = 4 * _TRIES + _CHOICES

Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class CropParameters:
    """Every random choice for B patches and V views; all arrays are (B, V) unless said otherwise.

    Boxes are in pixels of the patch. `jitter_order` (B, V, 4) lists the operations 0 brightness, 1 contrast,
    2 saturation, 3 hue in the order of use; `jitter` (B, V, 4) holds their factors (hue: a shift of the circle).
    """

    top: Ints
    left: Ints
    height: Ints
    width: Ints
    flip_x: Bools
    flip_y: Bools
    transpose: Bools
    jitters: Bools
    jitter_order: Ints
    jitter: Floats
    greys: Bools
    blurs: Bools
    blur_radius: Floats
    solarises: Bools

    def views(self, start: int, stop: int) -> CropParameters:
        """The parameters of some views, flattened patch-major: (B, V) becomes (B * (stop - start),)."""
        cut = {f.name: getattr(self, f.name)[:, start:stop] for f in fields(self)}
        return CropParameters(**{name: a.reshape(-1, *a.shape[2:]) for name, a in cut.items()})


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewSettings:
    """What one view does: the relative area of its crop and the probabilities of blur and solarisation."""

    scale: tuple[float, float]
    blur_p: float
    solarise_p: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ColourSettings:
    """Strengths of the colour jitter, its probability, and the probability of grey."""

    brightness: float
    contrast: float
    saturation: float
    hue: float
    jitter_p: float
    grey_p: float


def draw(
    indices: Sequence[int],
    *,
    seed: int,
    patch_size_px: tuple[int, int],
    views: Sequence[ViewSettings],
    colours: ColourSettings,
    dihedral: bool,
) -> CropParameters:
    """Draws the parameters of all views of a batch.

    Boxes follow torchvision's RandomResizedCrop: up to ten tries of a relative area in `scale` and a
    log-uniform ratio in 3/4..4/3, then the largest centred box of an allowed ratio.

    Args:
        indices: global sample numbers, B of them.
        seed: first half of the key.
        patch_size_px: (height, width) of the patches.
        views: settings of each view, V of them.
        colours: settings common to all views.
        dihedral: besides the horizontal flip also flip vertically and transpose, each with probability 0.5.
    """
    uniform = np.empty((len(indices), len(views), _PER_VIEW))
    for row, index in enumerate(indices):
        key = np.array([seed, index], dtype=np.uint64)
        uniform[row] = np.random.Generator(np.random.Philox(key=key)).random((len(views), _PER_VIEW))
    tries = uniform[..., : 4 * _TRIES].reshape(len(indices), len(views), _TRIES, 4)
    u = np.moveaxis(uniform[..., 4 * _TRIES :], -1, 0)
    top, left, height, width = _boxes(tries, patch_size_px, np.array([v.scale for v in views]))
    strength = np.array([colours.brightness, colours.contrast, colours.saturation, colours.hue])
    centre = np.array([1.0, 1.0, 1.0, 0.0])
    low = np.where(centre > 0, np.maximum(centre - strength, 0), -strength)
    jitter = low + np.moveaxis(u[5:9], 0, -1) * (centre + strength - low)
    return CropParameters(
        top=top,
        left=left,
        height=height,
        width=width,
        flip_x=u[0] < 0.5,
        flip_y=(u[1] < 0.5) & dihedral,
        transpose=(u[2] < 0.5) & dihedral,
        jitters=u[3] < colours.jitter_p,
        jitter_order=_JITTER_ORDERS[(u[4] * len(_JITTER_ORDERS)).astype(np.int64)],
        jitter=jitter.astype(np.float32),
        greys=u[9] < colours.grey_p,
        blurs=u[10] < np.array([v.blur_p for v in views]),
        blur_radius=(0.1 + 1.9 * u[11]).astype(np.float32),
        solarises=u[12] < np.array([v.solarise_p for v in views]),
    )


def _boxes(
    tries_BVT4: npt.NDArray[np.float64], patch_size_px: tuple[int, int], scale_V2: npt.NDArray[np.float64]
) -> tuple[Ints, Ints, Ints, Ints]:
    rows, columns = patch_size_px
    low, high = scale_V2[:, :1], scale_V2[:, 1:]
    area = rows * columns * (low + tries_BVT4[..., 0] * (high - low))
    ratio = np.exp((2 * tries_BVT4[..., 1] - 1) * np.log(4 / 3))
    width = np.rint(np.sqrt(area * ratio)).astype(np.int64)
    height = np.rint(np.sqrt(area / ratio)).astype(np.int64)
    fits = (width >= 1) & (width <= columns) & (height >= 1) & (height <= rows)
    first = fits.argmax(-1)[..., None]

    def chosen(values: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
        return np.take_along_axis(values, first, -1)[..., 0]

    none_fits = ~fits.any(-1)
    fallback_width = round(min(columns, rows * 4 / 3))
    fallback_height = round(min(rows, columns * 4 / 3))
    width = np.where(none_fits, fallback_width, chosen(width))
    height = np.where(none_fits, fallback_height, chosen(height))
    top = np.floor(chosen(tries_BVT4[..., 2]) * (rows - height + 1)).astype(np.int64)
    left = np.floor(chosen(tries_BVT4[..., 3]) * (columns - width + 1)).astype(np.int64)
    top = np.where(none_fits, (rows - height) // 2, top)
    left = np.where(none_fits, (columns - width) // 2, left)
    return top, left, height, width


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
        probabilities = {"jitter_p": jitter_p, "grey_p": grey_p, "solarise_p": solarise_p}
        probabilities |= {f"blur_p[{i}]": p for i, p in enumerate(blur_p)}
        for name, p in probabilities.items():
            if not 0 <= p <= 1:
                raise ValueError(f"crops: {name} must be between 0 and 1, got {p}")
        if min(brightness, contrast, saturation, hue) < 0 or hue > 0.5:
            raise ValueError(f"crops: jitter strengths must be at least 0 and hue at most 0.5, got hue={hue}")
        if min(std) <= 0:
            raise ValueError(f"crops: std must be above 0, got {std}")
        self.global_size_px = global_size_px
        self.local_size_px = local_size_px
        self.n_locals = n_locals
        self.mean = mean
        self.std = std
        self._dihedral = dihedral
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
        """
        if patches.dtype != torch.uint8 or patches.ndim != 4 or patches.shape[-1] != 3:
            raise ValueError(
                f"patches must be uint8 (B, H, W, 3), got {patches.dtype} {tuple(patches.shape)}; check the stream"
            )
        drawn = draw(
            [int(i) for i in indices.tolist()],
            seed=seed,
            patch_size_px=(patches.shape[1], patches.shape[2]),
            views=self._views,
            colours=self._colours,
            dihedral=self._dihedral,
        )
        images = patches.float()
        with torch.autocast(patches.device.type, enabled=False):
            cut = [
                self._one_size(images, drawn.views(0, N_GLOBALS), self.global_size_px),
                self._one_size(images, drawn.views(N_GLOBALS, len(self._views)), self.local_size_px),
            ]
        return cut[0], cut[1]

    def _one_size(self, images: Tensor, parameters: CropParameters, size: int) -> Tensor:
        crops = resize_crops(images, parameters, size)
        recolour(crops, parameters)
        crops = crops.div_(colour.WHITE)
        crops -= torch.tensor(self.mean, device=crops.device)[:, None, None]
        crops /= torch.tensor(self.std, device=crops.device)[:, None, None]
        n_views = len(crops) // len(images)
        views_first = crops.reshape(len(images), n_views, *crops.shape[1:]).transpose(0, 1)
        return views_first.contiguous()


def resize_crops(images: Tensor, parameters: CropParameters, size: int) -> Tensor:
    """Cuts, resizes, flips and transposes: (B, H, W, 3) to (N, 3, size, size) in [0, 255], patch-major."""
    batch, height, width, _ = images.shape

    def matrices(start: Ints, length: Ints, flip: Bools, in_size: int) -> Tensor:
        return crop_resize_matrix(
            start_N=_to(images, start),
            length_N=_to(images, length),
            flip_N=torch.from_numpy(flip).to(images.device),
            in_size=in_size,
            out_size=size,
        )

    rows = matrices(parameters.top, parameters.height, parameters.flip_y, height)
    columns = matrices(parameters.left, parameters.width, parameters.flip_x, width)
    n = len(rows)
    if n == 0:
        return images.new_zeros((0, 3, size, size))
    # Horizontal first, with the clamp of an 8-bit intermediate between the passes, as Pillow does.
    planes = images.permute(0, 2, 3, 1).reshape(batch, width, 3 * height)
    squeezed = (columns.reshape(batch, -1, width) @ planes).clamp_(0, colour.WHITE)
    squeezed = squeezed.reshape(n, size, 3, height)
    crops = torch.einsum("nxch,nyh->ncyx", squeezed, rows).clamp_(0, colour.WHITE)
    turned = torch.from_numpy(parameters.transpose).to(images.device)[:, None, None, None]
    return torch.where(turned, crops.mT, crops)


def recolour(crops: Tensor, parameters: CropParameters) -> None:
    """Jitter, grey, blur and solarise, in place; crops (N, 3, S, S) in [0, 255]."""
    operations = (
        colour.adjust_brightness,
        colour.adjust_contrast,
        colour.adjust_saturation,
        colour.adjust_hue,
    )
    for stage in range(4):
        for number, operation in enumerate(operations):
            rows = np.flatnonzero(parameters.jitters & (parameters.jitter_order[:, stage] == number))
            if len(rows):
                chosen = torch.from_numpy(rows).to(crops.device)
                crops[chosen] = operation(crops[chosen], _to(crops, parameters.jitter[rows, number]))
    for rows, change in (
        (np.flatnonzero(parameters.greys), lambda x, _: colour.luma(x).expand_as(x)),
        (np.flatnonzero(parameters.blurs), _blur),
        (np.flatnonzero(parameters.solarises), lambda x, _: colour.solarise(x)),
    ):
        if len(rows):
            chosen = torch.from_numpy(rows).to(crops.device)
            crops[chosen] = change(crops[chosen], _to(crops, parameters.blur_radius[rows]))


def _blur(crops: Tensor, radius_N: Tensor) -> Tensor:
    matrix = blur_matrix(radius_N=radius_N, size=crops.shape[-1])[:, None]
    return matrix @ crops @ matrix.mT


def _to(like: Tensor, values: npt.NDArray[np.generic]) -> Tensor:
    return torch.from_numpy(values).to(device=like.device, dtype=like.dtype)
