"""How well does a stream keep up, and what did it meet?

``StreamMetrics`` are sums, so those of several workers add up and those of a stretch of time are a difference.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from online_patching.fork_lock import ForkLock
from online_patching.read_counts import read_counts

# Of all meters, held for a moment.
_lock = ForkLock()


@dataclass(frozen=True, slots=True)
class StreamMetrics:
    """What a stream did, in all its shards of this process, or of all workers of a loader.

    Attributes:
        patches: Handed over.
        seconds: From the start of iterating to the last patch, the consumer's own time included; summed over shards.
        wait_seconds: Of these, what the consumer waited for pixels.
        ready_patches: Patches that lay ready when the last one was handed over (queue depth).
        requests: Range requests to remote stores, catalogs and headers included; of the whole process.
        bytes_received: Bytes that these brought.
        retries: Requests that had to be repeated.
        cached_patches: Handed over from the patch cache.
        corrupt_patches: Draws by slide that a tile which does not decode spoiled.
        filtered_patches: Draws by slide that a filter refused.
        impossible_patches: Draws by slide that its foreground had no place for.
    """

    patches: int = 0
    seconds: float = 0.0
    wait_seconds: float = 0.0
    ready_patches: int = 0
    requests: int = 0
    bytes_received: int = 0
    retries: int = 0
    cached_patches: int = 0
    corrupt_patches: Mapping[str, int] = field(default_factory=dict)
    filtered_patches: Mapping[str, int] = field(default_factory=dict)
    impossible_patches: Mapping[str, int] = field(default_factory=dict)

    @property
    def patches_per_second(self) -> float:
        """Of one shard's consumer; 0 before the first patch."""
        return self.patches / self.seconds if self.seconds else 0.0

    @property
    def wait_share(self) -> float:
        """Share of its time that the consumer waited, 0 to 1: what faster reading could save."""
        return self.wait_seconds / self.seconds if self.seconds else 0.0

    def __add__(self, other: StreamMetrics) -> StreamMetrics:
        return self._joined(other, 1)

    def __sub__(self, earlier: StreamMetrics) -> StreamMetrics:
        # What lies ready is no sum: the later figure holds.
        return replace(self._joined(earlier, -1), ready_patches=self.ready_patches)

    def _joined(self, other: StreamMetrics, sign: int) -> StreamMetrics:
        values: dict[str, Any] = {}
        for name in (each.name for each in fields(self)):
            own, others = getattr(self, name), getattr(other, name)
            if isinstance(own, Mapping):
                counts = {key: own.get(key, 0) + sign * others.get(key, 0) for key in {**own, **others}}
                values[name] = {key: count for key, count in counts.items() if count}
            else:
                values[name] = own + sign * others
        return StreamMetrics(**values)


class StreamMeter:
    """Adds up what the shards of a stream do in this process; a copy in another process starts at nothing."""

    def __init__(self) -> None:
        self._counts = {"patches": 0, "seconds": 0.0, "wait_seconds": 0.0, "cached_patches": 0}
        self._ready_patches = 0
        self._read_before = read_counts()

    def __reduce__(self) -> tuple[type[StreamMeter], tuple[()]]:
        return StreamMeter, ()

    def add(self, *, ready_patches: int | None = None, **counts: float) -> None:
        """Add to counts of ``StreamMetrics``, by their names."""
        with _lock:
            for name, count in counts.items():
                self._counts[name] += count
            if ready_patches is not None:
                self._ready_patches = ready_patches

    def metrics(self) -> StreamMetrics:
        """The counts so far."""
        read = read_counts() - self._read_before
        with _lock:
            counts = dict(self._counts)
        return StreamMetrics(
            patches=int(counts["patches"]),
            seconds=counts["seconds"],
            wait_seconds=counts["wait_seconds"],
            ready_patches=self._ready_patches,
            requests=read.requests,
            bytes_received=read.bytes_received,
            retries=read.retries,
            cached_patches=int(counts["cached_patches"]),
        )
