"""What does a thumbnail look like, and exactly where is its tissue?

Steps: `paint_textures` paints a library of periodic squares (`sample_tissue`) from 0.5 to 16 um per pixel. `scene`
lays a field whose positive part is tissue (a section, cores, fragments, all of the view, or nothing), fills it with
squares of several classes, dyes it by Beer and Lambert with a laboratory's stain (`sample_stain`), puts marks over it
(`foreground_marks`) and photographs it. The mask is known because it was drawn.

Vessels, lumina and fat belong to the tissue around them; tears and holes do not; what lies under ink does not.
`train_foreground` learns from these views.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import foreground_marks as marks
import numpy as np
import numpy.typing as npt
from foreground_marks import F32, U8, curve, smooth_noise
from sample_stain import Stain, draw_hospital_stain, draw_slide_stain
from sample_tissue import TISSUE_CLASSES, paint_tissue

THUMBNAIL_MPP = (6.0, 9.0, 13.0)
MAGNIFIED_MPP = (0.5, 1.0, 2.0, 4.0)
SQUARE_PX = 256
INK_WEIGHT = 3
LEAST_DENSITY = (0.04, 0.1)
"""Range of the least mean optical density of drawn tissue; paler tissue is drawn as pale as that."""
_UNIT = 160.0  # stored concentration that means one unit of optical density, as in sample_stain
_BLOOD = np.array([0.10, 0.80, 0.72], np.float32)  # optical density of red blood cells, eosin over haemoglobin


@dataclass(frozen=True, slots=True)
class Texture:
    """A periodic square: dyes uint16 (SQUARE_PX, SQUARE_PX), `haematoxylin << 8 | eosin`."""

    tissue: str
    mpp: float
    dyes: npt.NDArray[np.uint16]


@dataclass(frozen=True, slots=True)
class Scene:
    """One view: image uint8 (S, S, 3) RGB; tissue uint8 (S, S), 0 or 1; certain uint8 (S, S), the weight of a label.

    The weight is 0 where no label can be given, else 1, or `INK_WEIGHT` where ink hides tissue.
    """

    image: U8
    tissue: U8
    certain: U8


def paint_textures(rng: np.random.Generator) -> list[Texture]:
    """Paints every tissue class at every pixel size once (twice at thumbnail scale)."""
    sizes = [*MAGNIFIED_MPP, *THUMBNAIL_MPP, *THUMBNAIL_MPP]
    return [
        Texture(tissue, mpp, paint_tissue(tissue, rng, size_px=SQUARE_PX, mpp=mpp))
        for mpp in sizes
        for tissue in TISSUE_CLASSES
    ]


def scene(rng: np.random.Generator, textures: Sequence[Texture], *, size_px: int) -> Scene:
    """Draws one view with its mask.

    Args:
        rng: Source of all randomness.
        textures: From `paint_textures`.
        size_px: Edge of the view.
    """
    kind = rng.choice(["pieces", "full", "empty", "magnified"], p=[0.46, 0.06, 0.16, 0.32])
    image = np.broadcast_to(_glass(rng), (size_px, size_px, 3)).astype(np.float32)
    tissue, certain = (np.full((size_px, size_px), value, np.uint8) for value in (0, 1))
    least = float(rng.uniform(*LEAST_DENSITY))
    if kind != "empty":
        magnified = kind == "magnified"
        field = np.full((size_px, size_px), float(size_px), np.float32)
        if kind == "pieces" or (magnified and rng.random() < 0.35):
            field = _pieces(rng, size_px)
        dyes, colour = _dyes(rng, textures, size_px, magnified=magnified), _stain(rng)
        density = _density(rng, dyes, colour, size_px)
        # What absorbs less than can be seen teaches nothing but to call glass tissue.
        density *= max(1.0, least / float(density.mean()))
        least = float(density.mean())
        # Thickness falls off at the edge of a section, sharply or not.
        thickness = np.clip(field / rng.uniform(0.4, 3.0), 0, 1)
        density *= thickness[..., None]
        image *= np.power(10.0, -density)
        tissue = (thickness > 0.5).astype(np.uint8)
        if not magnified:
            # A lumen as large as a hole cannot be told from one: it is tissue, and nothing is learnt from it.
            around = cv2.GaussianBlur(density.mean(axis=-1), (0, 0), 3.0)
            certain = ((tissue == 0) | (around > 0.25 * least)).astype(np.uint8)
    if rng.random() < 0.4:
        image *= _haze(rng, size_px, most=0.6 * least)
    empty = kind == "empty"
    ink = _marks(rng, image, pen_chance=0.7 if empty else 0.45, coarse=kind != "pieces" and rng.random() < 0.7)
    certain[(ink > 0.45) & (tissue > 0)] = INK_WEIGHT
    certain[(ink > 0.12) & (ink < 0.45) & (tissue > 0)] = 0
    tissue[ink >= 0.3] = 0
    if rng.random() < 0.12:
        outside = marks.borders(image, rng)
        tissue[outside > 0] = 0
        certain = np.maximum(certain, outside)
    return Scene(marks.camera(image, rng), tissue, certain)


def _glass(rng: np.random.Generator) -> F32:
    """Light through clear glass: white mostly, grey or yellowish on some scanners."""
    level = rng.uniform(222, 252) if rng.random() < 0.65 else rng.uniform(150, 225)
    tint = rng.normal(0, 2.5, 3) + (rng.uniform(0, 1) * np.array([2, 0, -16]) if rng.random() < 0.15 else 0)
    return np.clip(level + tint, 120, 254).astype(np.float32)


def _haze(rng: np.random.Generator, size: int, *, most: float) -> F32:
    """Share of light let through by dye that has bled, or by mounting medium: broad, without any structure."""
    broad = np.clip(smooth_noise(rng, size, rng.uniform(0.3, 1.2) * size) + rng.uniform(-0.5, 1), 0, 2) / 2
    colour = np.array([[0.3, 1.6, 1.1], [1, 1, 1], [0.6, 1.3, 1.1], [0.7, 0.9, 1.4]])[int(rng.integers(4))]
    return np.asarray(10.0 ** (-min(most, 0.08) * rng.uniform(0.2, 1) * broad[..., None] * colour), np.float32)


def _stain(rng: np.random.Generator) -> tuple[Stain, float]:
    """A laboratory's stain, and how deep this slide is dyed: from hardly to over-stained."""
    stain = draw_slide_stain(draw_hospital_stain(rng), rng)
    haematoxylin, eosin = stain.strength
    mode = rng.choice(["both", "eosin", "haematoxylin"], p=[0.8, 0.1, 0.1])
    haematoxylin *= 0.12 if mode == "eosin" else 1.0
    eosin *= 0.15 if mode == "haematoxylin" else 1.0
    depth = float(np.exp(rng.normal(-0.1, 0.55)))
    return Stain(stain.vectors, (haematoxylin, eosin), stain.glass, stain.gamma), float(np.clip(depth, 0.22, 2.2))


