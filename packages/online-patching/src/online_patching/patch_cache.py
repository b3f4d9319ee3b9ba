"""Where are the patches of a limited data set kept between its epochs?

``PatchCache`` is one SQLite file on the local disk, shared by all processes of a machine: whoever draws a patch first
puts it in, and everybody finds it from then on. It is an accelerator and nothing else: what is not in it (yet, or
because it is full) is read from the slides again, and is the same. A process that is killed leaves nothing half-written
(SQLite's write-ahead log), and pixels are checked against their checksum when they come back.

Pixels are kept as they are, by Zstandard at its lowest level: half of the bytes, and 0.4 ms to get back 256 x 256 px,
where PNG takes 2.9 ms and saves another seventh.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import threading
import time
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np

from online_patching.decode import Pixels
from online_patching.sampler import Sample
from online_patching.sampling import Position

log = logging.getLogger(__name__)

FORMAT_VERSION = 1
PAGE_BYTES = 8192
# Its log is merged into the file at this size; what a cache takes on the disk beyond its bound.
LOG_PAGES = 1024
# Another process holds the file for milliseconds; a dead one not at all.
BUSY_SECONDS = 30.0
ZSTD_LEVEL = 1
# SQLite takes so many values a question on every build.
NUMBERS_AT_ONCE = 500

_TABLE = """
CREATE TABLE IF NOT EXISTS patches (
    number INTEGER PRIMARY KEY, attempt INTEGER, slide_id TEXT, mpp REAL,
    x_level0_px INTEGER, y_level0_px INTEGER, foreground REAL, checksum INTEGER, pixels BLOB
)
"""


class PatchCache:
    """Patches by sample number, in one file.

    Args:
        folder: On a local disk (SQLite's locks do not hold on network file systems); made where it does not exist.
        name: Of all that decides which patch a number is; caches of other names do not mix.
        size_px: Side of the patches.
        max_bytes: Of the file; beyond it nothing is added.

    A file that is damaged or cannot be written is told in the log, and the cache goes without it.
    """

    def __init__(self, folder: str | Path, *, name: str, size_px: int, max_bytes: int) -> None:
        if max_bytes < 1:
            raise ValueError(f"cache: got at most {max_bytes} bytes, allowed at least 1")
        if "://" in str(folder):
            raise ValueError(f"cache: got {folder!s}, allowed a folder on a local disk")
        self.path = Path(folder).expanduser() / f"patches-{name}.sqlite"
        self.size_px = size_px
        self.max_bytes = max_bytes
        self._forget()

    def _forget(self) -> None:
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._pid = os.getpid()
        self._is_off = self._is_full = False

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "size_px": self.size_px, "max_bytes": self.max_bytes}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()

    def read(self, numbers: Sequence[int]) -> dict[int, tuple[Sample, Pixels]]:
        """Those of some patches that are kept, by their numbers; blocks for milliseconds."""
        found: dict[int, tuple[Sample, Pixels]] = {}
        for start in range(0, len(numbers), NUMBERS_AT_ONCE):
            some = numbers[start : start + NUMBERS_AT_ONCE]
            query = f"SELECT * FROM patches WHERE number IN ({','.join('?' * len(some))})"  # noqa: S608 (marks alone)
            for row in self._do(lambda connection, q=query, n=some: connection.execute(q, n).fetchall()) or []:
                number, attempt, slide_id, mpp, x, y, foreground, checksum, stored = row
                pixels = self._pixels(stored, checksum)
                if pixels is None:
                    log.warning("%s: patch %d is damaged; it is read from its slide again", self.path, number)
                    continue
                found[number] = Sample(number, attempt, slide_id, mpp, Position(x, y, foreground)), pixels
        return found

    def write(self, patches: Mapping[int, tuple[Sample, Pixels]]) -> None:
        """Keep some patches by their numbers, all or none of them; blocks for milliseconds."""
        if not patches or self._is_full:
            return
        rows = []
        for number, (sample, pixels) in patches.items():
            stored = imagecodecs.zstd_encode(pixels.tobytes(), level=ZSTD_LEVEL)
            at = sample.position
            facts = sample.attempt, sample.slide_id, sample.mpp, at.x_level0_px, at.y_level0_px, at.foreground
            rows.append((number, *facts, zlib.crc32(stored), stored))

        def insert(connection: sqlite3.Connection) -> None:
            with connection:
                connection.executemany("INSERT OR REPLACE INTO patches VALUES (?,?,?,?,?,?,?,?,?)", rows)

        self._do(insert)

    def close(self) -> None:
        """Let go of the file; a later use opens it anew."""
        with self._lock:
            if self._connection is not None and self._pid == os.getpid():
                self._connection.close()
            self._connection = None

    def _pixels(self, stored: bytes, checksum: int) -> Pixels | None:
        if zlib.crc32(stored) != checksum:
            return None
        data = imagecodecs.zstd_decode(stored)
        shape = self.size_px, self.size_px, 3
        # Copied: what a stream hands over can be written to.
        return np.frombuffer(data, np.uint8).reshape(shape).copy() if len(data) == np.prod(shape) else None

    def _do(self, work: Any) -> Any:
        """Call with the connection; what goes wrong with the file turns the cache off for this process."""
        if self._pid != os.getpid():
            # A connection must not be used, nor closed, in a forked child.
            _inherited.append(self._connection)
            self._forget()
        with self._lock:
            if self._is_off:
                return None
            try:
                self._connection = self._connection or self._connect()
                return work(self._connection)
            except sqlite3.Error as error:
                if "full" in str(error):
                    self._is_full = True
                    log.warning("%s takes no more patches: %d bytes allowed (%s)", self.path, self.max_bytes, error)
                    return None
                self._give_up(error)
            except OSError as error:
                self._give_up(error)
        return None

    def _give_up(self, error: Exception) -> None:
        self._is_off = True
        log.warning(
            "the patch cache %s cannot be used (%s): patches are read from their slides; delete it if it is damaged",
            *(self.path, error),
        )

    def _connect(self) -> sqlite3.Connection:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(self.path, timeout=BUSY_SECONDS, check_same_thread=False)
        try:
            connection.execute(f"PRAGMA page_size={PAGE_BYTES}")
            _switch_to_log(connection)
            # A power cut may lose the newest patches, but not damage the file.
            connection.execute("PRAGMA synchronous=NORMAL")
            connection.execute(f"PRAGMA wal_autocheckpoint={LOG_PAGES}")
            connection.execute(f"PRAGMA journal_size_limit={LOG_PAGES * PAGE_BYTES}")
            connection.execute(f"PRAGMA max_page_count={max(self.max_bytes // PAGE_BYTES, 2)}")
            with connection:
                connection.execute(_TABLE)
                (version,) = connection.execute("PRAGMA user_version").fetchone()
                if version not in (0, FORMAT_VERSION):
                    raise sqlite3.DatabaseError(f"format_version {version}, allowed {FORMAT_VERSION}")
                connection.execute(f"PRAGMA user_version={FORMAT_VERSION}")
        except BaseException:
            connection.close()
            raise
        return connection


# Of the parents of this process; kept, because collecting one would close it.
_inherited: list[sqlite3.Connection | None] = []


def _switch_to_log(connection: sqlite3.Connection) -> None:
    """SQLite answers "locked" at once, without waiting, when two processes switch a new file at the same time."""
    for pause_s in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5):
        with contextlib.suppress(sqlite3.OperationalError):
            connection.execute("PRAGMA journal_mode=WAL")
            return
        time.sleep(pause_s)
    connection.execute("PRAGMA journal_mode=WAL")
