from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from online_patching import Catalog
from online_patching.jobs import index_cohort
from online_patching.metadata import absolute_url, join_metadata, read_metadata, slide_id_of, typed
from online_patching.slide_table import SlideTable
from written_slides import tissue_image, write_pyramid

DX = "s3://b/1/TCGA-CR-7395-01Z-00-DX1.11111111-aaaa.svs"
TS = "s3://b/2/tcga-cr-7395-01a-01-ts1.22222222-bbbb.svs"
METASTASIS = "s3://b/3/TCGA-CR-7395-06A-01-BS1.33333333-cccc.svs"
OTHER = "s3://b/4/TCGA-02-0001-01Z-00-DX1.44444444-dddd.svs"
PLAIN = "s3://b/5/plain.svs"
URLS = [DX, TS, METASTASIS, OTHER, PLAIN]


def joined(tmp_path: Path, text: str, urls: list[str] | None = None):
    path = tmp_path / "m.csv"
    path.write_text(text, encoding="utf-8")
    return join_metadata(read_metadata(path), URLS if urls is None else urls)


@pytest.mark.parametrize(
    ("texts", "values"),
    [
        (["1", "-20", ""], [1, -20, None]),
        (["1", "2.5", "1e3"], [1.0, 2.5, 1000.0]),
        (["true", "False", ""], [True, False, None]),
        (["007", "12"], ["007", "12"]),
        (["1", "true"], ["1", "true"]),
        (["1", "x"], ["1", "x"]),
        (["nan", "1"], ["nan", "1"]),
        (["99999999999999999999", "1"], ["99999999999999999999", "1"]),
        (["0", "0.5"], [0.0, 0.5]),
        (["", ""], [None, None]),
    ],
)
def test_a_column_has_one_type_and_loses_nothing(texts: list[str], values: list[object]) -> None:
    found = typed(texts)
    assert found == values
    assert [type(value) for value in found] == [type(value) for value in values]


@settings(deadline=None)
@given(st.lists(st.text(max_size=6), max_size=5))
def test_typing_never_fails_and_keeps_text_as_it_is(texts: list[str]) -> None:
    found = typed(texts)
    assert len({type(value) for value in found if value is not None}) <= 1
    assert all(value == text for value, text in zip(found, texts, strict=True) if isinstance(value, str))


def test_a_patient_barcode_joins_to_all_slides_of_the_patient(tmp_path: Path) -> None:
    found = joined(tmp_path, "case_submitter_id,grade\nTCGA-CR-7395,3\nTCGA-ZZ-0000,1\n")
    said = {"case_submitter_id": "TCGA-CR-7395", "grade": 3}
    assert found.columns == {DX: said, TS: said, METASTASIS: said}
    assert found.notes == ("metadata: 1 rows fit no slide, such as 'TCGA-ZZ-0000'",)


def test_the_most_exact_barcode_counts(tmp_path: Path) -> None:
    text = (
        "sample_id,purity\nTCGA-CR-7395,0.1\nTCGA-CR-7395-01,0.2\ntcga-cr-7395-01a,0.3\nTCGA-CR-7395-06A-01-BS1,0.4\n"
    )
    found = joined(tmp_path, text)
    assert {url: columns["purity"] for url, columns in found.columns.items()} == {DX: 0.2, TS: 0.3, METASTASIS: 0.4}
    assert found.notes == ()


def test_a_uuid_column_is_no_barcode_and_of_two_the_longest_is_taken(tmp_path: Path) -> None:
    text = "case_id,submitter_id,sample\n0f1e-2d,TCGA-CR-7395,TCGA-CR-7395-06A\n"
    assert set(joined(tmp_path, text).columns) == {METASTASIS}
    with pytest.raises(ValueError, match="no column to join by"):
        joined(tmp_path, "case_id,grade\n0f1e-2d,1\n")


def test_files_join_by_url_name_and_stem(tmp_path: Path) -> None:
    for key in (PLAIN, "plain.svs", "plain"):
        found = joined(tmp_path, f"File,label\n{key},x\n")
        assert found.columns == {PLAIN: {"label": "x"}}
    assert joined(tmp_path, "slide_id,label\nplain,x\n").columns == {PLAIN: {"label": "x"}}


def test_a_file_column_gives_slides_of_one_name_their_ids(tmp_path: Path) -> None:
    urls = ["s3://b/1/x.svs", "s3://b/2/x.svs"]
    found = joined(tmp_path, "file,id,label\ns3://b/1/x.svs,x1,a\ns3://b/2/x.svs,x2,b\n", urls)
    assert found.ids == {urls[0]: "x1", urls[1]: "x2"}
    assert found.columns == {urls[0]: {"label": "a"}, urls[1]: {"label": "b"}}
    by_name = joined(tmp_path, "file,label\nx.svs,a\n", urls)
    assert by_name.columns == {}
    assert "1 rows or slides are ambiguous and left out, such as 'x.svs'" in by_name.notes[0]


