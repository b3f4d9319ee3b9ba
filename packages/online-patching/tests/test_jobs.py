from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from online_patching import Catalog, CatalogError, PatchRequest
from online_patching.bytesource import PinnedObject
from online_patching.catalog_files import CatalogFolder
from online_patching.failures import Failure, read_failures
from online_patching.jobs import JobReport, compute_foreground, index_cohort
from online_patching.metadata import read_metadata
from online_patching.slide_table import SlideTable
from online_patching.storage import LocalSource
from written_slides import tissue_image, write_pyramid


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def index(slides: Path, catalog: Path, **arguments: object) -> JobReport:
    urls = sorted(str(path) for path in slides.rglob("*.svs"))
    return index_cohort(urls, str(catalog), progress=False, listed_folders=[str(slides)], **arguments)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def one_slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("one") / "one.svs"
    write_pyramid(path, tissue_image(700, 600, 1))
    return path


def copies(one_slide: Path, folder: Path, names: list[str]) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(one_slide, folder / name)
    return folder


@pytest.mark.slow
def test_a_build_killed_at_ten_moments_ends_as_one_that_was_not(one_slide: Path, tmp_path: Path) -> None:
    slides = copies(one_slide, tmp_path / "slides", [f"{k // 50}/TCGA-AA-{k:04d}-01Z-00-DX1.svs" for k in range(400)])
    (slides / "0" / "bad.svs").write_bytes(b"no slide" * 20)
    copies(one_slide, slides, ["twice/TCGA-AA-0007-01Z-00-DX1.svs"])
    (tmp_path / "m.csv").write_text("patient,label\n" + "".join(f"TCGA-AA-{k:04d},{k % 3}\n" for k in range(400)))
    command = [sys.executable, "-m", "online_patching.cli", "index", str(slides), "--workers", "4"]
    command += ["--metadata", str(tmp_path / "m.csv"), "--catalog"]

    def started(catalog: Path) -> subprocess.Popen[bytes]:
        """The command, as soon as its progress bar shows that it works on the slides."""
        process = subprocess.Popen([*command, str(catalog)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        assert process.stderr is not None
        while data := process.stderr.read1(1000):
            if b"index slides" in data:
                break
        return process

    clean, killed = tmp_path / "clean", tmp_path / "killed"
    process = started(clean)
    began = time.monotonic()
    process.communicate()
    assert process.returncode == 1, "the bad slide and the second of one id are left out"
    work_seconds = time.monotonic() - began
    random_moments, done = random.Random(0), []
    for k in range(10):
        process = started(killed)
        # First short runs, so that the slides are interrupted; then long ones, so that the last steps are too.
        time.sleep(random_moments.uniform(0, work_seconds / 5 if k < 6 else work_seconds))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        done.append(len(list(killed.glob("slides/*/slide.json"))))
    assert any(0 < number < 400 for number in done), f"no kill came in the midst of the work: {done}"
    process = started(killed)
    process.communicate()
    assert process.returncode == 1
    assert files_of(killed) == files_of(clean)
    assert len(Catalog.open(str(killed))) == 400


def test_a_file_half_written_is_never_seen_and_is_removed(one_slide: Path, tmp_path: Path) -> None:
    slides = copies(one_slide, tmp_path / "slides", ["a.svs"])
    index(slides, tmp_path / "clean")
    index(slides, tmp_path / "c")
    (tmp_path / "c" / ".partial").mkdir()
    (tmp_path / "c" / ".partial" / "left-over").write_bytes(b"half")
    # As if the run had been killed between a slide's tile table and its row.
    (tmp_path / "c" / "slides" / "a" / "slide.json").unlink()
    (tmp_path / "c" / "slides.parquet").unlink()
    (tmp_path / "c" / "slides" / "a" / "tiles.optt").write_bytes(b"old")
    assert index(slides, tmp_path / "c").done == 1
    assert files_of(tmp_path / "c") == files_of(tmp_path / "clean")


def test_a_changed_slide_that_was_half_indexed_anew_is_indexed_anew(tmp_path: Path) -> None:
    slides = tmp_path / "slides"
    slides.mkdir()
    write_pyramid(slides / "a.svs", tissue_image(700, 600, 1))
    index(slides, tmp_path / "c")
    compute_foreground(str(tmp_path / "c"), progress=False)
    before = files_of(tmp_path / "c")
    write_pyramid(slides / "a.svs", tissue_image(700, 600, 2))
    index(slides, tmp_path / "c")
    after = files_of(tmp_path / "c")
    # As if that run had been killed once the new tile table was written.
    for name, data in before.items():
        if not name.endswith("tiles.optt"):
            (tmp_path / "c" / name).write_bytes(data)
    assert index(slides, tmp_path / "c").done == 1
    assert files_of(tmp_path / "c") == after


def test_two_builds_at_once_leave_a_whole_catalog(one_slide: Path, tmp_path: Path) -> None:
    slides = copies(one_slide, tmp_path / "slides", [f"{k}.svs" for k in range(60)])
    index(slides, tmp_path / "clean")
    threads = [threading.Thread(target=index, args=(slides, tmp_path / "c")) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert files_of(tmp_path / "c") == files_of(tmp_path / "clean")


def test_a_folder_of_partial_files_that_another_job_removes_while_it_is_made_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = CatalogFolder(str(tmp_path / "c"))
    makedirs = os.makedirs
    failed: list[str] = []

    def removed_meanwhile(path: str, **arguments: object) -> None:
        if path.endswith(".partial") and not failed:
            failed.append(path)
            raise FileExistsError(path)  # As os.makedirs says it when the folder is gone at its second look.
        makedirs(path, **arguments)  # type: ignore[arg-type]

    monkeypatch.setattr("os.makedirs", removed_meanwhile)
    folder.write(b"whole", "file")
    assert failed
    assert folder.read("file") == b"whole"


def test_a_table_that_is_written_many_times_on_the_way_loses_no_slide(
    one_slide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slides = copies(one_slide, tmp_path / "slides", [f"{k}.svs" for k in range(120)])
    index(slides, tmp_path / "clean")
    written: list[int] = []
    original = CatalogFolder.write_table

    def write_table(self: CatalogFolder, table: SlideTable) -> None:
        written.append(len(table))
        original(self, table)

    monkeypatch.setattr(CatalogFolder, "write_table", write_table)
    monkeypatch.setattr("online_patching.index_job.CHECKPOINT_SLIDES", 2)
    index(slides, tmp_path / "c")
    assert len(written) >= 3, "it was written at the end only"
    assert written == sorted(written)
    assert files_of(tmp_path / "c") == files_of(tmp_path / "clean")


def test_unchanged_slides_are_told_by_the_listing_alone(
    one_slide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slides = copies(one_slide, tmp_path / "slides", ["a.svs", "b.svs"])
    index(slides, tmp_path / "c")
    rows = Catalog.open(str(tmp_path / "c")).rows
    listed = [PinnedObject(row.url, row.info) for row in rows]
    asked: list[str] = []
    monkeypatch.setattr(LocalSource, "_info", lambda self: asked.append(self.url))
    report = index_cohort(listed, str(tmp_path / "c"), progress=False)
    assert (report.done, report.kept, asked) == (0, 2, [])


def test_a_slide_that_vanished_stays_and_is_reported(one_slide: Path, tmp_path: Path) -> None:
    slides = copies(one_slide, tmp_path / "slides", ["a.svs", "b.svs"])
    index(slides, tmp_path / "c")
    (slides / "a.svs").unlink()
    report = index(slides, tmp_path / "c")
    assert (report.done, report.kept) == (0, 1)
    assert [(f.slide, f.error) for f in report.failures] == [("a", "NotFoundError")]
    assert "its row stays" in report.failures[0].reason
    assert [row.id for row in Catalog.open(str(tmp_path / "c"))] == ["a", "b"]
    # Asked for by name it is the same.
    named = index_cohort([str(slides / "a.svs")], str(tmp_path / "c"), progress=False)
    assert [(f.slide, f.error) for f in named.failures] == [("a", "NotFoundError")]
    assert len(Catalog.open(str(tmp_path / "c"))) == 2


def test_failures_are_rows_that_go_when_the_slide_is_mended(one_slide: Path, tmp_path: Path) -> None:
    slides = copies(one_slide, tmp_path / "slides", ["good.svs", "sub/mended.svs", "sub/bad.svs"])
    for name in ("mended", "bad"):
        (slides / "sub" / f"{name}.svs").write_bytes(b"no slide" * 20)
    url = str(tmp_path / "c")
    report = index(slides, tmp_path / "c")
    assert (report.done, [f.slide for f in report.failures]) == (1, ["bad", "mended"])
    kept = pq.read_table(f"{url}/failures.parquet").to_pylist()
    assert [(row["id"], row["url"], row["error"]) for row in kept] == [
        (name, str(slides / "sub" / f"{name}.svs"), "SlideFormatError") for name in ("bad", "mended")
    ]
    assert all("not a slide" in row["reason"] for row in kept)
    # A run over other slides keeps what is known of these.
    index_cohort([str(slides / "good.svs")], url, progress=False)
    assert [f.slide for f in read_failures(CatalogFolder(url))] == ["bad", "mended"]
    shutil.copy(one_slide, slides / "sub" / "mended.svs")
    assert [f.slide for f in index(slides, tmp_path / "c").failures] == ["bad"]
    assert [f.slide for f in read_failures(CatalogFolder(url))] == ["bad"]
    assert len(Catalog.open(url)) == 2


def test_of_two_slides_of_one_id_the_first_keeps_it(one_slide: Path, tmp_path: Path) -> None:
    slides = copies(one_slide, tmp_path / "slides", ["a/x.svs", "b/x.svs", "b/y.svs"])
    for _ in range(2):
        report = index(slides, tmp_path / "c")
        (failure,) = report.failures
        assert isinstance(failure, Failure)
        assert (failure.slide, failure.url) == ("x", str(slides / "b" / "x.svs"))
        for part in (str(slides / "a" / "x.svs"), str(slides / "b" / "x.svs"), "'id'", "another catalog"):
            assert part in failure.reason
        assert {row.id: row.url for row in Catalog.open(str(tmp_path / "c"))} == {
            "x": str(slides / "a" / "x.svs"),
            "y": str(slides / "b" / "y.svs"),
        }
    # The one in the catalog keeps the id, also against one that comes before it.
    copies(one_slide, slides, ["0/x.svs"])
    report = index_cohort([str(slides / "0" / "x.svs")], str(tmp_path / "c"), progress=False)
    assert "is given twice" in report.failures[0].reason
    assert Catalog.open(str(tmp_path / "c")).row("x").url == str(slides / "a" / "x.svs")
    # A slide that was moved takes its id along.
    (slides / "a" / "x.svs").unlink()
    assert index_cohort([str(slides / "0" / "x.svs")], str(tmp_path / "c"), progress=False).failures == ()
    assert Catalog.open(str(tmp_path / "c")).row("x").url == str(slides / "0" / "x.svs")


def test_slides_get_and_keep_the_ids_that_metadata_gives_them(one_slide: Path, tmp_path: Path) -> None:
    slides = copies(one_slide, tmp_path / "slides", ["a/x.svs", "b/x.svs"])
    url = str(tmp_path / "c")
    assert len(index(slides, tmp_path / "c").failures) == 1
    lines = [f"{slides / part / 'x.svs'},{part}-x,{part}" for part in "ab"]
    (tmp_path / "m.csv").write_text("\n".join(["file,id,site", *lines]))
    assert index(slides, tmp_path / "c", metadata=read_metadata(tmp_path / "m.csv")).failures == ()
    expected = {"a-x": str(slides / "a" / "x.svs"), "b-x": str(slides / "b" / "x.svs")}
    assert {row.id: row.url for row in Catalog.open(url)} == expected
    assert not list((tmp_path / "c" / "slides").glob("x/*")), "the files of the former id are gone"
    assert read_failures(CatalogFolder(url)) == []
    again = index(slides, tmp_path / "c")
    assert (again.done, again.kept, again.failures) == (0, 2, ())
    assert {row.id: row.columns["site"] for row in Catalog.open(url)} == {"a-x": "a", "b-x": "b"}


def test_a_url_with_credentials_is_refused_without_showing_them(tmp_path: Path) -> None:
    urls = ["https://user:secret@host/a.svs", "https://host/b.svs?sig=secret&sv=1"]
    report = index_cohort(urls, str(tmp_path / "c"), progress=False)
    assert [f.slide for f in report.failures] == ["a", "b"]
    assert all("carries credentials" in f.reason for f in report.failures)
    assert all(b"secret" not in data for data in files_of(tmp_path / "c").values())


def test_names_with_spaces_dots_and_other_scripts(one_slide: Path, tmp_path: Path) -> None:
    names = ["Lunge 1, Ä.svs", "切片.svs", "a%20b.svs", "...svs", "x.1.svs"]
    slides = copies(one_slide, tmp_path / "slides", names)
    report = index(slides, tmp_path / "c")
    assert (report.done, report.failures) == (5, ())
    catalog = Catalog.open(str(tmp_path / "c"))
    ids = [row.id for row in catalog]
    assert ids == sorted(name.removesuffix(".svs") for name in names)
    patches = catalog.read_patches([PatchRequest(slide_id, 100, 100, 32, 0.5) for slide_id in ids])
    assert all((patch == patches[0]).all() for patch in patches)


def test_mpp_comes_from_the_first_that_knows_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "x.svs"
    write_pyramid(path, tissue_image(500, 500, 1), mpp=None)
    url = str(tmp_path / "c")

    def mpp_after(**arguments: object) -> tuple[float | None, str | None]:
        assert index_cohort([str(path)], url, progress=False, **arguments).failures == ()  # type: ignore[arg-type]
        row = Catalog.open(url).row("x")
        assert Catalog.open(url).slide("x").mpp == row.mpp
        return row.mpp, row.mpp_source

    assert mpp_after() == (None, None)
    assert Catalog.open(url).row("x").magnification == 20
    assert mpp_after(assume_mpp_from_magnification=True) == (0.5, "assumed")
    assert mpp_after() == (0.5, "assumed"), "opted in once"
    assert mpp_after(mpp=0.48) == (0.48, "given")
    assert mpp_after(assume_mpp_from_magnification=True) == (0.48, "given")
    assert mpp_after(columns={"x": {"mpp": 0.47}}, mpp=0.4) == (0.47, "given")
    assert mpp_after(columns={"x": {"mpp": 0.47}}, mpp={"x": 0.46}) == (0.46, "given")
    write_pyramid(path, tissue_image(500, 500, 2), mpp=0.5)
    assert not caplog.records
    assert mpp_after() == (0.46, "given"), "what the user said holds for the new version too"
    assert [record.getMessage() for record in caplog.records] == [
        "slide x: its new version states 0.5 um/px, the 0.46 given for the one before still holds; say which "
        "with --mpp x=VALUE"
    ]
    assert Catalog.open(url).row("x").mpp_file == 0.5


def test_an_unforeseen_fault_of_one_slide_does_not_stop_the_others(
    one_slide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slides = copies(one_slide, tmp_path / "slides", ["a.svs", "b.svs"])
    from online_patching import index_job

    original = index_job.index_slide

    async def faulty(url: str, *args: object, **kwargs: object) -> object:
        if url.endswith("a.svs"):
            raise KeyError("tag 270")
        return await original(url, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(index_job, "index_slide", faulty)
    report = index(slides, tmp_path / "c")
    assert (report.done, [(f.slide, f.error) for f in report.failures]) == (1, [("a", "KeyError")])
    assert "unexpected" in report.failures[0].reason


def test_foreground_of_a_stopped_run_is_taken_up(one_slide: Path, tmp_path: Path) -> None:
    slides = copies(one_slide, tmp_path / "slides", ["a.svs"])
    url = str(tmp_path / "c")
    index(slides, tmp_path / "c")
    without = (tmp_path / "c" / "slides.parquet").read_bytes()
    calls = []

    def once(thumbnail: np.ndarray, mpp: float | None) -> np.ndarray:
        calls.append(mpp)
        assert len(calls) == 1, "it was computed again"
        return np.ones(thumbnail.shape[:2], np.bool_)

    assert compute_foreground(url, progress=False, method=once).done == 1
    done = files_of(tmp_path / "c")
    (tmp_path / "c" / "slides.parquet").write_bytes(without)
    assert compute_foreground(url, progress=False, method=once).done == 1
    assert files_of(tmp_path / "c") == done
    # A slide that changed loses the polygon of its former self.
    write_pyramid(slides / "a.svs", tissue_image(900, 600, 2))
    assert index(slides, tmp_path / "c").done == 1
    assert not (tmp_path / "c" / "slides" / "a" / "foreground.wkb").exists()
    with pytest.raises(CatalogError, match="no foreground yet"):
        Catalog.open(url).foreground("a")


def test_wrong_arguments_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="workers: got 0"):
        index_cohort([], str(tmp_path / "c"), workers=0)
    assert os.listdir(tmp_path) == []  # noqa: PTH208
