from __future__ import annotations

import itertools
import logging
import multiprocessing
import pickle
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from online_patching import Catalog, PatchStream
from online_patching.patch_cache import PatchCache
from online_patching.sampler import Sample
from online_patching.sampling import Position

SIZE_PX = 32
DISTINCT = 40


def patch(number: int) -> tuple[Sample, np.ndarray[Any, Any]]:
    pixels = np.random.default_rng(number).integers(0, 256, (SIZE_PX, SIZE_PX, 3), np.uint8)
    return Sample(number, 2, f"slide {number}", 0.5, Position(number, 7, 0.75)), pixels


def cache_in(folder: Path, max_bytes: int = 2**30) -> PatchCache:
    return PatchCache(folder, name="test", size_px=SIZE_PX, max_bytes=max_bytes)


def holds(cache: PatchCache, numbers: range) -> bool:
    found = cache.read(list(numbers))
    return list(found) == list(numbers) and all(
        found[n][0] == patch(n)[0] and (found[n][1] == patch(n)[1]).all() for n in numbers
    )


def stream_of(catalog: Catalog, **arguments: Any) -> PatchStream:
    return PatchStream(catalog, size_px=SIZE_PX, mpp=[0.5, 1.0], seed=4, distinct_patches=DISTINCT, **arguments)


def take(stream: PatchStream, count: int) -> list[dict[str, Any]]:
    return list(itertools.islice(stream, count))


def assert_same(left: list[dict[str, Any]], right: list[dict[str, Any]]) -> None:
    for a, b in zip(left, right, strict=True):
        assert {k: v for k, v in a.items() if k != "image"} == {k: v for k, v in b.items() if k != "image"}
        np.testing.assert_array_equal(a["image"], b["image"])


def place(each: dict[str, Any]) -> tuple[Any, ...]:
    return each["slide_id"], each["x_level0_px"], each["y_level0_px"], each["mpp"]


def test_after_the_first_patches_all_others_are_drawn_from_them(catalog: Catalog) -> None:
    patches = take(stream_of(catalog), 20 * DISTINCT)
    plain = PatchStream(catalog, size_px=SIZE_PX, mpp=[0.5, 1.0], seed=4)
    assert_same(patches[:DISTINCT], take(plain, DISTINCT))
    assert [each["index"] for each in patches] == list(range(20 * DISTINCT))
    first = {place(each): each["image"] for each in patches[:DISTINCT]}
    drawn = Counter(place(each) for each in patches[DISTINCT:])
    assert all((first[place(each)] == each["image"]).all() for each in patches)
    # Uniform: by chi-square with 39 degrees of freedom, whose 99.99 % point is 82.
    expected = 19 * DISTINCT / DISTINCT
    assert sum((drawn[each] - expected) ** 2 / expected for each in first) < 82


def test_a_patch_that_is_shown_twice_is_two_arrays(catalog: Catalog) -> None:
    stream = PatchStream(catalog, size_px=SIZE_PX, mpp=1.0, distinct_patches=1)
    one, two = take(stream, 2)
    one["image"][:] = 0
    assert two["image"].any()


@pytest.mark.parametrize(("world", "workers"), [(1, 2), (2, 1)])
def test_a_limited_stream_is_the_same_with_and_without_a_cache_for_all_shards(
    catalog: Catalog, tmp_path: Path, world: int, workers: int
) -> None:
    whole = take(stream_of(catalog), 120)
    stream = stream_of(catalog, cache=tmp_path)
    parts: list[dict[str, Any]] = []
    for rank, worker in itertools.product(range(world), range(workers)):
        shard = stream.shard(global_batch_size=6, rank=rank, world_size=world, worker=worker, num_workers=workers)
        parts += take(shard, 120 // world // workers)
    assert_same(sorted(parts, key=lambda each: each["index"]), whole)
    # Whatever is asked for now lies in the cache: the slides are not read.
    again = stream_of(catalog, cache=tmp_path)
    assert_same(take(again, 120), whole)
    assert again.metrics().cached_patches >= 120


def test_streams_of_other_patches_do_not_share_a_cache(catalog: Catalog, tmp_path: Path) -> None:
    take(stream_of(catalog, cache=tmp_path), DISTINCT)
    other = PatchStream(catalog, size_px=SIZE_PX, mpp=[0.5, 1.0], seed=5, distinct_patches=DISTINCT, cache=tmp_path)
    take(other, DISTINCT)
    assert len(list(tmp_path.glob("*.sqlite"))) == 2
    # A larger study begins with the patches of the smaller one.
    larger = PatchStream(catalog, size_px=SIZE_PX, mpp=[0.5, 1.0], seed=4, distinct_patches=1000, cache=tmp_path)
    take(larger, 8)
    assert len(list(tmp_path.glob("*.sqlite"))) == 2


def test_what_was_put_in_comes_back_also_in_another_process(tmp_path: Path) -> None:
    cache = cache_in(tmp_path / "new" / "folder")
    cache.write({n: patch(n) for n in range(700)})
    assert holds(cache, range(700))
    assert holds(pickle.loads(pickle.dumps(cache)), range(30))
    assert cache.read([900]) == {}
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert all(pool.starmap(holds, [(cache, range(20)), (cache, range(20, 40))]))
    cache.close()
    assert holds(cache, range(3))


def test_processes_write_at_the_same_time(tmp_path: Path) -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[3]); from pathlib import Path;"
        "from test_patch_cache import cache_in, patch; cache = cache_in(Path(sys.argv[1])); n = int(sys.argv[2]);"
        "[cache.write({k: patch(k) for k in range(a, a + 8)}) for a in range(n, n + 160, 8)]"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    here = str(Path(__file__).parent)
    running = [subprocess.Popen([*command, str(160 * k), here], stderr=subprocess.PIPE, text=True) for k in range(3)]
    for process in running:
        _, errors = process.communicate(timeout=120)
        assert (process.returncode, errors) == (0, "")
    assert holds(cache_in(tmp_path), range(480))


