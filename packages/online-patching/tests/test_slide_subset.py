from __future__ import annotations

import itertools
import json
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from online_patching import Catalog, CatalogError, GridStream, PatchStream
from online_patching.sampler import PatchSampler
from online_patching.slide_row import SlideRow
from online_patching.slide_subset import chosen_slides, without_slides
from online_patching.slide_table import SlideTable

ROWS: dict[str, dict[str, Any]] = {
    "a": {"split": "train", "preservation": "FFPE", "age": 61, "reviewed": True},
    "b": {"split": "train", "preservation": "frozen", "age": 40, "reviewed": False},
    "c": {"split": "val", "preservation": "FFPE"},
    "d": {"preservation": "FFPE", "age": 75, "reviewed": True},
}


@pytest.fixture(scope="module")
def rows(catalog_url: str) -> SlideTable:
    """Four slides with columns that have no value here and there."""
    like = Catalog.open(catalog_url).row("a")
    values = {name: getattr(like, name) for name in SlideRow.__dataclass_fields__}
    return SlideTable.from_rows([SlideRow(**{**values, "id": k, "columns": columns}) for k, columns in ROWS.items()])


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("split == 'train' and preservation == 'FFPE'", "a"),
        ("split != 'train'", "c"),
        ("not split == 'train'", "c"),
        ("split == 'train' or age > 70", "abd"),
        ("split in ('val', 'test') or reviewed", "acd"),
        ("split not in ['val']", "ab"),
        ("split is None", "d"),
        ("age is not None and not reviewed", "b"),
        ("40 < age <= 61", "a"),
        ("70 < age", "d"),
        ("vendor == 'aperio' and width_px >= 1", "abcd"),
        ("id not in ('a', 'd')", "bc"),
        ("age == -1 or mpp == 0.5", "abcd"),
        ("age / 2 == 20", None),
    ],
)
def test_a_filter_is_true_as_in_sql(rows: SlideTable, where: str, expected: str | None) -> None:
    if expected is None:
        with pytest.raises(CatalogError, match="where a column or a constant is needed"):
            chosen_slides(rows, where=where)
        return
    chosen = chosen_slides(rows, where=where)
    assert [rows.value(int(k), "id") for k in np.flatnonzero(chosen)] == list(expected)


@pytest.mark.parametrize(
    ("where", "reason"),
    [
        ("splitt == 'train'", "names 'splitt', which is no column of the catalog"),
        ("split = 'train'", "cannot be read"),
        ("split == 3", "compares values of different types"),
        ("age in ('old',)", "compares values of different types"),
        ("age", "where a condition is needed"),
        ("split", "where a condition is needed"),
        ("1 == 1", "compares two constants"),
        ("age is 3", "uses `is` for another thing"),
        ("age in split", "to be `in` a list of constants"),
        ("split == 'nowhere'", "leaves none of 4 slides"),
        ("__import__('os').getcwd() == 'x'", "where a column or a constant is needed"),
        ("split == f'{age}'", "where a column or a constant is needed"),
        ("(" * 300 + "age == 1" + ")" * 300, "cannot be read"),
        ("not " * 5000 + "reviewed", "cannot be read|nested too deeply"),
        ("", "cannot be read"),
    ],
)
def test_what_is_no_filter_is_refused_by_name(rows: SlideTable, where: str, reason: str) -> None:
    with pytest.raises(CatalogError, match=reason):
        chosen_slides(rows, where=where)


@pytest.fixture(scope="module")
def many(rows: SlideTable) -> SlideTable:
    first = rows.arrow.slice(0, 1)
    table = pa.concat_tables([first] * 1000)
    ids = [f"TCGA-{number:04}" for number in range(1000)]
    return SlideTable(table.set_column(table.column_names.index("id"), "id", pa.array(ids)))


