"""How did speed and memory change over versions? Benchmark files of any of the three packages, side by side.

A benchmark file is JSON with `format_version`, `benchmark` (its name) and `results`; its figures may be nested as they
like. Figures of the same place in files of the same benchmark are one row of a table, a column a file in the order
given, with the change from the first to the last. Before: page. After: report.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from fm_eval.errors import ReportError
from fm_eval.page import Section, note, table

FORMAT_VERSION = 1
_MOST_FIGURES = 60
# What tells the entries of a list apart, in this order.
_NAMES = ("name", "case", "metric", "reader", "setting", "mode", "model", "protocol")


@dataclass(frozen=True, slots=True)
class Benchmark:
    """One file.

    Attributes:
        label: file name without suffix, and the version or commit that it states.
        name: of the benchmark.
        figures: every number by its place in the file.
    """

    label: str
    name: str
    figures: dict[str, float]


def is_benchmark(path: str | Path) -> bool:
    """Whether a file says that it is one."""
    content = _content(path)
    return content is not None and "benchmark" in content and "format" not in content


def read_benchmark(path: str | Path) -> Benchmark:
    """Read a benchmark file.

    Raises:
        ReportError: not such a file, a newer format version, or no figures.
    """
    content = _content(path) or {}
    version = content.get("format_version")
    if not isinstance(version, int) or not isinstance(content.get("benchmark"), str):
        raise ReportError(f"benchmark {path}: has no format_version or no name of a benchmark; run it again")
    if version > FORMAT_VERSION:
        raise ReportError(f"benchmark {path}: format_version {version} is newer than {FORMAT_VERSION}; update fm-eval")
    figures = dict(_numbers(content.get("results")))
    if not figures:
        raise ReportError(f"benchmark {path}: no figures under 'results'; run it again")
    stated = [str(content[key]) for key in ("version", "git_commit") if isinstance(content.get(key), str)]
    label = " ".join([Path(path).stem, *(text[:12] for text in stated)])
    return Benchmark(label, content["benchmark"], figures)


def benchmark_section(files: Sequence[Benchmark]) -> Section:
    """A table for each benchmark."""
    parts = []
    for name in dict.fromkeys(one.name for one in files):
        versions = [one for one in files if one.name == name]
        places = list(dict.fromkeys(place for one in versions for place in one.figures))
        rows = [
            [
                escape(place),
                *("none" if place not in one.figures else f"{one.figures[place]:.6g}" for one in versions),
                *([_change(versions, place)] if len(versions) > 1 else []),
            ]
            for place in places[:_MOST_FIGURES]
        ]
        head = ["Figure", *(escape(one.label) for one in versions), *(["change"] if len(versions) > 1 else [])]
        parts.append(table(f"Benchmark {name}", head, rows))
        if len(places) > _MOST_FIGURES:
            parts.append(note(f"{len(places) - _MOST_FIGURES} more figures are in the files."))
    text = "Files in the order given; the change is from the first to the last of them. Mind the machine they ran on."
    return Section("benchmarks", "Benchmarks", note(text) + "".join(parts) if parts else "")


def _change(versions: Sequence[Benchmark], place: str) -> str:
    first, last = versions[0].figures.get(place), versions[-1].figures.get(place)
    return f"{last / first - 1:+.1%}" if first and last is not None else "none"


def _numbers(content: Any, place: str = "") -> Iterator[tuple[str, float]]:
    """Every number with its place: keys joined by dots, entries of a list by what names them."""
    if isinstance(content, dict):
        for key, value in content.items():
            yield from _numbers(value, f"{place}.{key}" if place else str(key))
    elif isinstance(content, list):
        for number, value in enumerate(content):
            named = [str(value[key]) for key in _NAMES if key in value] if isinstance(value, dict) else []
            yield from _numbers(value, f"{place}[{' '.join(named) or number}]")
    elif isinstance(content, int | float) and not isinstance(content, bool):
        yield place or "value", float(content)


def _content(path: str | Path) -> dict[str, Any] | None:
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError):
        return None
    return content if isinstance(content, dict) else None
