"""What data does a pickle hold, if nothing in it may run?

A pickle is a program for a small stack machine; `pickle.load` may be made to call anything. The CIFAR batches are
such files, and are fetched from mirrors. Here the program is only read: this machine knows the instructions that
build dicts, lists, tuples, numbers, strings and plain NumPy arrays of numbers, and it looks nothing up. An
instruction or a name beyond those is refused.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from fm_eval.errors import DatasetError

_MARK = object()
_ARRAY_MAKERS = {"numpy.core.multiarray _reconstruct", "numpy._core.multiarray _reconstruct"}
_NAMES = _ARRAY_MAKERS | {"numpy ndarray", "numpy dtype", "_codecs encode"}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_VALUES = {
    "BININT", "BININT1", "BININT2", "LONG1", "LONG", "INT", "BINFLOAT", "FLOAT",
    "BINUNICODE", "SHORT_BINUNICODE", "SHORT_BINSTRING", "BINSTRING", "STRING", "BINBYTES", "SHORT_BINBYTES",
}  # fmt: skip


class _Name:
    """The name of something that would have been imported."""

    def __init__(self, name: str) -> None:
        self.name = name


class _Dtype:
    """A NumPy type that is being built."""

    def __init__(self, code: str) -> None:
        self.code = code


class _Array:
    """A NumPy array that is being built."""

    content: np.ndarray[Any, Any] | None = None


def read_pickled_data(path: Path) -> dict[str, Any]:
    """Parse a pickle that holds one dict of plain data.

    Strings of Python 2 come back as str, by Latin-1.

    Returns:
        The dict; its values are NumPy arrays, lists, tuples, dicts, str, bytes, int, float, bool or None.

    Raises:
        DatasetError: not a pickle, or one that holds more than data.
    """
    try:
        content = _run(path.read_bytes())
        if not isinstance(content, dict):
            raise DatasetError(f"holds {type(content).__name__}, expected a dict")
        return {str(key): _finished(value) for key, value in content.items()}
    except DatasetError as error:
        raise DatasetError(f"file {path}: {error}") from None
    except (OSError, ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        reason = " ".join(str(error).split())[:100]
        raise DatasetError(f"file {path}: not a whole pickle of plain data ({reason})") from error


def _run(program: bytes) -> Any:
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    argument: Any
    for instruction, argument, position in pickletools.genops(program):
        name = instruction.name
        if name in _VALUES:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in {"BINPUT", "LONG_BINPUT", "PUT"}:
            memo[int(argument)] = stack[-1]
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in {"BINGET", "LONG_BINGET", "GET"}:
            stack.append(memo[int(argument)])
        elif name in {"GLOBAL", "STACK_GLOBAL"}:
            stack.append(_name(argument if name == "GLOBAL" else " ".join(reversed([stack.pop(), stack.pop()]))))
        elif name in _STEPS:
            _STEPS[name](stack)
        elif name == "STOP":
            [result] = stack
            return result
        elif name not in {"PROTO", "FRAME"}:
            raise DatasetError(f"instruction {name} at byte {position} is not one of plain data")
    raise ValueError("it ends early")


def _name(name: str) -> _Name:
    if name not in _NAMES:
        raise DatasetError(f"refused: it asks for {name.replace(' ', '.')!r}, which is not plain data")
    return _Name(name)


def _since_mark(stack: list[Any]) -> list[Any]:
    start = len(stack) - 1 - stack[::-1].index(_MARK)
    items = stack[start + 1 :]
    del stack[start:]
    return items


def _tuple_of(count: int) -> Callable[[list[Any]], None]:
    def step(stack: list[Any]) -> None:
        items = tuple(stack[len(stack) - count :])
        del stack[len(stack) - count :]
        stack.append(items)

    return step


def _set_items(stack: list[Any]) -> None:
    items = _since_mark(stack)
    stack[-1].update(zip(items[::2], items[1::2], strict=True))


def _set_item(stack: list[Any]) -> None:
    value, key = stack.pop(), stack.pop()
    stack[-1][key] = value


def _append(stack: list[Any]) -> None:
    value = stack.pop()
    stack[-1].append(value)


def _extend(stack: list[Any]) -> None:
    items = _since_mark(stack)
    stack[-1].extend(items)


def _dict(stack: list[Any]) -> None:
    items = _since_mark(stack)
    stack.append(dict(zip(items[::2], items[1::2], strict=True)))


def _call(stack: list[Any]) -> None:
    """What would have been a call: only the ones that make an array, its type and bytes."""
    arguments, called = stack.pop(), stack.pop()
    name = called.name
    if name in _ARRAY_MAKERS:
        stack.append(_Array())
    elif name == "numpy dtype":
        stack.append(_Dtype(arguments[0]))
    elif name == "_codecs encode" and arguments[1:] == ("latin1",):
        stack.append(arguments[0].encode("latin-1"))
    else:
        raise DatasetError(f"refused: a call of {name.replace(' ', '.')!r}")


def _build(stack: list[Any]) -> None:
    """Fill the array or type on the stack with its state."""
    state = stack.pop()
    built = stack[-1]
    if isinstance(built, _Dtype):
        built.code = state[1].replace("|", "") + built.code
        return
    _, shape, dtype, fortran, content = state
    kind = np.dtype(dtype.code)
    if kind.kind not in "biuf":
        raise DatasetError(f"refused: an array of {kind}, not of numbers")
    raw = content.encode("latin-1") if isinstance(content, str) else content
    built.content = np.frombuffer(raw, kind).reshape(shape, order="F" if fortran else "C")


def _finished(value: Any) -> Any:
    """The array that was built, or what is plain already.

    Lists are not searched: shared parts may make them endless. Their readers ask for numbers or strings.
    """
    if isinstance(value, _Array):
        if value.content is None:
            raise ValueError("an array has no content")
        return value.content
    if isinstance(value, _Name | _Dtype) or value is _MARK:
        raise ValueError("a name stands where data is expected")
    return value


_STEPS: dict[str, Callable[[list[Any]], None]] = {
    "MARK": lambda stack: stack.append(_MARK),
    "EMPTY_DICT": lambda stack: stack.append({}),
    "EMPTY_LIST": lambda stack: stack.append([]),
    "EMPTY_TUPLE": lambda stack: stack.append(()),
    "TUPLE": lambda stack: stack.append(tuple(_since_mark(stack))),
    "TUPLE1": _tuple_of(1),
    "TUPLE2": _tuple_of(2),
    "TUPLE3": _tuple_of(3),
    "LIST": lambda stack: stack.append(_since_mark(stack)),
    "DICT": _dict,
    "SETITEM": _set_item,
    "SETITEMS": _set_items,
    "APPEND": _append,
    "APPENDS": _extend,
    "REDUCE": _call,
    "BUILD": _build,
}
