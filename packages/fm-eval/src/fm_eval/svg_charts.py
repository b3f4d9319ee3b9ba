"""How are curves and relations between two numbers drawn without a plotting library?

SVG text like that of svg: `line_chart` (learning curves with a band, one line a series, several series in one frame),
`relation_chart` (one number against another, a named dot a model) and `reliability_chart` (accuracy by confidence).
Series differ in colour and in the dash of the line or the shape of the mark. Called by the sections of the report.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

from fm_eval.svg import class_colour, svg_element, ticks_of

_DASHES = ("", "7 4", "2 3", "9 3 2 3")
_WIDTH, _HEIGHT = 460, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 16, 12, 46


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One line.

    Attributes:
        label: plain text.
        x: ascending.
        y: one value an x; None breaks the line.
        low: lower edge of the band, one an x; empty for no band.
        high: its upper edge.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float | None]
    low: Sequence[float | None] = field(default_factory=list)
    high: Sequence[float | None] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Frame:
    """Axes over given ranges; maps values to places."""

    x_ticks: list[float]
    y_ticks: list[float]

    def place(self, x: float, y: float) -> tuple[float, float]:
        left, right = self.x_ticks[0], self.x_ticks[-1]
        low, high = self.y_ticks[0], self.y_ticks[-1]
        across = _LEFT + (x - left) / (right - left) * (_WIDTH - _LEFT - _RIGHT)
        up = _HEIGHT - _BOTTOM - (y - low) / (high - low) * (_HEIGHT - _TOP - _BOTTOM)
        return round(across, 1), round(up, 1)

    def drawn(self, *, x_label: str, y_label: str) -> list[str]:
        parts = []
        for tick in self.y_ticks:
            (left, y), (right, _) = self.place(self.x_ticks[0], tick), self.place(self.x_ticks[-1], tick)
            parts.append(f'<line x1="{left}" x2="{right}" y1="{y}" y2="{y}" class="grid"/>')
            parts.append(f'<text x="{left - 8}" y="{y + 4}" text-anchor="end">{_number(tick)}</text>')
        for number, tick in enumerate(self.x_ticks):
            x, y = self.place(tick, self.y_ticks[0])
            anchor = "end" if number == len(self.x_ticks) - 1 else "middle"
            parts.append(f'<text x="{x}" y="{y + 18}" text-anchor="{anchor}">{_number(tick)}</text>')
        parts.append(f'<text x="{_WIDTH - _RIGHT}" y="{_HEIGHT - 8}" text-anchor="end">{escape(x_label)}</text>')
        parts.append(f'<text x="4" y="{_HEIGHT - 8}">{escape(y_label)}</text>')
        return parts


def line_chart(series: Sequence[Series], *, x_label: str, y_label: str) -> str:
    """Lines with bands in one frame.

    Args:
        series: at least one with a defined value.
        x_label: of the horizontal axis.
        y_label: of the vertical axis.

    Returns:
        An `<svg>` element.
    """
    edges = [value for one in series for value in (*one.y, *one.low, *one.high) if value is not None]
    across = [x for one in series for x in one.x]
    frame = _Frame(ticks_of(min(across), max(across)), ticks_of(min(edges), max(edges)))
    parts = frame.drawn(x_label=x_label, y_label=y_label)
    told = []
    for number, one in enumerate(series):
        colour = class_colour(number)
        band = [
            (x, low, high)
            for x, low, high in zip(one.x, one.low, one.high, strict=False)
            if low is not None and high is not None
        ]
        if len(band) > 1:
            outline = [frame.place(x, high) for x, _, high in band] + [frame.place(x, low) for x, low, _ in band[::-1]]
            points = " ".join(f"{x},{y}" for x, y in outline)
            parts.append(f'<polygon points="{points}" class="band" style="fill:{colour}"/>')
        path, pen = "", "M"
        for x, y in zip(one.x, one.y, strict=True):
            if y is None:
                pen = "M"
                continue
            path += f"{pen}{' '.join(map(str, frame.place(x, y)))}"
            pen = "L"
            mark = " ".join(f'{name}="{value}"' for name, value in zip(("cx", "cy"), frame.place(x, y), strict=True))
            parts.append(f'<circle {mark} r="3" style="fill:{colour}"/>')
            told.append(f"{one.label} at {_number(x)}: {y:.3f}")
        dash = f' stroke-dasharray="{_DASHES[number % len(_DASHES)]}"' if number % len(_DASHES) else ""
        parts.append(f'<path d="{path}" class="curve" style="stroke:{colour}"{dash}/>')
    title = f"{y_label} over {x_label}. {'; '.join(told[:40])}"
    return svg_element(parts, width=_WIDTH, height=_HEIGHT, title=title)


def relation_chart(points: Sequence[tuple[str, float, float]], *, x_label: str, y_label: str) -> str:
    """A named dot for each (label, x, y); the names are in the key, by number.

    Returns:
        An `<svg>` element.
    """
    frame = _Frame(_padded([x for _, x, _ in points]), _padded([y for _, _, y in points]))
    parts = frame.drawn(x_label=x_label, y_label=y_label)
    for number, (label, x, y) in enumerate(points):
        across, up = frame.place(x, y)
        hint = f"{label}: {x:.3f}, {y:.3f}"
        parts.append(
            f'<circle cx="{across}" cy="{up}" r="6" style="fill:{class_colour(number)}">'
            f"<title>{escape(hint)}</title></circle>"
            f'<text x="{across + 9}" y="{up - 6}" class="label">{number + 1}</text>'
        )
    title = f"{y_label} against {x_label}. " + "; ".join(f"{label}: {x:.3f}, {y:.3f}" for label, x, y in points)
    return svg_element(parts, width=_WIDTH, height=_HEIGHT, title=title)


def reliability_chart(series: Sequence[tuple[str, Sequence[tuple[int, float, float]]]]) -> str:
    """Accuracy over confidence, a line for each (label, bins of rows, mean confidence and accuracy).

    Returns:
        An `<svg>` element. The dashed diagonal is a perfectly calibrated model; a dot grows with its share of the rows.
    """
    frame = _Frame(ticks_of(0, 1), ticks_of(0, 1))
    parts = frame.drawn(x_label="confidence", y_label="accuracy")
    (x1, y1), (x2, y2) = frame.place(0, 0), frame.place(1, 1)
    parts.append(f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" class="zero"/>')
    told = []
    for number, (label, bins) in enumerate(series):
        filled = [one for one in bins if one[0]]
        total = sum(rows for rows, _, _ in filled)
        places = [(rows, *frame.place(confidence, right)) for rows, confidence, right in filled]
        line = " ".join(f"{x},{y}" for _, x, y in places)
        dash = f' stroke-dasharray="{_DASHES[number % len(_DASHES)]}"' if number % len(_DASHES) else ""
        colour = class_colour(number)
        parts.append(f'<polyline points="{line}" class="curve" style="stroke:{colour}"{dash}/>')
        parts += [
            f'<circle cx="{x}" cy="{y}" r="{2 + 7 * math.sqrt(rows / total):.1f}" style="fill:{colour}" '
            'fill-opacity=".6"/>'
            for rows, x, y in places
        ]
        told += [f"{label}: confidence {confidence:.2f}, accuracy {right:.2f}" for _, confidence, right in filled]
    return svg_element(parts, width=_WIDTH, height=_HEIGHT, title=f"Accuracy by confidence. {'; '.join(told)}")


def key(labels: Sequence[str]) -> str:
    """The names of the series with their colours, as a list."""
    items = (f'<li><i style="background:{class_colour(n)}"></i>{escape(label)}</li>' for n, label in enumerate(labels))
    return f'<ul class="key">{"".join(items)}</ul>'


def _padded(values: Sequence[float]) -> list[float]:
    low, high = min(values), max(values)
    margin = (high - low) * 0.04 or abs(high) * 0.05 or 0.01
    return ticks_of(low - margin, high + margin)


def _number(value: float) -> str:
    """Steps of thousands as 12k, all else as it is."""
    if abs(value) >= 10_000 and value % 1000 == 0:
        return f"{value / 1000:.10g}k"
    return f"{value:.6g}"
