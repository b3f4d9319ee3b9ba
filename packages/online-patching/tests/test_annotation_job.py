from __future__ import annotations

import json
from pathlib import Path

import pytest
import shapely
from online_patching import AnnotationError, Catalog, CatalogError, NotFoundError
from online_patching.annotation_job import export_geojson, import_geojson
from online_patching.cli import main
from online_patching.geojson import write_drawing
from online_patching.jobs import compute_foreground, index_cohort
from s3_server import S3Server
from written_slides import tissue_image, write_pyramid


@pytest.fixture
def catalog(tmp_path: Path) -> str:
    """Three slides of 700 x 600 px with foreground."""
    for name in "abc":
        write_pyramid(tmp_path / f"{name}.svs", tissue_image(700, 600, 1))
    url = str(tmp_path / "catalog")
    index_cohort(sorted(map(str, tmp_path.glob("*.svs"))), url, progress=False)
    compute_foreground(url, method="stain", progress=False)
    return url


def draw(path: Path, geometry: shapely.Geometry, kind: str = "Tissue") -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(write_drawing(geometry, path.stem).replace('"Tissue"', json.dumps(kind)))
    return path


def test_what_is_exported_is_imported_unchanged(catalog: str, tmp_path: Path) -> None:
    before = {slide: Catalog.open(catalog).foreground(slide) for slide in "abc"}
    fingerprint = Catalog.open(catalog).fingerprint()
    report = export_geojson(Catalog.open(catalog), str(tmp_path / "out"))
    assert (report.done, sorted(path.name for path in (tmp_path / "out").iterdir())) == (
        3,
        ["a.geojson", "b.geojson", "c.geojson"],
    )
    report = import_geojson(catalog, str(tmp_path / "out"), classes=["Tissue"], progress=False)
    assert (report.done, report.kept, report.failures, report.notes) == (3, 0, (), ())
    opened = Catalog.open(catalog)
    assert all(shapely.equals_exact(opened.foreground(slide), before[slide], 0) for slide in "abc")
    assert opened.fingerprint() == fingerprint


def test_an_annotation_that_was_moved_is_another_cohort(catalog: str, tmp_path: Path) -> None:
    """Although no area changes: a stream's state of the one must not go on with the other."""
    fingerprints, areas = [], []
    for x in (100, 101, 100):
        path = draw(tmp_path / "drawn" / "a.geojson", shapely.box(x, 100, x + 200, 300))
        import_geojson(catalog, str(path), progress=False)
        opened = Catalog.open(catalog)
        fingerprints.append(opened.fingerprint())
        areas.append(opened.row("a").foreground_area_level0_px2)
    assert areas == [40_000.0] * 3
    assert fingerprints[0] == fingerprints[2] != fingerprints[1]


