"""How do the pixels of the next patches reach the consumer without making it wait, and where does it continue?

A ``PatchFeed`` is what all streams of the package share: a ``Shard`` says which samples are this consumer's, they are
read in chunks, a few chunks ahead, and the position counts what was handed over. A stream says what sample *i* is and
how a chunk of samples is read; one that ends says how many there are.
"""

from __future__ import annotations

import copy
import itertools
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from typing import Any, Self, get_args

from online_patching import loop
from online_patching.catalog import Catalog
from online_patching.decode import Pixels
from online_patching.errors import CatalogError
from online_patching.geometry import LevelPolicy
from online_patching.plan import DecodeMode
from online_patching.sampler import Sample
from online_patching.shard import Shard
from online_patching.stream_metrics import StreamMeter, StreamMetrics

FORMAT_VERSION = 2
# 32 patches a chunk fill the decoding threads and merge well; 12 chunks under way keep 200 requests in flight, which a
# store 100 ms away needs, and take 75 MB.
CHUNK_PATCHES = 32
CHUNKS_AHEAD = 12
# The first is small and goes alone, so that whoever begins does not wait for all that is read ahead.
FIRST_PATCHES = 8


class PatchFeed(ABC):
    """The reading, sharding and resuming of a stream of a catalog's patches.

    Args:
        catalog: An open catalog.
        seed: Of every random choice; 0 where there is none.
        columns: Catalog columns to add to every patch.
        level_policy: Which stored level is read.
        decode: Whether tiles may be decoded at reduced scale.
    """

    def __init__(
        self,
        catalog: Catalog,
        *,
        seed: int,
        columns: Sequence[str],
        level_policy: LevelPolicy,
        decode: DecodeMode,
    ) -> None:
        check_choices(("level_policy", level_policy, get_args(LevelPolicy)), ("decode", decode, get_args(DecodeMode)))
        _check_columns(catalog, columns)
        self.catalog = catalog
        self.seed = seed
        self.columns = tuple(columns)
        self.level_policy = level_policy
        self.decode = decode
        self._shard = Shard()
        self._position = 0
        # What is counted stays shared: whoever made the stream sees what its shards met in this process.
        self._meter = StreamMeter()

    @abstractmethod
    def fingerprint(self) -> str:
        """Short hash of all that decides which patch sample *i* of a seed is."""

    @abstractmethod
    async def _read(self, numbers: Sequence[int]) -> list[dict[str, Any]]:
        """The patches of some samples, in order; on the package's own loop."""

    def _exists(self, _index: int) -> bool:
        """Whether there is a sample of this number; asked in the consumer's thread, number after number."""
        return True

    def shard(self, *, global_batch_size: int, rank: int, world_size: int, worker: int, num_workers: int) -> Self:
        """The part of this stream that worker ``worker`` of rank ``rank`` serves, at the same position.

        Raises:
            ValueError: Numbers that do not fit together.
        """
        part = copy.copy(self)
        part._shard = Shard(global_batch_size, rank, world_size, worker, num_workers)
        return part

    def state_dict(self) -> dict[str, Any]:
        """Where the stream stands, as JSON values."""
        return {
            "format_version": FORMAT_VERSION,
            "position": self._position,
            "seed": self.seed,
            "fingerprint": self.fingerprint(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state of ``state_dict``, also one of another number of ranks or workers.

        Raises:
            ValueError: The state is of another format, seed, catalog or choice of patches.
        """
        version = state.get("format_version")
        if version != FORMAT_VERSION:
            raise ValueError(
                f"stream state format_version {version}, allowed {FORMAT_VERSION}: another version of online-patching,"
                " which draws other patches, wrote it; use that version, or start at position 0"
            )
        for name, own in (("seed", self.seed), ("fingerprint", self.fingerprint())):
            if state.get(name) != own:
                raise ValueError(
                    f"stream state has {name} {state.get(name)!r}, this stream {own!r}: it would continue with other"
                    " patches; use the same seed, catalog and arguments, or start at position 0"
                )
        self.seek(state.get("position"))

    @property
    def position(self) -> int:
        """Samples consumed, of all shards together."""
        return self._position

    def seek(self, position: object) -> None:
        """Continue at another sample; costs nothing, however far.

        Raises:
            ValueError: It is no position.
        """
        if not isinstance(position, int) or isinstance(position, bool) or position < 0:
            raise ValueError(f"position: got {position!r}, allowed a whole number of at least 0")
        self._position = position

    def metrics(self) -> StreamMetrics:
        """What this stream and its shards did in this process so far; subtract two for what lies between."""
        return self._meter.metrics()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Patches of this shard, from its position on (see the contract for the keys)."""
        batch = self._shard.global_batch_size
        if not self._exists(self._position):
            if self._position and not self._exists(self._position - 1):
                raise ValueError(f"position {self._position}: the stream has fewer patches")
            return
        if self._position % batch:
            raise ValueError(
                f"position {self._position} is not a multiple of global_batch_size {batch}: it would cut a batch"
            )
        indices = self._shard.indices(self._position, self._exists)
        last = time.perf_counter()
        ahead = deque([self._start_chunk(indices, FIRST_PATCHES)])
        try:
            while True:
                asked = time.perf_counter()
                patches = loop.wait_for(ahead.popleft())
                if not patches:
                    return
                self._meter.add(wait_seconds=time.perf_counter() - asked)
                while len(ahead) < CHUNKS_AHEAD:
                    ahead.append(self._start_chunk(indices, CHUNK_PATCHES))
                for number, patch in enumerate(patches, 1):
                    # Advance before handing over: the consumer may never come back for another.
                    index = patch["index"]
                    position = self._shard.position_after(index, is_last=not self._exists(index + 1))
                    while position and not self._exists(position - 1):
                        # The last batch of a stream that ends is short.
                        position -= 1
                    self._position = position
                    now = time.perf_counter()
                    ready = len(patches) - number + CHUNK_PATCHES * sum(chunk.done() for chunk in ahead)
                    self._meter.add(patches=1, seconds=now - last, ready_patches=ready)
                    last = now
                    yield patch
        finally:
            for chunk in ahead:
                chunk.cancel()

    def _start_chunk(self, indices: Iterator[int], patches: int) -> Future[list[dict[str, Any]]]:
        return loop.submit(self._read_some(list(itertools.islice(indices, patches))))

    async def _read_some(self, numbers: Sequence[int]) -> list[dict[str, Any]]:
        return await self._read(numbers) if numbers else []

    def _item(self, sample: Sample, pixels: Pixels) -> dict[str, Any]:
        return {
            "image": pixels,
            "index": sample.index,
            "slide_id": sample.slide_id,
            "x_level0_px": sample.position.x_level0_px,
            "y_level0_px": sample.position.y_level0_px,
            "mpp": sample.mpp,
            "foreground": sample.position.foreground,
            **(self.catalog.values(sample.slide_id, self.columns) if self.columns else {}),
        }


def check_choices(*choices: tuple[str, object, tuple[object, ...]]) -> None:
    """Refuse arguments that are not among those allowed, given as (name, value, allowed).

    Raises:
        ValueError: One is not.
    """
    for name, value, allowed in choices:
        if value not in allowed:
            raise ValueError(f"{name}: got {value!r}, allowed {allowed}")


def _check_columns(catalog: Catalog, columns: Sequence[str]) -> None:
    table = catalog.table()
    for name in columns:
        if name not in table.column_names:
            own = list(catalog.rows.user_columns)
            raise CatalogError(f"{catalog.shown_url}: no catalog column {name!r} (columns of the user: {own})")
        if table[name].null_count:
            number = table[name].is_null().index(True).as_py()
            raise CatalogError(
                f"slide {catalog.rows.value(number, 'id')}: catalog column {name!r} has no value here and in"
                f" {table[name].null_count} slides; give it for every slide when indexing (--metadata)"
            )
