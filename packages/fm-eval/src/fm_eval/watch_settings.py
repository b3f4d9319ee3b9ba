"""Is a curve that goes on measured as it was begun?

`watch.json` in the output folder holds all that decides the numbers. Whoever goes on with other settings is told which
one differs, since one curve has one way of measuring. Called by watch.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fm_eval.errors import ResultError
from fm_eval.result import write_atomically

FORMAT = "fm-eval-watch"
FORMAT_VERSION = 1


def keep_settings(folder: Path, settings: dict[str, Any]) -> None:
    """Write the settings where there are none yet, or hold them against those that are there.

    Args:
        folder: of the curve.
        settings: JSON-able values by name.

    Raises:
        ResultError: another value than before, or a file that holds no settings.
    """
    path = folder / "watch.json"
    if not path.exists():
        content = {"format": FORMAT, "format_version": FORMAT_VERSION, "settings": settings}
        write_atomically(path, json.dumps(content, indent=1) + "\n")
        return
    before = _read(path)
    for key in sorted(settings.keys() | before.keys()):
        if settings.get(key) != before.get(key):
            raise ResultError(
                f"output {folder}: was begun with {key} {before.get(key)!r}, now it is {settings.get(key)!r}; "
                "give another --output, since one curve has one way of measuring"
            )


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        version, settings = content["format_version"], content["settings"]
        if content["format"] != FORMAT or not isinstance(settings, dict) or not isinstance(version, int):
            raise ValueError("other format")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ResultError(
            f"settings {path}: not written by `fm-eval watch` ({error}); give another --output"
        ) from error
    if version > FORMAT_VERSION:
        raise ResultError(f"settings {path}: format_version {version} is newer than {FORMAT_VERSION}; update fm-eval")
    return settings
