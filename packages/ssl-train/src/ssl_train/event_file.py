"""How do the numbers of a run reach TensorBoard, without installing it where one trains?

An event file is a row of records (TFRecord: length, checksum, bytes, checksum), each a small protocol buffer; scalars
need four kinds of field of it. `tensorboard --logdir` reads the result.
"""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from lightning_fabric.utilities.rank_zero import rank_zero_only
from pytorch_lightning.loggers import Logger

_CASTAGNOLI = 0x82F63B78
_MASK_DELTA = 0xA282EAD8
_UINT32 = 0xFFFFFFFF


def _crc_table() -> list[int]:
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (_CASTAGNOLI if byte & 1 else 0)
        table.append(byte)
    return table


_CRC_TABLE = _crc_table()


def crc32c(data: bytes) -> int:
    """CRC-32C (RFC 3720, appendix B.4)."""
    crc = _UINT32
    for byte in data:
        crc = crc >> 8 ^ _CRC_TABLE[(crc ^ byte) & 0xFF]
    return crc ^ _UINT32


def record(data: bytes) -> bytes:
    """One TFRecord: length and bytes, each with its masked checksum."""

    def masked(part: bytes) -> bytes:
        crc = crc32c(part)
        return struct.pack("<I", ((crc >> 15 | crc << 17) + _MASK_DELTA) & _UINT32)

    length = struct.pack("<Q", len(data))
    return length + masked(length) + data + masked(data)


def scalars_event(metrics: Mapping[str, float], *, step: int, wall_time: float) -> bytes:
    """The protocol buffer `Event` with a `Summary` of scalars."""
    values = b"".join(
        _field(1, _field(1, name.encode()) + _key(2, 5) + struct.pack("<f", value)) for name, value in metrics.items()
    )
    return _start(wall_time) + _key(2, 0) + _varint(step) + _field(5, values)


def _start(wall_time: float) -> bytes:
    return _key(1, 1) + struct.pack("<d", wall_time)


def _key(number: int, wire_type: int) -> bytes:
    return _varint(number << 3 | wire_type)


def _field(number: int, data: bytes) -> bytes:
    return _key(number, 2) + _varint(len(data)) + data


def _varint(value: int) -> bytes:
    parts = bytearray()
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*parts, value])


class EventFileLogger(Logger):
    """Writes every logged number to a TensorBoard event file.

    Args:
        folder: where the file is made; every start of a run makes one of its own.
    """

    def __init__(self, *, folder: str) -> None:
        super().__init__()
        self._folder = Path(folder)
        self._file: BinaryIO | None = None

    @property
    def name(self) -> str:
        """Name of the folder."""
        return self._folder.name

    @property
    def version(self) -> str:
        """Runs are told apart by their folders."""
        return ""

    @property
    def log_dir(self) -> str:
        """The folder."""
        return str(self._folder)

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Hyperparameters are in the config of the run."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Appends one event; what it holds is in the file when this returns."""
        now = time.time()
        if self._file is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            name = f"events.out.tfevents.{now:.0f}.{socket.gethostname()}.{os.getpid()}.{id(self)}"
            self._file = (self._folder / name).open("wb")
            self._file.write(record(_start(now) + _field(3, b"brain.Event:2")))
        numbers = {name: float(value) for name, value in metrics.items()}
        self._file.write(record(scalars_event(numbers, step=step or 0, wall_time=now)))
        self._file.flush()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Closes the file; a later number would open another."""
        if self._file is not None:
            self._file.close()
            self._file = None
