"""With which pens is tissue drawn?

Everything here is periodic: a square continues itself at its edges, so that any window of it, wrapped
around, is seamless. Fields (noise, fibres, cells, radial shapes) are drawn coarsely and enlarged, which
is what makes a slide of 200 megapixels a matter of seconds. Nuclei are drawn from a library of stamps per
kind.

`sample_tissue` combines these into tissue. Lengths are in um; points are (x, y) in um.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import cv2
import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]

_COARSE = 4  # fields without detail are computed on every fourth pixel
_STAMPS_PER_ANGLE, _ANGLES = 4, 16


@dataclass(slots=True)
class Canvas:
    """A periodic square with two dye concentrations, float32 (size_px, size_px)."""

    size_px: int
    mpp: float
    haematoxylin: F32 = field(init=False)
    eosin: F32 = field(init=False)

    def __post_init__(self) -> None:
        self.haematoxylin = np.zeros((self.size_px, self.size_px), dtype=np.float32)
        self.eosin = np.zeros_like(self.haematoxylin)

    @property
    def size_um(self) -> float:
        """Edge of the square."""
        return self.size_px * self.mpp

    def blend(self, alpha: F32, *, haematoxylin: F32 | float, eosin: F32 | float) -> None:
        """Covers what is there by other concentrations, where alpha (0 to 1) says so."""
        self.haematoxylin += alpha * (haematoxylin - self.haematoxylin)
        self.eosin += alpha * (eosin - self.eosin)

    def sample(self, values: F32, points_um: F64) -> F32:
        """Returns the values of a field (size_px, size_px) at points (N, 2)."""
        x_px, y_px = (np.floor(points_um / self.mpp).astype(np.int64) % self.size_px).T
        return np.asarray(values[y_px, x_px], dtype=np.float32)


@dataclass(frozen=True, slots=True)
class NucleusKind:
    """Shape and chromatin of a kind of nucleus.

    Attributes:
        radius_um: Range of the short half axis.
        elongation: Range of long by short axis.
        roughness: Relative amplitude of the outline's waves.
        chromatin: Relative contrast of the grain inside.
        depth: Mean haematoxylin concentration.
        nucleoli: Number of dark spots.
    """

    radius_um: tuple[float, float]
    elongation: tuple[float, float]
    roughness: float
    chromatin: float
    depth: float
    nucleoli: int = 0


@dataclass(frozen=True, slots=True)
class RadialShapes:
    """Closed outlines around centres.

    Attributes:
        depth_um: float32 (size_px, size_px), distance inwards from the nearest outline; negative outside.
        centres_um: (N, 2).
        radii_um: (N, A), distance from the centre to the outline at A equally spaced angles.
    """

    depth_um: F32
    centres_um: F64
    radii_um: F64

    def along(self, rng: np.random.Generator, *, depth_um: float, spacing_um: float, keep: float) -> tuple[F64, F64]:
        """Returns points (N, 2) at a depth below all outlines, and the angle of the inward direction
        at each.
        """
        points, directions = [], []
        for centre, radii in zip(self.centres_um, self.radii_um, strict=True):
            count = max(3, int(2 * np.pi * (radii.mean() - depth_um) / spacing_um))
            angles = (np.arange(count) + rng.uniform(-0.25, 0.25, count)) * (2 * np.pi / count)
            angles = angles[rng.random(count) < keep]
            turns = np.linspace(0, 2 * np.pi, len(radii) + 1)
            radius = np.interp(angles % (2 * np.pi), turns, np.append(radii, radii[0]))
            radius += rng.normal(0, 1.0, len(angles)) - depth_um
            points.append(centre + radius[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1))
            directions.append(angles)
        return np.concatenate(points), np.concatenate(directions)


def noise(canvas: Canvas, rng: np.random.Generator, *, scale_um: float) -> F32:
    """Returns smooth periodic noise of mean 0 and standard deviation 1, with blobs of about `scale_um`."""
    return _enlarged_noise(canvas, rng, rows_um=scale_um, columns_um=scale_um)


def fibres(
    canvas: Canvas, rng: np.random.Generator, *, thickness_um: float, length_um: float, waviness_um: float
) -> F32:
    """Returns periodic strands along x (mean 0, standard deviation 1) that sway by about `waviness_um`."""
    straight = _enlarged_noise(canvas, rng, rows_um=thickness_um, columns_um=length_um)
    sway = _enlarged_noise(canvas, rng, rows_um=110, columns_um=75)
    axis = np.arange(canvas.size_px, dtype=np.float32)
    sway *= waviness_um / canvas.mpp
    sway += axis[:, None]
    columns = np.ascontiguousarray(np.broadcast_to(axis, sway.shape))
    waved = cv2.remap(straight, columns, sway, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)
    return np.asarray(waved, dtype=np.float32)


def _enlarged_noise(canvas: Canvas, rng: np.random.Generator, *, rows_um: float, columns_um: float) -> F32:
    nodes = [int(np.clip(canvas.size_um / step, 2, canvas.size_px)) for step in (rows_um, columns_um)]
    coarse = rng.standard_normal(nodes, dtype=np.float32)
    smooth = _enlarge(coarse, canvas.size_px)
    thinned = smooth[::4, ::4]  # enough to know the moments
    smooth -= thinned.mean()
    smooth /= thinned.std()
    return smooth


def _enlarge(coarse: F32, size_px: int) -> F32:
    """Enlarges a periodic field (h, w) to (size_px, size_px), wrapped around.

    Cubic, along each axis up to a resolution from which linear interpolation cannot be told from it.
    """
    steps = [next(step for step in (4, 2, 1) if step == 1 or size_px / n >= 3 * step) for n in coarse.shape]
    rows, columns = (size_px // step for step in steps)
    pad = 3
    padded = np.pad(coarse, pad, mode="wrap")
    shrink_x, shrink_y = coarse.shape[1] / columns, coarse.shape[0] / rows
    # Maps output pixel centres to padded input coordinates.
    matrix = np.array(
        [[shrink_x, 0, 0.5 * shrink_x - 0.5 + pad], [0, shrink_y, 0.5 * shrink_y - 0.5 + pad]],
        dtype=np.float64,
    )
    flags = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
    cubic = np.asarray(cv2.warpAffine(padded, matrix, (columns, rows), flags=flags), dtype=np.float32)
    if steps == [1, 1]:
        return cubic
    wrapped = np.pad(cubic, 1, mode="wrap")
    size = ((columns + 2) * steps[1], (rows + 2) * steps[0])
    large = np.asarray(cv2.resize(wrapped, size, interpolation=cv2.INTER_LINEAR), dtype=np.float32)
    return np.ascontiguousarray(large[steps[0] : steps[0] + size_px, steps[1] : steps[1] + size_px])


def jittered_grid(canvas: Canvas, rng: np.random.Generator, *, spacing_um: float, keep: float) -> F64:
    """Returns points (N, 2) about `spacing_um` apart: no two in one place, no visible rows."""
    count = max(1, round(canvas.size_um / spacing_um))
    step = canvas.size_um / count
    grid = np.stack(np.meshgrid(np.arange(count), np.arange(count)), axis=-1).astype(np.float64)
    grid[1::2, :, 0] += 0.5  # every other row shifted: hexagonal packing
    points = (grid + rng.uniform(0.12, 0.88, grid.shape)).reshape(-1, 2) * step
    return points[rng.random(len(points)) < keep]


def cells(canvas: Canvas, rng: np.random.Generator, *, spacing_um: float) -> F32:
    """Returns, for a packing of rounded cells, each pixel's distance in um to the nearest wall."""
    centres = jittered_grid(canvas, rng, spacing_um=spacing_um, keep=0.93)
    x_um, y_um = _coarse_axes(canvas)
    bend = noise(canvas, rng, scale_um=spacing_um / 2)[::_COARSE, ::_COARSE] * (0.06 * spacing_um)
    columns, rows = x_um[None] + bend, y_um[:, None] + bend[::-1, ::-1].T
    # Farther than any centre that is looked at below; a small canvas may have fewer than two.
    first = np.full(rows.shape, 4 * spacing_um, dtype=np.float32)
    second = first.copy()
    for x, y in centres:
        near_x, near_y = (
            np.flatnonzero(np.abs(_wrap(axis - at, canvas.size_um)) < 2.2 * spacing_um)
            for axis, at in ((x_um, x), (y_um, y))
        )
        window = np.ix_(near_y, near_x)
        distance = np.hypot(_wrap(columns[window] - x, canvas.size_um), _wrap(rows[window] - y, canvas.size_um))
        second[window] = np.minimum(second[window], np.maximum(first[window], distance))
        first[window] = np.minimum(first[window], distance)
    return _enlarge(((second - first) / 2).astype(np.float32), canvas.size_px)