def test_the_catalog_says_how_foreground_came_about(
    catalog: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draw(tmp_path / "drawn" / "a.geojson", shapely.box(100, 100, 300, 300))
    draw(tmp_path / "limits" / "b.geojson", shapely.box(100, 100, 400, 400))
    import_geojson(catalog, str(tmp_path / "drawn"), progress=False)
    import_geojson(catalog, str(tmp_path / "limits"), mode="intersect", progress=False)
    opened = Catalog.open(catalog)
    methods = [opened.row(slide).foreground_method for slide in "abc"]
    assert methods == ["geojson replace", "stain, geojson intersect", "stain"]
    assert main(["info", "--catalog", catalog]) == 0
    shown = capsys.readouterr().out
    assert "found by geojson replace (1), stain (1), stain, geojson intersect (1)" in shown
    assert main(["info", "--catalog", catalog, "--slide", "b"]) == 0
    assert "found by stain, geojson intersect" in capsys.readouterr().out


def test_annotations_replace_limit_and_cut_out(catalog: str, tmp_path: Path) -> None:
    before = Catalog.open(catalog).foreground("a")
    left, right = shapely.box(0, 0, 350, 600), shapely.box(350, 0, 700, 600)
    folder = tmp_path / "drawn"
    draw(folder / "a.svs.geojson", left)
    for mode, expected in (("intersect", before & left), ("replace", left), ("subtract", left - left)):
        report = import_geojson(catalog, str(folder), mode=mode, progress=False)  # type: ignore[arg-type]
        opened = Catalog.open(catalog)
        assert shapely.equals(opened.foreground("a"), expected) or expected.is_empty
        assert opened.row("a").foreground_area_level0_px2 == pytest.approx(expected.area)
        assert report.kept == 2
        assert shapely.equals(opened.foreground("b"), before), "a slide without a file stays as it is"
    assert [(failure.slide, failure.error) for failure in report.failures] == [("a", "EmptyForeground")]
    assert "no foreground is left" in report.failures[0].reason
    # A single file, for the slide that is named.
    path = draw(tmp_path / "any name.json", right)
    assert import_geojson(catalog, str(path), slide="b", mode="subtract", progress=False).done == 1
    assert shapely.equals(Catalog.open(catalog).foreground("b"), before - right)


def test_one_bad_file_does_not_stop_the_others(catalog: str, tmp_path: Path) -> None:
    folder = tmp_path / "drawn"
    draw(folder / "a.geojson", shapely.box(0, 0, 100, 100))
    draw(folder / "b.geojson", shapely.box(5000, 0, 6000, 100))
    draw(folder / "stranger.geojson", shapely.box(0, 0, 100, 100))
    (folder / "c.geojson").write_text("{")
    (folder / "notes.txt").write_text("not asked for")
    report = import_geojson(catalog, str(folder), progress=False)
    assert report.done == 1
    reasons = {failure.slide: failure.reason for failure in report.failures}
    assert "of another slide" in reasons["b"]
    assert "not JSON" in reasons["c"]
    assert "no slide of this name" in reasons["stranger"]
    assert Catalog.open(catalog).row("a").foreground_area_level0_px2 == 10_000


def test_classes_that_are_not_there(catalog: str, tmp_path: Path) -> None:
    folder = tmp_path / "drawn"
    draw(folder / "a.geojson", shapely.box(0, 0, 100, 100), "Tumor")
    before = Catalog.open(catalog).foreground("a")
    report = import_geojson(catalog, str(folder), classes=["Tissue"], progress=False)
    assert "Tumor (1)" in report.failures[0].reason
    # Nothing to cut out is no fault.
    report = import_geojson(catalog, str(folder), classes=["Pen"], mode="subtract", progress=False)
    assert (report.done, report.failures) == (1, ())
    assert shapely.equals(Catalog.open(catalog).foreground("a"), before)


def test_a_drawing_too_large_for_a_catalog_is_made_coarser_and_says_so(catalog: str, tmp_path: Path) -> None:
    round_one = shapely.Point(350, 300).buffer(280, quad_segs=3000)
    draw(tmp_path / "drawn" / "a.geojson", round_one)
    report = import_geojson(catalog, str(tmp_path / "drawn"), progress=False)
    assert "instead of 0 um, since a catalog holds at most 64 KB" in report.notes[0]
    found = Catalog.open(catalog).foreground("a")
    assert len(shapely.to_wkb(found)) <= 64 * 1024
    assert shapely.symmetric_difference(found, round_one).area < 0.01 * round_one.area


def test_wrong_arguments_are_refused(catalog: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    path = draw(tmp_path / "drawn" / "a.geojson", shapely.box(0, 0, 100, 100))
    with pytest.raises(ValueError, match="mode: got 'add'"):
        import_geojson(catalog, str(path), mode="add")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="a single file is needed"):
        import_geojson(catalog, str(path.parent), slide="a")
    with pytest.raises(CatalogError, match="nobody"):
        import_geojson(catalog, str(path), slide="nobody")
    with pytest.raises(NotFoundError, match="no such folder"):
        import_geojson(catalog, str(tmp_path / "none"))
    with pytest.raises(AnnotationError, match="no files named"):
        import_geojson(catalog, str(tmp_path / "empty"))
    draw(tmp_path / "drawn" / "a.json", shapely.box(0, 0, 100, 100))
    with pytest.raises(AnnotationError, match="both are named as slide a"):
        import_geojson(catalog, str(path.parent))


def test_the_commands(catalog: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "out")
    assert main(["export", "--catalog", catalog, "--format", "geojson", "--output", out, "--slides", "a", "b"]) == 0
    assert "foreground of 2 slides as GeoJSON" in capsys.readouterr().out
    command = ["foreground", "--catalog", catalog, "--geojson", out]
    assert main([*command, "--geojson-mode", "intersect", "--geojson-class", "Tissue"]) == 0
    assert "foreground of 2 slides limited to annotations, 1 slides have no file" in capsys.readouterr().out
    draw(Path(out) / "stranger.geojson", shapely.box(0, 0, 1, 1))
    assert main(command) == 1
    assert "left out stranger: " in capsys.readouterr().err
    assert main([*command, "--redo"]) == 2
    assert main(["foreground", "--catalog", catalog, "--geojson", f"{out}/none.geojson", "--slide", "a"]) == 2
    assert "none.geojson: no such file" in capsys.readouterr().err


def test_catalog_and_annotations_may_lie_in_a_bucket(s3_server: S3Server, slide_folder: Path) -> None:
    slides = s3_server.upload(slide_folder, "annotated-slides")
    s3_server.client().create_bucket(Bucket="annotations")
    options = s3_server.storage_options
    url, drawn = "s3://annotations/catalog", "s3://annotations/drawn"
    index_cohort([f"{slides}/a.svs"], url, storage_options=options, progress=False)
    compute_foreground(url, method="stain", storage_options=options, progress=False)
    before = Catalog.open(url, storage_options=options).foreground("a")
    assert export_geojson(Catalog.open(url, storage_options=options), drawn, storage_options=options).done == 1
    for source in (drawn, f"{drawn}/a.geojson"):
        report = import_geojson(url, source, storage_options=options, progress=False)
        assert (report.done, report.failures) == (1, ())
    assert shapely.equals_exact(Catalog.open(url, storage_options=options).foreground("a"), before, 0)
    with pytest.raises(NotFoundError, match="no such folder"):
        import_geojson(url, "s3://annotations/none", storage_options=options, progress=False)
