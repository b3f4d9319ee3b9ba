from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from online_patching.errors import CatalogError
from online_patching.slide_row import Scalar, SlideRow
from online_patching.slide_table import ADDED_COLUMNS, OWN_COLUMNS, SlideTable, empty_table


def row(slide_id: str, *, mpp: float | None = 0.25, area: float | None = None, **columns: Scalar) -> SlideRow:
    return SlideRow(
        id=slide_id,
        url=f"s3://b/{slide_id}.svs",
        size=10**10,
        version="etag",
        vendor="aperio",
        mpp=mpp,
        width_px=1000,
        height_px=800,
        levels=3,
        coarsest_downsample=16.0,
        tiles=20,
        front_bytes=500,
        foreground_area_level0_px2=area,
        columns=columns,
    )


ids = st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=5), unique=True, max_size=30)


@settings(deadline=None)
@given(ids, st.text(max_size=5))
def test_every_slide_is_found_and_no_other(slide_ids: list[str], other: str) -> None:
    table = SlideTable.from_rows(row(slide_id) for slide_id in slide_ids)
    assert [each.id for each in table] == sorted(slide_ids)
    for slide_id in slide_ids:
        number = table.number_of(slide_id)
        assert number is not None
        assert table[number] == row(slide_id)
    assert (table.number_of(other) is not None) == (other in slide_ids)


@settings(deadline=None)
@given(ids, st.integers(0, 30))
def test_a_table_made_in_parts_is_the_same_file(slide_ids: list[str], cut: int) -> None:
    rows = [
        row(s, mpp=None if len(s) > 2 else 0.5, label=len(s), note="x" if k % 2 else None)
        for k, s in enumerate(slide_ids)
    ]
    whole = SlideTable.from_rows(rows)
    parts = empty_table().updated(rows[cut:]).updated([row(s) for s in slide_ids[:cut]]).updated(rows[:cut])
    assert parts.to_parquet() == whole.to_parquet()
    read = SlideTable.from_parquet(whole.to_parquet(), "t")
    assert list(read) == list(whole)
    assert read.fingerprint() == whole.fingerprint() == parts.fingerprint()


def test_columns_keep_their_types_and_widen_where_they_differ() -> None:
    table = SlideTable.from_rows([row("a", n=1, f=0.5, b=True, s="x"), row("b", n=2)])
    kinds = {field.name: field.type for field in table.arrow.schema}
    assert [kinds[name] for name in "nfbs"] == [pa.int64(), pa.float64(), pa.bool_(), pa.string()]
    assert table[1].columns == {"n": 2}
    assert table.updated([row("c", n=0.5)])[0].columns["n"] == 1.0
    assert [each.columns["n"] for each in table.updated([row("c", n="x")])] == ["1", "2", "x"]
    assert table.updated([row("a"), row("b")]).user_columns == (), "a column without values is no column"


def test_the_file_is_plain_parquet_that_says_what_its_columns_mean() -> None:
    file = pq.ParquetFile(pa.BufferReader(SlideTable.from_rows([row("a", label=1)]).to_parquet()))
    assert file.schema_arrow.names == [*OWN_COLUMNS, "label"]
    assert file.schema_arrow.metadata[b"online_patching.format_version"] == b"2"
    assert b"um per pixel" in file.schema_arrow.field("mpp").metadata[b"description"]
    assert pa.types.is_string(file.schema_arrow.field("vendor").type)


def test_numbers_are_whole_columns_with_nan_for_no_value() -> None:
    table = SlideTable.from_rows([row("a"), row("b", mpp=None), row("c", mpp=0.5, area=4e6)])
    np.testing.assert_array_equal(table.numbers("mpp"), [0.25, np.nan, 0.5])
    np.testing.assert_array_equal(table.numbers("levels"), [3, 3, 3])
    np.testing.assert_array_equal(table.numbers("foreground_area_mm2"), [np.nan, np.nan, 1.0])
    assert table[2].foreground_area_mm2 == 1.0
    assert table[-1].id == "c"
    assert [each.id for each in table[:2]] == ["a", "b"]
    with pytest.raises(IndexError):
        table[3]
    # A table that is part of another begins in the midst of its buffers.
    part = SlideTable(table.arrow.slice(1))
    np.testing.assert_array_equal(part.numbers("mpp"), [np.nan, 0.5])
    assert part.fingerprint() == SlideTable.from_rows(list(table)[1:]).fingerprint()
    assert empty_table().numbers("mpp").shape == (0,)


