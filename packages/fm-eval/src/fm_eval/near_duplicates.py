"""Which pictures are in two splits, though not byte for byte?

Augmented copies (turned by any angle, mirrored, zoomed about the centre), recompressed or resized ones. In two steps:

1. candidates: each image is described by numbers that turning and mirroring do not change, and its nearest
   neighbours in the other splits are looked up;
2. a candidate is compared with the image itself: both are sampled on rings around the centre whose radii grow by a
   constant factor (log-polar), so that turning is a shift along the rings and zooming one across them. Similarity is
   the highest correlation over all shifts, of the picture and its mirror image.

Copies whose centres are far apart are not found: shifted crops of one slide are the business of groups. The threshold
is above what unrelated tissue reaches (see `SAME_PICTURE`). Array in, pairs out; only `_describe` reads images.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fm_eval.images import Images
from fm_eval.transform import resize_and_crop

FloatArray = NDArray[np.float32]

# benchmarks/near_duplicates.py: of 3,162 augmented lung patches, no pair of two source images in different splits of
# the group-disjoint division reaches 0.64, and 84 % of the images that a random division leaks have a copy above 0.65.
SAME_PICTURE = 0.65

_SIDE_PX, _RINGS, _ANGLES, _GROWTH = 96, 36, 96, 1.06
# zoom of up to 1.06^8 = 1.6 between two copies
_SHIFTS = range(-8, 9)
# candidates: windows of rings of one image are compared with the middle window of the other
_WINDOW, _OFFSETS, _MIDDLE = 24, (0, 3, 6, 9, 12), 6
_HARMONICS, _COLOUR_WEIGHT, _DIMENSIONS = 10, 2.0, 64
_CANDIDATES = 10
_BLOCK = 2048
_FINE = 25  # harmonics that are compared in step 2


@dataclass(frozen=True, slots=True)
class Pair:
    """Two images that show the same picture.

    Attributes:
        first: row of one.
        second: row of the other, in another split.
        similarity: correlation of the two after turning, mirroring and zooming, at most 1.
    """

    first: int
    second: int
    similarity: float


def find_near_duplicates(
    images: Images, split: NDArray[np.str_], *, threshold: float = SAME_PICTURE, threads: int = 4
) -> list[Pair]:
    """Find images that look like one of another split.

    Args:
        images: N images.
        split: (N,) split of each.
        threshold: least similarity.
        threads: threads that decode.

    Returns:
        Pairs, the most similar first; for each image at most a few of its copies.

    Raises:
        DatasetError: an image cannot be decoded.
    """
    rings, colour = _describe(images, threads)
    pairs: list[Pair] = []
    for first, second in _candidates(rings, colour, split):
        similarity = _similarity(rings[first], rings[second])
        pairs += [
            Pair(int(a), int(b), round(float(value), 4))
            for a, b, value in zip(first, second, similarity, strict=True)
            if value >= threshold
        ]
    return sorted(pairs, key=lambda pair: (-pair.similarity, pair.first, pair.second))


def _describe(images: Images, threads: int) -> tuple[NDArray[np.uint8], FloatArray]:
    """Luminance on rings, uint8 (N, rings, angles), and colour statistics (N, 21)."""
    where = _RingGrid()

    def one(row: int) -> tuple[NDArray[np.uint8], FloatArray]:
        sampled = where.sample(resize_and_crop(images.read(row), size_px=_SIDE_PX))
        flat = sampled.reshape(-1, 3)
        statistics = [flat.mean(axis=0), flat.std(axis=0), *np.percentile(flat[::4], [10, 25, 50, 75, 90], axis=0)]
        return np.rint(sampled.mean(axis=2)).astype(np.uint8), np.concatenate(statistics).astype(np.float32)

    rings = np.empty((len(images), _RINGS, _ANGLES), np.uint8)
    colour = np.empty((len(images), 21), np.float32)
    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, len(images), _BLOCK):
            rows = range(start, min(start + _BLOCK, len(images)))
            for row, (luminance, statistics) in zip(rows, pool.map(one, rows), strict=True):
                rings[row], colour[row] = luminance, statistics
    return rings, colour


class _RingGrid:
    """Bilinear samples of a square on rings whose radii grow by a constant factor."""

    def __init__(self) -> None:
        angle = 2 * np.pi * np.arange(_ANGLES) / _ANGLES
        centre, radius = (_SIDE_PX - 1) / 2, _radii()[:, None]
        x, y = centre + radius * np.cos(angle), centre + radius * np.sin(angle)
        left, top = np.floor(x).astype(np.int64), np.floor(y).astype(np.int64)
        right, down = (x - left)[..., None].astype(np.float32), (y - top)[..., None].astype(np.float32)
        self._corners = [
            (top * _SIDE_PX + left, (1 - right) * (1 - down)),
            (top * _SIDE_PX + left + 1, right * (1 - down)),
            ((top + 1) * _SIDE_PX + left, (1 - right) * down),
            ((top + 1) * _SIDE_PX + left + 1, right * down),
        ]

    def sample(self, pixels: NDArray[np.uint8]) -> FloatArray:
        """Float32 (rings, angles, 3) of uint8 (side, side, 3)."""
        flat = pixels.reshape(-1, 3).astype(np.float32)
        sampled: FloatArray = sum(flat[index] * weight for index, weight in self._corners)
        return sampled


def _radii() -> NDArray[np.float64]:
    outermost = _SIDE_PX / 2 - 1
    return np.asarray(outermost * _GROWTH ** (np.arange(_RINGS) - _RINGS + 1.0))


def _candidates(
    rings: NDArray[np.uint8], colour: FloatArray, split: NDArray[np.str_]
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Pairs of rows of different splits that may be alike, in blocks."""
    windows = _descriptors(rings, colour)
    middle = windows[_OFFSETS.index(_MIDDLE)]
    names = sorted(set(split.tolist()), key=lambda name: int((split == name).sum()))
    # each pair of splits once: the smaller one asks
    for k, asking in enumerate(names):
        asked = np.flatnonzero(np.isin(split, names[k + 1 :]))
        if not len(asked):
            return
        rows = np.flatnonzero(split == asking)
        for start in range(0, len(rows), _BLOCK):
            block = rows[start : start + _BLOCK]
            nearest = _nearest(middle[block], [window[asked] for window in windows])
            yield np.repeat(block, nearest.shape[1]), asked[nearest].ravel()


