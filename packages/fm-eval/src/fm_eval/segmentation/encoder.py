"""How does a frozen backbone give the patch tokens of a window?

A timm vision transformer is brought to the size of the windows, its positions interpolated; any other model has
to give a grid of tokens by itself. What comes back is checked before anything is trained on it. Before: backbone.
After: features.
"""

from __future__ import annotations

import copy
import json

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fm_eval.backbone import LoadedBackbone, TimmBackbone
from fm_eval.errors import BackboneError


class WindowEncoder:
    """A frozen backbone that gives the patch tokens of windows of one size.

    A timm transformer made for another size is brought to the window's, its positions interpolated.

    Args:
        backbone: from `load_backbone`; its model has a method `patch_tokens`, uint8 (B, S, S, 3) to
            (B, K, h, w), or is a timm vision transformer.
        window_px: S.
        device: where it runs.
        bf16: autocast to bfloat16.

    Raises:
        BackboneError: no spatial tokens, another input size, a patch size that does not divide the window, or
            values that are not finite.
    """

    def __init__(self, backbone: LoadedBackbone, *, window_px: int, device: str = "cpu", bf16: bool = False) -> None:
        model = backbone.model
        if not callable(getattr(model, "patch_tokens", None)):
            raise BackboneError(
                f"backbone: {type(model).__name__} gives one embedding an image and no spatial tokens; segmentation "
                "needs a vision transformer, or a class with patch_tokens (B, H, W, 3) -> (B, K, h, w)"
            )
        if isinstance(model, TimmBackbone):
            model = _resized(model, backbone.input_size_px, window_px)
        if isinstance(model, nn.Module):
            model.to(device)
        self._model, self._device, self._bf16 = model, torch.device(device), bf16
        self.window_px = window_px
        self._backbone = f"{backbone.weights_sha256} {json.dumps(backbone.provenance, sort_keys=True, default=str)}"
        probe = self(np.zeros((1, window_px, window_px, 3), dtype=np.uint8))
        self.embed_dim, self.grid = probe.shape[1], probe.shape[2]
        if window_px % self.grid:
            raise BackboneError(f"backbone: {self.grid} tokens a side do not divide the window of {window_px} pixels")

    @property
    def identity(self) -> str:
        """What the tokens of a given window depend on; provenance holds the mean and std of the pixels, too."""
        return f"{self._backbone} {self.window_px} {'bf16' if self._bf16 else 'fp32'}"

    def __call__(self, images_BSS3: NDArray[np.uint8]) -> Tensor:
        """Patch tokens float32 (B, K, h, w) of uint8 windows (B, S, S, 3), on the device."""
        with torch.inference_mode(), torch.autocast(self._device.type, torch.bfloat16, enabled=self._bf16):
            batch = torch.from_numpy(images_BSS3).to(self._device)
            try:
                tokens: Tensor = self._model.patch_tokens(batch).float()  # type: ignore[union-attr]
            except (RuntimeError, TypeError, AttributeError, AssertionError) as error:
                reason = str(error).strip().split("\n")[0]
                raise BackboneError(f"backbone: no tokens of uint8 {images_BSS3.shape} ({reason})") from error
        if tokens.ndim != 4 or len(tokens) != len(images_BSS3) or tokens.shape[2] != tokens.shape[3]:
            raise BackboneError(f"backbone: patch_tokens gave {tuple(tokens.shape)}, expected ({len(batch)}, K, h, h)")
        if not bool(torch.isfinite(tokens).all()) or float(tokens.abs().max()) > torch.finfo(torch.float16).max:
            raise BackboneError(
                "backbone: tokens hold NaN, infinity or values beyond half precision; check the weights"
            )
        return tokens


def _resized(model: TimmBackbone, size_px: int, window_px: int) -> TimmBackbone:
    """The backbone for windows of its own size, or a copy with interpolated positions for those of another."""
    if window_px % model.patch_px:
        raise BackboneError(
            f"backbone: patch size {model.patch_px} does not divide the window of {window_px} pixels; "
            f"use window_px={window_px // model.patch_px * model.patch_px}"
        )
    if size_px == window_px:
        return model
    if not hasattr(model.model, "set_input_size"):
        raise BackboneError(
            f"backbone: made for {size_px} pixels, the windows have {window_px}; use window_px={size_px}"
        )
    model = copy.deepcopy(model)
    model.model.set_input_size(img_size=window_px)  # type: ignore[operator]
    return model
