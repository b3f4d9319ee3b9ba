"""The whole engine on real files: what it reads, how it fails, and what it leaves behind."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import openslide
import pytest
from online_patching import Catalog, CorruptTileError, PatchRequest, Slide, StorageError, engine, loop, open_slide
from online_patching.batch_plan import WindowRequest
from online_patching.bytesource import ByteRange, ObjectInfo, read_start_by_info
from online_patching.decode import Pixels
from online_patching.geometry import LevelWindow
from online_patching.health import HealthLog, SlideHealth
from online_patching.index import index_slide
from online_patching.reader import WINDOWS_AT_ONCE, read_windows
from online_patching.storage import LocalSource, Store
from online_patching.tile_source import InMemoryLookup, RangeTiles, SlideHandle
from written_slides import pyramid_of, tissue_image, write_pyramid
from written_zarrs import write_ome_zarr

WIDTH, HEIGHT, SIZE = 1500, 1200, 96


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("reader") / "x.svs"
    write_pyramid(path, tissue_image(WIDTH, HEIGHT, 1), mpp=0.5)
    return str(path)


@pytest.fixture(autouse=True)
def settings_of_before() -> Iterator[None]:
    before = engine.settings()
    yield
    engine.configure(decode_threads=before.decode_threads, memory_mb=before.memory_mb)


def random_corners(count: int, seed: int, *, beyond: int = 120) -> list[tuple[int, int]]:
    rng = random.Random(seed)
    return [(rng.randrange(-beyond, WIDTH + beyond), rng.randrange(-beyond, HEIGHT + beyond)) for _ in range(count)]


def stored_whole(path: str) -> Pixels:
    """Level 0 as OpenSlide decodes it, with a wide white margin."""
    with openslide.OpenSlide(path) as oracle:
        whole = np.asarray(oracle.read_region((0, 0), 0, (WIDTH, HEIGHT)))[..., :3]
    return np.pad(whole, ((500, 500), (500, 500), (0, 0)), constant_values=255)


def expected_patch(whole: Pixels, corner: tuple[int, int]) -> Pixels:
    x, y = corner[0] + 500, corner[1] + 500
    return whole[y : y + SIZE, x : x + SIZE]


@pytest.mark.parametrize("threads", [1, 2])
def test_patches_are_the_pixels_of_openslide(path: str, threads: int) -> None:
    engine.configure(decode_threads=threads)
    corners, whole = random_corners(150, 1), stored_whole(path)
    patches = open_slide(path).read_patches(corners, size_px=SIZE, mpp=0.5)
    for corner, patch in zip(corners, patches, strict=True):
        np.testing.assert_array_equal(patch, expected_patch(whole, corner))


@pytest.mark.parametrize("mpp", [0.5, 0.52, 0.7, 1.0, 3.0])
@pytest.mark.parametrize("decode", ["exact", "fast"])
def test_a_batch_with_repeated_and_overlapping_windows_equals_one_by_one(path: str, mpp: float, decode: str) -> None:
    slide = open_slide(path)
    corners = random_corners(12, 2)
    corners += [*corners[:5], *((x + 3, y - 5) for x, y in corners[5:])]
    together = slide.read_patches(corners, size_px=SIZE, mpp=mpp, decode=decode)  # type: ignore[arg-type]
    for (x, y), patch in zip(corners, together, strict=True):
        alone = slide.read_patch(x_level0_px=x, y_level0_px=y, size_px=SIZE, mpp=mpp, decode=decode)  # type: ignore[arg-type]
        np.testing.assert_array_equal(patch, alone)


def test_a_batch_of_more_windows_than_go_at_once_keeps_its_order(path: str) -> None:
    corners, whole = random_corners(2 * WINDOWS_AT_ONCE + 7, 3), stored_whole(path)
    patches = open_slide(path).read_patches(corners, size_px=SIZE, mpp=0.5)
    assert all((patch == expected_patch(whole, c)).all() for c, patch in zip(corners, patches, strict=True))


def test_the_smallest_memory_bound_still_reads_everything(path: str) -> None:
    engine.configure(memory_mb=1)
    corners, whole = random_corners(80, 4), stored_whole(path)
    slide = open_slide(path)
    patches = slide.read_patches(corners, size_px=SIZE, mpp=0.5)
    assert all((patch == expected_patch(whole, c)).all() for c, patch in zip(corners, patches, strict=True))
    with pytest.raises(ValueError, match=r"x\.svs: a window of 700 x 700 px.*takes 1 MiB, allowed 1"):
        slide.read_patch(x_level0_px=0, y_level0_px=0, size_px=700, mpp=0.5)


class SpySource:
    """The file, with every read of ranges counted."""

    def __init__(self, path: str) -> None:
        self._file = LocalSource(path)
        self.url = path
        self.reads = self.under_way = self.most_under_way = 0

    async def info(self) -> ObjectInfo:
        return await self._file.info()

    async def read_start(self, length: int) -> tuple[bytes, ObjectInfo]:
        return await read_start_by_info(self, length)

    async def read_whole(self, *, max_bytes: int) -> tuple[bytes, ObjectInfo]:
        return await self._file.read_whole(max_bytes=max_bytes)

    async def read_ranges(self, ranges: Sequence[ByteRange], *, expected: ObjectInfo | None = None) -> list[bytes]:
        self.reads += 1
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            await asyncio.sleep(0.01)
            return await self._file.read_ranges(ranges, expected=expected)
        finally:
            self.under_way -= 1


def spied_slide(path: str) -> tuple[Slide, SpySource]:
    """The slide as if its file lay in a store: read on the event loop."""
    spy, indexed = SpySource(path), loop.run(index_slide(path, Store()))
    sources = tuple((spy, each.info) for each in indexed.objects)
    tiles = RangeTiles(sources, indexed.header, InMemoryLookup(indexed.tiles))
    return Slide(SlideHandle(indexed.header, tiles), slide_id="spied", url=path), spy


def test_absurd_sizes_are_refused_before_anything_is_read_or_allocated(path: str) -> None:
    slide, spy = spied_slide(path)
    for size_px, mpp in ((10**6, 0.5), (10**9, 0.5), (30_000, 0.5), (256, 5000.0)):
        with pytest.raises(ValueError, match=r"slide spied: a window of .* MiB, allowed 1024|size_px: got"):
            slide.read_patches([(0, 0)], size_px=size_px, mpp=mpp)
    with pytest.raises(ValueError, match="a window of"):
        slide.read_level(level=0, x_px=0, y_px=0, width_px=10**7, height_px=10**7)
    for x in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="allowed finite numbers"):
            slide.read_patches([(0, 0), (x, 0)], size_px=SIZE, mpp=0.5)
    assert spy.reads == 0
    assert slide.read_patch(x_level0_px=600, y_level0_px=500, size_px=SIZE, mpp=0.5).min() < 255
    assert spy.reads > 0


def test_what_is_read_at_a_time_is_bounded_by_the_memory(tmp_path: Path) -> None:
    # A patch touches at most four tiles, which one thread reads in one go.
    write_pyramid(tmp_path / "x.svs", tissue_image(WIDTH, HEIGHT, 1), mpp=0.5, tile=512)
    corners = random_corners(8, 5, beyond=-100)
    most = []
    for memory_mb in (1, 1024):
        engine.configure(memory_mb=memory_mb, decode_threads=1)
        slide, spy = spied_slide(str(tmp_path / "x.svs"))
        read = partial(_read_one, slide)
        with ThreadPoolExecutor(8) as pool:
            alone = list(pool.map(read, corners))
        np.testing.assert_array_equal(alone, slide.read_patches(corners, size_px=500, mpp=0.5))
        most.append(spy.most_under_way)
    # A patch of 500 px takes 0.72 MiB: no two of them fit in one.
    assert most[0] == 1 < most[1]


def _read_one(slide: Slide, corner: tuple[int, int]) -> Pixels:
    return slide.read_patches([corner], size_px=500, mpp=0.5)[0]


def test_far_outside_is_white_and_counted(path: str) -> None:
    slide = open_slide(path)
    corners = [(1e12, 0), (-1e12, 1e12), (-40, 5), (600, 500), (1e300, -1e300)]
    patches = slide.read_patches(corners, size_px=SIZE, mpp=0.5)
    assert (patches[[0, 1, 4]] == 255).all()
    assert (patches[2][:, :40] == 255).all()
    assert slide.health() == SlideHealth(outside_patches=4)


def test_enlarged_patches_are_counted(tmp_path: Path) -> None:
    write_pyramid(tmp_path / "x.svs", tissue_image(300, 300, 1), mpp=0.55)
    slide = open_slide(str(tmp_path / "x.svs"))
    slide.read_patches([(10, 10), (50, 60)], size_px=64, mpp=0.5)
    slide.read_patches([(10, 10)], size_px=64, mpp=0.54)
    assert slide.health() == SlideHealth(enlarged_patches=2)


def tile_range(path: str, tile: int) -> ByteRange:
    table = loop.run(index_slide(path, Store())).tiles[0]
    return int(table.offset[tile]), int(table.length[tile])


def test_a_corrupt_tile_fails_only_the_patches_that_need_it(path: str, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.svs"
    start, length = tile_range(path, 14)
    data = bytearray(Path(path).read_bytes())
    data[start : start + length] = bytes(length)
    damaged.write_bytes(data)
    slide, whole = open_slide(str(damaged)), stored_whole(path)
    # Tile 14 of 12 columns of 128 px lies at (256, 128).
    corners = [*random_corners(60, 6), (300, 150), (250, 120)]
    spoilt = [256 - SIZE < x < 384 and 128 - SIZE < y < 256 for x, y in corners]
    read = slide.read_patches([c for c, bad in zip(corners, spoilt, strict=True) if not bad], size_px=SIZE, mpp=0.5)
    assert (read == [expected_patch(whole, c) for c, bad in zip(corners, spoilt, strict=True) if not bad]).all()
    with pytest.raises(CorruptTileError, match=r"damaged\.svs: level 0, tile 14: .*copy the slide again"):
        slide.read_patches([corners[-1]], size_px=SIZE, mpp=0.5)
    health = HealthLog()
    assert slide.levels[0].tiles_x == 12
    requests = [WindowRequest(slide.handle, "d", _window(c), SIZE) for c in corners]
    for corner, bad, answer in zip(corners, spoilt, loop.run(read_windows(requests, health)), strict=True):
        assert isinstance(answer, CorruptTileError) == bad
        if not isinstance(answer, CorruptTileError):
            np.testing.assert_array_equal(answer, expected_patch(whole, corner))
    assert health.report()["d"].corrupt_tiles == 1
    assert slide.health().corrupt_tiles == 1


def _window(corner: tuple[int, int]) -> LevelWindow:
    return LevelWindow(0, corner[0], corner[1], SIZE, SIZE)


def test_a_tile_that_was_not_stored_is_white_and_counted(path: str) -> None:
    indexed = loop.run(index_slide(path, Store()))
    lengths = indexed.tiles[0].length.copy()
    lengths[14] = 0
    levels = (replace(indexed.tiles[0], length=lengths), *indexed.tiles[1:])
    tiles = RangeTiles(
        tuple((LocalSource(each.url), each.info) for each in indexed.objects), indexed.header, InMemoryLookup(levels)
    )
    slide, whole = Slide(SlideHandle(indexed.header, tiles), slide_id="gap", url=path), stored_whole(path)
    whole[500 + 128 : 500 + 256, 500 + 256 : 500 + 384] = 255
    for corner in ((230, 100), (300, 150), (600, 500)):
        patch = slide.read_patch(x_level0_px=corner[0], y_level0_px=corner[1], size_px=SIZE, mpp=0.5)
        np.testing.assert_array_equal(patch, expected_patch(whole, corner))
    assert slide.health() == SlideHealth(missing_tiles=2)


def test_patches_go_to_the_memory_that_is_given(path: str, catalog: Catalog) -> None:
    slide, corners = open_slide(path), random_corners(5, 7)
    for mpp in (0.5, 0.6, 1.0):
        out = np.zeros((5, SIZE, SIZE, 3), np.uint8)
        assert slide.read_patches(corners, size_px=SIZE, mpp=mpp, out=out) is out
        np.testing.assert_array_equal(out, slide.read_patches(corners, size_px=SIZE, mpp=mpp))
    requests = [PatchRequest("a", 300, 200, 64, 1.0), PatchRequest("b", 300, 200, 48, 0.5)]
    outs = [np.zeros((64, 64, 3), np.uint8), np.zeros((48, 48, 3), np.uint8)]
    for given, answer, expected in zip(
        outs, catalog.read_patches(requests, outs=outs), catalog.read_patches(requests), strict=True
    ):
        assert np.shares_memory(given, answer)
        np.testing.assert_array_equal(given, expected)
    with pytest.raises(ValueError, match="outs: got 1 arrays for 2"):
        catalog.read_patches(requests, outs=outs[:1])


@pytest.mark.parametrize(
    "out",
    [
        np.zeros((2, SIZE, SIZE, 3), np.float32),
        np.zeros((3, SIZE, SIZE, 3), np.uint8),
        np.zeros((2, SIZE, SIZE), np.uint8),
        np.zeros((2, SIZE, SIZE * 2, 3), np.uint8)[:, :, ::2],
        np.broadcast_to(np.zeros((SIZE, 3), np.uint8), (2, SIZE, SIZE, 3)),
        [[1, 2]],
    ],
)
def test_memory_that_the_patches_do_not_fit_is_refused(path: str, out: Pixels) -> None:
    slide, spy = spied_slide(path)
    with pytest.raises(ValueError, match=r"out: got .*allowed (writable C-contiguous|a numpy array)"):
        slide.read_patches([(0, 0), (1, 1)], size_px=SIZE, mpp=0.5, out=out)
    assert spy.reads == 0


def test_a_deleted_file_fails_its_batch_and_nothing_after(path: str, tmp_path: Path) -> None:
    gone = tmp_path / "gone.svs"
    gone.write_bytes(Path(path).read_bytes())
    slide, there = open_slide(str(gone)), open_slide(path)
    before = there.read_patches([(600, 500)], size_px=SIZE, mpp=0.5)
    gone.unlink()
    both = [WindowRequest(s.handle, "s", _window((600, 500)), SIZE) for s in (there, slide, there)]
    with pytest.raises(StorageError, match=r"gone\.svs: no such file"):
        loop.run(read_windows(both))
    np.testing.assert_array_equal(there.read_patches([(600, 500)], size_px=SIZE, mpp=0.5), before)


async def _taken_bytes() -> int:
    return engine.memory_gate()._taken


def test_cancelling_leaves_the_engine_usable_and_the_memory_free(path: str) -> None:
    slide, _ = spied_slide(path)
    corners = random_corners(300, 8)

    async def give_up(after_s: float) -> None:
        task = asyncio.ensure_future(slide.aread_patches(corners, size_px=SIZE, mpp=0.5))
        await asyncio.sleep(after_s)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task

    for after_s in (0.0, 0.002, 0.011, 0.02, 0.05):
        asyncio.run(give_up(after_s))
    patches = slide.read_patches(corners[:20], size_px=SIZE, mpp=0.5)
    whole = stored_whole(path)
    assert all((patch == expected_patch(whole, c)).all() for c, patch in zip(corners[:20], patches, strict=True))
    assert loop.run(_taken_bytes()) == 0


def test_many_threads_read_at_the_same_time(path: str) -> None:
    slide, whole = open_slide(path), stored_whole(path)

    def read(seed: int) -> bool:
        corners = random_corners(20, seed)
        patches = slide.read_patches(corners, size_px=SIZE, mpp=0.5)
        return all((patch == expected_patch(whole, c)).all() for c, patch in zip(corners, patches, strict=True))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, range(40)))


def test_threads_may_be_changed_while_others_read(path: str) -> None:
    slide, stop = open_slide(path), threading.Event()
    expected = slide.read_patches([(600, 500)], size_px=SIZE, mpp=0.5)

    def read() -> bool:
        same = True
        while not stop.is_set():
            same &= bool((slide.read_patches([(600, 500)], size_px=SIZE, mpp=0.5) == expected).all())
        return same

    with ThreadPoolExecutor(3) as pool:
        readers = [pool.submit(read) for _ in range(3)]
        for k in range(40):
            engine.configure(decode_threads=1 + k % 3)
        stop.set()
        assert all(reader.result(timeout=20) for reader in readers)


def test_nothing_is_left_after_close_and_reading_goes_on(path: str) -> None:
    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0  # noqa: PTH208

    engine.close()
    before = descriptors()
    slide = open_slide(path)
    for _ in range(3):
        patches = slide.read_patches(random_corners(30, 9), size_px=SIZE, mpp=0.5)
        assert [t for t in threading.enumerate() if t.name.startswith("online-patching")]
        engine.close()
        assert not [t for t in threading.enumerate() if t.name.startswith("online-patching")]
        assert descriptors() == before
    np.testing.assert_array_equal(slide.read_patches(random_corners(30, 9), size_px=SIZE, mpp=0.5), patches)


_FORK = """
import os, sys
import numpy as np
from online_patching import open_slide
slide = open_slide(sys.argv[1])
read = lambda: slide.read_patches([(600, 500), (-20, 30), (700, 650)], size_px=96, mpp=0.7)
before = read()
child = os.fork()
if not child:
    same = np.array_equal(read(), before) and np.array_equal(
        open_slide(sys.argv[1]).read_patch(x_level0_px=600, y_level0_px=500, size_px=96, mpp=0.7), before[0])
    os._exit(0 if same else 3)
