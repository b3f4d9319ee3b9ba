from __future__ import annotations

import asyncio
import json
import pickle
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from nginx_server import NginxServer
from online_patching import Catalog, CatalogError, PatchRequest, SlideChangedError, StorageError, loop, open_slide
from online_patching.bytesource import ByteRange, ObjectInfo
from online_patching.index import index_slide
from online_patching.jobs import compute_foreground, index_cohort
from online_patching.sampler import PatchSampler
from online_patching.storage import LocalSource, Store
from online_patching.stored_slide import look_up
from s3_server import S3Server
from written_slides import tissue_image, write_pyramid


def test_patches_over_many_slides_come_in_order(catalog: Catalog, slide_folder: Path) -> None:
    requests = [
        PatchRequest("c", 100, 100, 64, 0.5),
        PatchRequest("a", 300, 200, 96, 1.0),
        PatchRequest("c", 400, 300, 64, 0.25),
        PatchRequest("b", 10, 700, 32, 2.0),
    ]
    for request, patch in zip(requests, catalog.read_patches(requests), strict=True):
        slide = open_slide(str(slide_folder / f"{request.slide_id}.svs"))
        alone = slide.read_patch(
            x_level0_px=request.x_level0_px,
            y_level0_px=request.y_level0_px,
            size_px=request.size_px,
            mpp=request.mpp,
        )
        np.testing.assert_array_equal(patch, alone)


def test_the_slide_table_is_plain_parquet_with_user_columns(catalog_url: str) -> None:
    table = pq.read_table(f"{catalog_url}/slides.parquet").to_pylist()
    assert [row["id"] for row in table] == ["a", "b", "c"]
    assert [row["mpp"] for row in table] == [0.5, 0.25, 0.26]
    assert {row["patient"] for row in table} == {"p-a", "p-b", "p-c"}
    assert all(row["foreground_area_mm2"] > 0 for row in table)


def test_indexing_again_does_only_what_is_new_or_changed(tmp_path: Path) -> None:
    slides = tmp_path / "slides"
    slides.mkdir()
    for name in "xy":
        write_pyramid(slides / f"{name}.svs", tissue_image(500, 500, 1))
    urls = [str(slides / f"{name}.svs") for name in "xyz"]
    url = str(tmp_path / "catalog")
    assert index_cohort(urls[:2], url, progress=False).done == 2
    write_pyramid(slides / "z.svs", tissue_image(500, 500, 2))
    report = index_cohort(urls, url, progress=False)
    assert (report.done, report.kept) == (1, 2)
    assert compute_foreground(url, progress=False).done == 3
    write_pyramid(slides / "y.svs", tissue_image(520, 500, 3))
    with pytest.raises(SlideChangedError, match="index` again"):
        Catalog.open(url).read_patches([PatchRequest("y", 0, 0, 64, 0.5)])
    report = index_cohort(urls, url, progress=False)
    assert (report.done, report.kept) == (1, 2)
    assert compute_foreground(url, progress=False).done == 1
    assert Catalog.open(url).row("y").width_px == 520


def test_a_stopped_job_keeps_the_slides_that_were_done(tmp_path: Path) -> None:
    path = tmp_path / "x.svs"
    write_pyramid(path, tissue_image(500, 500, 1))
    url = str(tmp_path / "catalog")
    index_cohort([str(path)], url, progress=False)
    # As if the job had been stopped before it wrote the table.
    (tmp_path / "catalog" / "slides.parquet").unlink()
    report = index_cohort([str(path)], url, progress=False)
    assert (report.done, report.kept, report.requests) == (0, 1, 0)
    assert len(Catalog.open(url)) == 1


def test_one_bad_slide_does_not_stop_the_others(tmp_path: Path) -> None:
    write_pyramid(tmp_path / "good.svs", tissue_image(500, 500, 1))
    (tmp_path / "bad.svs").write_bytes(b"no slide" * 100)
    report = index_cohort(
        [str(tmp_path / n) for n in ("bad.svs", "good.svs", "gone.svs")], str(tmp_path / "c"), progress=False
    )
    assert report.done == 1
    assert [failure.slide for failure in report.failures] == ["bad", "gone"]
    assert "not a slide" in report.failures[0].reason
    assert len(Catalog.open(str(tmp_path / "c"))) == 1


