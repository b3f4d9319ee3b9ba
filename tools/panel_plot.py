"""How are curves and outcomes of experiments drawn? As one SVG of panels side by side, without a plotting library.

`Panel` is one plot with axes: marks are dots, with a bar for their spread, joined to a line where they are a curve.
Colours are told apart by colour-blind readers, and every series has a shape of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html import escape

_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#56b4e9", "#000000", "#8c6bb1")
_WIDTH, _HEIGHT = 360, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 14, 34, 50
_LEGEND_LINE = 18
_NO_SPREAD = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """Dots of one colour.

    Attributes:
        name: in the legend.
        x: where; numbers of the panel's categories where it has some.
        y: how high.
        spread: half of the bar at each dot.
        joined: by a line.
        hollow: what is not measured here.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    spread: Sequence[float] = ()
    joined: bool = False
    hollow: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One plot.

    Attributes:
        title: above it.
        x_label: below it.
        y_label: beside it.
        series: what it shows.
        categories: words below the x axis in place of numbers.
    """

    title: str
    x_label: str
    y_label: str
    series: Sequence[Series]
    categories: Sequence[str] = field(default_factory=tuple)


def render(panels: Sequence[Panel], *, title: str) -> str:
    """The panels side by side, three in a row, with one legend.

    Returns:
        The text of an SVG file.
    """
    per_row = min(3, max(1, len(panels)))
    names = list(dict.fromkeys(series.name for panel in panels for series in panel.series))
    hollow = {series.name for panel in panels for series in panel.series if series.hollow}
    colour_of = {name: number for number, name in enumerate(names)}
    longest = max((len(word) for panel in panels for word in panel.categories), default=0)
    height = _HEIGHT + 6 * longest
    rows = math.ceil(len(panels) / per_row)
    width, legend_top = per_row * _WIDTH, 30 + rows * height
    total = legend_top + 12 + _LEGEND_LINE * len(names)
    parts = [_text(12, 20, title, anchor="start", size=15)]
    for number, panel in enumerate(panels):
        row, column = divmod(number, per_row)
        drawn = _panel(panel, colour_of, height)
        parts.append(f'<g transform="translate({column * _WIDTH} {30 + row * height})">{"".join(drawn)}</g>')
    for name, number in colour_of.items():
        y = legend_top + _LEGEND_LINE * number
        parts += [_mark(24, y, number, hollow=name in hollow), _text(38, y + 4, name, anchor="start")]
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {total}" width="{width}" height="{total}" '
        f'font-family="sans-serif" role="img" aria-label="{escape(title, quote=True)}">'
    )
    return "\n".join([head, '<rect width="100%" height="100%" fill="white"/>', *parts, "</svg>", ""])


def _panel(panel: Panel, colour_of: dict[str, int], height: int) -> list[str]:
    lows, highs = [], []
    for series in panel.series:
        for y, spread in zip(series.y, _spreads(series), strict=True):
            lows.append(y - spread)
            highs.append(y + spread)
    bottom = height - _BOTTOM - (height - _HEIGHT)
    y_ticks = ticks(min(lows, default=0), max(highs, default=1))
    place_y = _scale(y_ticks[0], y_ticks[-1], bottom, _TOP)
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts = [_text(middle, 18, panel.title, size=13), _text(middle, bottom + 38, panel.x_label)]
    parts.append(
        f'<text transform="translate(13 {(bottom + _TOP) / 2:.0f}) rotate(-90)" text-anchor="middle" '
        f'font-size="12">{escape(panel.y_label)}</text>'
    )
    for tick in y_ticks:
        y = place_y(tick)
        parts.append(f'<path d="M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}" stroke="#ddd"/>')
        parts.append(_text(_LEFT - 6, y + 4, f"{tick:.6g}", anchor="end", size=11))
    place_x = _x_axis(panel, bottom, parts)
    for series in panel.series:
        places = [(place_x(x), place_y(y)) for x, y in zip(series.x, series.y, strict=True)]
        number = colour_of[series.name]
        colour = _COLOURS[number % len(_COLOURS)]
        if series.joined and len(places) > 1:
            track = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
            dashes = ' stroke-dasharray="5 4"' if series.hollow else ""
            parts.append(f'<polyline points="{track}" fill="none" stroke="{colour}" stroke-width="1.5"{dashes}/>')
        for (x, y), value, spread in zip(places, series.y, _spreads(series), strict=True):
            if spread:
                parts.append(
                    f'<path d="M{x:.1f} {place_y(value - spread):.1f}V{place_y(value + spread):.1f}" '
                    f'stroke="{colour}" stroke-width="1.5"/>'
                )
            parts.append(_mark(x, y, number, hollow=series.hollow))
    return parts


def _x_axis(panel: Panel, bottom: float, parts: list[str]) -> Callable[[float], float]:
    left, right = _LEFT + 16.0, _WIDTH - _RIGHT - 16.0
    if panel.categories:
        place = _scale(0, max(1, len(panel.categories) - 1), left, right)
        for number, word in enumerate(panel.categories):
            x = place(number)
            parts.append(
                f'<text transform="translate({x + 4:.1f} {bottom + 10:.1f}) rotate(-60)" text-anchor="end" '
                f'font-size="11">{escape(word)}</text>'
            )
        return place
    values = [x for series in panel.series for x in series.x]
    found = ticks(min(values, default=0), max(values, default=1))
    place = _scale(found[0], found[-1], left, right)
    parts += [_text(place(tick), bottom + 18, f"{tick:.6g}", size=11) for tick in found]
    return place


def ticks(low: float, high: float) -> list[float]:
    """Three to eight round numbers that span [low, high]."""
    span = max(high - low, abs(high) * 1e-3, 1e-3)
    power = 10.0 ** math.floor(math.log10(span / 4))
    step = next(factor * power for factor in (1, 2, 5, 10) if span / (factor * power) <= 6)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, 10) for number in range(first, max(last, first + 1) + 1)]


def _spreads(series: Series) -> Sequence[float]:
    return series.spread or [_NO_SPREAD] * len(series.y)


def _scale(low: float, high: float, at_low: float, at_high: float) -> Callable[[float], float]:
    return lambda value: at_low + (value - low) / ((high - low) or 1) * (at_high - at_low)


def _mark(x: float, y: float, number: int, *, hollow: bool) -> str:
    colour = _COLOURS[number % len(_COLOURS)]
    paint = f'fill="{"white" if hollow else colour}" stroke="{colour}" stroke-width="1.5"'
    shape = number % 3
    if shape == 0:
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" {paint}/>'
    if shape == 1:
        return f'<rect x="{x - 3.6:.1f}" y="{y - 3.6:.1f}" width="7.2" height="7.2" {paint}/>'
    return f'<path d="M{x:.1f} {y - 5:.1f}l4.6 8h-9.2z" {paint}/>'


def _text(x: float, y: float, text: str, *, anchor: str = "middle", size: int = 12) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}">{escape(text)}</text>'
