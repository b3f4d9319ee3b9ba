"""Pixels of OME-Zarr slides: what independent libraries wrote, from every store; and chunks that fail."""

from __future__ import annotations

import json
import multiprocessing
import pickle
import shutil
import tracemalloc
from pathlib import Path
from typing import Any

import imagecodecs.numcodecs
import numpy as np
import pytest
import tifffile
import zarr
from numcodecs import LZ4, Blosc, Delta, GZip, Zlib, Zstd
from online_patching import (
    Catalog,
    CorruptTileError,
    PatchRequest,
    Slide,
    SlideChangedError,
    StorageError,
    open_slide,
)
from online_patching.jobs import index_cohort
from s3_server import S3Server
from written_slides import pyramid_of, tissue_image
from written_zarrs import Pixels, in_axes, write_ome_zarr, write_zarr_levels
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, GzipCodec, ShardingCodec, TransposeCodec, ZstdCodec

IMAGE = tissue_image(700, 500, 1)
LEVELS = pyramid_of(IMAGE)
KINDS: dict[str, dict[str, Any]] = {
    "v04": {"version": "0.4", "axes": "tczyx"},
    "v04-planar": {"version": "0.4", "axes": "cyx", "planar": True},
    "v05": {"version": "0.5", "axes": "czyx"},
    "v05-sharded": {"version": "0.5", "axes": "tczyx", "shard_tiles": 2},
    "v05-sharded-planar": {"version": "0.5", "axes": "cyx", "planar": True, "shard_tiles": 3},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One slide of every kind, with a space and a unicode letter in the folder's name."""
    root = tmp_path_factory.mktemp("ome zarr ü")
    for name, options in KINDS.items():
        write_ome_zarr(root / f"{name}.ome.zarr", LEVELS, **options)
    return root


def read_all(slide: Slide, level: int = 0) -> Pixels:
    size = slide.levels[level]
    return slide.read_level(level=level, x_px=0, y_px=0, width_px=size.width_px, height_px=size.height_px)


def assert_same_everywhere(slide: Slide, levels: list[Pixels]) -> None:
    """Every level whole, and windows at its corners, edges and outside."""
    assert len(slide.levels) == len(levels)
    for k, level in enumerate(levels):
        np.testing.assert_array_equal(read_all(slide, k), level)
        height, width = level.shape[:2]
        padded = np.pad(level, ((90, 90), (90, 90), (0, 0)), constant_values=255)
        for x in (-90, -31, width // 2, width - 33, width):
            for y in (-90, -7, height // 3, height - 50, height):
                window = slide.read_level(level=k, x_px=x, y_px=y, width_px=90, height_px=77)
                np.testing.assert_array_equal(window, padded[y + 90 : y + 90 + 77, x + 90 : x + 180])


@pytest.mark.parametrize("kind", KINDS)
def test_pixels_from_disk(folder: Path, kind: str) -> None:
    slide = open_slide(str(folder / f"{kind}.ome.zarr"))
    assert slide.mpp == 0.5
    assert [level.downsample for level in slide.levels] == [1.0, 2.0, 4.0]
    assert {(level.tile_width_px, level.tile_height_px) for level in slide.levels} == {(128, 128)}
    assert_same_everywhere(slide, LEVELS)


STORED_KINDS = ("v04-planar", "v05-sharded")


@pytest.fixture(scope="module")
def bucket(s3_server: S3Server, folder: Path) -> str:
    some = folder.parent / f"{folder.name} in the bucket"
    for kind in STORED_KINDS:
        shutil.copytree(folder / f"{kind}.ome.zarr", some / f"{kind}.ome.zarr")
    return s3_server.upload(some, "ngff-test")


@pytest.mark.parametrize("client", ["obstore", "s3fs", "http"])
@pytest.mark.parametrize("kind", STORED_KINDS)
def test_pixels_from_a_store(s3_server: S3Server, bucket: str, kind: str, client: str) -> None:
    url, options = f"{bucket}/{kind}.ome.zarr", dict(s3_server.storage_options)
    if client == "http":
        url, options = url.replace("s3://", f"{s3_server.endpoint_url}/"), {}
    elif client == "s3fs":
        options["use_ssl"] = False
    slide = open_slide(url, storage_options=options)
    for k, level in enumerate(LEVELS):
        np.testing.assert_array_equal(read_all(slide, k), level)


def test_a_folder_of_any_name_is_found_by_its_metadata(s3_server: S3Server, folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "v04.ome.zarr", tmp_path / "slides" / "plain")
    assert open_slide(str(tmp_path / "slides" / "plain")).header.vendor == "ome-zarr"
    url = s3_server.upload(tmp_path / "slides", "ngff-names")
    for name in ("plain", "plain/"):
        slide = open_slide(f"{url}/{name}", storage_options=s3_server.storage_options)
        np.testing.assert_array_equal(read_all(slide, 2), LEVELS[2])


ZARR_OPTIONS: dict[str, dict[str, Any]] = {
    "yxc": {"axes": "yxc", "chunks": (100, 60, 3)},
    "yxc-split-channels": {"axes": "yxc", "chunks": (100, 60, 2)},
    "tyzxc": {"axes": "tyzxc", "chunks": (1, 64, 1, 64, 3)},
    "fortran-order": {"axes": "cyx", "chunks": (3, 90, 110), "order": "F"},
    "slashes": {"axes": "cyx", "chunks": (1, 90, 110), "chunk_key_encoding": {"name": "v2", "separator": "/"}},
    "blosc": {"axes": "cyx", "chunks": (3, 90, 110), "compressors": Blosc("lz4")},
    "gzip": {"axes": "cyx", "chunks": (3, 90, 110), "compressors": GZip()},
    "zlib-delta": {"axes": "cyx", "chunks": (3, 90, 110), "compressors": Zlib(), "filters": [Delta(dtype="u1")]},
    "zstd": {"axes": "cyx", "chunks": (3, 90, 110), "compressors": Zstd()},
    "lz4": {"axes": "cyx", "chunks": (3, 90, 110), "compressors": LZ4()},
    "raw": {"axes": "cyx", "chunks": (3, 90, 110), "compressors": None},
    "one-chunk": {"axes": "cyx", "chunks": (3, 500, 700)},
}
V3_OPTIONS: dict[str, dict[str, Any]] = {
    "yxc": {"axes": "yxc", "chunks": (100, 60, 3), "shards": (200, 180, 3)},
    "blosc": {"axes": "cyx", "chunks": (3, 90, 110), "compressors": BloscCodec()},
    "gzip": {"axes": "cyx", "chunks": (3, 90, 110), "compressors": [GzipCodec(), Crc32cCodec()]},
    "zstd": {"axes": "cyx", "chunks": (3, 90, 110), "compressors": ZstdCodec()},
    "raw": {"axes": "cyx", "chunks": (3, 90, 110), "compressors": None},
    "transposed": {"axes": "cyx", "chunks": (3, 90, 110), "filters": [TransposeCodec(order=(1, 2, 0))]},
    "dots": {"axes": "cyx", "chunks": (3, 90, 110), "chunk_key_encoding": {"name": "default", "separator": "."}},
    "one-chunk-a-shard": {"axes": "cyx", "chunks": (3, 128, 128), "shards": (3, 128, 128)},
    "index-first": {
        "axes": "cyx",
        "chunks": (3, 256, 256),
        "filters": [],
        "compressors": None,
        "serializer": ShardingCodec(
            chunk_shape=(3, 64, 64), codecs=[BytesCodec(), ZstdCodec()], index_location="start"
        ),
    },
}


@pytest.mark.parametrize(
    ("zarr_format", "options"),
    [*((2, o) for o in ZARR_OPTIONS.values()), *((3, o) for o in V3_OPTIONS.values())],
    ids=[*(f"v2-{name}" for name in ZARR_OPTIONS), *(f"v3-{name}" for name in V3_OPTIONS)],
)
def test_whatever_zarr_writes(tmp_path: Path, zarr_format: int, options: dict[str, Any]) -> None:
    write_zarr_levels(tmp_path / "x.zarr", LEVELS[:2], zarr_format=zarr_format, **options)
    slide = open_slide(str(tmp_path / "x.zarr"))
    assert slide.mpp is None
    assert_same_everywhere(slide, LEVELS[:2])


@pytest.mark.parametrize("axes", ["yx", "zyx", "cyx"])
def test_grey_becomes_rgb(tmp_path: Path, axes: str) -> None:
    grey = [np.repeat(level[..., :1], 3, axis=2) for level in LEVELS[:2]]
    stored = [level[..., :1] for level in grey] if "c" in axes else grey
    write_zarr_levels(tmp_path / "x.zarr", stored, axes=axes, zarr_format=3)
    assert_same_everywhere(open_slide(str(tmp_path / "x.zarr")), grey)


def test_jpeg_chunks(tmp_path: Path) -> None:
    imagecodecs.numcodecs.register_codecs(verbose=False)
    codec = imagecodecs.numcodecs.Jpeg(level=90)
    write_zarr_levels(
        tmp_path / "x.zarr", LEVELS[:1], axes="yxc", zarr_format=2, chunks=(128, 128, 3), compressors=codec
    )
    oracle = zarr.open_array(str(tmp_path / "x.zarr"), path="0", mode="r")[:]
    np.testing.assert_array_equal(read_all(open_slide(str(tmp_path / "x.zarr"))), oracle)
    assert np.abs(np.asarray(oracle).astype(int) - IMAGE).mean() < 2


def test_a_resampled_patch_equals_that_of_a_tiff(folder: Path, tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "x.tif") as writer:
        for k, level in enumerate(LEVELS):
            cm = (20000 / 2**k, 20000 / 2**k)
            writer.write(
                level,
                photometric="rgb",
                tile=(128, 128),
                resolution=cm,
                resolutionunit="CENTIMETER",
                subfiletype=int(k > 0),
            )
    tiff = open_slide(str(tmp_path / "x.tif"))
    ngff = open_slide(str(folder / "v05-sharded.ome.zarr"))
    corners = [(-40, -30), (100, 50), (333.3, 201.7), (600, 430)]
    for mpp in (0.5, 0.7, 1.0, 1.9, 4.0):
        np.testing.assert_array_equal(
            ngff.read_patches(corners, size_px=96, mpp=mpp), tiff.read_patches(corners, size_px=96, mpp=mpp)
        )


def test_through_a_catalog(s3_server: S3Server, bucket: str, folder: Path, tmp_path: Path) -> None:
    urls = [f"{bucket}/{kind}.ome.zarr" for kind in STORED_KINDS]
    options = s3_server.storage_options
    report = index_cohort(urls, str(tmp_path), slide_storage_options=options, progress=False)
    assert (report.done, report.failures) == (len(STORED_KINDS), ())
    # A document for the group and one a level; for Zarr v2, the question for zarr.json as well.
    assert report.requests == 2 * 4 + 1
    again = index_cohort(urls, str(tmp_path), slide_storage_options=options, progress=False)
    assert (again.done, again.kept) == (0, len(STORED_KINDS))
    catalog: Catalog = pickle.loads(pickle.dumps(Catalog.open(str(tmp_path), slide_storage_options=options)))
    requests = [
        PatchRequest(row.id, x, y, 100, mpp) for row in catalog for x, y in [(-5, 20), (300, 400)] for mpp in (0.5, 1.1)
    ]
    slides = {row.id: open_slide(str(folder / f"{row.id}.ome.zarr")) for row in catalog}
    for request, patch in zip(requests, catalog.read_patches(requests), strict=True):
        near = slides[request.slide_id].read_patch(
            x_level0_px=request.x_level0_px, y_level0_px=request.y_level0_px, size_px=100, mpp=request.mpp
        )
        np.testing.assert_array_equal(patch, near)


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_slide_opened_before_a_fork_reads_after_it(s3_server: S3Server, bucket: str) -> None:
    slide = open_slide(f"{bucket}/v05-sharded.ome.zarr", storage_options=s3_server.storage_options)
    np.testing.assert_array_equal(read_all(slide, 1), LEVELS[1])
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    child = context.Process(target=lambda: answers.put(read_all(slide, 0)))
    child.start()
    np.testing.assert_array_equal(answers.get(timeout=60), LEVELS[0])
    child.join(timeout=10)
    assert child.exitcode == 0


@pytest.mark.parametrize("document", ["zarr.json", "1/zarr.json"])
def test_a_pyramid_that_changed_is_noticed(tmp_path: Path, document: str) -> None:
    write_zarr_levels(tmp_path / "x.zarr", LEVELS[:2], axes="cyx", zarr_format=3, chunks=(3, 128, 128))
    index_cohort([str(tmp_path / "x.zarr")], str(tmp_path / "catalog"), mpp=0.5, progress=False)
    path = tmp_path / "x.zarr" / document
    path.write_text(path.read_text() + " ")
    catalog = Catalog.open(str(tmp_path / "catalog"))
    with pytest.raises(SlideChangedError, match="changed since it was indexed"):
        catalog.read_patches([PatchRequest("x", 0, 0, 64, 0.5)])


def chunk_files(path: Path) -> list[Path]:
    return sorted(p for p in path.rglob("*") if p.is_file() and p.name not in ("zarr.json", ".zarray", ".zattrs"))


@pytest.mark.parametrize("damage", ["cut", "noise", "bomb"])
@pytest.mark.parametrize("zarr_format", [2, 3])
def test_a_corrupt_chunk_spoils_its_own_tile_only(tmp_path: Path, zarr_format: int, damage: str) -> None:
    write_zarr_levels(
        tmp_path / "x.zarr", LEVELS[:1], axes="cyx", zarr_format=zarr_format, chunks=(3, 128, 128), compressors="auto"
    )
    name = "0.1.2" if zarr_format == 2 else "c/0/1/2"
    chunk = tmp_path / "x.zarr" / "0" / name
    data = chunk.read_bytes()
    chunk.write_bytes({"cut": data[: len(data) // 2], "noise": b"noise" * 20, "bomb": bytes(1 << 20)}[damage])
    slide = open_slide(str(tmp_path / "x.zarr"))
    # Row 1, column 2 of six columns.
    with pytest.raises(CorruptTileError, match=r"x\.zarr: level 0, tile 8: "):
        slide.read_level(level=0, x_px=250, y_px=130, width_px=50, height_px=50)
    np.testing.assert_array_equal(
        slide.read_level(level=0, x_px=0, y_px=130, width_px=256, height_px=200), IMAGE[130:330, :256]
    )


CODECS: dict[str, Any] = {"zstd": ZstdCodec(), "blosc": BloscCodec(typesize=1)}


@pytest.mark.parametrize("shard", [None, 256, 128])
@pytest.mark.parametrize("codec", CODECS)
def test_a_bomb_is_not_decompressed(tmp_path: Path, codec: str, shard: int | None) -> None:
    """A chunk replaced by one that holds 64 times what the array says, in a few hundred bytes."""
    path, shards = tmp_path / "x.zarr", None if shard is None else (3, shard, shard)
    write_zarr_levels(
        path, LEVELS[:1], axes="cyx", zarr_format=3, chunks=(3, 128, 128), shards=shards, compressors=CODECS[codec]
    )
    options: dict[str, Any] = {
        "chunks": (3, 1024, 1024),
        "shards": None if shard is None else (3, shard * 8, shard * 8),
    }
    bomb = zarr.create_array(
        str(tmp_path / "b"), shape=(3, 1024, 1024), dtype="u1", compressors=CODECS[codec], **options
    )
    bomb[:] = 1
    data = chunk_files(tmp_path / "b")[0].read_bytes()
    (path / "0" / "c" / "0" / "0" / "0").write_bytes(data)
    tracemalloc.start()
    with pytest.raises(CorruptTileError, match="level 0, tile 0"):
        open_slide(str(path)).read_level(level=0, x_px=0, y_px=0, width_px=9, height_px=9)
    assert tracemalloc.get_traced_memory()[1] < 3 * 1024 * 1024
    tracemalloc.stop()


def test_a_corrupt_shard_spoils_its_own_tiles_only(tmp_path: Path) -> None:
    write_ome_zarr(tmp_path / "x.zarr", LEVELS[:1], version="0.5", shard_tiles=2)
    shards = chunk_files(tmp_path / "x.zarr")
    whole = shards[0].read_bytes()
    slide = open_slide(str(tmp_path / "x.zarr"))
    window = {"level": 0, "x_px": 10, "y_px": 10, "width_px": 30, "height_px": 30}
    for damaged in (whole[: len(whole) // 2], whole[:7], b"", whole[:-64] + bytes(64)):
        shards[0].write_bytes(damaged)
        slide = open_slide(str(tmp_path / "x.zarr"))
        with pytest.raises(CorruptTileError, match="level 0, tile 0"):
            slide.read_level(**window)
        np.testing.assert_array_equal(
            slide.read_level(level=0, x_px=256, y_px=0, width_px=200, height_px=200), IMAGE[:200, 256:456]
        )
    shards[0].write_bytes(whole)
    np.testing.assert_array_equal(open_slide(str(tmp_path / "x.zarr")).read_level(**window), IMAGE[10:40, 10:40])


def test_a_shard_replaced_while_it_is_read_is_noticed(tmp_path: Path) -> None:
    write_ome_zarr(tmp_path / "x.zarr", LEVELS[:1], version="0.5", shard_tiles=2)
    slide = open_slide(str(tmp_path / "x.zarr"))
    slide.read_level(level=0, x_px=0, y_px=0, width_px=9, height_px=9)
    shard = chunk_files(tmp_path / "x.zarr")[0]
    shard.write_bytes(shard.read_bytes() + b" ")
    with pytest.raises(SlideChangedError):
        slide.read_level(level=0, x_px=0, y_px=0, width_px=9, height_px=9)


@pytest.mark.parametrize(
    ("zarr_format", "fill", "seen", "shards"),
    [(3, 0, 0, False), (3, 200, 200, False), (3, 0, 0, True), (3, 9, 9, True), (2, 7, 7, False), (2, None, 255, False)],
)
def test_a_chunk_never_written_is_the_fill_value(
    tmp_path: Path, zarr_format: int, fill: int | None, seen: int, shards: bool
) -> None:
    path = tmp_path / "x.zarr"
    write_zarr_levels(
        path, LEVELS[:1], axes="cyx", zarr_format=zarr_format, chunks=(3, 128, 128), fill_value=fill or 0,
        shards=(3, 256, 256) if shards else None,
    )  # fmt: skip
    expected = IMAGE.copy()
    side = 256 if shards else 128
    chunk = path / "0" / ("0.0.0" if zarr_format == 2 else "c/0/0/0")
    if shards:
        # Written anew with its first inner chunk empty: zarr leaves such chunks out of the shard.
        zarr.open_array(str(path), path="0", mode="r+")[:, :128, :128] = fill
        side = 128
    else:
        chunk.unlink()
    expected[:side, :side] = seen
    if zarr_format == 2 and fill is None:
        document = json.loads((path / "0" / ".zarray").read_text())
        (path / "0" / ".zarray").write_text(json.dumps({**document, "fill_value": None}))
    np.testing.assert_array_equal(read_all(open_slide(str(path))), expected)


def test_a_slide_that_was_deleted_is_no_black_picture(tmp_path: Path) -> None:
    write_ome_zarr(tmp_path / "x.zarr", LEVELS[:1], version="0.4")
    slide = open_slide(str(tmp_path / "x.zarr"))
    slide.read_level(level=0, x_px=0, y_px=0, width_px=9, height_px=9)
    shutil.rmtree(tmp_path / "x.zarr")
    with pytest.raises(StorageError, match="no such file"):
        slide.read_level(level=0, x_px=0, y_px=0, width_px=9, height_px=9)


def test_chunks_that_may_not_be_read_are_an_error_of_the_store(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "v05.ome.zarr", tmp_path / "x.zarr")
    slide = open_slide(str(tmp_path / "x.zarr"))
    chunk = chunk_files(tmp_path / "x.zarr" / "s0")[0]
    chunk.unlink()
    chunk.mkdir()
    with pytest.raises(StorageError, match="reading failed"):
        read_all(slide)


def test_helper_orders_axes() -> None:
    """What the tests hand to the writers is the picture itself."""
    assert in_axes(IMAGE, "tczyx").shape == (1, 3, 1, 500, 700)
    np.testing.assert_array_equal(in_axes(IMAGE, "tyzxc")[0, :, 0], IMAGE)
    np.testing.assert_array_equal(in_axes(IMAGE, "zyx")[0], IMAGE[..., 0])