def test_mpp_is_taken_from_the_user_where_it_is_missing(slide_folder: Path, tmp_path: Path) -> None:
    urls = [str(slide_folder / "no_mpp.svs"), str(slide_folder / "a.svs")]
    index_cohort(urls, str(tmp_path / "c"), progress=False)
    assert Catalog.open(str(tmp_path / "c")).row("no_mpp").mpp is None
    index_cohort(urls, str(tmp_path / "c"), mpp=0.4, progress=False)
    catalog = Catalog.open(str(tmp_path / "c"))
    assert (catalog.row("no_mpp").mpp, catalog.row("a").mpp) == (0.4, 0.5)
    index_cohort(urls, str(tmp_path / "d"), columns={"no_mpp": {"mpp": "0.3", "patient": "7"}}, progress=False)
    row = Catalog.open(str(tmp_path / "d")).row("no_mpp")
    assert (row.mpp, row.columns) == (0.3, {"patient": "7"})
    assert index_cohort(urls, str(tmp_path / "d"), mpp={"no_mpp": -1.0}, progress=False).failures[0].slide == "no_mpp"


def test_errors_name_the_catalog_and_the_remedy(catalog_url: str, catalog: Catalog, tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match="no slide 'z' among 3"):
        catalog.row("z")
    with pytest.raises(CatalogError, match="online-patching index"):
        Catalog.open(str(tmp_path))
    newer = tmp_path / "newer"
    shutil.copytree(catalog_url, newer)
    (newer / "catalog.json").write_text(json.dumps({"format_version": 1}))
    for use in (Catalog.open, lambda url: index_cohort([], url, progress=False)):
        with pytest.raises(CatalogError, match=r"format_version 1 .* index the slides again into a new folder"):
            use(str(newer))
    (newer / "catalog.json").write_text(json.dumps({"format_version": 99}))
    with pytest.raises(CatalogError, match="format_version 99"):
        Catalog.open(str(newer))
    with pytest.raises(CatalogError, match="format_version 99"):
        index_cohort([], str(newer), progress=False)
    assert json.loads((newer / "catalog.json").read_text()) == {"format_version": 99}, "a newer catalog was replaced"


def test_a_look_up_reads_little_of_the_tile_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.svs"
    write_pyramid(path, tissue_image(6000, 4000, 1), tile=16, downsamples=(1,), compression=None)
    index_cohort([str(path)], str(tmp_path / "c"), progress=False)
    catalog = Catalog.open(str(tmp_path / "c"))
    read: list[int] = []
    original = LocalSource.read_ranges_now

    def counted(self: LocalSource, ranges: Sequence[ByteRange], *, expected: ObjectInfo | None = None) -> list[bytes]:
        if self.url.endswith("tiles.optt"):
            read.extend(length for _, length in ranges)
        return original(self, ranges, expected=expected)

    monkeypatch.setattr(LocalSource, "read_ranges_now", counted)
    catalog.read_patches([PatchRequest("x", 3000, 2000, 32, 0.5)])
    assert 2 <= len(read) <= 5, "the front and one to four blocks"
    assert sum(read) <= 16 * 1024
    read.clear()
    catalog.read_patches([PatchRequest("x", 3000, 2000, 32, 0.5)])
    assert read == [], "what was read is kept"
    folder = tmp_path / "c" / "slides" / "x"
    assert sum(file.stat().st_size for file in folder.iterdir()) <= 5 * 375 * 250


def test_a_table_that_was_opened_before_a_slide_was_indexed_again_says_so(tmp_path: Path) -> None:
    path, url = tmp_path / "x.svs", str(tmp_path / "c")
    for tiles in (128, 64):
        write_pyramid(path, tissue_image(900, 900, 1), tile=tiles)
        index_cohort([str(path)], url, progress=False)
        if tiles == 128:
            opened = Catalog.open(url)
    with pytest.raises(CatalogError, match="open the catalog again"):
        opened.handle("x")
    assert Catalog.open(url).header("x").levels[0].tile_width_px == 64


def test_a_catalog_travels_to_other_processes(catalog: Catalog) -> None:
    copy = pickle.loads(pickle.dumps(catalog))
    request = [PatchRequest("a", 300, 200, 96, 1.0)]
    np.testing.assert_array_equal(copy.read_patches(request)[0], catalog.read_patches(request)[0])


def test_a_catalog_in_a_bucket_holds_no_credentials(s3_server: S3Server, slide_folder: Path, tmp_path: Path) -> None:
    slides = s3_server.upload(slide_folder, "catalog-slides")
    s3_server.client().create_bucket(Bucket="catalogs")
    options = s3_server.storage_options
    index_cohort([f"{slides}/a.svs"], "s3://catalogs/one", storage_options=options, progress=False)
    compute_foreground("s3://catalogs/one", storage_options=options, progress=False)
    catalog = Catalog.open("s3://catalogs/one", storage_options=options)
    assert catalog.read_patches([PatchRequest("a", 300, 200, 96, 1.0)])[0].shape == (96, 96, 3)
    again = index_cohort([f"{slides}/a.svs"], "s3://catalogs/one", storage_options=options, progress=False)
    assert (again.done, again.kept, again.failures) == (0, 1, ())
    client = s3_server.client()
    keys = [entry["Key"] for entry in client.list_objects_v2(Bucket="catalogs")["Contents"]]
    assert sorted(keys) == sorted(
        ["one/catalog.json", "one/failures.parquet", "one/slides.parquet"]
        + [f"one/slides/a/{name}" for name in ("foreground.wkb", "slide.json", "tiles.optt")]
    )
    for key in keys:
        body = client.get_object(Bucket="catalogs", Key=key)["Body"].read()
        assert options["secret"].encode() not in body
        assert options["key"].encode() not in body