def radial_shapes(
    canvas: Canvas,
    rng: np.random.Generator,
    *,
    spacing_um: float,
    radius: tuple[float, float],
    roughness: float,
) -> RadialShapes:
    """Lays closed, rounded outlines out on a jittered grid; `radius` is a range of shares of the spacing."""
    count = max(2, round(canvas.size_um / spacing_um / 2) * 2)
    step = canvas.size_um / count
    grid = np.stack(np.meshgrid(np.arange(count), np.arange(count)), axis=-1).astype(np.float64)
    grid[1::2, :, 0] += 0.5
    centres = (grid + 0.5 + rng.uniform(-0.09, 0.09, grid.shape)).reshape(-1, 2) * step
    angles = np.linspace(0, 2 * np.pi, 96, endpoint=False)
    waves = np.arange(2, 6)
    sizes = rng.normal(0, roughness, (len(centres), len(waves), 1)) * np.array([1.1, 0.8, 0.5, 0.3])[:, None]
    phases = rng.uniform(0, 2 * np.pi, sizes.shape)
    radii = step * rng.uniform(*radius, (len(centres), 1))
    radii = radii * (1 + (sizes * np.cos(waves[:, None] * angles + phases)).sum(axis=1))

    x_um, y_um = _coarse_axes(canvas)
    depth = np.full((len(y_um), len(x_um)), -1e3, dtype=np.float32)
    for centre, outline in zip(centres, radii, strict=True):
        dx = _wrap(x_um - centre[0], canvas.size_um)
        dy = _wrap(y_um - centre[1], canvas.size_um)
        near_x, near_y = np.flatnonzero(np.abs(dx) < step), np.flatnonzero(np.abs(dy) < step)
        window = np.ix_(near_y, near_x)
        across, down = dx[near_x][None], dy[near_y][:, None]
        turn = (np.arctan2(down, across) % (2 * np.pi)) * (len(angles) / (2 * np.pi))
        edge = np.append(outline, outline[0])[np.rint(turn).astype(np.int64)]
        depth[window] = np.maximum(depth[window], edge - np.hypot(across, down))
    return RadialShapes(_enlarge(depth, canvas.size_px), centres, radii)


