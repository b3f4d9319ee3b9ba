from __future__ import annotations

import struct
from pathlib import Path

import pytest
from ssl_train import EventFileLogger
from ssl_train.event_file import crc32c, record, scalars_event


def test_checksum_of_the_standard() -> None:
    # RFC 3720, appendix B.4, and the check value of the catalogue of CRC algorithms.
    assert crc32c(bytes(32)) == 0x8A9136AA
    assert crc32c(b"\xff" * 32) == 0x62A8AB43
    assert crc32c(b"123456789") == 0xE3069283


def test_an_event_byte_by_byte() -> None:
    got = scalars_event({"loss": 2.0}, step=300, wall_time=1.5)
    wall_time = b"\x09" + struct.pack("<d", 1.5)
    step = b"\x10\xac\x02"  # 300 as a varint
    value = b"\x0a\x04loss" + b"\x15" + struct.pack("<f", 2.0)
    assert got == wall_time + step + b"\x2a\x0d" + b"\x0a\x0b" + value


def records(content: bytes) -> list[bytes]:
    found = []
    while content:
        (length,) = struct.unpack("<Q", content[:8])
        data = content[12 : 12 + length]
        assert content[: 16 + length] == record(data)
        found.append(data)
        content = content[16 + length :]
    return found


def test_every_number_is_in_the_file_at_once(tmp_path: Path) -> None:
    logger = EventFileLogger(folder=str(tmp_path / "logs"))
    assert not (tmp_path / "logs").exists()
    logger.log_metrics({"loss": 1.0, "rankme": 7.5}, step=1)
    logger.log_metrics({"loss": 0.5}, step=2)
    (path,) = (tmp_path / "logs").iterdir()
    assert path.name.startswith("events.out.tfevents.")
    start, first, second = records(path.read_bytes())
    assert start.endswith(b"brain.Event:2")
    assert b"loss" in first
    assert b"rankme" in first
    assert struct.pack("<f", 7.5) in first
    assert second.endswith(struct.pack("<f", 0.5))
    logger.finalize("success")


def test_the_records_are_those_that_tensorboard_reads(tmp_path: Path) -> None:
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    logger = EventFileLogger(folder=str(tmp_path))
    for step in range(3):
        logger.log_metrics({"loss": step / 4}, step=step * 1000)
    logger.finalize("success")
    read = reader.EventAccumulator(str(tmp_path)).Reload()
    assert [(event.step, event.value) for event in read.Scalars("loss")] == [(0, 0.0), (1000, 0.25), (2000, 0.5)]