def _descriptors(rings: NDArray[np.uint8], colour: FloatArray) -> list[FloatArray]:
    """One (N, D) array a window: neither turning nor mirroring changes it."""
    spectra = [_spectrum(rings[:, offset : offset + _WINDOW]) for offset in _OFFSETS]
    mean, std = spectra[len(spectra) // 2].mean(axis=0), spectra[len(spectra) // 2].std(axis=0) + 1e-6
    shade = (colour - colour.mean(axis=0)) / (colour.std(axis=0) + 1e-6)
    shade *= _COLOUR_WEIGHT / np.sqrt(shade.shape[1])
    for spectrum in spectra:
        spectrum -= mean
        spectrum /= std
        spectrum /= np.linalg.norm(spectrum, axis=1, keepdims=True) + 1e-6
    # principal axes of the spectra: as good as all of them at a quarter of the time
    some = spectra[len(spectra) // 2][:: max(1, len(rings) // 20_000)]
    axes = np.linalg.svd(some - some.mean(axis=0), full_matrices=False)[2][:_DIMENSIONS].T
    return [np.concatenate([spectrum @ axes, shade], axis=1).astype(np.float32) for spectrum in spectra]


def _spectrum(window: NDArray[np.uint8]) -> FloatArray:
    """(N, rings x harmonics) magnitudes along the rings, of the normalised luminance."""
    spectrum = np.empty((len(window), window.shape[1] * _HARMONICS), np.float32)
    for start in range(0, len(window), _BLOCK):
        part = window[start : start + _BLOCK].astype(np.float32)
        part -= part.mean(axis=(1, 2), keepdims=True)
        part /= np.sqrt((part**2).mean(axis=(1, 2), keepdims=True) + 1)
        magnitude = np.abs(np.fft.rfft(part, axis=2)[:, :, :_HARMONICS])
        spectrum[start : start + _BLOCK] = np.sqrt(magnitude).reshape(len(part), -1)
    return spectrum


def _nearest(asking: FloatArray, windows: list[FloatArray]) -> NDArray[np.int64]:
    """(B, candidates) rows of the windows' arrays, by the smallest distance over the windows."""
    count = min(_CANDIDATES, len(windows[0]))
    best = np.full((len(asking), 0), 0.0, np.float32)
    kept = np.zeros((len(asking), 0), np.int64)
    for start in range(0, len(windows[0]), 8 * _BLOCK):
        closeness: FloatArray | None = None
        for window in windows:
            part = window[start : start + 8 * _BLOCK]
            # twice the product less the squared length orders like the distance
            found = 2 * (asking @ part.T) - (part**2).sum(axis=1)
            closeness = found if closeness is None else np.maximum(closeness, found, out=closeness)
        assert closeness is not None, "there are windows"
        best = np.concatenate([best, closeness], axis=1)
        kept = np.concatenate([kept, np.broadcast_to(start + np.arange(closeness.shape[1]), closeness.shape)], axis=1)
        top = np.argpartition(-best, min(count, best.shape[1]) - 1, axis=1)[:, :count]
        best, kept = np.take_along_axis(best, top, axis=1), np.take_along_axis(kept, top, axis=1)
    return kept


def _similarity(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> FloatArray:
    """(P,) highest correlation of (P, rings, angles) pairs over rotation, mirror and zoom."""
    similarity = np.empty(len(first), np.float32)
    for start in range(0, len(first), _BLOCK):
        part = slice(start, start + _BLOCK)
        similarity[part] = _similarity_of_block(first[part], second[part])
    return similarity


def _similarity_of_block(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> FloatArray:
    weight = (_radii() / _radii().max()).astype(np.float32)  # outer rings are longer
    a, b = _Rings(first), _Rings(second)
    best = np.full(len(first), -1.0, np.float32)
    for shift in _SHIFTS:
        here = slice(max(0, shift), _RINGS + min(0, shift))
        there = slice(max(0, -shift), _RINGS + min(0, -shift))
        # one weight for both, that of the rings of the first
        share = weight[here] / weight[here].sum()
        spectrum_a, length_a = a.centred(here, share)
        spectrum_b, length_b = b.centred(there, share)
        for other in (spectrum_b.conj(), spectrum_b):  # the second is the mirror image
            correlation = np.fft.irfft(np.einsum("prk,prk->pk", spectrum_a, other), n=_ANGLES, axis=1)
            np.maximum(best, correlation.max(axis=1) / (length_a * length_b + 1e-6), out=best)
    return best


class _Rings:
    """Fourier coefficients along the rings, and the sums that centring needs."""

    def __init__(self, luminance: NDArray[np.uint8]) -> None:
        values = luminance.astype(np.float32)
        self._spectrum = np.fft.rfft(values, axis=2)[:, :, :_FINE].astype(np.complex64)
        self._mean = values.mean(axis=2)
        self._square = (values**2).mean(axis=2)

    def centred(self, rings: slice, share: FloatArray) -> tuple[NDArray[np.complex64], FloatArray]:
        """Weighted coefficients of the centred rings (P, r, k), and the length of what they stand for (P,)."""
        mean = self._mean[:, rings] @ share
        spectrum = self._spectrum[:, rings].copy()
        spectrum[:, :, 0] -= mean[:, None] * _ANGLES
        variance = np.maximum(self._square[:, rings] @ share - mean**2, 0)
        # irfft divides by the number of angles once; the length carries the other
        return spectrum * np.sqrt(share)[:, None], np.sqrt(variance * _ANGLES).astype(np.float32)
