"""How much work did reading take in this process?

Plain counters, for `online-patching bench` and for whoever wants to know where the time goes. Threads add to counters
of their own, so counting costs next to nothing.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, fields

from online_patching.retry import fetch_counts


@dataclass(frozen=True, slots=True)
class ReadCounts:
    """What this process did since it started; subtract two for what lies between.

    Attributes:
        patches: Windows that were asked for.
        tile_uses: Tiles that these windows touch, one by one.
        tiles_planned: Tiles that were asked for: fewer where windows of a batch share them.
        tiles: Tiles that were decoded: those of them that are stored, once they have arrived.
        decode_seconds: CPU time of the decoding threads at work on tiles: decoding, pasting, resizing.
        bytes_needed: Bytes of the tiles that were needed.
        bytes_planned: Bytes that were fetched for them.
        requests: Range requests to remote stores, those for catalogs and headers too.
        bytes_received: Bytes that these brought.
        retries: Requests that had to be repeated.
    """

    patches: int = 0
    tile_uses: int = 0
    tiles_planned: int = 0
    tiles: int = 0
    decode_seconds: float = 0.0
    bytes_needed: int = 0
    bytes_planned: int = 0
    requests: int = 0
    bytes_received: int = 0
    retries: int = 0

    def __sub__(self, earlier: ReadCounts) -> ReadCounts:
        return ReadCounts(*(getattr(self, f.name) - getattr(earlier, f.name) for f in fields(self)))


class _Counters(threading.local):
    def __init__(self) -> None:
        self.tiles = 0
        self.decode_seconds = 0.0
        _of_threads.append(self.__dict__)


# One dictionary a thread that ever decoded; threads of an engine are few.
_of_threads: list[dict[str, float]] = []
_decoded = _Counters()
_planned = {"patches": 0, "tile_uses": 0, "tiles_planned": 0, "bytes_needed": 0, "bytes_planned": 0}


def count_decoded(tiles: int, seconds: float) -> None:
    """Add tiles that the calling thread has decoded."""
    _decoded.tiles += tiles
    _decoded.decode_seconds += seconds


def count_planned(*, patches: int, tile_uses: int, tiles: int, bytes_needed: int, bytes_planned: int) -> None:
    """Add what a batch needs; called on the event loop alone."""
    _planned["patches"] += patches
    _planned["tile_uses"] += tile_uses
    _planned["tiles_planned"] += tiles
    _planned["bytes_needed"] += bytes_needed
    _planned["bytes_planned"] += bytes_planned


def read_counts() -> ReadCounts:
    """The counts of this process so far."""
    fetched = fetch_counts()
    threads = list(_of_threads)
    return ReadCounts(
        **_planned,
        tiles=int(sum(each["tiles"] for each in threads)),
        decode_seconds=sum(each["decode_seconds"] for each in threads),
        requests=fetched.requests,
        bytes_received=fetched.bytes,
        retries=fetched.retries,
    )
