"""What can go wrong with an experiment that its user can mend."""

from __future__ import annotations


class ExperimentError(Exception):
    """One line: what, got, allowed, remedy."""
