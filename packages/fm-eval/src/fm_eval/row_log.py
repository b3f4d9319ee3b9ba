"""How do embedding rows survive a crash, whenever it comes?

One file to which rows are appended, a batch at a time: the image's sha256, K float32 values, a checksum of both. A
batch is on the disk when `append` returns. Opening reads what is whole and cuts off what is not: the row that a
crash tore, and rows whose checksum is wrong.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, Self

import numpy as np
from numpy.typing import NDArray

# a file begins with this and K, so that a log of another width is not misread
_HEADER = np.dtype([("magic", "S8"), ("dim", "<u4")])
_MAGIC = b"fmerows1"


def _row_type(dim: int) -> np.dtype[Any]:
    return np.dtype([("sha256", "V32"), ("values", "<f4", (dim,)), ("crc", "<u4")])


class RowLog:
    """Append-only rows by image digest; a context manager.

    Args:
        path: file; made with the first batch.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: IO[bytes] | None = None
        self._dim: int | None = None
        self._rows: dict[str, NDArray[np.float32]] = {}

    def __enter__(self) -> Self:
        if self.path.is_file():
            self._recover()
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, digest: str) -> bool:
        return digest in self._rows

    def __getitem__(self, digest: str) -> NDArray[np.float32]:
        return self._rows[digest]

    def append(self, digests: Sequence[str], values: NDArray[np.float32]) -> None:
        """Write a batch and wait until the disk has it.

        Args:
            digests: B hexadecimal sha256.
            values: float32 (B, K), the same K each time.
        """
        if self._file is None or self._dim != values.shape[1]:
            self._begin(values.shape[1])
        assert self._file is not None, "begun"
        rows = np.zeros(len(values), _row_type(values.shape[1]))
        rows["sha256"] = np.frombuffer(bytes.fromhex("".join(digests)), "V32")
        rows["values"] = values
        rows["crc"] = [zlib.crc32(row.tobytes()[:-4]) for row in rows]
        self._file.write(rows.tobytes())
        self._file.flush()
        os.fsync(self._file.fileno())
        self._rows.update(zip(digests, values, strict=True))

    def keep(self, count: int) -> None:
        """Drop all rows but the first `count`."""
        if count >= len(self._rows):
            return
        assert self._file is not None, "rows lie in a file"
        assert self._dim is not None, "of a width"
        self._rows = dict(list(self._rows.items())[:count])
        self._file.truncate(_HEADER.itemsize + count * _row_type(self._dim).itemsize)
        self._file.seek(0, os.SEEK_END)

    def delete(self) -> None:
        """Remove the file: its rows are elsewhere."""
        if self._file is not None:
            self._file.close()
            self._file = None
        self.path.unlink(missing_ok=True)

    def _begin(self, dim: int) -> None:
        if self._file is not None:
            self._file.close()
        self._rows, self._dim = {}, dim
        self._file = self.path.open("wb")
        self._file.write(np.array([(_MAGIC, dim)], _HEADER).tobytes())

    def _recover(self) -> None:
        content = self.path.read_bytes()
        if len(content) < _HEADER.itemsize or not content.startswith(_MAGIC):
            return
        self._dim = int(np.frombuffer(content[: _HEADER.itemsize], _HEADER)["dim"][0])
        kind = _row_type(self._dim)
        count = (len(content) - _HEADER.itemsize) // kind.itemsize
        rows = np.frombuffer(content, kind, count=count, offset=_HEADER.itemsize)
        for whole, row in enumerate(rows):
            if zlib.crc32(row.tobytes()[:-4]) != row["crc"]:
                count = whole
                break
            self._rows[bytes(row["sha256"]).hex()] = row["values"]
        self._file = self.path.open("r+b")
        self._file.truncate(_HEADER.itemsize + count * kind.itemsize)
        self._file.seek(0, os.SEEK_END)
