"""Pictures of four kinds, a function of (seed, number), that a small network can learn to tell apart.

The kind is a faint tint, the same all over a picture; strong grey blobs, another pattern wherever a crop lies, hide it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from synthetic_stream import SyntheticStream

N_KINDS = 4
_TINTS = np.array([[7, -7, 0], [-7, 0, 7], [0, 7, -7], [6, 6, 6]])
_BLOBS = 6


def texture(number: int, *, seed: int, size_px: int) -> np.ndarray:
    """Picture of kind `number % 4`, uint8 (S, S, 3)."""
    generator = np.random.default_rng([seed, number])
    blobs = generator.normal(128, 45, (_BLOBS, _BLOBS)).clip(0, 255).astype(np.uint8)
    grey = np.asarray(Image.fromarray(blobs).resize((size_px, size_px), Image.Resampling.BICUBIC), dtype=float)
    tint = _TINTS[number % N_KINDS] + generator.normal(0, 4, 3)
    return (grey[..., None] + tint + generator.normal(0, 6, (size_px, size_px, 3))).clip(0, 255).astype(np.uint8)


class TextureStream(SyntheticStream):
    """An endless stream of textures."""

    def _image(self, index: int) -> np.ndarray:
        return texture(index, seed=self.seed, size_px=self.size_px)


def write_textures(folder: Path, *, n: int, size_px: int, labelled: bool) -> Path:
    """A folder of textures that no stream of a small seed shows, in folders of classes if labelled."""
    for number in range(n):
        target = folder / f"kind{number % N_KINDS}" if labelled else folder
        target.mkdir(parents=True, exist_ok=True)
        Image.fromarray(texture(number, seed=10_000, size_px=size_px)).save(target / f"{number:04d}.png")
    return folder