def _density(rng: np.random.Generator, dyes: F32, stain_depth: tuple[Stain, float], size: int) -> F32:
    """Optical density (to base 10) of the tissue at its full thickness, float32 (S, S, 3)."""
    stain, depth = stain_depth
    # Sections are uneven: broad fields of paler and deeper dye, of other balance between the two.
    broad = np.exp(rng.uniform(0, 0.35) * smooth_noise(rng, size, rng.uniform(40, 200)))
    balance = np.exp(rng.uniform(0, 0.4) * smooth_noise(rng, size, rng.uniform(60, 250)))
    haematoxylin = dyes[..., 0] * broad * balance * (stain.strength[0] * depth)
    eosin = dyes[..., 1] * broad / balance * (stain.strength[1] * depth)
    density = haematoxylin[..., None] * stain.vectors[0] + eosin[..., None] * stain.vectors[1]
    density = density + np.float32(
        rng.choice([0.0, 0.02, 0.06, 0.1], p=[0.5, 0.25, 0.15, 0.1])
    )  # scatters, all colours alike
    if rng.random() < 0.15:
        pool = np.clip(smooth_noise(rng, size, rng.uniform(8, 60)) - rng.uniform(0.5, 2), 0, 1)
        grain = 1 + 0.35 * smooth_noise(rng, size, 1.6)
        density = density + (pool * grain * rng.uniform(0.4, 1.2))[..., None] * _BLOOD
    if rng.random() < 0.3:
        grey = density.mean(axis=-1, keepdims=True)
        density = grey + (density - grey) * rng.uniform(0.15, 0.7)
    return np.asarray(np.clip(density, 0, 3), np.float32)


def _pieces(rng: np.random.Generator, size: int) -> F32:
    """A field float32 (S, S), about in pixels from the outline, positive on tissue."""
    kind = rng.choice(["section", "cores", "fragments", "field"], p=[0.5, 0.2, 0.08, 0.22])
    if kind == "section":
        field = _section(rng, size)
    elif kind == "cores":
        drawn = np.zeros((size, size), np.uint8)
        for _ in range(int(rng.integers(1, 5))):
            points = curve(rng, size, length_px=rng.uniform(0.5, 1.6) * size, bend=rng.uniform(0.01, 0.08))
            cv2.polylines(drawn, [points], isClosed=False, color=255, thickness=int(rng.uniform(5, 34)))
        field = _signed_distance(drawn > 0)
    elif kind == "fragments":
        noise = smooth_noise(rng, size, rng.uniform(6, 30)) + 0.5 * smooth_noise(rng, size, rng.uniform(3, 8))
        field = _signed_distance(noise > rng.uniform(0.7, 1.8))
    else:
        field = _signed_distance(smooth_noise(rng, size, rng.uniform(60, 220)) > rng.uniform(-1, 0.8))
    rough = rng.uniform(0, 3) * smooth_noise(rng, size, rng.uniform(4, 14))
    rough = rough + rng.uniform(0, 1.2) * smooth_noise(rng, size, 2)
    field = field + rough * (np.abs(field) < 12)
    return np.minimum(field, _tears(rng, size))


