"""How are points and intervals drawn without a plotting library?

Two figures as SVG text that takes its colours from the page's CSS variables, so that it follows dark and
light: `strip_chart` (one row a model, a dot a run, mean and spread) and `scatter` (embedding plot, coloured
by class). Called by report.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from fm_eval.compare import Estimate

# Variables of the page, since dark and light need other ones: eight that colour-blind readers can tell apart.
_PALETTE = 8


def class_colour(number: int) -> str:
    """Colour of a class or series as a CSS value: from the page's palette, then evenly turned hues."""
    return f"var(--c{number})" if number < _PALETTE else f"hsl({(number * 137.508) % 360:.0f} 60% 50%)"


def strip_chart(rows: Sequence[tuple[str, Estimate, Sequence[float]]], *, unit: str) -> str:
    """Dots, mean and spread of each row on one axis.

    Args:
        rows: label, estimate and the single values of each row.
        unit: what the axis shows.

    Returns:
        An `<svg>` element.
    """
    left, right, top, step, width = 16, 16, 8, 54, 540
    values = [value for _, estimate, single in rows for value in (*single, estimate.mean)]
    values += [e.mean + sign * (e.std or 0) for _, e, _ in rows for sign in (-1, 1)]
    ticks = ticks_of(min(values), max(values))
    low, high = ticks[0], ticks[-1]

    def at(value: float) -> float:
        return round(left + (value - low) / (high - low) * (width - left - right), 1)

    bottom = top + step * len(rows)
    parts = [
        f'<line x1="{at(tick)}" x2="{at(tick)}" y1="{top}" y2="{bottom}" class="grid"/>'
        f'<text x="{at(tick)}" y="{bottom + 20}" text-anchor="middle">{tick:.10g}</text>'
        for tick in ticks
    ]
    for number, (label, estimate, single) in enumerate(rows):
        y = top + step * number + 36
        parts.append(f'<text x="{left}" y="{y - 18}" class="label">{escape(label)}</text>')
        if estimate.std is not None:
            start, end = at(estimate.mean - estimate.std), at(estimate.mean + estimate.std)
            parts.append(f'<line x1="{start}" x2="{end}" y1="{y}" y2="{y}" class="spread"/>')
        middle = at(estimate.mean)
        parts += [f'<circle cx="{at(value)}" cy="{y}" r="4.5" class="dot"/>' for value in single]
        parts.append(f'<line x1="{middle}" x2="{middle}" y1="{y - 10}" y2="{y + 10}" class="mean"/>')
    parts.append(f'<text x="{width - right}" y="{bottom + 42}" text-anchor="end">{escape(unit)}</text>')
    description = "; ".join(f"{label}: {estimate.mean:.3f}" for label, estimate, _ in rows)
    return svg_element(parts, width=width, height=bottom + 50, title=f"{unit}. {description}")


def scatter(
    x: Sequence[float], y: Sequence[float], labels: Sequence[int], *, classes: Sequence[str], title: str
) -> str:
    """Points of an embedding plot, one path a class.

    Args:
        x: horizontal coordinates.
        y: vertical coordinates, on the same scale.
        labels: class numbers.
        classes: class names.
        title: for readers that cannot see it.

    Returns:
        An `<svg>` element.
    """
    size, margin = 320, 10
    spans = [max(axis) - min(axis) for axis in (x, y)]
    scale = (size - 2 * margin) / (max(spans) or 1.0)
    shift = [(size - scale * (max(axis) + min(axis))) / 2 for axis in (x, y)]
    parts = []
    for number, name in enumerate(classes):
        points = "".join(
            f"M{a * scale + shift[0]:.1f} {size - (b * scale + shift[1]):.1f}h0"
            for a, b, label in zip(x, y, labels, strict=True)
            if label == number
        )
        if points:
            colour = class_colour(number)
            parts.append(
                f'<path d="{points}" style="stroke:{colour}" class="points"><title>{escape(name)}</title></path>'
            )
    return svg_element(parts, width=size, height=size, title=title)


def ticks_of(low: float, high: float) -> list[float]:
    """Four to eight round numbers that span [low, high]."""
    span = max(high - low, 1e-3)
    unit = 10.0 ** math.floor(math.log10(span / 4))
    step = next(factor * unit for factor in (1, 2, 5, 10) if span / (factor * unit) <= 6)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [round(number * step, 10) for number in range(first, max(last, first + 1) + 1)]


def svg_element(parts: Sequence[str], *, width: int, height: int, title: str) -> str:
    """The `<svg>` around its parts; `title` is read out by those who cannot see it."""
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title, quote=True)}" '
        f'xmlns="http://www.w3.org/2000/svg">{"".join(parts)}</svg>'
    )