@pytest.mark.parametrize("change", [{"id": "c"}, {"size": 1}, {"version": "v"}, {"mpp": None}, {"mpp": 0.26}])
def test_the_fingerprint_sees_what_decides_a_stream(change: dict[str, object]) -> None:
    rows = [row("a", area=1.0), row("b", area=2.0)]
    changed = [rows[0], replace(rows[1], **change)]  # type: ignore[arg-type]
    assert SlideTable.from_rows(changed).fingerprint() != SlideTable.from_rows(rows).fingerprint()
    labelled = [replace(each, columns={"label": 1}) for each in rows]
    assert SlideTable.from_rows(labelled).fingerprint() == SlideTable.from_rows(rows).fingerprint()


def test_the_fingerprint_sees_another_polygon_of_the_same_area() -> None:
    rows = [row("a"), row("b")]
    tables = [
        SlideTable.from_rows([rows[0], rows[1].with_foreground("geojson replace", 2.0, wkb)]) for wkb in (b"1", b"2")
    ]
    assert tables[0].numbers("foreground_area_level0_px2").tolist()[1] == 2.0
    assert tables[0].fingerprint() != tables[1].fingerprint()
    other = SlideTable.from_rows([rows[0], rows[1].with_foreground("stain", 2.0, b"1")])
    assert other.fingerprint() == tables[0].fingerprint(), "by whom it was found is not what a stream is made of"
    assert rows[1].with_foreground("stain", 2.0, b"1").without_foreground() == rows[1]


def test_a_table_of_an_earlier_version_has_neither_methods_nor_digests() -> None:
    table = SlideTable.from_rows([row("a", area=1.0), row("b")])
    earlier = SlideTable(table.arrow.drop_columns(list(ADDED_COLUMNS)))
    assert list(earlier) == list(table)
    assert earlier.fingerprint() == table.fingerprint()
    assert earlier.to_parquet() == table.to_parquet()
    # Its file has no such columns.
    written = pq.read_table(pa.BufferReader(table.to_parquet()))
    sink = pa.BufferOutputStream()
    pq.write_table(written.drop_columns(list(ADDED_COLUMNS)), sink)
    read = SlideTable.from_parquet(sink.getvalue().to_pybytes(), "catalog")
    assert list(read) == list(table)


def test_a_table_travels_to_other_processes_once() -> None:
    table = SlideTable.from_rows(row(f"slide {k}", label=k) for k in range(1000))
    travelled = pickle.dumps(table)
    assert list(pickle.loads(travelled)) == list(table)
    assert len(travelled) < 1.1 * table.arrow.nbytes + 10_000


def test_a_table_edited_by_hand_is_put_in_order_or_refused() -> None:
    arrow = SlideTable.from_rows([row("a"), row("b"), row("c")]).arrow
    frame = arrow.to_pandas().iloc[[2, 0]].assign(split="train")
    edited = SlideTable(pa.Table.from_pandas(frame, preserve_index=False))
    assert [(each.id, each.columns) for each in edited] == [("a", {"split": "train"}), ("c", {"split": "train"})]
    with pytest.raises(CatalogError, match="'a' is in two rows"):
        SlideTable(pa.concat_tables([arrow, arrow.slice(0, 1)]))
    with pytest.raises(CatalogError, match="no column 'version'"):
        SlideTable(arrow.drop_columns(["version"]))
    with pytest.raises(CatalogError, match="damaged"):
        SlideTable.from_parquet(b"nonsense", "t")
    nulls = pa.array([None] * 3, pa.string())
    with pytest.raises(CatalogError, match="'url' of the slide table has rows without a value"):
        SlideTable(arrow.set_column(arrow.column_names.index("url"), "url", nulls))