def test_concurrent_readers_of_a_remote_catalog_fetch_each_front_and_polygon_once(
    catalog_url: str, nginx_server: NginxServer
) -> None:
    shutil.copytree(catalog_url, nginx_server.served / "shared-reads")
    catalog = Catalog.open(nginx_server.url("open", "shared-reads"))

    async def read() -> None:
        first, second, a, b = await asyncio.gather(
            catalog.ahandles(["a", "b"]),
            catalog.ahandles(["c", "b"]),
            loop.on_loop(catalog.read_outlines(["a"])),
            loop.on_loop(catalog.read_outlines(["a"])),
        )
        assert first["b"] is second["b"]
        assert a["a"] is b["a"] is catalog.outline("a")

    asyncio.run(read())
    local = Catalog.open(catalog_url)
    for slide_id in "abc":
        assert catalog.handle(slide_id).header == local.handle(slide_id).header
    asked = [line.split('"')[1].split()[1] for line in nginx_server.requests_logged() if "/shared-reads/slides" in line]
    fronts = [each for each in asked if each.endswith("tiles.optt")]
    assert sorted(fronts) == [f"/open/shared-reads/slides/{slide_id}/tiles.optt" for slide_id in "abc"]
    assert asked.count("/open/shared-reads/slides/a/foreground.wkb") == 1
    assert catalog.foreground("a").equals(local.foreground("a"))
    assert asyncio.run(catalog.aforeground("a")).equals(local.foreground("a"))


def test_a_slide_that_cannot_be_read_fails_its_own_readers_only(catalog_url: str, tmp_path: Path) -> None:
    shutil.copytree(catalog_url, tmp_path / "c")
    (tmp_path / "c" / "slides" / "b" / "tiles.optt").write_bytes(b"damaged")
    catalog = Catalog.open(str(tmp_path / "c"))

    async def read() -> list[object]:
        both, good = catalog.ahandles(["a", "b"]), catalog.ahandles(["a", "c"])
        return await asyncio.gather(both, good, return_exceptions=True)

    both, good = asyncio.run(read())
    assert isinstance(both, StorageError)
    assert set(good) == {"a", "c"}  # type: ignore[call-overload]
    with pytest.raises(CatalogError, match="no slide 'z' among 3"):
        asyncio.run(catalog.ahandle("z"))


def test_tiles_of_many_slides_are_looked_up_together(catalog: Catalog) -> None:
    stored = {slide_id: catalog.handle(slide_id).tiles.lookup for slide_id in "abc"}
    wanted = [(stored["a"], 0, [0, 3, 1]), (stored["b"], 1, [2]), (stored["a"], 1, [0]), (stored["c"], 0, [])]
    fresh = pickle.dumps(stored["a"])
    found = loop.run(look_up(wanted))
    assert found == loop.run(look_up(wanted)) == [loop.run(tiles.ranges(*rest)) for tiles, *rest in wanted]
    copied = pickle.dumps(stored["a"])
    assert len(copied) == len(fresh), "a copy takes no blocks along, of its own slide or of others"
    assert loop.run(pickle.loads(copied).ranges(0, [0, 3, 1])) == found[0]
    for slide_id, level, numbers, ranges in (("a", 0, [0, 3, 1], found[0]), ("b", 1, [2], found[1])):
        table = loop.run(index_slide(catalog.row(slide_id).url, Store())).tiles[level]
        assert ranges == [(int(table.offset[n]), int(table.length[n])) for n in numbers]


def test_many_threads_draw_from_one_outline(catalog: Catalog) -> None:
    draw = PatchSampler(catalog, size_px=64, mpp=[0.5], min_foreground=0.4, seed=1).draw
    expected = [draw(k) for k in range(300)]
    fresh = PatchSampler(Catalog.open(catalog.url), size_px=64, mpp=[0.5], min_foreground=0.4, seed=1)
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(fresh.draw, range(300))) == expected
    assert [fresh.slide_of(k, sample.attempt) for k, sample in enumerate(expected)] == [s.slide_id for s in expected]