def nucleus_stamps(kind: NucleusKind, rng: np.random.Generator, *, mpp: float) -> F32:
    """Draws a library of nuclei of one kind: float32 (angles, variants, S, S), haematoxylin concentration."""
    shape = (_ANGLES, _STAMPS_PER_ANGLE)
    reach_um = kind.radius_um[1] * kind.elongation[1] * (1 + 2 * kind.roughness) + 1
    half = int(np.ceil(reach_um / mpp))
    axis = (np.arange(2 * half + 1, dtype=np.float32) - half) * np.float32(mpp)
    angle = np.arange(_ANGLES, dtype=np.float32)[:, None, None, None] * np.float32(np.pi / _ANGLES)
    along = axis * np.cos(angle) + axis[:, None] * np.sin(angle)
    across = axis[:, None] * np.cos(angle) - axis * np.sin(angle)
    short = rng.uniform(*kind.radius_um, shape).astype(np.float32)[..., None, None]
    long = short * rng.uniform(*kind.elongation, shape).astype(np.float32)[..., None, None]
    x, y = along / long, across / short
    reach = np.hypot(x, y)
    outline = np.ones_like(reach)
    cosine, sine = x / np.maximum(reach, 1e-6), y / np.maximum(reach, 1e-6)
    wave = cosine, sine
    for _ in (2, 3, 4):  # cos and sin of twice, three and four times the angle, by the addition theorem
        wave = wave[0] * cosine - wave[1] * sine, wave[0] * sine + wave[1] * cosine
        size = rng.normal(0, kind.roughness / 2.1, (2, *shape)).astype(np.float32)[..., None, None]
        outline += size[0] * wave[0] + size[1] * wave[1]
    # Distance inwards from the outline in um, along the short axis's scale.
    inwards = (outline - reach) * short
    inside = np.clip(inwards / 0.6 + 0.5, 0, 1)
    rim = np.exp(-(((inwards - 0.45) / 0.45) ** 2))
    grain = _grain(rng, inwards.shape, sigma_px=0.5 / mpp)
    body = 1 + kind.chromatin * (grain + 0.8 * rim - 0.25)
    for _ in range(kind.nucleoli):
        spot = rng.normal(0, 0.3, (2, *shape))[..., None, None].astype(np.float32)
        distance = np.hypot(along - spot[0] * long, across - spot[1] * short)
        body += 0.7 * np.clip((1.1 - distance) / 0.5 + 0.5, 0, 1)
    tint = rng.uniform(0.75, 1.2, shape)[..., None, None]
    return np.asarray(np.clip(inside * body * kind.depth * tint, 0, 250), dtype=np.float32)


