"""A lock that a forked child finds free, whoever held it in the parent: that thread does not exist in the child."""

from __future__ import annotations

import os
import threading


class ForkLock:
    """A lock for a module, which lives as long as the process."""

    def __init__(self) -> None:
        self._renew()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._renew)

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def _renew(self) -> None:
        self._lock = threading.Lock()
