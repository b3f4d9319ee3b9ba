"""What does a decoder say of whole images, and of single windows?

Windows are scored a batch at a time from their stored tokens, stitched row by row to the size of the image and
counted against the truth; each window is counted by itself too, for `dice_patch`. Before: features, windows,
dice. After: evaluate.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fm_eval.metrics import IntArray
from fm_eval.segmentation.decoder import Decoder
from fm_eval.segmentation.dice import SegmentationScores, confusion, dice_by_class, score
from fm_eval.segmentation.features import TokenStore
from fm_eval.segmentation.layouts import LabelledImage, SegmentationDataset
from fm_eval.segmentation.paired import image_counts
from fm_eval.segmentation.windows import Corner, stitch


@dataclass(frozen=True, slots=True)
class Grids:
    """The images of one split, the corners of their windows, and the tokens of all of them in that order."""

    images: tuple[LabelledImage, ...]
    corners: list[list[Corner]]
    store: TokenStore


@dataclass(frozen=True, slots=True)
class Tested:
    """What a decoder reaches on one split.

    Attributes:
        scores: of all images.
        counts: (N, 3, C) pixels of each image, as `image_counts` gives them.
        predicted: class numbers (H, W) of the first images.
    """

    scores: SegmentationScores
    counts: IntArray
    predicted: list[NDArray[np.uint8]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Predictor:
    """A trained decoder and how it is run.

    Attributes:
        decoder: put into evaluation mode.
        classes: C.
        window_px: S.
        batch_size: windows at a time.
        device: where the decoder lies.
        bf16: autocast to bfloat16.
    """

    decoder: Decoder
    classes: int
    window_px: int
    batch_size: int
    device: str
    bf16: bool

    def scores(self, tokens_BKhw: Tensor) -> Iterator[NDArray[np.float32]]:
        """Scores float32 (C, S, S) of each window."""
        self.decoder.eval()
        with torch.inference_mode(), torch.autocast(torch.device(self.device).type, torch.bfloat16, enabled=self.bf16):
            for batch in torch.split(tokens_BKhw, self.batch_size):
                yield from self.decoder.scores(batch.to(self.device), size_px=self.window_px).cpu().numpy()

    def window_dice(self, tokens_BKhw: Tensor, labels_BSS: Tensor) -> float | None:
        """Pooled DICE without background of single windows; None where undefined."""
        matrices = [
            self._confusion(label, scores)
            for label, scores in zip(labels_BSS.numpy(), self.scores(tokens_BKhw), strict=True)
        ]
        values = dice_by_class(np.sum(matrices, axis=0)[None], ignore_absent=False)[0, 1:]
        return None if np.isnan(values).all() else float(np.nanmean(values))

    def test(self, dataset: SegmentationDataset, grids: Grids, *, keep: int = 0) -> Tested:
        """Predict all images of a split; the predictions of the first `keep` are kept."""
        of_images: list[IntArray] = []
        of_windows: list[IntArray] = []
        kept: list[NDArray[np.uint8]] = []
        first = 0
        for image, corners in zip(grids.images, grids.corners, strict=True):
            predicted, matrices = self._image(image, corners, grids.store, first)
            first += len(corners)
            of_images.append(confusion(dataset.read(image)[1], predicted, classes=self.classes))
            of_windows += matrices
            if len(kept) < keep:
                kept.append(predicted)
        matrices_NCC = np.stack(of_images)
        scores = score(matrices_NCC, np.stack(of_windows), class_names=dataset.classes.names)
        return Tested(scores, image_counts(matrices_NCC), kept)

    def _image(
        self, image: LabelledImage, corners: list[Corner], store: TokenStore, first: int
    ) -> tuple[NDArray[np.uint8], list[IntArray]]:
        """Class numbers (H, W) of an image, and a confusion matrix of each window by itself."""
        matrices: list[IntArray] = []

        def windows() -> Iterator[tuple[Corner, NDArray[np.float32]]]:
            for begin in range(0, len(corners), self.batch_size):
                some = corners[begin : begin + self.batch_size]
                tokens, labels = store.read(range(first + begin, first + begin + len(some)))
                for corner, label, scores in zip(some, labels.numpy(), self.scores(tokens), strict=True):
                    matrices.append(self._confusion(label, scores))
                    yield corner, scores

        # a window is larger than a small image, which was mirrored to its size
        height, width = (max(length, self.window_px) for length in (image.height_px, image.width_px))
        predicted = stitch(windows(), height_px=height, width_px=width, classes=self.classes)
        return predicted[: image.height_px, : image.width_px], matrices

    def _confusion(self, label: IntArray, scores: NDArray[np.float32]) -> IntArray:
        return confusion(label.astype(np.uint8), scores.argmax(0).astype(np.uint8), classes=self.classes)
