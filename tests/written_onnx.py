"""ONNX files of one operation, written byte by byte: what a test needs of a user's network without any ONNX library.

Source of the field numbers: onnx.proto3 of the ONNX project.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _bytes(field: int, value: bytes | str) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return _varint(field << 3 | 2) + _varint(len(raw)) + raw


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def _tensor(name: str, shape: Sequence[int | str]) -> bytes:
    dims = b"".join(_bytes(1, _number(1, n) if isinstance(n, int) else _bytes(2, n)) for n in shape)
    return _bytes(1, name) + _bytes(2, _bytes(1, _number(1, 1) + _bytes(2, dims)))


def write_network(path: Path, operation: str, *, axes: Sequence[int] = ()) -> Path:
    """Writes a network ``image`` (1, 3, height, width) -> `operation` -> ``tissue``; `axes` are reduced and kept."""
    node = _bytes(1, "image") + _bytes(2, "tissue") + _bytes(3, "node") + _bytes(4, operation)
    if axes:
        node += _bytes(5, _bytes(1, "axes") + b"".join(_number(8, axis) for axis in axes) + _number(20, 7))
        node += _bytes(5, _bytes(1, "keepdims") + _number(3, 1) + _number(20, 2))
    channels = 1 if axes else 3
    graph = _bytes(1, node) + _bytes(2, "graph") + _bytes(11, _tensor("image", (1, 3, "height", "width")))
    graph += _bytes(12, _tensor("tissue", (1, channels, "height", "width")))
    path.write_bytes(_number(1, 7) + _bytes(7, graph) + _bytes(8, _bytes(1, "") + _number(2, 12)))
    return path
