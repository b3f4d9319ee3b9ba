"""Which colour is the clear glass of a thumbnail, and how does the thumbnail look on glass that all slides share?

Scanners show glass white, grey, yellowish or pink. `on_common_glass` divides a thumbnail by the colour of its
brightest tenth, so that the network of `tissue` sees tissue against its own slide and not the scanner's tint. The
network was trained on views treated by the same function. Once it has said which part surely is glass, `like_its_glass`
tells what else looks the same: gaps that are too narrow for the network to be sure of.
"""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

U8 = npt.NDArray[np.uint8]

COMMON_GLASS = 240.0
"""Level that glass is brought to in every channel; what is brighter, up to 255, stays told apart."""

BRIGHTEST_SHARE = 0.1
DARKEST_GLASS = 100.0
"""A view whose brightest tenth is darker than this shows no glass, and is left as it is."""

MOST_COLOURED = 0.85
"""Glass lets through at least this share of its strongest channel in each channel; ink and tissue do not."""

SURE_GLASS = 0.1
"""Probability of tissue below which a pixel teaches what this thumbnail's glass looks like, if it is bright as well."""

SHADED_GLASS = 0.85
"""Glass has at least this share of the level of `glass_colour` in every channel; ink has not."""

LEAST_SURE_SHARE = 0.005
"""With a smaller share of such pixels a thumbnail shows no glass to learn from."""

GLASS_SPREADS = 3.0
"""What is darker than the glass by no more than so many of its spreads (robust standard deviations) looks like it."""

LEAST_SPREAD = 1.5
"""Grey levels: what compression and rounding do to the most even glass."""

_SAMPLES_PER_SIDE = 128
_SAMPLES = 20_000


def glass_colour(thumbnail: U8) -> npt.NDArray[np.float32]:
    """Colour of clear glass: the middle of the brightest tenth, if that can be glass.

    Args:
        thumbnail: uint8 (H, W, 3) RGB.

    Returns:
        float32 (3,), 0 to 255; `COMMON_GLASS` thrice where the view is too dark to show any glass.
    """
    step = -(-max(thumbnail.shape[:2]) // _SAMPLES_PER_SIDE)
    pixels = thumbnail[::step, ::step].reshape(-1, 3)
    light = pixels.sum(axis=1, dtype=np.int32)
    place = int((1 - BRIGHTEST_SHARE) * (len(light) - 1))
    brightest = pixels[light >= np.partition(light, place)[place]]
    colour = np.median(brightest, axis=0).astype(np.float32)
    top = colour.max()
    if top < DARKEST_GLASS:
        return np.full(3, COMMON_GLASS, np.float32)
    return np.asarray(np.maximum(colour, MOST_COLOURED * top), np.float32)


def on_common_glass(thumbnail: U8, colour: npt.NDArray[np.float32] | None = None) -> U8:
    """The thumbnail with its glass at `COMMON_GLASS` in every channel.

    Args:
        thumbnail: uint8 (H, W, 3) RGB.
        colour: Of its glass, float32 (3,); estimated by `glass_colour` if None.
    """
    glass = glass_colour(thumbnail) if colour is None else colour
    levels = np.arange(256, dtype=np.float32)[:, None] * (COMMON_GLASS / glass)
    table = np.clip(np.rint(levels), 0, 255).astype(np.uint8)
    return np.asarray(cv2.LUT(np.ascontiguousarray(thumbnail), table[None]), np.uint8)


def like_its_glass(view: U8, probability: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    """Where a thumbnail cannot be told from its own glass in any channel.

    Args:
        view: uint8 (H, W, 3) RGB.
        probability: Of tissue, by a network, float32 (H, W).

    Returns:
        bool (H, W); False everywhere where the network is sure of hardly any glass.
    """
    smooth = cv2.medianBlur(np.ascontiguousarray(view), 3)
    sure = (probability < SURE_GLASS) & (smooth >= SHADED_GLASS * glass_colour(view)).all(axis=-1)
    if sure.mean() < LEAST_SURE_SHARE:
        return np.zeros(sure.shape, np.bool_)
    glass = smooth[sure]
    glass = glass[:: -(-len(glass) // _SAMPLES)].astype(np.float32)
    middle = np.median(glass, axis=0)
    # 1.4826: of a normal distribution, the standard deviation over the median deviation.
    spread = np.maximum(1.4826 * np.median(np.abs(glass - middle), axis=0), LEAST_SPREAD)
    return np.asarray((smooth >= middle - GLASS_SPREADS * spread).all(axis=-1), np.bool_)
