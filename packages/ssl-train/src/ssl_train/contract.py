"""What does training need from a source of patches?

Any iterable object of this shape will do; no package is named. It is wired in by `class_path` in the YAML. A
sample is a dictionary with at least

- `image`: uint8 array (H, W, 3), RGB, C-contiguous, of one size throughout the stream,
- `index`: int, the global sample number; the seed of the sample's crops.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol, Self


class PatchStream(Protocol):
    """An endless, exact, resumable stream of patches."""

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yields this share's samples from the stream's position on."""
        ...

    def shard(self, *, global_batch_size: int, rank: int, world_size: int, worker: int, num_workers: int) -> Self:
        """The share of one worker of one rank.

        Global batch b holds samples `b * B ... b * B + B - 1`; rank r takes its contiguous part; worker w of
        n serves the rank's batches w, w + n, ...; no workers is (0 of 1).
        """
        ...

    def state_dict(self) -> dict[str, Any]:
        """JSON-able state: format_version, position (samples consumed globally), seed, fingerprint."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from a state."""
        ...