def test_rows_that_contradict_one_another_are_left_out(tmp_path: Path) -> None:
    for text in ("file,label\nplain.svs,a\nplain,b\n", "id,label\nplain,a\nplain,b\n"):
        found = joined(tmp_path, text)
        assert found.columns == {}
        assert "ambiguous" in found.notes[0]
    assert joined(tmp_path, "id,label\nplain,a\nplain,a\n").columns == {PLAIN: {"label": "a"}}
    found = joined(tmp_path, "patient,label\nTCGA-CR-7395,a\ntcga-cr-7395,b\n")
    assert found.columns == {}
    assert "'TCGA-CR-7395'" in found.notes[0]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no column to join by"),
        ("label\nx\n", "no column to join by"),
        ("id,size\na,1\n", "column 'size' has the name of one of the catalog's own"),
        ("id,label,label\na,1,2\n", "column 'label' is there twice"),
    ],
)
def test_tables_that_cannot_be_joined_are_refused(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        joined(tmp_path, text)


def test_names_of_slides() -> None:
    assert slide_id_of("https://host/a%20b.svs") == "a b"
    assert slide_id_of("s3://bucket/a%20b.svs") == "a%20b"
    assert slide_id_of("s3://bucket/folder.zarr/") == "folder"
    assert slide_id_of("/disk/a.b.svs") == "a.b"
    assert slide_id_of("s3://bucket/hash#1.svs") == "hash#1"
    assert slide_id_of("/disk/x.ome.tiff") == "x"
    assert slide_id_of("/disk/1.2.826.0.3/") == "1.2.826.0.3"
    assert slide_id_of("s3://bucket/") == "bucket", "the only DICOM series at the top of a bucket"


def test_one_file_has_one_url_however_its_path_is_written(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    assert absolute_url(f"{tmp_path}/a/../a/x.svs") == f"{tmp_path}/a/x.svs"
    (tmp_path / "link").symlink_to(tmp_path / "a" / "b")
    behind = f"{tmp_path}/link/../x.svs"
    assert absolute_url(behind) == behind, "that is a/x.svs, not x.svs"


def test_columns_reach_the_catalog_in_their_types(tmp_path: Path) -> None:
    for name in ("TCGA-CR-7395-01A-01-TS1.0a.svs", "TCGA-CR-7395-01Z-00-DX1.0b.svs", "plain.svs"):
        write_pyramid(tmp_path / name, tissue_image(300, 300, 1))
    (tmp_path / "m.csv").write_text("file,grade,age,alive,note,mpp\nplain.svs,3,61.5,true,007,0.3\n")
    urls = [str(path) for path in tmp_path.glob("*.svs")]
    url = str(tmp_path / "c")
    index_cohort(urls, url, metadata=read_metadata(tmp_path / "m.csv"), progress=False)
    rows = {row.id[:25]: row for row in Catalog.open(url)}
    assert rows["plain"].columns == {"grade": 3, "age": 61.5, "alive": True, "note": "007"}
    assert rows["plain"].mpp == 0.3
    frozen, ffpe = rows["TCGA-CR-7395-01A-01-TS1.0"], rows["TCGA-CR-7395-01Z-00-DX1.0"]
    assert frozen.columns == {"patient": "TCGA-CR-7395", "sample": "TCGA-CR-7395-01A", "preservation": "flash-frozen"}
    assert ffpe.columns["preservation"] == "FFPE"
    kinds = {field.name: str(field.type) for field in Catalog.open(url).table().schema}
    assert {name: kinds[name] for name in ("grade", "age", "alive", "note")} == {
        "grade": "int64",
        "age": "double",
        "alive": "bool",
        "note": "string",
    }
    # A second table adds to the first; what it says in other types widens the column, here and at earlier slides.
    (tmp_path / "n.csv").write_text("patient,preservation,grade\nTCGA-CR-7395,unknown,high\n")
    index_cohort(urls, url, metadata=read_metadata(tmp_path / "n.csv"), progress=False)
    again = {row.id[:25]: row for row in Catalog.open(url)}
    assert again["plain"].columns == {"grade": "3", "age": 61.5, "alive": True, "note": "007"}
    assert again["TCGA-CR-7395-01A-01-TS1.0"].columns["preservation"] == "unknown", "the user's columns win"
    assert isinstance(Catalog.open(url).rows, SlideTable)