def _section(rng: np.random.Generator, size: int) -> F32:
    axis = np.linspace(-1, 1, size, dtype=np.float32)
    inside = np.zeros((size, size), np.bool_)
    for _ in range(int(rng.integers(1, 3))):
        x, y = axis[None] - rng.uniform(-0.9, 0.9), axis[:, None] - rng.uniform(-0.9, 0.9)
        turn = np.arctan2(y, x)
        radius = np.full_like(turn, rng.uniform(0.3, 1.4))
        for waves in range(2, 8):
            radius *= 1 + rng.normal(0, 0.25 / waves) * np.cos(waves * turn + rng.uniform(0, 2 * np.pi))
        inside |= radius > np.hypot(x, y * rng.uniform(0.5, 1.8))
    return _signed_distance(inside)


def _tears(rng: np.random.Generator, size: int) -> F32:
    """Positive but in holes and cracks."""
    torn = np.zeros((size, size), np.uint8)
    if rng.random() < 0.3:
        torn |= (smooth_noise(rng, size, rng.uniform(10, 50)) > rng.uniform(1.4, 2.2)).astype(np.uint8)
    for _ in range(int(rng.integers(0, 3)) if rng.random() < 0.4 else 0):
        points = curve(rng, size, length_px=rng.uniform(20, 200), bend=rng.uniform(0.02, 0.15))
        cv2.polylines(torn, [points], isClosed=False, color=1, thickness=int(rng.integers(2, 8)))
    return -_signed_distance(torn > 0)


def _signed_distance(inside: npt.NDArray[np.bool_]) -> F32:
    """Distance to the outline in pixels, positive inside."""
    size = float(max(inside.shape))
    if inside.all() or not inside.any():
        return np.full(inside.shape, size if inside.all() else -size, np.float32)
    within = cv2.distanceTransform(inside.astype(np.uint8), cv2.DIST_L2, 3)
    beyond = cv2.distanceTransform((~inside).astype(np.uint8), cv2.DIST_L2, 3)
    return np.asarray(within - beyond, np.float32)


def _dyes(rng: np.random.Generator, textures: Sequence[Texture], size: int, *, magnified: bool) -> F32:
    """Concentrations float32 (S, S, 2) in units of optical density: regions of one to four squares."""
    pixel = rng.choice(MAGNIFIED_MPP if magnified else THUMBNAIL_MPP)
    able = [texture for texture in textures if texture.mpp == pixel]
    count = int(rng.integers(1, 5))
    chosen = [able[int(k)] for k in rng.integers(len(able), size=count)]
    fields = np.stack([smooth_noise(rng, size, rng.uniform(25, 120)) for _ in chosen])
    region = fields.argmax(axis=0)
    packed = np.zeros((size, size), np.uint16)
    for number, texture in enumerate(chosen):
        rows, columns = (np.arange(size) + int(rng.integers(SQUARE_PX)) for _ in range(2))
        window = np.rot90(texture.dyes, int(rng.integers(4))).take(rows, 0, mode="wrap").take(columns, 1, mode="wrap")
        packed = np.where(region == number, window, packed)
    dyes = np.stack([packed >> 8, packed & 255], axis=-1).astype(np.float32) / _UNIT
    if magnified and rng.random() < 0.3:
        # Closer still, as under an objective of 40x and more.
        dyes = np.asarray(cv2.resize(dyes[: size // 2, : size // 2], (size, size), interpolation=cv2.INTER_CUBIC))
        dyes = np.maximum(dyes, 0)
    if not magnified and rng.random() < 0.5:
        # Brain, cartilage, necrosis: hardly any structure at this scale.
        flat = np.array([rng.uniform(0.05, 0.35), rng.uniform(0.1, 0.45)], np.float32)
        share = rng.uniform(0.5, 0.97)
        dyes = dyes * (1 - share) + share * flat
    if magnified and rng.random() < 0.55:
        # Loose tissue under the microscope: bright clefts everywhere, and still tissue.
        loose = smooth_noise(rng, size, rng.uniform(5, 28)) + 0.5 * smooth_noise(rng, size, rng.uniform(3, 8))
        dyes = dyes * (1 - np.clip(3 * (loose - rng.uniform(-0.3, 1.4)), 0, 1))[..., None]
    return np.asarray(dyes, np.float32)


def _marks(rng: np.random.Generator, image: F32, *, pen_chance: float, coarse: bool) -> F32:
    """Puts marks over a view. Returns the coverage by ink, float32 (S, S)."""
    for chance, draw in ((0.45, marks.dust), (0.08, marks.bubbles), (0.14, marks.coverslip), (0.12, marks.printed)):
        if rng.random() < chance:
            draw(image, rng)
    ink = np.zeros(image.shape[:2], np.float32)
    if rng.random() < pen_chance:
        for _ in range(int(rng.integers(1, 4))):
            ink = np.maximum(ink, marks.pen(image, rng, coarse=coarse))
    return ink