def test_a_writer_that_is_killed_leaves_whole_patches(tmp_path: Path) -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[2]); from pathlib import Path;"
        "from test_patch_cache import cache_in, patch; cache = cache_in(Path(sys.argv[1]));"
        "[(cache.write({k: patch(k)}), print(k, flush=True)) for k in range(100_000)]"
    )
    command = [sys.executable, "-c", code, str(tmp_path), str(Path(__file__).parent)]
    for _ in range(3):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        for line in process.stdout:
            if int(line) >= 25:
                break
        time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait(30)
        process.stdout.close()
        assert holds(cache_in(tmp_path), range(25))
    with sqlite3.connect(cache_in(tmp_path).path) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_it_stays_within_its_bound_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = cache_in(tmp_path, max_bytes=400_000)
    with caplog.at_level(logging.WARNING):
        for first in range(0, 320, 8):
            cache.write({n: patch(n) for n in range(first, first + 8)})
    assert cache.path.stat().st_size <= 400_000
    kept = cache.read(range(320))
    assert 80 < len(kept) < 140, "random pixels of 3 KiB each"
    assert holds(cache, range(len(kept)))
    assert [record.message for record in caplog.records if "takes no more patches" in record.message]
    assert len(caplog.records) == 1


def test_a_full_cache_changes_no_patch(catalog: Catalog, tmp_path: Path) -> None:
    take(stream_of(catalog, cache=tmp_path / "whole"), DISTINCT)
    (whole,) = (tmp_path / "whole").glob("*.sqlite")
    with sqlite3.connect(whole) as connection:
        pages, page_bytes = (connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "page_size"))
    connection.close()
    # Room for the first chunks, not for all 40; more chunks than are under way at the start.
    stream = stream_of(catalog, cache=tmp_path, cache_gib=0.9 * pages * page_bytes / 2**30)
    assert_same(take(stream, 800), take(stream_of(catalog), 800))
    assert 0 < stream.metrics().cached_patches < 800


def test_damaged_pixels_are_read_again_and_a_damaged_file_is_left(
    catalog: Catalog, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = take(stream_of(catalog), 60)
    take(stream_of(catalog, cache=tmp_path), DISTINCT)
    (path,) = tmp_path.glob("*.sqlite")
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE patches SET pixels = zeroblob(length(pixels)) WHERE number = 3")
    connection.close()
    with caplog.at_level(logging.WARNING):
        assert_same(take(stream_of(catalog, cache=tmp_path), 60), whole)
    assert "patch 3 is damaged" in caplog.text
    caplog.clear()
    with sqlite3.connect(path) as connection:
        (checksum,) = connection.execute("SELECT checksum FROM patches WHERE number = 3").fetchone()
    connection.close()
    assert checksum, "it was put right"
    for log_file in tmp_path.glob("*-wal"):
        log_file.unlink()
    path.write_bytes(b"no database at all" * 1000)
    with caplog.at_level(logging.WARNING):
        assert_same(take(stream_of(catalog, cache=tmp_path), 60), whole)
    assert "cannot be used (file is not a database): patches are read from their slides" in caplog.text


def test_a_cache_of_a_newer_format_is_left(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = cache_in(tmp_path)
    cache.write({0: patch(0)})
    cache.close()
    with sqlite3.connect(cache.path) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    with caplog.at_level(logging.WARNING):
        assert cache_in(tmp_path).read([0]) == {}
    assert "format_version 99, allowed 1" in caplog.text


def test_arguments_that_make_no_sense_are_refused(catalog: Catalog, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="without distinct_patches"):
        PatchStream(catalog, size_px=SIZE_PX, mpp=1.0, cache=tmp_path)
    with pytest.raises(ValueError, match="distinct_patches: got 0"):
        PatchStream(catalog, size_px=SIZE_PX, mpp=1.0, distinct_patches=0)
    with pytest.raises(ValueError, match="a folder on a local disk"):
        stream_of(catalog, cache="s3://bucket/cache")
    with pytest.raises(ValueError, match="at most 0 bytes"):
        stream_of(catalog, cache=tmp_path, cache_gib=0)
