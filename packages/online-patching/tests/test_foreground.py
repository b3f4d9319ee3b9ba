from __future__ import annotations

import csv
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from online_patching.foreground import mask_to_polygon, tissue_mask
from shared_fixtures import real_folder
from written_slides import tissue_image


def test_tissue_is_found_and_pen_and_glass_are_not() -> None:
    image = tissue_image(800, 600, 1)
    pens = {"blue": (40, 70, 200), "green": (30, 140, 60), "black": (25, 25, 28)}
    for k, colour in enumerate(pens.values()):
        cv2.line(image, (20 + 25 * k, 20), (20 + 25 * k, 580), colour, 14)
    mask = tissue_mask(image)
    truth = np.zeros(mask.shape, np.uint8)
    cv2.ellipse(truth, (400, 300), (304, 216), 0, 0, 360, 1, -1)
    overlap = (mask & (truth > 0)).sum() * 2 / (mask.sum() + truth.sum())
    assert overlap > 0.97
    assert mask[:, :90].mean() < 0.01, "pen counted as tissue"


def test_empty_glass_has_no_foreground() -> None:
    glass = np.full((300, 300, 3), 243, np.uint8) + np.random.default_rng(0).integers(0, 3, (300, 300, 1), np.uint8)
    mask = tissue_mask(glass)
    assert not mask.any()
    assert mask_to_polygon(mask, width_level0_px=3000, height_level0_px=3000).is_empty


@settings(max_examples=60, deadline=None)
@given(
    circles=st.lists(st.tuples(st.integers(0, 200), st.integers(0, 160), st.integers(4, 70)), min_size=1, max_size=8),
    holes=st.lists(st.tuples(st.integers(0, 200), st.integers(0, 160), st.integers(4, 30)), max_size=4),
)
def test_polygons_are_valid_and_cover_the_mask(
    circles: list[tuple[int, int, int]], holes: list[tuple[int, int, int]]
) -> None:
    mask = np.zeros((160, 200), np.uint8)
    for x, y, radius in circles:
        cv2.circle(mask, (x, y), radius, 1, -1)
    for x, y, radius in holes:
        cv2.circle(mask, (x, y), radius, 0, -1)
    polygon = mask_to_polygon(mask > 0, width_level0_px=2000, height_level0_px=1600, min_area_share=0)
    assert polygon.is_valid
    assert shapely.difference(polygon, shapely.box(0, 0, 2000, 1600)).area == pytest.approx(0, abs=1e-3)
    # Simplified by at most 0.7 mask pixels: the area may differ by a thin rim of the outline only.
    rim = 100 * polygon.length / 10
    assert abs(polygon.area - 100 * mask.sum()) <= rim + 100
    rows, columns = np.nonzero(cv2.erode(mask, np.ones((5, 5), np.uint8), borderValue=0))
    points = shapely.points((columns + 0.5) * 10, (rows + 0.5) * 10)
    assert shapely.covers(polygon.buffer(0.01), points).all(), "a point well inside the mask lies outside"


def test_holes_are_kept_and_small_parts_dropped() -> None:
    mask = np.zeros((100, 100), bool)
    mask[10:90, 10:90] = True
    mask[40:60, 40:60] = False
    mask[2:4, 2:4] = True
    polygon = mask_to_polygon(mask, width_level0_px=1000, height_level0_px=1000, min_area_share=1e-3)
    assert len(polygon.geoms) == 1
    assert len(polygon.geoms[0].interiors) == 1
    assert polygon.area == pytest.approx(100 * (80 * 80 - 20 * 20), rel=0.01)


def humanpilot_folders() -> list[Path]:
    folder = real_folder("DATA_DIR")
    return [] if folder is None else sorted(folder.glob("foreground/humanpilot_*"))


@pytest.mark.foreground_score
@pytest.mark.parametrize("folder", humanpilot_folders(), ids=lambda folder: folder.name)
def test_real_thumbnails_agree_with_the_in_tissue_flags(folder: Path) -> None:
    thumbnail = cv2.imread(str(folder / "tissue_lowres_image.png"))[..., ::-1]
    scale = json.loads((folder / "scalefactors_json.json").read_text())["tissue_lowres_scalef"]
    mask = tissue_mask(thumbnail)
    with (folder / "tissue_positions_list.txt").open() as file:
        spots = [(int(r[1]), int(float(r[4]) * scale), int(float(r[5]) * scale)) for r in csv.reader(file)]
    truth = np.array([bool(flag) for flag, _, _ in spots])
    found = np.array([mask[min(y, mask.shape[0] - 1), min(x, mask.shape[1] - 1)] for _, y, x in spots])
    # What colour alone can do here (measured 0.82 to 0.98; two sections are pale): a floor against regressions.
    assert 2 * (truth & found).sum() / (truth.sum() + found.sum()) > 0.8
