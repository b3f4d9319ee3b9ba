"""Which colour does a spot have that took up so much haematoxylin and eosin?

Steps: a `Stain` holds one slide's stain vectors, dye strengths and scanner; `colour_table` turns it into
a look-up table from concentrations to RGB by the law of Beer and Lambert. Tissue is painted as
concentrations (`sample_tissue`), so that one look-up per pixel colours it, and so that the same structure
can take any laboratory's colours.

Source of the mean stain vectors: midway between Ruifrok and Johnston (Anal. Quant. Cytol. Histol. 23,
2001) and the reference matrix of Macenko et al. (ISBI 2009).
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]

THICKNESS_LEVELS = 16
"""Steps of section thickness from 0 (glass) to `THICKNESS_LEVELS - 1` (1.25 times the nominal thickness)."""

_UNIT = 160.0  # stored concentration that means one unit of optical density along the stain vector
_HAEMATOXYLIN = (0.606, 0.712, 0.346)
_EOSIN = (0.144, 0.896, 0.332)


@dataclass(frozen=True, slots=True)
class Stain:
    """How one slide is dyed and scanned.

    Attributes:
        vectors: float32 (2, 3), optical density of haematoxylin and eosin in red, green and blue, of
            unit length.
        strength: Factor on the concentration of haematoxylin and of eosin.
        glass: RGB of clear glass, 0 to 255.
        gamma: Exponent of the scanner's response.
    """

    vectors: F32
    strength: tuple[float, float]
    glass: tuple[float, float, float]
    gamma: float


def draw_hospital_stain(rng: np.random.Generator) -> Stain:
    """Draws the habits of one laboratory: dye batches turn the stain vectors, the protocol sets the
    strengths.
    """
    brightness, tint = rng.uniform(228, 245), rng.uniform(-4, 4, 3)
    return _vary(
        Stain(
            vectors=np.array([_HAEMATOXYLIN, _EOSIN], dtype=np.float32),
            strength=(float(rng.uniform(0.6, 1.3)), float(rng.uniform(0.55, 1.5))),
            glass=(float(brightness + tint[0]), float(brightness + tint[1]), float(brightness + tint[2])),
            gamma=float(rng.uniform(0.85, 1.2)),
        ),
        rng,
        turn=0.06,
        spread=0.0,
    )


def draw_slide_stain(hospital: Stain, rng: np.random.Generator) -> Stain:
    """Draws one slide of a laboratory: the same habits, another day."""
    return _vary(hospital, rng, turn=0.025, spread=0.18)


def _vary(stain: Stain, rng: np.random.Generator, *, turn: float, spread: float) -> Stain:
    vectors = np.clip(stain.vectors + rng.normal(0, turn, (2, 3)), 0.02, None)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    haematoxylin, eosin = (s * float(np.exp(rng.normal(0, spread))) for s in stain.strength)
    glass = np.clip(np.array(stain.glass) + rng.normal(0, 2.0, 3), 215, 250)
    return Stain(
        vectors=vectors.astype(np.float32),
        strength=(haematoxylin, eosin),
        glass=(float(glass[0]), float(glass[1]), float(glass[2])),
        gamma=stain.gamma,
    )


def colour_table(stain: Stain) -> npt.NDArray[np.uint32]:
    """Returns the colours of all concentrations at all thicknesses.

    Returns:
        uint32 (THICKNESS_LEVELS * 65536,), indexed by `thickness << 16 | haematoxylin << 8 | eosin`;
        each entry
        holds the bytes R, G, B, 0 in memory order on a little-endian machine.
    """
    amount = np.arange(256, dtype=np.float32) / _UNIT
    thickness = np.linspace(0, 1.25, THICKNESS_LEVELS, dtype=np.float32)[:, None]
    table = np.zeros((THICKNESS_LEVELS, 256, 256, 4), dtype=np.uint8)
    for channel in range(3):
        # exp(a + b) = exp(a) * exp(b): two short tables instead of a million exponentials
        dyed = [
            np.exp(-thickness * amount * (np.log(10) * strength * stain.gamma * vector[channel]))
            for vector, strength in zip(stain.vectors, stain.strength, strict=True)
        ]
        light = stain.glass[channel] * dyed[0][:, :, None] * dyed[1][:, None, :]
        table[..., channel] = np.rint(light)
    return table.view("<u4").ravel()


def apply_table(
    table: npt.NDArray[np.uint32], dyes: npt.NDArray[np.uint16], thickness: npt.NDArray[np.uint8] | int
) -> npt.NDArray[np.uint8]:
    """Colours an image of concentrations.

    Args:
        table: From `colour_table`.
        dyes: (H, W), `haematoxylin << 8 | eosin`.
        thickness: (H, W) or one number for all, below `THICKNESS_LEVELS`.

    Returns:
        uint8 RGB (H, W, 3).
    """
    index = np.left_shift(thickness, 16, dtype=np.uint32) | dyes
    coloured = np.take(table, index).view(np.uint8).reshape(*dyes.shape, 4)
    return np.asarray(cv2.cvtColor(coloured, cv2.COLOR_RGBA2RGB), dtype=np.uint8)
