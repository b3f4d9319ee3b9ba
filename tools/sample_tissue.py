"""What does each kind of tissue look like under the microscope?

Steps: `paint_tissue` paints one periodic square of a tissue class as two concentrations, haematoxylin and
eosin, at any pixel size. Each painter lays out architecture (glands, nests, bundles, follicles, fat
cells; 50 to 300 um), then cytoplasm and fibres, then nuclei (6 to 14 um) with chromatin (about 1 um). The
classes differ in structure; how deeply a square is dyed varies more within a class than between most of
them, so that colour alone is a poor guide.

`sample_fields` has the drawing tools. `sample_stain` turns concentrations into colours; `sample_slide`
arranges squares into a slide.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from sample_fields import (
    F32,
    Canvas,
    NucleusKind,
    cells,
    draw_nuclei,
    fibres,
    jittered_grid,
    noise,
    nucleus_stamps,
    radial_shapes,
)

TISSUE_CLASSES = ("gland", "tumour", "stroma", "muscle", "lymphoid", "fat")
"""The classes; a label is an index into this tuple."""

_LYMPHOCYTE = NucleusKind(radius_um=(2.6, 3.4), elongation=(1.0, 1.15), roughness=0.04, chromatin=0.30, depth=150)
_SPINDLE = NucleusKind(radius_um=(2.2, 3.0), elongation=(2.4, 4.2), roughness=0.08, chromatin=0.20, depth=130)
_CIGAR = NucleusKind(radius_um=(2.0, 2.6), elongation=(3.5, 5.5), roughness=0.03, chromatin=0.18, depth=120)
_COLUMNAR = NucleusKind(radius_um=(2.7, 3.4), elongation=(1.5, 2.1), roughness=0.05, chromatin=0.28, depth=125)
_TUMOUR = NucleusKind(
    radius_um=(3.4, 6.2), elongation=(1.0, 1.55), roughness=0.10, chromatin=0.42, depth=95, nucleoli=2
)


def paint_tissue(tissue: str, rng: np.random.Generator, *, size_px: int, mpp: float) -> npt.NDArray[np.uint16]:
    """Paints a square of tissue that continues itself at its edges.

    Args:
        tissue: One of `TISSUE_CLASSES`.
        rng: Source of all randomness; every call with the same state paints the same.
        size_px: Edge of the square, a multiple of 16.
        mpp: um per pixel.

    Returns:
        uint16 (size_px, size_px), `haematoxylin << 8 | eosin`; 160 is one unit of optical density.
    """
    if tissue not in _PAINTERS:
        raise ValueError(f"tissue {tissue!r}: not known; use one of {', '.join(TISSUE_CLASSES)}")
    canvas = Canvas(size_px=size_px, mpp=mpp)
    _PAINTERS[tissue](canvas, rng)
    # A square's uptake: as wide as the difference between classes.
    canvas.haematoxylin *= float(rng.uniform(0.7, 1.3))
    canvas.eosin *= float(rng.uniform(0.65, 1.35))
    grain = 1 + 0.06 * noise(canvas, rng, scale_um=1.2)
    haematoxylin = np.clip(canvas.haematoxylin * grain, 0, 255).astype(np.uint16)
    eosin = np.clip(canvas.eosin * grain[::-1], 0, 255).astype(np.uint16)
    return np.asarray(haematoxylin << 8 | eosin, dtype=np.uint16)


def _paint_stroma(canvas: Canvas, rng: np.random.Generator) -> None:
    """Wavy collagen with clefts and a few spindle nuclei along the fibres."""
    _lay_collagen(canvas, rng, looseness=float(rng.uniform(0.1, 0.5)))
    points = jittered_grid(canvas, rng, spacing_um=float(rng.uniform(17, 30)), keep=0.7)
    draw_nuclei(canvas, rng, nucleus_stamps(_SPINDLE, rng, mpp=canvas.mpp), points, direction=0.0, scatter=0.45)
    _sprinkle_lymphocytes(canvas, rng, spacing_um=float(rng.uniform(35, 60)))


def _lay_collagen(canvas: Canvas, rng: np.random.Generator, *, looseness: float) -> None:
    strands = fibres(canvas, rng, thickness_um=2.2, length_um=70, waviness_um=14)
    bundles = fibres(canvas, rng, thickness_um=9, length_um=160, waviness_um=22)
    thin = np.clip((strands + bundles - 1.6 + 1.5 * looseness) * 1.6, 0, 1)
    canvas.eosin[:] = (52 + 14 * bundles + 9 * strands) * (1 - 0.85 * thin)
    canvas.haematoxylin[:] = (11 + 4 * strands) * (1 - 0.85 * thin)


def _paint_muscle(canvas: Canvas, rng: np.random.Generator) -> None:
    """Straight, parallel, tightly packed fibres in fascicles, with long blunt nuclei and fine striation."""
    fibre = fibres(canvas, rng, thickness_um=3.6, length_um=260, waviness_um=3)
    striation = fibres(canvas, rng, thickness_um=0.9, length_um=45, waviness_um=2)
    fascicle = fibres(canvas, rng, thickness_um=26, length_um=420, waviness_um=9)
    gap = np.clip((fascicle - 1.35) * 3, 0, 1)
    canvas.eosin[:] = (58 + 10 * fibre + 6 * striation) * (1 - 0.8 * gap)
    canvas.haematoxylin[:] = (13 + 3 * fibre) * (1 - 0.6 * gap)
    points = jittered_grid(canvas, rng, spacing_um=float(rng.uniform(13, 19)), keep=0.75)
    draw_nuclei(canvas, rng, nucleus_stamps(_CIGAR, rng, mpp=canvas.mpp), points, direction=0.0, scatter=0.08)


def _paint_gland(canvas: Canvas, rng: np.random.Generator) -> None:
    """Rings of columnar epithelium around a lumen, nuclei at the base, goblet vacuoles above; stroma
    between.
    """
    _lay_collagen(canvas, rng, looseness=0.35)
    points = jittered_grid(canvas, rng, spacing_um=13, keep=0.5)
    draw_nuclei(canvas, rng, nucleus_stamps(_SPINDLE, rng, mpp=canvas.mpp), points, direction=0.0, scatter=0.9)
    _sprinkle_lymphocytes(canvas, rng, spacing_um=float(rng.uniform(14, 24)))

    spacing = float(rng.uniform(112, 165))
    shapes = radial_shapes(canvas, rng, spacing_um=spacing, radius=(0.36, 0.47), roughness=0.10)
    depth = shapes.depth_um  # um inwards from the basement membrane; negative in the stroma
    height = float(rng.uniform(20, 30))  # of the epithelium
    inside, lumen = smooth_step(depth, 0, 1.5), smooth_step(depth, height, 2.0)
    vacuoles = smooth_step(noise(canvas, rng, scale_um=7), 0.35, 0.4) * smooth_step(depth, 9, 4) * (1 - lumen)
    cytoplasm = 40 + 7 * noise(canvas, rng, scale_um=3) + 8 * noise(canvas, rng, scale_um=40)
    mucus = 4 + 5 * np.clip(noise(canvas, rng, scale_um=25), 0, 1)
    canvas.blend(inside, haematoxylin=24 + 5 * noise(canvas, rng, scale_um=2.5), eosin=cytoplasm)
    canvas.blend(vacuoles * 0.75, haematoxylin=9, eosin=10)
    canvas.blend(lumen, haematoxylin=mucus * 0.5, eosin=mucus)
    rim = np.exp(-((depth / 1.2) ** 2))  # basement membrane
    canvas.eosin += 16 * rim
    stamps = nucleus_stamps(_COLUMNAR, rng, mpp=canvas.mpp)
    for at, keep in ((5.5, 1.0), (10.5, float(rng.uniform(0.2, 0.7)))):
        points, directions = shapes.along(rng, depth_um=at, spacing_um=5.4, keep=keep)
        draw_nuclei(canvas, rng, stamps, points, direction=directions, scatter=0.15)


def _paint_tumour(canvas: Canvas, rng: np.random.Generator) -> None:
    """Irregular nests of large, uneven, crowded nuclei with nucleoli; thin septa; here and there a
    small hole.
    """
    _lay_collagen(canvas, rng, looseness=0.3)
    _sprinkle_lymphocytes(canvas, rng, spacing_um=float(rng.uniform(13, 26)))
    field = noise(canvas, rng, scale_um=float(rng.uniform(38, 70))) + 0.25 * noise(canvas, rng, scale_um=12)
    nests = smooth_step(field, float(rng.uniform(-0.75, -0.35)), 0.06)
    holes = smooth_step(noise(canvas, rng, scale_um=22), float(rng.uniform(1.4, 1.9)), 0.15) * nests
    canvas.blend(
        nests,
        haematoxylin=27 + 7 * noise(canvas, rng, scale_um=3) + 4 * noise(canvas, rng, scale_um=30),
        eosin=42 + 8 * noise(canvas, rng, scale_um=4),
    )
    canvas.blend(holes * 0.9, haematoxylin=3, eosin=5)
    points = jittered_grid(canvas, rng, spacing_um=float(rng.uniform(10.5, 13.5)), keep=0.95)
    points = points[canvas.sample(nests * (1 - holes), points) > 0.6]
    stamps = nucleus_stamps(_TUMOUR, rng, mpp=canvas.mpp)
    draw_nuclei(canvas, rng, stamps, points, direction=0.0, scatter=np.pi)


def _paint_lymphoid(canvas: Canvas, rng: np.random.Generator) -> None:
    """A carpet of small, round, dark nuclei with hardly any cytoplasm; paler follicles of larger cells."""
    canvas.eosin[:] = 26 + 5 * noise(canvas, rng, scale_um=3)
    canvas.haematoxylin[:] = 20 + 5 * noise(canvas, rng, scale_um=2.5)
    strands = fibres(canvas, rng, thickness_um=3, length_um=60, waviness_um=18)
    canvas.eosin += 14 * np.clip(strands - 0.9, 0, 1)
    follicle = smooth_step(noise(canvas, rng, scale_um=110), float(rng.uniform(0.4, 1.0)), 0.35)
    points = jittered_grid(canvas, rng, spacing_um=float(rng.uniform(6.0, 7.6)), keep=0.97)
    sparse = rng.random(len(points)) < 0.12 + 0.88 * (1 - canvas.sample(follicle, points))
    small = nucleus_stamps(_LYMPHOCYTE, rng, mpp=canvas.mpp)
    draw_nuclei(canvas, rng, small, points[sparse], direction=0.0, scatter=np.pi)
    kind = NucleusKind((3.3, 4.4), (1.0, 1.3), roughness=0.08, chromatin=0.35, depth=85)
    points = jittered_grid(canvas, rng, spacing_um=10, keep=0.9)
    points = points[canvas.sample(follicle, points) > 0.5]
    draw_nuclei(canvas, rng, nucleus_stamps(kind, rng, mpp=canvas.mpp), points, direction=0.0, scatter=np.pi)


def _paint_fat(canvas: Canvas, rng: np.random.Generator) -> None:
    """Large empty cells between thin walls, a flat nucleus here and there in a wall, strands of stroma
    between.
    """
    _lay_collagen(canvas, rng, looseness=0.2)
    points = jittered_grid(canvas, rng, spacing_um=14, keep=0.7)
    draw_nuclei(canvas, rng, nucleus_stamps(_SPINDLE, rng, mpp=canvas.mpp), points, direction=0.0, scatter=0.4)
    wall_um = cells(canvas, rng, spacing_um=float(rng.uniform(48, 85)))  # distance to the nearest wall
    strands = smooth_step(noise(canvas, rng, scale_um=80), float(rng.uniform(0.5, 1.1)), 0.12)
    empty = smooth_step(wall_um - 22 * strands, 1.3, 0.7)
    canvas.blend(empty, haematoxylin=1.5, eosin=3.5 + 1.5 * noise(canvas, rng, scale_um=30))


def _sprinkle_lymphocytes(canvas: Canvas, rng: np.random.Generator, *, spacing_um: float) -> None:
    points = jittered_grid(canvas, rng, spacing_um=spacing_um, keep=0.8)
    clumps = canvas.sample(noise(canvas, rng, scale_um=60), points)
    stamps = nucleus_stamps(_LYMPHOCYTE, rng, mpp=canvas.mpp)
    draw_nuclei(canvas, rng, stamps, points[clumps > -0.2], direction=0.0, scatter=np.pi)


def smooth_step(field: F32, threshold: float, width: float) -> F32:
    """Returns 0 well below the threshold, 1 well above, with a ramp of the given half width."""
    ramp = field * np.float32(0.5 / width)
    ramp += np.float32(0.5 - 0.5 * threshold / width)
    np.clip(ramp, 0, 1, out=ramp)
    return np.asarray(ramp * ramp * (3 - 2 * ramp), dtype=np.float32)


_PAINTERS: dict[str, Callable[[Canvas, np.random.Generator], None]] = {
    "gland": _paint_gland,
    "tumour": _paint_tumour,
    "stroma": _paint_stroma,
    "muscle": _paint_muscle,
    "lymphoid": _paint_lymphoid,
    "fat": _paint_fat,
}
assert tuple(_PAINTERS) == TISSUE_CLASSES, "every class has a painter"
