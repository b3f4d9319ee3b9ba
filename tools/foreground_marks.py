"""What lies on a slide, or comes from the scanner, that is not tissue?

Everything is drawn into an image float32 (S, S, 3) of light, 0 to 255, in place. Ink is returned as a coverage
float32 (S, S), 0 to 1, because what it covers is no longer tissue for a model; dust, hairs and the edges of a
coverslip are not, because tissue under them is still tissue. `camera` is what a scanner does to all of it.

`foreground_scene` puts tissue below these marks.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

U8 = npt.NDArray[np.uint8]
F32 = npt.NDArray[np.float32]

INKS: tuple[tuple[tuple[float, float], tuple[float, float], tuple[float, float]], ...] = (
    ((0.70, 0.98), (0.02, 0.30), (0.02, 0.42)),  # red
    ((0.00, 0.30), (0.45, 0.75), (0.35, 0.65)),  # green
    ((0.02, 0.42), (0.20, 0.62), (0.55, 0.92)),  # blue
    ((0.03, 0.35), (0.03, 0.30), (0.03, 0.38)),  # black, faded black
)
"""Ranges of the share of red, green and blue light that an ink lets through."""


def smooth_noise(rng: np.random.Generator, size_px: int, blob_px: float) -> F32:
    """Returns noise float32 (size_px, size_px) of mean 0 and standard deviation 1, in blobs of about `blob_px`."""
    nodes = int(np.clip(round(size_px / blob_px) + 3, 4, size_px))
    coarse = rng.standard_normal((nodes, nodes), dtype=np.float32)
    field = np.asarray(cv2.resize(coarse, (size_px, size_px), interpolation=cv2.INTER_CUBIC), np.float32)
    return np.asarray((field - field.mean()) / (field.std() + 1e-6), np.float32)


def curve(rng: np.random.Generator, size_px: int, *, length_px: float, bend: float) -> npt.NDArray[np.int32]:
    """Returns points (N, 1, 2) of a smooth random walk that starts anywhere in the view."""
    steps = max(4, int(length_px / 4))
    turn = rng.uniform(0, 2 * np.pi) + np.cumsum(np.convolve(rng.normal(0, bend, steps + 6), np.ones(7) / 2.6, "valid"))
    walk = np.cumsum(4 * np.stack([np.cos(turn), np.sin(turn)], axis=1), axis=0) + rng.uniform(-0.1, 1.1, 2) * size_px
    return walk.astype(np.int32)[:, None]


def pen(image: F32, rng: np.random.Generator, *, coarse: bool) -> F32:
    """Draws strokes of one pen.

    Args:
        image: Light, changed in place.
        rng: Source of all randomness.
        coarse: Magnified many times: broad strokes out of focus, or ink all over.

    Returns:
        Coverage float32 (S, S), 0 to 1.
    """
    size = image.shape[0]
    if coarse and rng.random() < 0.25:
        broad = 0.7 + 0.5 * smooth_noise(rng, size, rng.uniform(0.3, 1.2) * size)
        coverage = np.asarray(np.clip(broad, 0, 1), np.float32)
    else:
        drawn = np.zeros((size, size), np.uint8)
        for _ in range(int(rng.integers(1, 3 if coarse else 6))):
            _stroke(drawn, rng, int(rng.uniform(20, 150) if coarse else rng.uniform(2.5, 16)))
        blur = 2 * 16 ** rng.random() if coarse else rng.choice([0.5, 0.8, 1.2, 2.0])
        coverage = np.asarray(cv2.GaussianBlur(drawn, (0, 0), float(blur)) / np.float32(255), np.float32)
    # Ink runs dry, pools at the ends of strokes, and is never even.
    uneven = 1 + rng.uniform(0, 0.25) * smooth_noise(rng, size, rng.uniform(4, 30))
    density = coverage * np.clip(uneven, 0.5, 1.6) * rng.uniform(0.6, 1.5)
    through = np.array([rng.uniform(*channel) for channel in INKS[int(rng.integers(len(INKS)))]], np.float32)
    image *= through ** density[..., None]
    return coverage


def _stroke(drawn: U8, rng: np.random.Generator, width: int) -> None:
    size = drawn.shape[0]
    centre = tuple(int(at) for at in rng.uniform(-0.1, 1.1, 2) * size)
    kind = rng.choice(["line", "loop", "walk", "dots", "filled", "text"], p=[0.25, 0.25, 0.25, 0.12, 0.07, 0.06])
    if kind == "line":
        cv2.line(drawn, centre, tuple(int(at) for at in rng.uniform(-0.3, 1.3, 2) * size), 255, width)
    elif kind in ("loop", "filled"):
        axes = tuple(int(at) for at in rng.uniform(0.05, 0.55, 2) * size)
        end = float(rng.uniform(250, 380))
        cv2.ellipse(drawn, centre, axes, float(rng.uniform(0, 180)), 0, end, 255, -1 if kind == "filled" else width)
    elif kind == "walk":
        points = curve(rng, size, length_px=rng.uniform(0.4, 3) * size, bend=rng.uniform(0.05, 0.35))
        cv2.polylines(drawn, [points], isClosed=False, color=255, thickness=width)
    elif kind == "dots":
        for at in rng.uniform(0, size, (int(rng.integers(1, 6)), 2)).astype(int).tolist():
            cv2.circle(drawn, tuple(at), max(2, int(width * rng.uniform(0.5, 1.2))), 255, -1)
    else:
        text = "".join(rng.choice(list("ABKLMPRST0123456789"), int(rng.integers(1, 5))))
        cv2.putText(drawn, text, centre, cv2.FONT_HERSHEY_SIMPLEX, width / 5 + 0.4, 255, max(1, width // 2))


def dust(image: F32, rng: np.random.Generator) -> None:
    """Specks, some coloured, and hairs."""
    size = image.shape[0]
    layer = np.zeros((size, size), np.uint8)
    for at in rng.uniform(0, size, (int(rng.integers(0, 26)), 2)).astype(int).tolist():
        cv2.circle(layer, tuple(at), int(rng.choice([0, 0, 1, 1, 2, 3])), int(rng.uniform(60, 255)), -1)
    for _ in range(int(rng.integers(0, 3))):
        points = curve(rng, size, length_px=rng.uniform(10, 90), bend=rng.uniform(0.05, 0.3))
        cv2.polylines(layer, [points], isClosed=False, color=int(rng.uniform(60, 220)), thickness=1)
    shade = np.asarray(cv2.GaussianBlur(layer, (0, 0), float(rng.uniform(0.3, 1.2))), np.float32) / 255
    image *= (rng.uniform(0.1, 0.5) + rng.uniform(-0.08, 0.08, 3)).astype(np.float32) ** shade[..., None]


def bubbles(image: F32, rng: np.random.Generator) -> None:
    """Rings of air, lighter or darker within."""
    size = image.shape[0]
    for _ in range(int(rng.integers(1, 5))):
        centre = tuple(int(at) for at in rng.uniform(-0.2, 1.2, 2) * size)
        radius, ring = int(rng.uniform(0.02, 0.5) * size), np.zeros((size, size), np.float32)
        cv2.circle(ring, centre, radius, 1, int(rng.integers(1, 4)))
        inside = np.zeros((size, size), np.float32)
        cv2.circle(inside, centre, radius, 1, -1)
        ring = np.asarray(cv2.GaussianBlur(ring, (0, 0), float(rng.uniform(0.5, 1.5))), np.float32)
        image *= (1 - rng.uniform(0.1, 0.7) * ring)[..., None] * (1 + rng.uniform(-0.07, 0.04) * inside)[..., None]


def coverslip(image: F32, rng: np.random.Generator) -> None:
    """The edge of a coverslip or of dried mounting medium: a dark and a light line, other glass beyond."""
    size = image.shape[0]
    across = np.linspace(-1, 1, size, dtype=np.float32)
    turn = rng.uniform(0, 2 * np.pi)
    distance = across[None] * np.cos(turn) + across[:, None] * np.sin(turn) - np.float32(rng.uniform(-0.9, 0.9))
    bend = rng.choice([0.0, 0.05, 0.3])
    distance = distance * (size / 2) + bend * size / 4 * smooth_noise(rng, size, size / 2)
    width = rng.uniform(0.7, 2.5)
    image *= (1 - rng.uniform(0.0, 0.14) * (distance > 0))[..., None].astype(np.float32)
    image *= (1 - rng.uniform(0.05, 0.8) * np.exp(-((distance / width) ** 2)))[..., None]
    image += (rng.uniform(0, 60) * np.exp(-(((distance - 2.5 * width) / width) ** 2)))[..., None]


def printed(image: F32, rng: np.random.Generator) -> None:
    """Printed or etched marks on the glass: rows of dots or rings, rulers."""
    size = image.shape[0]
    layer = np.zeros((size, size), np.float32)
    step, radius = float(rng.uniform(5, 16)), float(rng.uniform(1.0, 3.5))
    thickness = int(rng.choice([-1, 1]))
    rows, columns = int(rng.integers(1, 7)), int(rng.integers(5, 30))
    start = rng.uniform(-0.2, 0.9, 2) * size
    for row in range(rows):
        for column in range(columns):
            at = start + step * np.array([column + 0.5 * (row % 2), row])
            at = at if rows % 2 else at[::-1]
            cv2.circle(layer, tuple(int(v) for v in at), int(radius), 1.0, thickness)
    layer = np.asarray(cv2.GaussianBlur(layer, (0, 0), 0.7), np.float32)
    image *= 1 - (rng.uniform(0.1, 0.6) + rng.uniform(-0.04, 0.04, 3)).astype(np.float32) * layer[..., None]


def borders(image: F32, rng: np.random.Generator) -> U8:
    """Parts that were not scanned, black, white or grey. Returns where they are, 0 or 1."""
    size = image.shape[0]
    outside = np.zeros((size, size), np.uint8)
    for _ in range(int(rng.integers(1, 4))):
        cut = int(rng.uniform(0.03, 0.5) * size)
        turned = np.rot90(outside, int(rng.integers(4)))
        turned[:cut, : size if rng.random() < 0.6 else int(rng.uniform(0.2, 0.9) * size)] = 1
    image[outside > 0] = float(rng.choice([0, 0, 255, 255, 128, 240]))
    return outside


def camera(light: F32, rng: np.random.Generator) -> U8:
    """Turns light into what a scanner stores: shading, seams, tint, focus, noise, contrast, compression."""
    size = light.shape[0]
    image: npt.NDArray[Any] = light
    if rng.random() < 0.4:
        image = image * (1 + rng.uniform(0.005, 0.05) * smooth_noise(rng, size, size))[..., None]
    if rng.random() < 0.25:
        image = image * _stripes(rng, size)[..., None]
    if rng.random() < 0.7:
        blur = float(rng.choice([0.4, 0.6, 0.9, 1.4, 2.5], p=[0.3, 0.3, 0.2, 0.15, 0.05]))
        image = np.asarray(cv2.GaussianBlur(image, (0, 0), blur))
    if rng.random() < 0.25:
        image = image + rng.uniform(0.3, 1.0) * (image - cv2.GaussianBlur(image, (0, 0), 1.2))
    image = np.clip(image, 0, 255)
    grey = image.mean(axis=-1, keepdims=True)
    image = grey + (image - grey) * rng.uniform(0.55, 1.35)
    image = 255 * (np.clip(image, 0, 255) / 255) ** rng.uniform(0.75, 1.35)
    image = image * rng.uniform(0.97, 1.03, 3)
    image = image + rng.normal(0, rng.choice([0.3, 1, 2, 4]), (size, size, 1 if rng.random() < 0.5 else 3))
    stored: U8 = np.clip(np.rint(image), 0, 255).astype(np.uint8)
    if rng.random() < 0.6:
        quality = [cv2.IMWRITE_JPEG_QUALITY, int(rng.uniform(25, 95))]
        coded = cv2.imencode(".jpg", stored[..., ::-1], quality)[1]
        stored = np.ascontiguousarray(np.asarray(cv2.imdecode(coded, cv2.IMREAD_COLOR), np.uint8)[..., ::-1])
    return stored


def _stripes(rng: np.random.Generator, size: int) -> F32:
    """Scan lines and fields of uneven light with hard seams between them."""
    step, offset = int(rng.uniform(12, 120)), int(rng.integers(0, 100))
    level = 1 + rng.normal(0, rng.uniform(0.004, 0.03), size // 8 + 30)
    across = level[(np.arange(size) + offset) // step] * (1 + rng.uniform(0, 0.02) * np.linspace(-1, 1, size))
    field = np.broadcast_to(across.astype(np.float32), (size, size))
    return np.asarray(field if rng.random() < 0.5 else field.T, np.float32)
