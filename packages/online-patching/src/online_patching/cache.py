"""What is kept of recently used slides, without a lock that a fork could leave held?"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class BoundedCache(Generic[K, V]):
    """The most recently used values, up to a number.

    Every step is one atomic dictionary operation: two threads may at worst make the same value twice.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._values: OrderedDict[K, V] = OrderedDict()

    def get(self, key: K, make: Callable[[], V]) -> V:
        """The kept value, or a new one from ``make``."""
        try:
            value = self._values.pop(key)
        except KeyError:
            value = make()
        self._values[key] = value
        while len(self._values) > self._capacity:
            self._values.popitem(last=False)
        return value

    def peek(self, key: K) -> V | None:
        """The kept value, or None; for callers that cannot make it at once."""
        try:
            value = self._values.pop(key)
        except KeyError:
            return None
        self._values[key] = value
        return value
