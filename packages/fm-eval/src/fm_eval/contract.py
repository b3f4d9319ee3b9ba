"""What does fm_eval need from a source of patches?

Any iterable object of this shape will do; no package is named. It is wired in by `class_path` in the YAML. A
sample is a dictionary with at least

- `image`: uint8 array (H, W, 3), RGB,
- `index`: int, the global sample number,
- `slide_id`: str; and, where it is known, `patient`: str.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol, Self

from fm_eval.errors import DatasetError


class PatchStream(Protocol):
    """A stream of patches, endless or finite."""

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yields this share's samples from the stream's position on."""
        ...

    def shard(self, *, global_batch_size: int, rank: int, world_size: int, worker: int, num_workers: int) -> Self:
        """The share of one worker of one rank."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """JSON-able state: format_version, position (samples consumed globally), seed, fingerprint."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from a state."""
        ...


def samples_of(stream: PatchStream, *, reader: str) -> Iterator[dict[str, Any]]:
    """The stream's samples; what goes wrong in it is told like any other mistake.

    Args:
        stream: of another package.
        reader: who reads, for messages.

    Raises:
        DatasetError: the stream fails.
    """
    try:
        yield from stream
    except Exception as error:  # of another package: any
        raise DatasetError(f"{reader}: the stream failed ({' '.join(str(error).split())})") from error
