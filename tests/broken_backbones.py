"""Backbones that break while they embed, in a module that other processes can import."""

from __future__ import annotations

import os

from fm_eval import ColourHistogram
from torch import Tensor


class Ending(ColourHistogram):
    """Ends its process at the second batch, as the kernel does when memory is short."""

    calls = 0

    def __call__(self, images_BHWC: Tensor, /) -> Tensor:
        self.calls += 1
        if self.calls == 2:
            os._exit(9)
        return super().__call__(images_BHWC)


class Failing(ColourHistogram):
    """Fails at its second batch."""

    calls = 0

    def __call__(self, images_BHWC: Tensor, /) -> Tensor:
        self.calls += 1
        if self.calls == 2:
            raise RuntimeError("out of memory")
        return super().__call__(images_BHWC)
