"""Which random choices make the views of a patch?

All random numbers of a batch, from generators keyed by (seed, sample index) and nothing else, so that they do not
depend on batch, rank, worker or device. Pure NumPy.

Legend of shape suffixes: B patches, V views (2 globals first).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import permutations
from typing import Any

import numpy as np
import numpy.typing as npt

N_GLOBALS = 2
# Standard deviation of the blur in pixels, uniform between these.
BLUR_RADIUS = (0.1, 2.0)
_TRIES = 10
_JITTER_ORDERS = np.array(list(permutations(range(4))))
# Uniform numbers per view: tries x (area, ratio, top, left), then one for each of the choices below.
_CHOICES = 13
_PER_VIEW = 4 * _TRIES + _CHOICES
# Numbers of stains, and where their draws begin: far beyond those above, which do not depend on whether there are any.
_STAINS = 3
_STAIN_COUNTER = np.array([0, 0, 0, 2], dtype=np.uint64)

Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class CropParameters:
    """Every random choice for B patches and V views; all arrays are (B, V) unless said otherwise.

    Boxes are in pixels of the patch. `jitter_order` (B, V, 4) lists the operations 0 brightness, 1 contrast,
    2 saturation, 3 hue in the order of use; `jitter` (B, V, 4) holds their factors (hue: a shift of the circle).
    `stain_factor` and `stain_shift` (B, V, 3) are those of haematoxylin, eosin and DAB.
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
    stains: Bools
    stain_factor: Floats
    stain_shift: Floats

    def views(self, start: int, stop: int) -> CropParameters:
        """The parameters of some views, flattened patch-major: (B, V) becomes (B * (stop - start),)."""
        cut = {f.name: getattr(self, f.name)[:, start:stop] for f in fields(self)}
        return CropParameters(**{name: a.reshape(-1, *a.shape[2:]) for name, a in cut.items()})


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewSettings:
    """What one view does: relative area and ratio of its crop, and the probabilities of blur and solarisation."""

    scale: tuple[float, float]
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    blur_p: float
    solarise_p: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ColourSettings:
    """Strengths of the colour jitter, its probability, the probability of grey, and the same of the stains."""

    brightness: float
    contrast: float
    saturation: float
    hue: float
    jitter_p: float
    grey_p: float
    hed_p: float = 0.0
    hed_sigma: float = 0.05


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
    log-uniform ratio, 3/4..4/3 by default, then the largest centred box of an allowed ratio.

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
    ranges = np.array([[v.scale, v.ratio] for v in views])
    top, left, height, width = _boxes(tries, patch_size_px, ranges[:, 0], ranges[:, 1])
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
        blur_radius=(BLUR_RADIUS[0] + (BLUR_RADIUS[1] - BLUR_RADIUS[0]) * u[11]).astype(np.float32),
        solarises=u[12] < np.array([v.solarise_p for v in views]),
        **_stains(indices, seed=seed, n_views=len(views), p=colours.hed_p, sigma=colours.hed_sigma),
    )


def _stains(indices: Sequence[int], *, seed: int, n_views: int, p: float, sigma: float) -> dict[str, Any]:
    """Who takes part with factors in 1 - sigma..1 + sigma and shifts in -sigma..sigma, both uniform."""
    shape = (len(indices), n_views)
    if p == 0:
        nothing = np.zeros((*shape, _STAINS), dtype=np.float32)
        return {"stains": np.zeros(shape, dtype=np.bool_), "stain_factor": nothing + 1, "stain_shift": nothing}
    uniform = np.empty((*shape, 1 + 2 * _STAINS))
    for row, index in enumerate(indices):
        key = np.array([seed, index], dtype=np.uint64)
        uniform[row] = np.random.Generator(np.random.Philox(key=key, counter=_STAIN_COUNTER)).random(uniform.shape[1:])
    amounts = (sigma * (2 * uniform[..., 1:] - 1)).astype(np.float32)
    return {
        "stains": uniform[..., 0] < p,
        "stain_factor": 1 + amounts[..., :_STAINS],
        "stain_shift": amounts[..., _STAINS:],
    }


def _boxes(
    tries_BVT4: npt.NDArray[np.float64],
    patch_size_px: tuple[int, int],
    scale_V2: npt.NDArray[np.float64],
    ratio_V2: npt.NDArray[np.float64],
) -> tuple[Ints, Ints, Ints, Ints]:
    rows, columns = patch_size_px
    low, high = scale_V2[:, :1], scale_V2[:, 1:]
    area = rows * columns * (low + tries_BVT4[..., 0] * (high - low))
    middle = np.log(ratio_V2).mean(1, keepdims=True)
    ratio = np.exp(middle + (2 * tries_BVT4[..., 1] - 1) * (np.log(ratio_V2[:, 1:]) - middle))
    width = np.rint(np.sqrt(area * ratio)).astype(np.int64)
    height = np.rint(np.sqrt(area / ratio)).astype(np.int64)
    fits = (width >= 1) & (width <= columns) & (height >= 1) & (height <= rows)
    first = fits.argmax(-1)[..., None]

    def chosen(values: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
        return np.take_along_axis(values, first, -1)[..., 0]

    none_fits = ~fits.any(-1)
    fallback_width = np.rint(np.minimum(columns, rows * ratio_V2[:, 1])).astype(np.int64)
    fallback_height = np.rint(np.minimum(rows, columns / ratio_V2[:, 0])).astype(np.int64)
    width = np.where(none_fits, fallback_width, chosen(width))
    height = np.where(none_fits, fallback_height, chosen(height))
    top = np.floor(chosen(tries_BVT4[..., 2]) * (rows - height + 1)).astype(np.int64)
    left = np.floor(chosen(tries_BVT4[..., 3]) * (columns - width + 1)).astype(np.int64)
    top = np.where(none_fits, (rows - height) // 2, top)
    left = np.where(none_fits, (columns - width) // 2, left)
    return top, left, height, width
