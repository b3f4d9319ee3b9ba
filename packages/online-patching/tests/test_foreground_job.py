from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import shapely
from online_patching import Catalog, CatalogError, PatchStream, loop, open_slide
from online_patching.cli import main
from online_patching.foreground import PolygonRules
from online_patching.jobs import JobReport, compute_foreground, index_cohort
from online_patching.tissue import UNET_FILE
from written_slides import tissue_image, write_pyramid


def pen_image() -> np.ndarray:
    image = np.full((600, 700, 3), 243, np.uint8)
    for y in range(60, 600, 90):
        cv2.line(image, (20, y), (680, y - 40), (40, 70, 200), 30)
    return image


@pytest.fixture
def slides(tmp_path: Path) -> Path:
    """One slide with tissue, one of bare glass, one that is all pen."""
    folder = tmp_path / "slides"
    folder.mkdir()
    write_pyramid(folder / "tissue.svs", tissue_image(900, 700, 1))
    write_pyramid(folder / "glass.svs", np.full((600, 700, 3), 243, np.uint8))
    write_pyramid(folder / "pen.svs", pen_image())
    return folder


def indexed(slides: Path, tmp_path: Path) -> str:
    url = str(tmp_path / "catalog")
    index_cohort([str(path) for path in sorted(slides.iterdir())], url, progress=False)
    return url


def left_out(report: JobReport) -> list[tuple[str, str]]:
    return [(failure.slide, failure.error) for failure in report.failures]


