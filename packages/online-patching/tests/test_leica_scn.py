"""Leica SCN: the scanned region is the slide; what is not one region in one grid is refused."""

from __future__ import annotations

from pathlib import Path

import openslide
import pytest
from online_patching import SlideFormatError, open_slide
from slide_checks import assert_levels_equal_openslide
from written_slides import tissue_image
from written_vendor_slides import leica_xml, write_leica

IMAGE = tissue_image(704, 512, 2)
SIZES = [(704, 512), (352, 256), (176, 128)]


@pytest.mark.parametrize("planes", [1, 2])
def test_the_region_is_the_part_of_openslides_canvas_that_was_scanned(tmp_path: Path, planes: int) -> None:
    path = tmp_path / "x.scn"
    write_leica(path, IMAGE, planes=planes)
    slide, oracle = open_slide(str(path), experimental=True), openslide.OpenSlide(str(path))
    assert oracle.properties["openslide.vendor"] == slide.header.vendor == "leica"
    bounds = {name: int(oracle.properties[f"openslide.bounds-{name}"]) for name in ("x", "y", "width", "height")}
    assert (slide.levels[0].width_px, slide.levels[0].height_px) == (bounds["width"], bounds["height"])
    assert int(slide.header.properties["region_x_level0_px"]) == bounds["x"] == 800
    assert int(slide.header.properties["region_y_level0_px"]) == bounds["y"] == 400
    assert_levels_equal_openslide(slide, oracle, x_px=bounds["x"], y_px=bounds["y"])


def test_resolution_comes_from_the_view_and_the_objective_from_the_settings(tmp_path: Path) -> None:
    path = tmp_path / "x.scn"
    write_leica(path, IMAGE)
    slide, oracle = open_slide(str(path), experimental=True), openslide.OpenSlide(str(path))
    assert slide.mpp == pytest.approx(0.5)
    assert slide.header.properties["objective_power"] == oracle.properties["openslide.objective-power"] == "20"
    assert slide.header.properties["scanner"] == oracle.properties["leica.device-model"]


@pytest.mark.parametrize(
    ("description", "reason"),
    [
        (leica_xml(SIZES, regions=2), "2 brightfield regions"),
        (leica_xml(SIZES, regions=0), "0 brightfield regions"),
        (leica_xml(SIZES, light="fluorescence"), "0 brightfield regions"),
        (leica_xml(SIZES, planes=0), "0 levels in focal plane 0"),
        (leica_xml(SIZES).replace('r="0" z="0"', 'r="0" z="0" c="1"'), "of one channel"),
        (leica_xml(SIZES).replace('ifd="1"', 'ifd="2"'), "for a directory of 352 x 256 px"),
        (leica_xml(SIZES).replace('ifd="1"', 'ifd="99"'), "directory 99 of 4"),
        (leica_xml(SIZES, nm_per_px=1), "damaged"),
        (leica_xml(SIZES).replace('sizeX="352000"', 'sizeX="0"'), "damaged"),
        (leica_xml(SIZES).replace('offsetX="400000"', 'offsetX="1e308"'), "damaged"),
        (leica_xml(SIZES).replace('ifd="1"', 'ifd="one"'), "a number is expected"),
        (leica_xml(SIZES).replace("view", "sight"), "no view"),
        (leica_xml(SIZES).replace("collection", "set"), "no collection"),
    ],
)
def test_what_is_not_one_brightfield_region_is_refused_by_reason(tmp_path: Path, description: str, reason: str) -> None:
    path = tmp_path / "x.scn"
    write_leica(path, IMAGE, description=description)
    with pytest.raises(SlideFormatError, match=rf"x\.scn.*{reason}"):
        open_slide(str(path), experimental=True)
