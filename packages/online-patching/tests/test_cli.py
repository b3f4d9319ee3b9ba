from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import pytest
from online_patching import Catalog
from online_patching.cli import main


def test_from_a_folder_to_a_preview(slide_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    catalog = str(tmp_path / "catalog")
    columns = tmp_path / "columns.csv"
    columns.write_text("file,patient,mpp\na.svs,p1,\nno_mpp.svs,p2,\n")
    assert main(["index", str(slide_folder), "--catalog", catalog, "--metadata", str(columns), "--foreground"]) == 0
    shown = capsys.readouterr()
    assert "indexed 4 slides" in shown.out
    assert "slide no_mpp: no mpp in its headers" in shown.err
    assert Catalog.open(catalog).row("a").columns == {"patient": "p1"}

    assert main(["index", str(slide_folder), "--catalog", catalog, "--mpp", "no_mpp=0.5", "--mpp", "typo=0.5"]) == 0
    shown = capsys.readouterr()
    assert "no mpp" not in shown.err
    assert "--mpp typo=...: the catalog has no slide of this id" in shown.err
    assert main(["info", "--catalog", catalog]) == 0
    shown = capsys.readouterr().out
    assert "4 slides" in shown
    assert "formats: aperio (4)" in shown
    assert "um/px of level 0: 0.25 (1), 0.26 (1), 0.50 (2)" in shown
    assert main(["info", "--catalog", catalog, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["slides"], facts["vendors"], facts["failures"]) == (4, {"aperio": 4}, [])
    assert facts["slides_with_foreground"] == 4
    assert main(["info", "--catalog", catalog, "--slide", "no_mpp"]) == 0
    assert "no_mpp: aperio, 0.5 um/px\n  level 0: 600 x 600 px" in capsys.readouterr().out
    assert main(["info", str(slide_folder / "c.svs")]) == 0
    assert "level 1" in capsys.readouterr().out

    picture = tmp_path / "p.png"
    assert main(["preview", "--catalog", catalog, "--size-px", "64", "--mpp", "1.0", "--output", str(picture)]) == 0
    assert cv2.imread(str(picture)).std() > 10
    picture = tmp_path / "none" / "p.png"
    assert main(["preview", "--catalog", catalog, "--size-px", "64", "--mpp", "1.0", "--output", str(picture)]) == 2
    assert "cannot be written ([Errno 2] No such file or directory" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["index", "{none}", "--catalog", "{out}"], "no such folder"),
        (["index", "{empty}", "--catalog", "{out}"], "no slides found"),
        (["index", "{bad}", "--catalog", "{out}"], "none of 1 slides could be indexed"),
        (["index", "{good}", "--catalog", "{out}", "--mpp", "x=y"], "in um per pixel"),
        (["index", "{good}", "--catalog", "{out}", "--mpp", "-1"], "a number above 0"),
        (["index", "{good}", "--catalog", "{out}", "--mpp", "a=nan"], "a number above 0"),
        (["index", "{good}", "--catalog", "{out}", "--metadata", "{none}"], "cannot be read"),
        (["foreground", "--catalog", "{empty}"], "no catalog there"),
        (["info"], "either a slide's URL, or --catalog"),
        (["bench", "--catalog", "{none}"], "no catalog there"),
    ],
)
def test_mistakes_end_in_one_line(
    arguments: list[str], reason: str, slide_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "x.svs").write_bytes(b"no slide" * 10)
    places = {
        "none": tmp_path / "none",
        "empty": tmp_path / "empty",
        "bad": tmp_path / "bad",
        "good": slide_folder / "a.svs",
        "out": tmp_path / "out",
    }
    assert main([argument.format(**places) for argument in arguments]) == 2
    shown = capsys.readouterr().err
    assert reason in shown
    assert "Traceback" not in shown


def test_a_folder_that_is_not_there_does_not_stop_the_others(
    slide_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "slides").mkdir()
    shutil.copy(slide_folder / "a.svs", tmp_path / "slides")
    command = ["index", str(tmp_path / "slides"), str(tmp_path / "none"), "--catalog", str(tmp_path / "c")]
    assert main(command) == 1
    assert f"left out {tmp_path / 'none'}: no such folder" in capsys.readouterr().err
    assert len(Catalog.open(str(tmp_path / "c"))) == 1


def test_metadata_experimental_and_workers_reach_the_catalog(
    slide_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "m.csv").write_text("id,label\nno_mpp,3\nnobody,4\n")
    command = ["index", str(slide_folder), "--catalog", str(tmp_path / "c"), "--metadata", str(tmp_path / "m.csv")]
    options = ["--workers", "2", "--experimental", "--assume-mpp-from-magnification"]
    assert main([*command, *options]) == 0
    assert "metadata: 1 rows fit no slide, such as 'nobody'" in capsys.readouterr().err
    row = Catalog.open(str(tmp_path / "c")).row("no_mpp")
    assert (row.columns, row.mpp, row.mpp_source, row.experimental) == ({"label": 3}, 0.5, "assumed", True)


def test_a_bad_slide_among_good_ones_is_named_and_told_by_the_exit_code(
    slide_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "bad.svs"
    bad.write_bytes((slide_folder / "a.svs").read_bytes()[:2000])
    assert main(["index", str(slide_folder / "a.svs"), str(bad), "--catalog", str(tmp_path / "c")]) == 1
    assert "left out bad: " in capsys.readouterr().err
    assert len(Catalog.open(str(tmp_path / "c"))) == 1


def test_storage_clients_do_not_log_their_requests(
    slide_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    assert main(["index", str(slide_folder), "--catalog", str(tmp_path / "catalog")]) == 0
    client = logging.getLogger("azure.core.pipeline.policies.http_logging_policy")
    assert not client.isEnabledFor(logging.INFO)
    assert logging.getLogger("online_patching.stream").isEnabledFor(logging.INFO)


@pytest.mark.parametrize(("reader", "code", "told"), [("head", 141, ""), ("full disk", 2, "No space left")])
def test_output_that_nobody_can_take_ends_without_a_traceback(
    reader: str, code: int, told: str, slide_folder: Path
) -> None:
    command = [sys.executable, "-m", "online_patching.cli", "info", str(slide_folder / "a.svs")]
    if reader == "head":
        taken, output = os.pipe()
        os.close(taken)
    else:
        if not Path("/dev/full").exists():
            pytest.skip("a device that is always full")
        output = os.open("/dev/full", os.O_WRONLY)
    try:
        done = subprocess.run(command, stdout=output, stderr=subprocess.PIPE, text=True, check=False)
    finally:
        os.close(output)
    assert done.returncode == code
    assert told in done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