def draw_nuclei(
    canvas: Canvas,
    rng: np.random.Generator,
    stamps: F32,
    points_um: F64,
    *,
    direction: F64 | float,
    scatter: float,
) -> None:
    """Stamps a nucleus at every point, turned to `direction` (radians) give or take `scatter`."""
    size, half = canvas.size_px, stamps.shape[-1] // 2
    wide = np.zeros((size + 2 * half + 1, size + 2 * half + 1), dtype=np.float32)
    turns = direction + rng.normal(0, 1, len(points_um)) * scatter
    angle = np.rint(turns * (_ANGLES / np.pi)).astype(np.int64) % _ANGLES
    variant = rng.integers(stamps.shape[1], size=len(points_um))
    corner = np.floor(points_um / canvas.mpp).astype(np.int64) % size
    extent = 2 * half + 1
    for (left, top), a, v in zip(corner.tolist(), angle.tolist(), variant.tolist(), strict=True):
        target = wide[top : top + extent, left : left + extent]
        np.maximum(target, stamps[a, v], out=target)
    nuclei = _fold(wide, size, half)
    np.maximum(canvas.haematoxylin, nuclei, out=canvas.haematoxylin)
    canvas.eosin *= 1 - 0.5 * np.clip(nuclei / 90, 0, 1)


def _fold(wide: F32, size: int, half: int) -> F32:
    """Wraps the margin of a wide image around: what hangs over one edge enters at the other."""
    rest = wide.shape[0] - size - half
    wide[size : size + half] = np.maximum(wide[size : size + half], wide[:half])
    wide[half : half + rest] = np.maximum(wide[half : half + rest], wide[size + half :])
    wide[:, size : size + half] = np.maximum(wide[:, size : size + half], wide[:, :half])
    wide[:, half : half + rest] = np.maximum(wide[:, half : half + rest], wide[:, size + half :])
    return wide[half : half + size, half : half + size]


def _grain(rng: np.random.Generator, shape: tuple[int, ...], *, sigma_px: float) -> F32:
    """Returns blurred noise of standard deviation 1 for a stack of stamps, as one blurred sheet cut
    into stamps.
    """
    sheet = rng.standard_normal((int(np.prod(shape[:-1])), shape[-1]), dtype=np.float32)
    sheet = np.asarray(cv2.GaussianBlur(sheet, (0, 0), max(0.4, sigma_px)), dtype=np.float32)
    return np.asarray((sheet / sheet.std()).reshape(shape), dtype=np.float32)


def _coarse_axes(canvas: Canvas) -> tuple[F32, F32]:
    count = canvas.size_px // _COARSE
    axis = ((np.arange(count) + 0.5) * (canvas.size_um / count)).astype(np.float32)
    return axis, axis


def _wrap(offset: F32, period: float) -> F32:
    """Returns the shortest offset on a circle."""
    return np.asarray((offset + period / 2) % period - period / 2, dtype=np.float32)
