"""How many rows of logits are worked on together?

With tens of thousands of prototypes a few hundred rows do not fit into the cache of a CPU, and each operation would
read and write them in memory. Block by block they stay there from the first operation to the last. Accelerators take
all rows at once, or as many as memory for intermediate results should hold.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

# Half of the second-level cache of a core of today's servers; large enough to be worth starting operations for.
_CPU_BYTES = 2**20
_DEVICE_BYTES = 2**28


def row_blocks(rows: Tensor) -> Iterator[slice]:
    """Slices of the first dimension, in order."""
    row_bytes = max(1, rows[:1].numel() * rows.element_size())
    size = max(1, (_CPU_BYTES if rows.device.type == "cpu" else _DEVICE_BYTES) // row_bytes)
    for start in range(0, len(rows), size):
        yield slice(start, start + size)