assert os.waitpid(child, 0)[1] == 0
assert np.array_equal(read(), before)
print("done")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_fork_after_use_reads_the_same_pixels(path: str) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", _FORK, path],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


def test_fast_decoding_is_close_where_it_applies_and_exact_elsewhere(path: str) -> None:
    slide = open_slide(path)
    corners = random_corners(20, 10, beyond=-200)
    for mpp in (0.5, 0.7, 2.0):
        exact = slide.read_patches(corners, size_px=SIZE, mpp=mpp)
        np.testing.assert_array_equal(exact, slide.read_patches(corners, size_px=SIZE, mpp=mpp, decode="fast"))
    # Patches are whole pixels as decoded: here two of level 0, so that odd corners are displaced by one of these.
    even = [(2 * round(x / 2), 2 * round(y / 2)) for x, y in corners]
    fast = slide.read_patches(corners, size_px=SIZE, mpp=1.0, decode="fast")
    np.testing.assert_array_equal(fast, slide.read_patches(even, size_px=SIZE, mpp=1.0, decode="fast"))
    exact = slide.read_patches(even, size_px=SIZE, mpp=1.0)
    assert (exact != fast).any()
    assert 10 * np.log10(255**2 / np.mean((exact.astype(float) - fast) ** 2)) >= 46


def test_ome_zarr_goes_the_same_way(tmp_path: Path) -> None:
    levels = pyramid_of(tissue_image(700, 500, 1))
    write_ome_zarr(tmp_path / "x.ome.zarr", levels, version="0.4", axes="cyx")
    slide, padded = (
        open_slide(str(tmp_path / "x.ome.zarr")),
        np.pad(levels[0], ((200,) * 2,) * 2 + ((0, 0),), constant_values=255),
    )
    corners = [(300, 200), (-20, 30), (650, 450), (300, 200), (5000, 0)]
    out = np.zeros((5, SIZE, SIZE, 3), np.uint8)
    slide.read_patches(corners, size_px=SIZE, mpp=0.5, out=out)
    for (x, y), patch in zip(corners[:4], out, strict=False):
        np.testing.assert_array_equal(patch, padded[y + 200 : y + 200 + SIZE, x + 200 : x + 200 + SIZE])
    assert (out[4] == 255).all()
    assert slide.health() == SlideHealth(outside_patches=3)
