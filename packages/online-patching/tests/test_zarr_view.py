"""Slides as Zarr: the pixels of ``read_level`` and of OpenSlide, lazily, from any place."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import openslide
import pytest
import zarr
from online_patching import Catalog, CorruptTileError, Slide, SlideFormatError, open_slide
from online_patching.catalog_files import CatalogFolder
from online_patching.decode import Pixels
from online_patching.jobs import index_cohort
from online_patching.listing import list_slides
from online_patching.slide_table import empty_table
from online_patching.tile_source import SlideHandle, TileSource
from online_patching.zarr_view import zarr_key
from s3_server import S3Server
from shared_fixtures import real_files
from slide_checks import OTHER_PIXELS
from written_slides import tissue_image, write_pyramid

WINDOW_PX = 300


def windows(height: int, width: int) -> list[tuple[int, int, int, int]]:
    """(y0, y1, x0, x1) of the four corners, the edges' middles and random places."""
    rng = np.random.default_rng(0)
    tall, wide = min(WINDOW_PX, height), min(WINDOW_PX, width)
    places = [((height - tall) * fy // 2, (width - wide) * fx // 2) for fy in range(3) for fx in range(3)]
    places += [(int(rng.integers(height - tall + 1)), int(rng.integers(width - wide + 1))) for _ in range(3)]
    return sorted({(y, y + tall, x, x + wide) for y, x in places})


def assert_reads_as_read_level(group: zarr.Group, slide: Slide) -> None:
    assert sorted(group.keys()) == [str(k) for k in range(len(slide.levels))]
    for level, geometry in enumerate(slide.levels):
        array = group[str(level)]
        assert isinstance(array, zarr.Array)
        assert array.shape == (geometry.height_px, geometry.width_px, 3)
        assert array.chunks == (geometry.tile_height_px, geometry.tile_width_px, 3)
        assert array.dtype == np.uint8
        for y0, y1, x0, x1 in windows(*array.shape[:2]):
            expected = slide.read_level(level=level, x_px=x0, y_px=y0, width_px=x1 - x0, height_px=y1 - y0)
            np.testing.assert_array_equal(array[y0:y1, x0:x1], expected)


def assert_reads_as_openslide(group: zarr.Group, path: Path) -> int:
    """The number of levels compared."""
    oracle = openslide.OpenSlide(str(path))
    for level, (width, height) in enumerate(oracle.level_dimensions):
        array: Any = group[str(level)]
        assert array.shape == (height, width, 3)
        down_x, down_y = oracle.level_dimensions[0][0] / width, oracle.level_dimensions[0][1] / height
        for y0, y1, x0, x1 in windows(height, width):
            # OpenSlide takes level-0 coordinates: only places that are whole pixels of the level can agree.
            if (x0 * down_x) % 1 or (y0 * down_y) % 1:
                continue
            region = oracle.read_region((round(x0 * down_x), round(y0 * down_y)), level, (x1 - x0, y1 - y0))
            expected = np.asarray(region)
            inside = expected[..., 3] == 255
            np.testing.assert_array_equal(array[y0:y1, x0:x1][inside], expected[..., :3][inside])
    return oracle.level_count


@pytest.mark.slides_parity
def test_real_slides_read_the_same_through_the_catalogs_group(tmp_path: Path) -> None:
    """Every slide of SLIDES_DIR that opens, against ``read_level``, and against OpenSlide where that opens it."""
    paths: dict[str, Path] = {}
    for path in real_files("SLIDES_DIR", ".svs", ".tif", ".tiff", ".dicom", ".ndpi", ".scn", ".bif"):
        try:
            open_slide(str(path))
        except SlideFormatError:
            continue
        paths.setdefault(path.stem, path)
    if not paths:
        pytest.skip("no SLIDES_DIR")
    index_cohort(map(str, paths.values()), str(tmp_path), progress=False)
    catalog = Catalog.open(str(tmp_path))
    group = catalog.zarr()
    compared = 0
    for slide_id, path in paths.items():
        slide_group = group[zarr_key(slide_id)]
        assert isinstance(slide_group, zarr.Group)
        try:
            assert_reads_as_read_level(slide_group, catalog.slide(slide_id))
            if path.name not in OTHER_PIXELS:
                compared += assert_reads_as_openslide(slide_group, path)
        except CorruptTileError as error:
            assert path.name in str(error)  # noqa: PT017
            with pytest.raises(openslide.OpenSlideError):
                assert_reads_as_openslide(slide_group, path)
        except openslide.OpenSlideUnsupportedFormatError:
            continue
    assert compared, "SLIDES_DIR holds no slide that both readers open: nothing was compared"


@pytest.mark.parametrize("compression", ["jpeg", "zstd"])
def test_a_slide_and_its_group_hold_the_same_pixels(tmp_path: Path, compression: str) -> None:
    write_pyramid(tmp_path / "x.svs", tissue_image(900, 710, 1), mpp=0.25, compression=compression)
    slide = open_slide(str(tmp_path / "x.svs"))
    group = slide.zarr()
    assert_reads_as_read_level(group, slide)
    assert dict(group.attrs) == {
        "id": str(tmp_path / "x.svs"),
        "url": str(tmp_path / "x.svs"),
        "vendor": "aperio",
        "mpp": 0.25,
        "levels": [
            {"path": "0", "downsample": 1.0, "mpp": 0.25},
            {"path": "1", "downsample": pytest.approx(4, abs=0.02), "mpp": pytest.approx(1, abs=0.01)},
        ],
    }
    assert group["1"].attrs["mpp"] == pytest.approx(1, abs=0.01)
    again = pickle.loads(pickle.dumps(group))
    np.testing.assert_array_equal(again["0"][700:, 800:], group["0"][700:, 800:])  # type: ignore[index]


def test_a_cohort_in_a_bucket_is_one_group(s3_server: S3Server, slide_folder: Path, tmp_path: Path) -> None:
    url, options = s3_server.upload(slide_folder, "zarr-cohort"), s3_server.storage_options
    index_cohort(list_slides(url, options), str(tmp_path), slide_storage_options=options, progress=False)
    catalog = Catalog.open(str(tmp_path), slide_storage_options=options)
    group = catalog.zarr()
    assert group.attrs["slides"] == len(group) == 4
    assert sorted(group.keys()) == ["a", "b", "c", "no_mpp"]
    assert_reads_as_read_level(group["b"], catalog.slide("b"))  # type: ignore[arg-type]
    np.testing.assert_array_equal(group["c/1"][:40, :50], open_slide(str(slide_folder / "c.svs")).zarr()["1"][:40, :50])  # type: ignore[index]
    assert group["no_mpp"].attrs["mpp"] is None
    shown = repr(group) + str(dict(group["a"].attrs))
    assert options["secret"] not in shown


class Counting:
    """A tile source that notes what is asked of it; may lack tiles or hold corrupt ones."""

    def __init__(self, tiles: TileSource, *, absent: Sequence[int] = (), corrupt: Sequence[int] = ()) -> None:
        self.reads: list[tuple[int, list[int]]] = []
        self._tiles, self._absent, self._corrupt = tiles, absent, corrupt

    async def read(self, level: int, tiles: Sequence[int]) -> dict[int, Pixels | CorruptTileError]:
        self.reads.append((level, list(tiles)))
        found = await self._tiles.read(level, [tile for tile in tiles if tile not in self._absent])
        return found | {tile: CorruptTileError(f"x.svs: tile {tile}") for tile in tiles if tile in self._corrupt}


def counted(path: Path, **faults: Sequence[int]) -> tuple[Slide, Counting]:
    slide = open_slide(str(path))
    tiles = Counting(slide.handle.tiles, **faults)
    return Slide(SlideHandle(slide.header, tiles), slide_id="x", url="x.svs"), tiles


def test_neighbouring_chunks_are_read_together(slide_folder: Path) -> None:
    slide, tiles = counted(slide_folder / "a.svs")
    array: Any = slide.zarr()["0"]
    array[100:300, 100:300]
    assert tiles.reads == [(0, [0, 1, 2, 12, 13, 14, 24, 25, 26])]
    tiles.reads.clear()
    with zarr.config.set({"async.concurrency": 64}):
        array[0 : 5 * 128, 0 : 8 * 128]
    assert len(tiles.reads) <= 3
    assert sorted(tile for _, numbers in tiles.reads for tile in numbers) == [
        12 * row + column for row in range(5) for column in range(8)
    ]


def test_absent_tiles_are_white_and_corrupt_ones_an_error(slide_folder: Path) -> None:
    slide, _ = counted(slide_folder / "a.svs", absent=[13], corrupt=[40])
    array: Any = slide.zarr()["0"]
    pixels = array[: 2 * 128, : 3 * 128]
    assert (pixels[128:, 128:256] == 255).all()
    whole: Any = open_slide(str(slide_folder / "a.svs")).zarr()["0"]
    np.testing.assert_array_equal(pixels[:128], whole[:128, : 3 * 128])
    with pytest.raises(CorruptTileError, match=r"x\.svs: tile 40"):
        array[...]


def test_any_id_is_a_key_and_listing_opens_no_slide(catalog: Catalog) -> None:
    ids = ["a/b", "50%", "a%2Fb", "ünïcode 😐", "..", "c\\d", "zarr.json", "__x", "plain"]
    ids += [f"slide-{k}" for k in range(2000)]
    place, nowhere = f"{catalog.url}/slides/a", "s3://user:word@nowhere/x.svs?sig=secret"
    rows = [replace(catalog.row("a"), id=name, url=nowhere, folder=place) for name in ids]
    many = Catalog(CatalogFolder("none"), empty_table().updated(rows))
    group = many.zarr()
    assert "slide-7" in many
    assert "none" not in many
    for name in ids[:9]:
        assert group[zarr_key(name)].attrs["id"] == name
    assert group["ünïcode 😐"].attrs["id"] == "ünïcode 😐"
    assert dict(group["plain"].attrs)["url"] == "s3://nowhere/x.svs"

    async def listed() -> set[str]:
        return {name async for name in group.store.list_dir("")}

    assert asyncio.run(listed()) == {zarr_key(name) for name in ids} | {"zarr.json"}
    with pytest.raises(KeyError):
        group["no such slide"]
    with pytest.raises(KeyError):
        group["plain/2"]


def test_the_store_lists_what_it_holds_and_refuses_writing(slide_folder: Path) -> None:
    slide = open_slide(str(slide_folder / "c.svs"))
    group = slide.zarr()

    async def keys(prefix: str) -> list[str]:
        return [key async for key in group.store.list_prefix(prefix)]

    async def partial(key: str) -> list[bytes]:
        from zarr.abc.store import OffsetByteRequest, RangeByteRequest, SuffixByteRequest
        from zarr.core.buffer import default_buffer_prototype

        parts = [RangeByteRequest(3, 9), OffsetByteRequest(49_000), SuffixByteRequest(6), None]
        values = await group.store.get_partial_values(default_buffer_prototype(), [(key, part) for part in parts])
        return [value.to_bytes() for value in values if value is not None]

    listed = asyncio.run(keys(""))
    tiles = sum(level.tiles_x * level.tiles_y for level in slide.levels)
    assert len(listed) == len(set(listed)) == tiles + 2 + len(slide.levels)
    assert asyncio.run(keys("slide/1/c/0")) == ["slide/1/c/0/0/0", "slide/1/c/0/1/0"]
    pixels = slide.read_level(level=1, x_px=128, y_px=128, width_px=128, height_px=128)
    stored = asyncio.run(partial("slide/1/c/1/1/0"))
    assert stored[0] == stored[3][3:9]
    assert stored[1] == stored[3][49_000:]
    assert stored[2] == stored[3][-6:]
    side = slide.levels[1].height_px - 128
    whole = np.frombuffer(stored[3], np.uint8).reshape(128, 128, 3)
    np.testing.assert_array_equal(whole[:side, :side], pixels[:side, :side])
    for absent in ("slide/1/c/2/0/0", "slide/1/c/01/0/0", "slide/1/c/0/0/1", "slide/2/zarr.json", "x/zarr.json", "c"):
        assert not asyncio.run(group.store.exists(absent))
    array: Any = group["0"]
    with pytest.raises(ValueError, match="read-only"):
        array[0, 0] = 0
    with pytest.raises(ValueError, match="read only"):
        group.store.with_read_only(read_only=False)
