"""What NGFF metadata says, what reading it costs, and what hostile metadata may not do."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from online_patching import NotFoundError, SlideFormatError, open_slide
from online_patching.bytesource import ByteSource
from online_patching.formats.ome_zarr import OmeZarrSlide, read_ome_zarr
from online_patching.loop import run
from online_patching.storage import LocalSource, Store
from written_slides import pyramid_of, tissue_image
from written_zarrs import write_ome_zarr, write_zarr_levels

LEVELS = pyramid_of(tissue_image(300, 200, 1))

Document = dict[str, Any]


class RecordingStore(Store):
    """A store that remembers what was opened."""

    def __init__(self) -> None:
        super().__init__()
        self.opened: list[str] = []

    def open(self, url: str) -> ByteSource:
        self.opened.append(url)
        return LocalSource(url)


def read(path: Path) -> OmeZarrSlide:
    return run(read_ome_zarr(Store(), str(path)))


def edited(path: Path, edit: Callable[[Document], Any]) -> None:
    """Change a JSON document in place."""
    document = json.loads(path.read_text())
    edit(document)
    path.write_text(json.dumps(document))


@pytest.mark.parametrize(
    ("unit", "um"),
    [("micrometer", 1.0), ("millimeter", 1000.0), ("nanometer", 0.001), (None, None), ("parsec", None)],
)
@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_mpp_is_scale_times_unit(tmp_path: Path, version: str, unit: str | None, um: float | None) -> None:
    write_ome_zarr(tmp_path / "x.zarr", LEVELS[:2], version=version, mpp=0.25 / (um or 1), unit=unit)
    header = open_slide(str(tmp_path / "x.zarr")).header
    assert header.mpp == (pytest.approx(0.25) if um else None)
    assert header.properties["ome-zarr version"] == version


def test_scale_of_the_whole_image_multiplies(tmp_path: Path) -> None:
    write_ome_zarr(tmp_path / "x.zarr", LEVELS[:1], version="0.4", axes="tczyx", mpp=0.25)

    def add(document: Document) -> None:
        transform = {"type": "scale", "scale": [1, 1, 1, 2, 4]}
        document["multiscales"][0]["coordinateTransformations"] = [transform]

    edited(tmp_path / "x.zarr" / ".zattrs", add)
    assert read(tmp_path / "x.zarr").found.header.mpp == pytest.approx(0.75)


def test_only_documents_are_read(tmp_path: Path) -> None:
    for version, group, array in (("0.4", [".zattrs"], ".zarray"), ("0.5", [], "zarr.json")):
        folder = tmp_path / version
        write_ome_zarr(folder, LEVELS, version=version, shard_tiles=2 if version == "0.5" else 0)
        store = RecordingStore()
        slide = run(read_ome_zarr(store, f"{folder}/"))
        names = ["zarr.json", *group, *(f"s{k}/{array}" for k in range(3))]
        assert store.opened == [f"{folder}/{name}" for name in names]
        assert slide.requests == len(names)
        pinned = names if version == "0.5" else names[1:]
        assert [each.url for each in slide.found.objects] == [f"{folder}/{name}" for name in pinned]
        assert slide.bytes_read == sum(Path(each.url).stat().st_size for each in slide.found.objects)


def test_consolidated_metadata_costs_one_request(tmp_path: Path) -> None:
    write_ome_zarr(tmp_path / "x.zarr", LEVELS, version="0.5")
    with pytest.warns(UserWarning, match="Consolidated metadata"):
        zarr.consolidate_metadata(str(tmp_path / "x.zarr"))
    slide = read(tmp_path / "x.zarr")
    assert slide.requests == 1
    assert [level.width_px for level in slide.found.header.levels] == [300, 150, 75]


def test_bioformats2raw_opens_the_first_series(tmp_path: Path) -> None:
    for version, name in (("0.4", ".zattrs"), ("0.5", "zarr.json")):
        root = tmp_path / f"{version}.zarr"
        write_ome_zarr(root / "0", LEVELS, version=version)
        write_ome_zarr(root / "1", LEVELS[2:], version=version)
        layout = {"bioformats2raw.layout": 3}
        group = {"zarr_format": 3, "node_type": "group", "attributes": {"ome": {"version": "0.5", **layout}}}
        (root / name).write_text(json.dumps(layout if version == "0.4" else group))
        slide = open_slide(str(root))
        assert [level.width_px for level in slide.levels] == [300, 150, 75]
        pixels = slide.read_level(level=1, x_px=0, y_px=0, width_px=150, height_px=100)
        np.testing.assert_array_equal(pixels, LEVELS[1])


def test_labels_and_rendering_settings_are_ignored(tmp_path: Path) -> None:
    write_ome_zarr(tmp_path / "x.zarr", LEVELS, version="0.5")
    write_ome_zarr(tmp_path / "x.zarr" / "labels" / "cells", LEVELS, version="0.5")
    edited(tmp_path / "x.zarr" / "zarr.json", lambda d: d["attributes"]["ome"].update(omero={"channels": "nonsense"}))
    assert len(read(tmp_path / "x.zarr").found.header.levels) == 3


@pytest.mark.parametrize(
    ("shape", "axes", "dtype", "message"),
    [
        ((3, 40, 50), "cyx", "uint16", "'uint16': only 8-bit"),
        ((4, 40, 50), "cyx", "uint8", "4 channels, allowed: 3 .RGB. or 1"),
        ((2, 3, 40, 50), "tcyx", "uint8", "2 planes along t, allowed: 1"),
        ((3, 9, 40, 50), "czyx", "uint8", "9 planes along z, allowed: 1"),
    ],
)
def test_what_is_no_picture_is_refused(
    tmp_path: Path, shape: tuple[int, ...], axes: str, dtype: str, message: str
) -> None:
    write_zarr_levels(tmp_path / "x.zarr", LEVELS[:1], axes="cyx", zarr_format=3)
    zarr.create_array(str(tmp_path / "x.zarr"), name="0", shape=shape, dtype=dtype, overwrite=True)
    described = [{"name": axis} for axis in axes]
    edited(
        tmp_path / "x.zarr" / "zarr.json",
        lambda d: d["attributes"]["ome"]["multiscales"][0].update(axes=described),
    )
    with pytest.raises(SlideFormatError, match=message):
        read(tmp_path / "x.zarr")


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"no zarr\.json and no \.zattrs"):
        open_slide(str(tmp_path / "none.zarr"))
    with pytest.raises(SlideFormatError, match="no slide in this folder"):
        open_slide(str(tmp_path))
    write_ome_zarr(tmp_path / "x.zarr", LEVELS, version="0.5")
    (tmp_path / "x.zarr" / "s1" / "zarr.json").unlink()
    with pytest.raises(NotFoundError, match=r"s1/zarr\.json"):
        open_slide(str(tmp_path / "x.zarr"))


def image(document: Document) -> Any:
    return document["attributes"]["ome"]["multiscales"][0]


def set_path(path: object) -> Callable[[Document], Any]:
    return lambda document: image(document)["datasets"][0].update(path=path)


HOSTILE_GROUPS: dict[str, tuple[Callable[[Document], Any], str]] = {
    **{
        f"path {path!r}"[:40]: (set_path(path), "allowed: a relative path inside of the slide")
        for path in (
            "../outside", "/etc", "0/../../outside", "..", ".", "", "s3://other/0", "http://host/0", "file:///etc",
            "0/%2e%2e/x", "..\\outside", "0\0", "C:/x", "a//b", "x?y", 5, None, ["0"], "x/" * 9999,
        )
    },
    "no multiscales": (lambda d: d["attributes"]["ome"].pop("multiscales"), "no multiscales"),
    "multiscales no list": (lambda d: d["attributes"]["ome"].update(multiscales={"a": 1}), "no multiscales"),
    "empty multiscales": (lambda d: d["attributes"]["ome"].update(multiscales=[]), "no multiscales"),
    "a text for an image": (lambda d: d["attributes"]["ome"].update(multiscales=["x"]), "no multiscales"),
    "attributes no object": (lambda d: d.update(attributes=[1]), "no multiscales"),
    "ome no object": (lambda d: d["attributes"].update(ome=7), "no multiscales"),
    "no axes": (lambda d: image(d).pop("axes"), "axes"),
    "axes as text": (lambda d: image(d).update(axes=["c", "y", "x"]), "axes"),
    "a thousand axes": (lambda d: image(d).update(axes=[{"name": "x"}] * 1000), "axes"),
    "an axis twice": (lambda d: image(d).update(axes=[{"name": "x"}, {"name": "y"}, {"name": "x"}]), "axes"),
    "an unknown axis": (lambda d: image(d).update(axes=[{"name": n} for n in ("q", "y", "x")]), "axes"),
    "an axis of a list": (lambda d: image(d).update(axes=[{"name": []}, {"name": "y"}, {"name": "x"}]), "axes"),
    "too few axes": (lambda d: image(d).update(axes=[{"name": "y"}, {"name": "x"}]), "has 3 axes"),
    "no datasets": (lambda d: image(d).update(datasets=[]), "datasets"),
    "datasets of text": (lambda d: image(d).update(datasets=["0"]), "dataset"),
    "a million datasets": (lambda d: image(d).update(datasets=[{"path": "0"}] * 100_000), "more than 64"),
    "a dataset twice": (lambda d: image(d).update(datasets=[{"path": "s0"}] * 2), "one path"),
    "version 0.3": (lambda d: d["attributes"]["ome"].update(version="0.3"), "version '0.3', allowed: 0.4, 0.5"),
    "no version": (lambda d: d["attributes"]["ome"].pop("version"), "version 'None'"),
    "a plate": (lambda d: d["attributes"]["ome"].update(plate={}), "holds a plate"),
    "a well": (lambda d: d["attributes"]["ome"].update(well={}), "holds a well"),
    "a label": (lambda d: d["attributes"]["ome"].update({"image-label": {}}), "holds a image-label"),
    "consolidated nonsense": (
        lambda d: d.update(consolidated_metadata={"metadata": {f"s{k}": 5 for k in range(3)}}), "JSON object",
    ),
    "aspect": (lambda d: image(d)["datasets"].append({"path": "odd"}), "not levels of one pyramid"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE_GROUPS)
def test_hostile_groups_are_refused_by_name(tmp_path: Path, name: str) -> None:
    edit, message = HOSTILE_GROUPS[name]
    folder = tmp_path / "x.zarr"
    write_ome_zarr(folder, LEVELS, version="0.5")
    zarr.create_array(str(folder), name="odd", shape=(3, 90, 20), dtype="uint8")
    write_ome_zarr(tmp_path / "outside", LEVELS[:1], version="0.5")
    edited(folder / "zarr.json", edit)
    store = RecordingStore()
    start = time.process_time()
    with pytest.raises(SlideFormatError, match=message) as caught:
        run(read_ome_zarr(store, str(folder)))
    assert time.process_time() - start < 1
    assert "x.zarr/zarr.json" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert all(url.startswith(f"{folder}/") and ".." not in url for url in store.opened)


@pytest.mark.parametrize(
    "scale", [None, [], ["a", 1, 1], [1, 1], [1, 0, 1], [1, -1, 1], [1, 1e308, 1], [1, 10**400, 1], 7]
)
def test_a_scale_that_says_nothing_gives_no_mpp(tmp_path: Path, scale: object) -> None:
    write_ome_zarr(tmp_path / "x.zarr", LEVELS[:1], version="0.5")
    transforms = [{"type": "scale", "scale": scale}]
    edited(
        tmp_path / "x.zarr" / "zarr.json",
        lambda d: image(d)["datasets"][0].update(coordinateTransformations=transforms),
    )
    assert read(tmp_path / "x.zarr").found.header.mpp is None


@pytest.mark.parametrize("where", ["zarr.json", "s1/zarr.json"])
@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"5", b"\xff\xfe", b"[" * 2_000_000, b'{"a":' * 500_000, b'{"shape": 1' + b"0" * 10_000 + b"}"],
    ids=["empty", "cut", "list", "number", "no-text", "deep-list", "deep-object", "long-number"],
)
def test_documents_that_are_no_json_objects(tmp_path: Path, where: str, content: bytes) -> None:
    write_ome_zarr(tmp_path / "x.zarr", LEVELS[:2], version="0.5")
    (tmp_path / "x.zarr" / where).write_bytes(content)
    start = time.process_time()
    with pytest.raises(SlideFormatError, match=where):
        read(tmp_path / "x.zarr")
    assert time.process_time() - start < 1


def test_a_huge_document_is_not_read(tmp_path: Path) -> None:
    write_ome_zarr(tmp_path / "x.zarr", LEVELS[:2], version="0.5")
    with (tmp_path / "x.zarr" / "s0" / "zarr.json").open("ab") as file:
        file.truncate(100 << 20)
    start = time.process_time()
    with pytest.raises(SlideFormatError, match=r"s0/zarr\.json: 104857600 bytes, at most"):
        read(tmp_path / "x.zarr")
    assert time.process_time() - start < 1
