"""Philips TIFF: true level sizes, missing tiles, and what its XML must say."""

from __future__ import annotations

from pathlib import Path

import openslide
import pytest
from online_patching import SlideFormatError, open_slide
from slide_checks import assert_levels_equal_openslide
from written_slides import tissue_image
from written_vendor_slides import philips_xml, write_philips

IMAGE = tissue_image(700, 500, 1)


@pytest.mark.parametrize("more_columns", [0, 2])
def test_padded_levels_and_missing_tiles_are_those_of_openslide(tmp_path: Path, more_columns: int) -> None:
    path = tmp_path / "x.tiff"
    write_philips(path, IMAGE, missing=frozenset({0, 12, 13}), more_columns=more_columns)
    slide, oracle = open_slide(str(path), experimental=True), openslide.OpenSlide(str(path))
    assert oracle.properties["openslide.vendor"] == slide.header.vendor == "philips"
    assert [(g.width_px, g.height_px) for g in slide.levels] == list(oracle.level_dimensions)
    assert tuple(g.downsample for g in slide.levels) == oracle.level_downsamples
    assert_levels_equal_openslide(slide, oracle)


def test_resolution_and_objective_are_those_of_openslide(tmp_path: Path) -> None:
    path = tmp_path / "x.tiff"
    write_philips(path, IMAGE)
    slide, oracle = open_slide(str(path), experimental=True), openslide.OpenSlide(str(path))
    assert slide.mpp == pytest.approx(float(oracle.properties["openslide.mpp-x"])) == 0.25
    assert slide.header.properties["objective_power"] == oracle.properties["openslide.objective-power"]
    assert slide.header.properties["DICOM_MANUFACTURER"] == "PHILIPS"
    assert not any("BARCODE" in name for name in slide.header.properties)


@pytest.mark.parametrize(
    ("description", "reason"),
    [
        (philips_xml([(0.00025, 0.00025)]), "3 tiled directories and 1 pixel spacings"),
        (philips_xml([(0.00025, 0.00025)] * 3), "do not grow"),
        (philips_xml([(0.0005, 0.0005), (0.00025, 0.00025), (0.001, 0.001)]), "do not grow"),
        (philips_xml([(0.0, 0.00025)] * 3), "pixel spacing"),
        (philips_xml([(1e-9, 1e-9), (0.00025, 0.00025), (0.0005, 0.0005)]), "pixel spacing"),
        (philips_xml([(0.00001, 0.00001), (0.00025, 0.00025), (0.0005, 0.0005)]), "is said to have the downsample 25"),
        (philips_xml([(0.00025, 0.00025)] * 3, images="WSI WSI"), "2 slide images"),
        (philips_xml([(0.00025, 0.00025)] * 3, images="MACROIMAGE"), "0 slide images"),
        ("<DataObject", "cannot be read"),
    ],
)
def test_xml_that_does_not_fit_the_levels_is_refused_by_reason(tmp_path: Path, description: str, reason: str) -> None:
    path = tmp_path / "x.tiff"
    write_philips(path, IMAGE, description=description)
    with pytest.raises(SlideFormatError, match=rf"x\.tiff.*{reason}"):
        open_slide(str(path), experimental=True)
