"""Ventana BIF: a plain grid of tiles is read; overlapping tiles are refused, never read as if they were a grid."""

from __future__ import annotations

from pathlib import Path

import openslide
import pytest
from online_patching import SlideFormatError, open_slide
from slide_checks import assert_levels_equal_openslide
from written_slides import tissue_image
from written_vendor_slides import ventana_xmp, write_ventana

IMAGE = tissue_image(700, 500, 6)
COLUMNS, ROWS, TILE = 11, 8, 64


@pytest.mark.parametrize("stitched", [False, True])
def test_tiles_without_overlap_are_those_of_openslide(tmp_path: Path, stitched: bool) -> None:
    path = tmp_path / "x.bif"
    write_ventana(path, IMAGE, stitched=stitched)
    slide, oracle = open_slide(str(path), experimental=True), openslide.OpenSlide(str(path))
    assert oracle.properties["openslide.vendor"] == slide.header.vendor == "ventana"
    assert [(g.width_px, g.height_px) for g in slide.levels] == list(oracle.level_dimensions)
    assert tuple(g.downsample for g in slide.levels) == oracle.level_downsamples
    assert_levels_equal_openslide(slide, oracle)


def test_resolution_and_objective_come_from_the_scanners_element(tmp_path: Path) -> None:
    path = tmp_path / "x.bif"
    write_ventana(path, IMAGE)
    slide, oracle = open_slide(str(path), experimental=True), openslide.OpenSlide(str(path))
    assert slide.mpp == pytest.approx(float(oracle.properties["openslide.mpp-x"])) == 0.2325
    assert slide.header.properties["objective_power"] == oracle.properties["openslide.objective-power"] == "40"
    assert "somebody" not in slide.header.properties.values()


def test_a_slide_without_scan_resolution_has_no_mpp(tmp_path: Path) -> None:
    path = tmp_path / "x.bif"
    write_ventana(path, IMAGE, iscan='<iScan Magnification="40"/>')
    assert open_slide(str(path), experimental=True).mpp is None


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"xmp": ventana_xmp(COLUMNS, ROWS, TILE, overlap_px=8)}, "80 overlaps between tiles.*wrong pixels"),
        ({"xmp": ventana_xmp(COLUMNS, ROWS, TILE).replace('OverlapX="0"', "", 1)}, "OverlapX='' in <TileJointInfo>"),
        ({"xmp": ventana_xmp(COLUMNS, ROWS, TILE, areas=2)}, "2 scanned areas"),
        ({"xmp": "<EncodeInfo/>"}, "0 scanned areas"),
        ({"xmp": ventana_xmp(COLUMNS, ROWS, 128)}, "other than its level 0"),
        ({"iscan": '<iScan ScanRes="0.25" Z-layers="5"/>'}, "5 focal planes"),
        ({"iscan": '<iScan ScanRes="fine"/>'}, "ScanRes='fine'"),
        ({"iscan": "<a><iScan/></a>"}, "no iScan element"),
        ({"names": ("level=0 mag=10", "level=1 mag=20", "level=2 mag=40")}, "magnifications"),
        ({"names": ("level=1 mag=40", "level=0 mag=20", "level=2 mag=10")}, "magnifications"),
        ({"names": ("level=0 mag=nan", "level=1 mag=20", "level=2 mag=10")}, "magnifications"),
        ({"names": ("level=0 mag=1e308", "level=1 mag=20", "level=2 mag=10")}, "magnifications"),
        ({"names": ("level=0 mag=900", "level=1 mag=20", "level=2 mag=10")}, "is said to have the downsample 45"),
        ({"names": ("level=0 mag=20.2", "level=1 mag=20.1", "level=2 mag=20"), "stitched": True}, "the downsample 1"),
        ({"names": ("a", "b", "c")}, "magnifications"),
    ],
)
def test_what_is_no_single_grid_of_tiles_is_refused_by_reason(
    tmp_path: Path, changes: dict[str, object], reason: str
) -> None:
    path = tmp_path / "x.bif"
    write_ventana(path, IMAGE, **changes)  # type: ignore[arg-type]
    with pytest.raises(SlideFormatError, match=rf"x\.bif.*{reason}"):
        open_slide(str(path), experimental=True)
