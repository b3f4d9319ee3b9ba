"""Dots lie where the ticks say, within the frame."""

from __future__ import annotations

import itertools
from xml.etree import ElementTree as ET

import pytest
from panel_plot import Panel, Series, render, ticks

SPACE = "{http://www.w3.org/2000/svg}"


def test_plots_stand_within_their_frame() -> None:
    panel = Panel(
        title="a < b",
        x_label="x",
        y_label="y",
        series=[Series(name="s & t", x=[1, 2, 3], y=[0.1, 0.9, 0.5], spread=[0.1, 0, 0], joined=True)],
    )
    picture = ET.fromstring(render([panel] * 4, title="t"))
    width, height = float(picture.attrib["width"]), float(picture.attrib["height"])
    circles = list(picture.iter("{http://www.w3.org/2000/svg}circle"))
    assert len(circles) == 4 * 3 + 1, "every dot, and one in the legend"
    assert all(0 <= float(c.attrib["cx"]) <= width and 0 <= float(c.attrib["cy"]) <= height for c in circles)
    for low, high in ((0.0, 1.0), (0.61, 0.63), (0.5, 0.5), (-3.0, 250.0)):
        found = ticks(low, high)
        assert found[0] <= low
        assert found[-1] >= high
        assert 2 <= len(found) <= 9


def test_points_lie_where_the_ticks_say() -> None:
    series = Series(name="a", x=[0, 50, 100], y=[0.0, 1.0, 2.0], joined=True)
    picture = ET.fromstring(render([Panel(title="t", x_label="x", y_label="y", series=[series])], title="t"))
    (line,) = picture.findall(f".//{SPACE}polyline")
    points = [tuple(map(float, point.split(","))) for point in line.attrib["points"].split()]
    assert points[1] == pytest.approx(((points[0][0] + points[2][0]) / 2, (points[0][1] + points[2][1]) / 2))
    assert points[2][0] in {float(e.attrib["x"]) for e in picture.iter(f"{SPACE}text") if e.text == "100"}


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (0.86, 0.923), (-3.0, 17.0), (5.0, 5.0), (0.0, 24_000.0)])
def test_ticks_enclose_and_are_round(low: float, high: float) -> None:
    found = ticks(low, high)
    assert found[0] <= low
    assert found[-1] >= high
    assert 2 <= len(found) <= 8
    steps = {round(b - a, 12) for a, b in itertools.pairwise(found)}
    assert len(steps) == 1
    assert f"{steps.pop():.0e}"[0] in "125"
