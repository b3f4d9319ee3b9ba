"""Where are embeddings and digests kept, if the user says nothing?

In `fm-eval` below `$XDG_CACHE_HOME`, which is `~/.cache` by default. Everything there can be made again.
"""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder(given: str) -> Path | None:
    """The folder that a setting means.

    Args:
        given: a folder, `auto` for the user's own, or `none`.
    """
    if given == "none":
        return None
    if given != "auto":
        return Path(given)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "fm-eval"
