"""Which network finds tissue on a thumbnail, and how does it become a file that OpenCV runs?

`ForegroundNet` is a U-Net (Ronneberger et al., MICCAI 2015) of 0.24 M parameters: the first convolution halves the
view, four more halve it again, and the answer is enlarged from half the size. It is built of operations that
``cv2.dnn`` has had for long: convolutions, batch norm (folded when exported), concatenation, enlarging.

`export` writes ONNX and asserts that OpenCV gives what torch gives, at several sizes.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

CHANNELS = (8, 20, 32, 48, 64)
"""Channels at 1/2, 1/4, 1/8, 1/16 and 1/32 of the view."""

MULTIPLE_PX = 2 ** len(CHANNELS)
_OPSET = 12


def _convolution(inputs: int, outputs: int, *, stride: int = 1) -> nn.Sequential:
    layer = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


class ForegroundNet(nn.Module):
    """RGB float32 (N, 3, H, W), 0 to 1, to the logit of tissue (N, 1, H, W); H and W multiples of 32."""

    def __init__(self) -> None:
        super().__init__()
        inputs = (3, *CHANNELS[:-1])
        self.down = nn.ModuleList(
            # At half the size, where most of the time goes, one convolution has to do.
            nn.Sequential(_convolution(i, o, stride=2), *([_convolution(o, o)] if i > 3 else []))
            for i, o in zip(inputs, CHANNELS, strict=True)
        )
        self.deep = _convolution(CHANNELS[-1], CHANNELS[-1])
        pairs = list(zip(CHANNELS[:0:-1], CHANNELS[-2::-1], strict=True))
        self.up = nn.ModuleList(_convolution(low + skip, skip) for low, skip in pairs)
        self.head = nn.Conv2d(CHANNELS[0], 1, 1)

    def forward(self, image: Tensor) -> Tensor:
        """See the class."""
        skips: list[Tensor] = []
        features = image
        for block in self.down:
            features = block(features)
            skips.append(features)
        features = self.deep(features)
        for block, skip in zip(self.up, skips[-2::-1], strict=True):
            features = block(torch.cat([F.interpolate(features, scale_factor=2.0, mode="nearest"), skip], dim=1))
        logit: Tensor = self.head(features)
        return F.interpolate(logit, scale_factor=2.0, mode="bilinear", align_corners=False)


class _Probability(nn.Module):
    def __init__(self, net: ForegroundNet) -> None:
        super().__init__()
        self.net = net

    def forward(self, image: Tensor) -> Tensor:
        return torch.sigmoid(self.net(image))


def export(net: ForegroundNet, path: Path) -> float:
    """Writes a network as ONNX, input ``image`` of any size, output ``tissue`` (a probability) of the same size.

    Returns:
        The largest difference between OpenCV's and torch's probabilities.
    """
    model = _Probability(net).eval()
    axes = {2: "height", 3: "width"}
    with warnings.catch_warnings():
        # The exporter that needs no further package than onnx is called legacy.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model,
            (torch.zeros(1, 3, 256, 256),),
            str(path),
            dynamo=False,
            opset_version=_OPSET,
            input_names=["image"],
            output_names=["tissue"],
            dynamic_axes={"image": axes, "tissue": axes},
        )
    difference = 0.0
    for height, width in ((256, 256), (64, 320), (32, 32), (512, 96)):
        read = cv2.dnn.readNetFromONNX(str(path))
        view = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(height))
        read.setInput(view.numpy())
        with torch.no_grad():
            difference = max(difference, float(np.abs(read.forward() - model(view).numpy()).max()))
    assert difference < 1e-4, f"{path}: OpenCV and torch differ by {difference}"
    return difference