def test_slides_without_tissue_are_counted_reported_and_never_sampled(
    slides: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    url = indexed(slides, tmp_path)
    for done, kept in ((1, 0), (0, 1)):
        report = compute_foreground(url, progress=False, method="stain")
        assert (report.done, report.kept) == (done, kept)
        assert left_out(report) == [("glass", "EmptyForeground"), ("pen", "EmptyForeground")], "each run says so"
        assert all("draw it (--geojson)" in failure.reason for failure in report.failures)
    catalog = Catalog.open(url)
    assert catalog.foreground("pen").is_empty
    with caplog.at_level(logging.WARNING):
        stream = PatchStream(catalog, size_px=64, mpp=[1.0])
    assert {patch["slide_id"] for patch, _ in zip(stream, range(20), strict=False)} == {"tissue"}
    assert "slide pen left out" in caplog.text


def test_a_foreground_that_the_rule_leaves_nothing_of_says_so(slides: Path, tmp_path: Path) -> None:
    url = indexed(slides, tmp_path)
    report = compute_foreground(url, progress=False, method="stain", rules=PolygonRules(min_area_mm2=5.0))
    reason = {failure.slide: failure.reason for failure in report.failures}["tissue"]
    assert "each smaller than the least area; lower --min-area-mm2" in reason
    assert compute_foreground(url, progress=False, method="stain", redo=True).done == 1


def test_the_notes_tell_what_is_not_as_asked(slides: Path, tmp_path: Path) -> None:
    url = indexed(slides, tmp_path)

    def noisy(thumbnail: np.ndarray, mpp: float | None) -> np.ndarray:
        assert mpp == 0.5
        return np.asarray(cv2.GaussianBlur(np.random.default_rng(0).normal(size=thumbnail.shape[:2]), (0, 0), 2) > 0)

    rules = PolygonRules(min_area_mm2=0, simplify_um=0)
    report = compute_foreground(url, progress=False, method=noisy, rules=rules, max_thumbnail_bytes=20_000)
    assert report.done == 3
    assert report.bytes_read <= 60_000
    note = next(note for note in report.notes if note.startswith("slide tissue"))
    assert "tiles of level 0" in note
    assert "um instead of 0 um" in note
    assert "at most 64 KB" in note
    wkb = Path(url) / "slides" / "tissue" / "foreground.wkb"
    assert wkb.stat().st_size <= 64 * 1024


def test_a_method_or_number_that_cannot_be_is_refused(slides: Path, tmp_path: Path) -> None:
    url = indexed(slides, tmp_path)
    with pytest.raises(ValueError, match="method"):
        compute_foreground(url, method="magic", progress=False)
    with pytest.raises(ValueError, match="max_thumbnail_bytes: got 0"):
        compute_foreground(url, max_thumbnail_bytes=0, progress=False)
    report = compute_foreground(url, method=lambda thumbnail, mpp: np.ones((3, 3), bool), progress=False)
    assert {error for _, error in left_out(report)} == {"ValueError"}
    assert "mask (3, 3)" in report.failures[0].reason


def test_the_command_names_each_slide_that_is_left_out(
    slides: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = indexed(slides, tmp_path)
    options = ["--method", "stain", "--min-area-mm2", "0.001", "--simplify-um", "4"]
    assert main(["foreground", "--catalog", url, *options]) == 1
    shown = capsys.readouterr()
    assert "found the foreground of 1 slides (method stain), 0 had one" in shown.out
    assert "2 have none and serve no patches" in shown.out
    assert "left out glass: no foreground: method stain finds no tissue" in shown.err
    assert main(["foreground", "--catalog", url, "--method", "stain", "--redo", "--max-mb", "0.02"]) == 1
    assert "slide tissue: its thumbnail is made of" in capsys.readouterr().err
    for wrong in (["--method", "magic"], ["--min-area-mm2", "-1"], ["--max-mb", "0"], ["--slide", "tissue"]):
        assert main(["foreground", "--catalog", url, "--redo", *wrong]) == 2
        assert wrong[0].strip("-").partition("-")[0] in capsys.readouterr().err


def test_a_cohort_of_one_good_slide_is_no_exclusion(slides: Path, tmp_path: Path) -> None:
    for name in ("glass", "pen"):
        (slides / f"{name}.svs").unlink()
    shutil.copy(slides / "tissue.svs", slides / "again.svs")
    assert main(["foreground", "--catalog", indexed(slides, tmp_path)]) == 0


def test_a_job_that_is_stopped_leaves_no_table_of_other_polygons(slides: Path, tmp_path: Path) -> None:
    (slides / "glass.svs").unlink()
    (slides / "pen.svs").unlink()
    write_pyramid(slides / "more.svs", tissue_image(800, 700, 2))
    url = indexed(slides, tmp_path)
    assert compute_foreground(url, progress=False, method="stain").done == 2
    areas = Catalog.open(url).rows.numbers("foreground_area_level0_px2")

    def corner(thumbnail: np.ndarray, _mpp: float | None) -> np.ndarray:
        raise KeyboardInterrupt

    def small(thumbnail: np.ndarray, _mpp: float | None) -> np.ndarray:
        mask = np.zeros(thumbnail.shape[:2], np.bool_)
        mask[100:300, 100:300] = True
        return mask

    with pytest.raises(KeyboardInterrupt):
        compute_foreground(url, progress=False, method=corner, redo=True)
    with pytest.raises(CatalogError, match="has no foreground yet"):
        PatchStream(url, size_px=64, mpp=[1.0])
    report = compute_foreground(url, progress=False, method="stain")
    assert report.done == 2
    # The polygons of the first job were whole still, and so were their rows: the next job takes them up.
    assert report.bytes_read == 0
    assert Catalog.open(url).rows.numbers("foreground_area_level0_px2").tolist() == areas.tolist()
    compute_foreground(url, progress=False, method=small, redo=True)
    catalog = Catalog.open(url)
    assert (catalog.rows.numbers("foreground_area_level0_px2") != areas).all()
    assert [catalog.row(i).foreground_area_level0_px2 for i in catalog.ids()] == [
        catalog.foreground(i).area for i in catalog.ids()
    ]


@pytest.mark.parametrize(
    ("again", "taken_up"),
    [
        ({"method": "stain"}, True),
        ({"method": "grey"}, False),
        ({"method": lambda thumbnail, mpp: np.ones(thumbnail.shape[:2], bool)}, False),
        ({"method": "stain", "rules": PolygonRules(simplify_um=50)}, False),
        ({"method": "stain", "max_thumbnail_bytes": 5000}, False),
    ],
)
def test_what_a_stopped_job_found_is_taken_up_by_the_same_method_only(
    slides: Path, tmp_path: Path, again: dict[str, Any], taken_up: bool
) -> None:
    for name in ("glass", "pen"):
        (slides / f"{name}.svs").unlink()
    url = indexed(slides, tmp_path)
    table = (Path(url) / "slides.parquet").read_bytes()
    compute_foreground(url, progress=False, method="stain")
    before = Catalog.open(url)
    # Killed before it wrote the table, but after the slide.
    (Path(url) / "slides.parquet").write_bytes(table)
    report = compute_foreground(url, progress=False, **again)
    assert (report.done, report.bytes_read == 0) == (1, taken_up)
    row = Catalog.open(url).row("tissue")
    assert (row == before.row("tissue")) == taken_up
    assert row.foreground_area_level0_px2 == Catalog.open(url).foreground("tissue").area


def test_the_catalog_records_the_method_and_what_differs_from_its_defaults(
    slides: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("glass", "pen"):
        (slides / f"{name}.svs").unlink()
    url = indexed(slides, tmp_path)
    copied = shutil.copy(UNET_FILE, tmp_path / "mine.onnx")
    digest = hashlib.sha256(UNET_FILE.read_bytes()).hexdigest()[:8]
    for options, recorded in (
        (["--method", "unet"], f"unet {digest}"),
        (["--method", str(copied)], f"mine.onnx {digest}"),
        (["--method", "hsv", "--simplify-um", "4"], "hsv (simplify_um=4)"),
        (["--method", "grey", "--max-mb", "1"], "grey (max_thumbnail_bytes=1e+06)"),
    ):
        assert main(["foreground", "--catalog", url, "--redo", *options]) == 0
        assert Catalog.open(url).row("tissue").foreground_method == recorded
        assert main(["info", "--catalog", url]) == 0
        assert f"found by {recorded} (1)" in capsys.readouterr().out
    compute_foreground(url, progress=False, redo=True, method=everything)
    assert Catalog.open(url).row("tissue").foreground_method == f"function {__name__}.everything"


def everything(thumbnail: np.ndarray, _mpp: float | None) -> np.ndarray:
    return np.ones(thumbnail.shape[:2], np.bool_)


def damage(path: Path, tiles: Sequence[int]) -> None:
    """Zeroes some stored tiles of level 0."""
    slide = open_slide(path)
    data = bytearray(path.read_bytes())
    for start, length in loop.run(slide.handle.tiles.lookup.ranges(0, list(tiles))):
        data[start : start + length] = bytes(length)
    path.write_bytes(data)


def test_a_damaged_tile_does_not_cost_a_slide_its_foreground(tmp_path: Path) -> None:
    folder = tmp_path / "slides"
    folder.mkdir()
    for name, tiles in (("whole", ()), ("a", (27,)), ("many", range(24))):
        path = folder / f"{name}.svs"
        write_pyramid(path, tissue_image(900, 700, 1), downsamples=(1,))
        damage(path, tiles)
    url = indexed(folder, tmp_path)
    for budget in ({}, {"max_thumbnail_bytes": 60_000}):
        report = compute_foreground(url, progress=False, method="stain", redo=True, **budget)
        assert left_out(report) == [("many", "CorruptTileError")]
        assert "of level 0 do not decode" in report.failures[0].reason
        if not budget:
            assert [note for note in report.notes if "do not decode" in note] == [
                "slide a: 1 of 48 tiles do not decode and count as white"
            ]
    catalog = Catalog.open(url)
    compute_foreground(url, progress=False, method="stain", redo=True)
    whole, found = catalog.foreground("whole"), catalog.foreground("a")
    tile = shapely.box(384, 384, 512, 512)
    assert whole.contains(tile)
    assert (found & tile).area < 0.1 * tile.area, "what cannot be seen is not sampled"
    assert shapely.symmetric_difference(found - tile, whole - tile).area < 0.01 * whole.area


@pytest.mark.parametrize("megabytes", ["0", "-1", "nan", "inf"])
def test_a_budget_that_cannot_be_is_refused_by_the_name_of_its_option(
    slides: Path, tmp_path: Path, megabytes: str, capsys: pytest.CaptureFixture[str]
) -> None:
    url = indexed(slides, tmp_path)
    assert main(["foreground", "--catalog", url, "--max-mb", megabytes]) == 2
    assert "--max-mb: got" in capsys.readouterr().err


def test_annotations_that_do_not_exist_are_told_at_once(
    slides: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = indexed(slides, tmp_path)
    for missing in ("missing.geojson", "tissue.geojson", "nowhere"):
        assert main(["foreground", "--catalog", url, "--geojson", str(tmp_path / missing)]) == 2
        assert "no such" in capsys.readouterr().err
    assert main(["foreground", "--catalog", url, "--geojson", "http://127.0.0.1:9/folder"]) == 2
    assert "http://127.0.0.1:9/folder" in capsys.readouterr().err
