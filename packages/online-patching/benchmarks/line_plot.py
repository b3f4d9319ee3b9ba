"""How is a curve shown without a plotting library? As an SVG of lines, axes and a legend."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

_WIDTH, _HEIGHT = 720, 420
_LEFT, _RIGHT, _TOP, _BOTTOM = 80, 20, 50, 60
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
_TICKS = 6

Points = Sequence[tuple[float, float]]


def write_line_plot(
    path: Path,
    *,
    title: str,
    x_label: str,
    y_label: str,
    lines: Mapping[str, Points],
    log2_x: bool = False,
) -> None:
    """Write an SVG with one line a name.

    Args:
        path: The file.
        title: Above the plot.
        x_label: Below the x axis.
        y_label: Beside the y axis, which starts at 0.
        lines: (x, y) points by name.
        log2_x: Powers of two at equal distances on the x axis.

    Raises:
        ValueError: No point at all.
    """
    points = [point for line in lines.values() for point in line]
    if not points:
        raise ValueError(f"{path}: nothing to plot")
    warp = math.log2 if log2_x else float
    least, greatest = min(warp(x) for x, _ in points), max(warp(x) for x, _ in points)
    step = _nice_step(max(y for _, y in points) or 1.0)
    top = step * math.ceil((max(y for _, y in points) or 1.0) / step)

    def place(x: float, y: float) -> tuple[float, float]:
        along = (warp(x) - least) / ((greatest - least) or 1)
        return (
            _LEFT + along * (_WIDTH - _LEFT - _RIGHT),
            _HEIGHT - _BOTTOM - y / top * (_HEIGHT - _TOP - _BOTTOM),
        )

    marks = [_text(_WIDTH / 2, 24, title, size=15), _text(_WIDTH / 2, _HEIGHT - 14, x_label)]
    marks.append(_text(18, _HEIGHT / 2, y_label, extra=f' transform="rotate(-90 18 {_HEIGHT / 2})"'))
    for number in range(round(top / step) + 1):
        _, height = place(points[0][0], number * step)
        marks.append(f'<path d="M{_LEFT} {height:.1f}H{_WIDTH - _RIGHT}" stroke="#ddd"/>')
        marks.append(_text(_LEFT - 8, height + 4, f"{number * step:,.6g}", anchor="end"))
    ticks = sorted({x for x, _ in points})
    shown = ticks[:: math.ceil(len(ticks) / 10)]
    marks += [_text(place(x, 0)[0], _HEIGHT - _BOTTOM + 18, f"{x:,.6g}") for x in shown]
    for number, (name, line) in enumerate(lines.items()):
        marks += _line(name, [place(x, y) for x, y in sorted(line)], number)
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{_HEIGHT}" font-family="sans-serif">'
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([head, '<rect width="100%" height="100%" fill="white"/>', *marks, "</svg>", ""]))


def _line(name: str, places: Points, number: int) -> list[str]:
    colour = _COLOURS[number % len(_COLOURS)]
    track = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    marks = [f'<polyline points="{track}" fill="none" stroke="{colour}" stroke-width="2"/>']
    if len(places) <= 20:
        marks += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in places]
    return [*marks, _text(_LEFT + 10, _TOP + 4 + 18 * number, name, anchor="start", extra=f' fill="{colour}"')]


def _text(x: float, y: float, text: str, *, size: int = 12, anchor: str = "middle", extra: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}"{extra}>{escape(text)}</text>'


def _nice_step(greatest: float) -> float:
    """1, 2 or 5 times a power of ten, so that about ``_TICKS`` steps reach the greatest value."""
    raw = greatest / _TICKS
    power = 10.0 ** math.floor(math.log10(raw))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw)
