"""Which errors are this package's own? Everything else that a user can cause is a ValueError."""

from __future__ import annotations


class UnhealthyRunError(RuntimeError):
    """A watch over the training ended it: the numbers say that going on is waste. The last checkpoint is good."""