def test_shares_are_nested_and_as_large_as_asked_for(many: SlideTable) -> None:
    shares = (0.01, 0.1, 0.3, 1.0)
    chosen = [chosen_slides(many, share=share, seed=7) for share in shares]
    assert [int(each.sum()) for each in chosen] == [10, 100, 300, 1000]
    for smaller, larger in itertools.pairwise(chosen):
        assert larger[smaller].all()
    other = chosen_slides(many, share=0.1, seed=8)
    # Two independent tenths share about ten slides; the hypergeometric deviation is 2.8.
    assert 1 <= int((other & chosen[1]).sum()) <= 22
    assert int(chosen_slides(many.without([many.value(0, "id")]), share=0.3, seed=7).sum()) == 300


def test_a_share_takes_slides_evenly_and_keeps_them_when_others_join(many: SlideTable) -> None:
    chosen = chosen_slides(many, share=0.5, seed=1)
    # By the binomial deviation of 7.9 in each half.
    assert abs(int(chosen[:500].sum()) - 250) < 40
    fewer = many.without([str(many.value(k, "id")) for k in range(900, 1000)])
    before = chosen_slides(fewer, share=0.5, seed=1)
    changed = int((before != chosen[:900]).sum())
    assert changed < 60, "slides that join move few of the others in or out"


@pytest.mark.parametrize(("arguments", "reason"), [({"share": 0}, "slide_share: got 0"), ({"share": 1.5}, "got 1.5")])
def test_shares_out_of_range_are_refused(rows: SlideTable, arguments: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        chosen_slides(rows, **arguments)


def test_a_stream_sees_the_slides_of_its_filter_alone(catalog: Catalog) -> None:
    assert {p["slide_id"] for p, _ in zip(PatchStream(catalog, size_px=48, mpp=1.0), range(60), strict=False)} == set(
        "abc"
    )
    where = without_slides(["a"])
    some = PatchStream(catalog, size_px=48, mpp=1.0, where=where)
    assert {p["slide_id"] for p, _ in zip(some, range(60), strict=False)} == set("bc")
    assert {p["slide_id"] for p in GridStream(catalog, size_px=96, mpp=1.0, where="id == 'c'")} == {"c"}
    assert without_slides("ab") == "id not in ('a', 'b')"


def test_another_filter_is_another_stream_and_its_state_is_refused(catalog: Catalog) -> None:
    whole = PatchStream(catalog, size_px=48, mpp=1.0)
    state = json.loads(json.dumps(whole.state_dict()))
    some = PatchStream(catalog, size_px=48, mpp=1.0, where="id != 'a'")
    assert some.fingerprint() != whole.fingerprint()
    with pytest.raises(ValueError, match="fingerprint"):
        some.load_state_dict(state)
    # One that leaves nothing out changes nothing.
    PatchStream(catalog, size_px=48, mpp=1.0, where="split == 'train'").load_state_dict(state)


def test_slides_outside_of_the_filter_need_no_foreground(catalog_url: str) -> None:
    catalog = Catalog.open(catalog_url)
    number = catalog.rows.number_of("b")
    assert number is not None
    areas = catalog.rows.numbers("foreground_area_level0_px2")
    areas[number] = np.nan
    place = catalog.rows.arrow.column_names.index("foreground_area_level0_px2")
    values = pa.array(areas, from_pandas=True)
    catalog.rows = SlideTable(catalog.rows.arrow.set_column(place, "foreground_area_level0_px2", values))
    arguments: dict[str, Any] = {"size_px": 48, "mpp": [1.0], "min_foreground": 0.4, "seed": 0}
    with pytest.raises(CatalogError, match="slide b has no foreground yet") as refused:
        PatchSampler(catalog, **arguments)
    # The way out that the message names is one.
    where = str(refused.value).split('where="')[1].rstrip('"')
    assert len(PatchSampler(catalog, where=where, **arguments).served) == 2
    assert len(PatchSampler(catalog, where="id != 'b'", **arguments).served) == 2
