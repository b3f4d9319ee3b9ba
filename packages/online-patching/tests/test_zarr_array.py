"""Array metadata: what zarr writes passes unchanged, what is hostile is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from online_patching import SlideFormatError, open_slide
from online_patching.formats.zarr_array import checked_array
from written_slides import tissue_image
from written_zarrs import write_zarr_levels

Document = dict[str, Any]


def written(zarr_format: int, **options: Any) -> Document:
    """The metadata that zarr writes for an array."""
    store = zarr.storage.MemoryStore()
    defaults = {"shape": (3, 500, 700), "chunks": (3, 128, 128), "dtype": "uint8"}
    zarr.create_array(store, zarr_format=zarr_format, **{**defaults, **options})
    key = ".zarray" if zarr_format == 2 else "zarr.json"
    document: Document = json.loads(store._store_dict[key].to_bytes())
    return document


V2, V3 = written(2), written(3)
SHARDED = written(3, shards=(3, 512, 512))


def test_what_zarr_writes_is_taken_over() -> None:
    for document in (V2, V3, SHARDED):
        array = checked_array(document, name="0", where="x")
        assert array.shape == (3, 500, 700)
        assert array.chunks == (3, 128, 128)
        kept = json.loads(json.dumps(array.document))
        assert kept == {key: value for key, value in document.items() if key in kept and key != "attributes"} | (
            {"attributes": {}} if document is not V2 else {}
        )


def sharding(**changes: Any) -> Document:
    (codec,) = SHARDED["codecs"]
    return {"codecs": [{**codec, "configuration": {**codec["configuration"], **changes}}]}


def grid(*chunks: Any) -> Document:
    return {"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(chunks)}}}


HOSTILE: list[tuple[Document, Document, str]] = [
    (V2, {"zarr_format": 1}, "zarr_format is 1"),
    (V2, {"zarr_format": True}, "zarr_format is True"),
    (V2, {"dtype": "|O"}, "only 8-bit"),
    (V2, {"dtype": [["a", "|u1"]]}, "only 8-bit"),
    (V2, {"shape": [3, 10**30, 700]}, "allowed: 1 to"),
    (V2, {"shape": [3, 0, 700]}, "allowed: 1 to"),
    (V2, {"shape": [3, -5, 700]}, "allowed: 1 to"),
    (V2, {"shape": [3, 5.5, 700]}, "allowed: 1 to"),
    (V2, {"shape": [1] * 9}, "list of 1 to 5"),
    (V2, {"shape": "large"}, "list of 1 to 5"),
    (V2, {"chunks": [3, 0, 128]}, "allowed: 1 to"),
    (V2, {"chunks": [3, 128]}, "chunks of 2 axes"),
    (V2, {"chunks": None}, "chunk shape"),
    (V2, {"chunks": [3, 16384, 16384]}, "write the image again with chunks"),
    (V2, {"chunks": [1 << 20, 16, 16]}, "write the image again with chunks"),
    (V2, {"chunks": [3, 20000, 16]}, "write the image again with chunks"),
    (V2, {"compressor": {"id": "pickle"}}, "codec 'pickle' is not supported"),
    (V2, {"filters": [{"id": "pickle"}]}, "codec 'pickle' is not supported"),
    (V2, {"filters": [{"id": "json2"}]}, "codec 'json2' is not supported"),
    (V2, {"filters": [{"id": "shuffle"}] * 99}, "filters are"),
    (V2, {"filters": "pickle"}, "filters are"),
    (V2, {"compressor": "zstd"}, "a codec is 'zstd'"),
    (V2, {"compressor": {"id": ["zstd"]}}, "codec list is not supported"),
    (V2, {"order": "K"}, "order is 'K'"),
    (V2, {"dimension_separator": "../"}, "dimension_separator is"),
    (V2, {"fill_value": "AAAA"}, "fill_value is 'AAAA'"),
    (V2, {"fill_value": 256}, "fill_value is 256"),
    (V3, {"node_type": "group"}, "node_type"),
    (V3, {"data_type": "uint16"}, "uint16"),
    (V3, {"data_type": {"name": "pickle"}}, "only 8-bit"),
    (V3, {"fill_value": None}, "fill_value is None"),
    (V3, grid(3, 0, 128), "allowed: 1 to"),
    (V3, grid(3, True, 128), "allowed: 1 to"),
    (V3, {"chunk_grid": {"name": "rectilinear"}}, "name is 'rectilinear'"),
    (V3, {"chunk_grid": 5}, "chunk_grid is 5"),
    (V3, {"chunk_key_encoding": {"name": "default", "configuration": {"separator": "/../"}}}, "separator is"),
    (V3, {"chunk_key_encoding": {"name": "suffix"}}, "name is 'suffix'"),
    (V3, {"codecs": []}, "codecs are"),
    (V3, {"codecs": [{"name": "bytes"}] * 99}, "codecs are"),
    (V3, {"codecs": [{"name": "numcodecs.pickle"}]}, "not supported"),
    (V3, {"codecs": ["vlen-utf8"]}, "codec 'vlen-utf8' is not supported"),
    (V3, {"codecs": [{"name": "bytes", "configuration": 5}]}, "configuration of bytes"),
    (V3, {"storage_transformers": [{"name": "x"}]}, "storage transformers"),
    (V3, {"surprise": {"must_understand": True}}, "'surprise' is not known"),
    (SHARDED, sharding(chunk_shape=[3, 100, 128]), "do not fill shards"),
    (SHARDED, sharding(chunk_shape=[3, 0, 128]), "allowed: 1 to"),
    (SHARDED, {**sharding(chunk_shape=[1, 1, 1]), **grid(3, 1 << 14, 1 << 14)}, "chunks a shard"),
    (SHARDED, sharding(codecs=SHARDED["codecs"]), "codec 'sharding_indexed' is not supported"),
    (SHARDED, sharding(index_codecs=None), "codecs are"),
    (SHARDED, sharding(index_location="middle"), "index_location"),
]


@pytest.mark.parametrize(("document", "changes", "message"), HOSTILE)
def test_hostile_metadata_is_refused_by_name(document: Document, changes: Document, message: str) -> None:
    with pytest.raises(SlideFormatError, match=message) as caught:
        checked_array({**document, **changes}, name="0", where="s3://b/x.zarr/0/zarr.json")
    assert str(caught.value).startswith("s3://b/x.zarr/0/zarr.json: ")
    assert len(str(caught.value)) < 1000


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None)
@given(document=st.sampled_from([V2, V3, SHARDED]), data=st.data())
def test_any_value_in_any_field_is_read_or_refused(document: Document, data: st.DataObject) -> None:
    key = data.draw(st.sampled_from(sorted(document)))
    changed = {**document, key: data.draw(JSON)}
    try:
        array = checked_array(changed, name="0", where="x")
    except SlideFormatError:
        return
    assert all(length > 0 for length in (*array.shape, *array.chunks))


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_what_zarr_itself_refuses_names_the_array(tmp_path: Path, zarr_format: int) -> None:
    write_zarr_levels(tmp_path / "x.zarr", [tissue_image(90, 80, 1)], axes="cyx", zarr_format=zarr_format)
    path = tmp_path / "x.zarr" / "0" / (".zarray" if zarr_format == 2 else "zarr.json")
    document = json.loads(path.read_text())
    if zarr_format == 2:
        document["compressor"] = {"id": "blosc", "surprise": 5}
    else:
        document["codecs"] = [{"name": "bytes"}, {"name": "zstd", "configuration": {"level": "high"}}]
    path.write_text(json.dumps(document))
    with pytest.raises(SlideFormatError, match=r"x\.zarr/0: not an array that zarr reads"):
        open_slide(str(tmp_path / "x.zarr"))
