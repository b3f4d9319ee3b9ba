from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from fm_eval import Finding, examine, read_dataset
from fm_eval.cli import main
from fm_eval.layouts.pcam import _PUBLISHED
from PIL import Image
from written_datasets import write_bach, write_mhist, write_pcam


def _of(findings: list[Finding], check: str) -> list[tuple[str, str]]:
    return [(finding.level, finding.text) for finding in findings if finding.check == check]


def test_the_whole_of_bach_is_as_published(tmp_path: Path) -> None:
    findings = examine(read_dataset(write_bach(tmp_path)), near_duplicates=False)
    assert ("ok", "as published (paper, section IV-A)") in _of(findings, "counts")
    assert ("ok", "test 132: Benign 48, InSitu 30, Invasive 31, Normal 23") in _of(findings, "counts")
    assert _of(findings, "class order") == [("ok", "0 Benign, 1 InSitu, 2 Invasive, 3 Normal")]
    assert _of(findings, "groups")[0][0] == "warning"
    assert all(finding.level != "error" for finding in findings)


def test_what_is_missing_is_counted(tmp_path: Path) -> None:
    findings = examine(read_dataset(write_mhist(tmp_path)), near_duplicates=False)
    [text] = [text for level, text in _of(findings, "counts") if level == "error"]
    assert "train has 16, published are 2175" in text
    assert "HP is 0 and SSA is 1" in _of(findings, "class order")[0][1]


def test_checksums_and_files_that_were_exchanged(tmp_path: Path) -> None:
    dataset = read_dataset(write_pcam(tmp_path))
    names = list(_PUBLISHED.md5)
    right = {name: hashlib.md5((tmp_path / name).read_bytes()).hexdigest() for name in names}
    ours = replace(dataset, published=replace(_PUBLISHED, md5=right))
    found = _of(examine(ours, near_duplicates=False), "checksums")
    assert found[-1] == ("ok", "6 files compared with github.com/basveeling/pcam")
    assert sum("README has their checksums the wrong way round" in text for _, text in found) == 2

    valid, test = "camelyonpatch_level_2_split_valid_x.h5", "camelyonpatch_level_2_split_test_x.h5"
    exchanged = replace(ours, published=replace(_PUBLISHED, md5=right | {valid: right[test], test: right[valid]}))
    found = _of(examine(exchanged, near_duplicates=False), "checksums")
    assert ("error", f"{valid} and {test} are exchanged: rename them") in found

    damaged = replace(ours, published=replace(_PUBLISHED, md5=right | {test: "0" * 32}))
    errors = [text for level, text in _of(examine(damaged, near_duplicates=False), "checksums") if level == "error"]
    assert errors == [f"{test} has MD5 {right[test]}, published is {'0' * 32}"]
    assert _of(examine(damaged, near_duplicates=False, checksums=False), "checksums") == []


def test_leaks_of_groups_contents_and_pictures(make_dataset: Callable[..., Path]) -> None:
    index = make_dataset()
    assert all(finding.level == "ok" for finding in examine(read_dataset(index)))
    # group c0g3 is test: one of its images moves to train, another is copied there, a third is turned
    root = index.parent
    index.write_text(index.read_text().replace("c0_g3_0.png,class0,c0g3,test", "c0_g3_0.png,class0,c0g3,train"))
    (root / "c1_g0_0.png").write_bytes((root / "c1_g3_0.png").read_bytes())
    Image.open(root / "c2_g3_1.png").transpose(Image.Transpose.ROTATE_180).save(root / "c2_g0_0.png")
    findings = examine(read_dataset(index))
    assert _of(findings, "groups") == [("error", "1 of 24 groups are in several splits (2 images): c0g3")]
    [(level, text)] = _of(findings, "identical")
    assert level == "error"
    assert "c1_g0_0.png (train), c1_g3_0.png (test)" in text
    [(level, text)] = _of(findings, "near-duplicates")
    assert text.startswith("2 of 48 images look like one of another split: c2_g3_1.png ~ c2_g0_0.png")


def test_two_labels_of_one_content(make_dataset: Callable[..., Path]) -> None:
    index = make_dataset()
    (index.parent / "c1_g0_0.png").write_bytes((index.parent / "c0_g0_0.png").read_bytes())
    found = _of(examine(read_dataset(index), near_duplicates=False), "identical")
    assert ("error", "1 images have two labels: c0_g0_0.png (class0), c1_g0_0.png (class1)") in found
    assert found[0][0] == "warning"  # within one split


def test_splits_that_cannot_be_used_are_findings(make_dataset: Callable[..., Path]) -> None:
    index = make_dataset()
    lines = [line for line in index.read_text().splitlines() if not ("class1" in line and line.endswith(",val"))]
    index.write_text("\n".join(lines) + "\n")
    errors = [
        text for level, text in _of(examine(read_dataset(index), near_duplicates=False), "split") if level == "error"
    ]
    assert errors == ["class 'class1' has no row in split val (one of 1 of 3 classes); every split needs every class"]


@pytest.mark.parametrize(("split", "code"), [("given", 0), ("image", 1)])
def test_the_command(
    make_dataset: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], split: str, code: int
) -> None:
    output = tmp_path / "doctor.json"
    arguments = ["doctor", str(make_dataset()), f"--split={split}", f"--output={output}", "--threads=2"]
    assert main(arguments) == code
    said = capsys.readouterr().out
    assert ("error   groups: " in said) == bool(code)
    content = json.loads(output.read_text())
    assert content["format_version"] == 1
    assert len(content["findings"]) == said.count("\n")


def test_a_dataset_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", str(tmp_path / "nowhere")]) == 2
    assert "no such folder" in capsys.readouterr().err
