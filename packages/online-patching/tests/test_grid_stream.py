from __future__ import annotations

import itertools
import json
import logging
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
from online_patching import Catalog, CatalogError, CorruptTileError, GridStream, PatchStream, loop
from online_patching.jobs import compute_foreground, index_cohort
from online_patching.tile_source import RangeTiles
from written_slides import tissue_image, write_pyramid


def take(stream: GridStream, count: int | None = None) -> list[dict[str, Any]]:
    return list(itertools.islice(stream, count))


def places(patches: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    return [(p["index"], p["slide_id"], p["x_level0_px"], p["y_level0_px"]) for p in patches]


def test_every_grid_patch_with_enough_foreground_comes_once(catalog: Catalog) -> None:
    stream = GridStream(catalog, size_px=48, mpp=1.0, stride_px=40, min_foreground=0.5, columns=["patient"])
    patches = take(stream)
    assert len(patches) == len(stream) > 100
    assert [p["index"] for p in patches] == list(range(len(patches)))
    expected = []
    for row in catalog:
        assert row.mpp is not None
        side, stride = 48 / row.mpp, 40 / row.mpp
        polygon = catalog.foreground(row.id)
        for y in np.rint(np.arange(0, row.height_px, stride)):
            for x in np.rint(np.arange(0, row.width_px, stride)):
                share = polygon.intersection(shapely.box(x, y, x + side, y + side)).area / side**2
                if share >= 0.5:
                    expected.append((row.id, int(x), int(y), share))
    assert [(p["slide_id"], p["x_level0_px"], p["y_level0_px"]) for p in patches] == [e[:3] for e in expected]
    np.testing.assert_allclose([p["foreground"] for p in patches], [e[3] for e in expected], atol=1e-9)
    for patch in patches[:: len(patches) // 10]:
        assert patch["patient"] == f"p-{patch['slide_id']}"
        assert patch["mpp"] == 1.0
        alone = catalog.slide(patch["slide_id"]).read_patch(
            x_level0_px=patch["x_level0_px"], y_level0_px=patch["y_level0_px"], size_px=48, mpp=1.0
        )
        np.testing.assert_array_equal(patch["image"], alone)


@pytest.mark.parametrize(("world_size", "num_workers", "size"), [(1, 1, 1), (1, 2, 7), (2, 1, 10), (2, 3, 64)])
def test_shards_share_all_patches_and_the_last_batch_may_be_short(
    catalog: Catalog, world_size: int, num_workers: int, size: int
) -> None:
    whole = places(take(GridStream(catalog, size_px=48, mpp=2.0)))
    assert len(whole) % size or size == 1, "the last batch is a short one"
    found = []
    for rank, worker in itertools.product(range(world_size), range(num_workers)):
        # Each in a process of its own: nothing was counted yet.
        shard = pickle.loads(pickle.dumps(GridStream(catalog, size_px=48, mpp=2.0))).shard(
            global_batch_size=size, rank=rank, world_size=world_size, worker=worker, num_workers=num_workers
        )
        part = places(take(shard))
        for index, *_ in part:
            assert index // size % num_workers == worker
            assert index % size // (size // world_size) == rank
        found += part
    assert sorted(found) == whole


def test_a_stream_that_has_ended_stays_at_its_end(catalog: Catalog) -> None:
    stream = GridStream(catalog, size_px=48, mpp=2.0)
    total = len(take(stream))
    state = json.loads(json.dumps(stream.state_dict()))
    assert state["position"] == total
    assert take(stream) == []
    resumed = GridStream(catalog, size_px=48, mpp=2.0)
    resumed.load_state_dict({**state, "position": total - 3})
    assert [p["index"] for p in take(resumed)] == [total - 3, total - 2, total - 1]
    resumed.load_state_dict({**state, "position": total + 1})
    with pytest.raises(ValueError, match=f"position {total + 1}: the stream has fewer"):
        take(resumed)
    with pytest.raises(IndexError, match=f"patch {total} of {total}"):
        resumed.sample(total)
    batches = GridStream(catalog, size_px=48, mpp=2.0).shard(
        global_batch_size=total - 1, rank=0, world_size=1, worker=0, num_workers=1
    )
    take(batches)
    assert batches.state_dict()["position"] == total
    assert take(batches) == []
    for other in ({"stride_px": 47}, {"min_foreground": 0.3}, {"size_px": 47}, {"mpp": 2.1}):
        with pytest.raises(ValueError, match="fingerprint"):
            GridStream(catalog, **{"size_px": 48, "mpp": 2.0, **other}).load_state_dict(state)


def test_slides_are_counted_only_as_far_as_the_stream_comes(catalog: Catalog) -> None:
    stream = GridStream(catalog, size_px=24, mpp=0.5)
    take(stream, 1)
    assert len(stream._grids._ends) == 1
    assert len(stream) == stream._grids._ends[-1]
    assert len(stream._grids._ends) == 3


def test_slides_that_cannot_serve_are_left_out_by_name(catalog: Catalog, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        stream = GridStream(catalog, size_px=48, mpp=0.25)
    assert "slide a left out: it serves none of (0.25,) um/px" in caplog.text
    assert {p["slide_id"] for p in take(stream)} == {"b", "c"}
    with pytest.raises(CatalogError, match="none of 3 slides serves"):
        GridStream(catalog, size_px=48, mpp=0.1)
    with pytest.raises(CatalogError, match="none of 3 slides serves"):
        GridStream(catalog, size_px=10_000, mpp=1.0)
    assert take(GridStream(catalog, size_px=48, mpp=0.25, on_missing_mpp="enlarge"), 1)[0]["slide_id"] == "a"
    with pytest.raises(ValueError, match=r"stride_px: got 0\.4, allowed numbers that are at least one pixel"):
        GridStream(catalog, size_px=48, mpp=1.0, stride_px=0.4)
    with pytest.raises(ValueError, match="level_policy: got"):
        GridStream(catalog, level_policy="best")  # type: ignore[arg-type]


def test_a_corrupt_tile_stops_it(tmp_path: Path) -> None:
    path = tmp_path / "x.svs"
    write_pyramid(path, tissue_image(900, 900, 2), downsamples=(1,), tile=256)
    url = str(tmp_path / "c")
    index_cohort([str(path)], url, progress=False)
    compute_foreground(url, progress=False)
    catalog = Catalog.open(url)
    (start, length), *_ = _ranges(catalog)
    data, stat = bytearray(path.read_bytes()), path.stat()
    data[start : start + length] = bytes(length)
    path.write_bytes(data)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    with pytest.raises(CorruptTileError, match="level 0, tile"):
        take(GridStream(catalog, size_px=64, mpp=0.5, min_foreground=0.0))


def _ranges(catalog: Catalog) -> list[tuple[int, int]]:
    tiles = catalog.handle("x").tiles
    assert isinstance(tiles, RangeTiles)
    return loop.run(tiles.lookup.ranges(0, range(8)))


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_every_rank_ends_at_the_same_position_and_goes_on_from_it(catalog: Catalog, world_size: int) -> None:
    batch = 12
    stream = GridStream(catalog, size_px=48, mpp=1.0, stride_px=40, min_foreground=0.5)
    assert len(stream) % batch, "the last batch is short"
    for rank in range(world_size):
        part = stream.shard(global_batch_size=batch, rank=rank, world_size=world_size, worker=0, num_workers=1)
        take(part)
        state = part.state_dict()
        assert state["position"] in (len(stream), len(stream) // batch * batch)
        again = GridStream(catalog, size_px=48, mpp=1.0, stride_px=40, min_foreground=0.5)
        again.load_state_dict(state)
        assert len(take(again)) == len(stream) - state["position"]


def test_equal_arguments_have_one_fingerprint(catalog: Catalog) -> None:
    prints = {
        PatchStream(catalog, size_px=size, mpp=mpp, min_foreground=share).fingerprint()
        for size, mpp, share in (
            (48, [1, 2], 0),
            (48, [1.0, 2.0], 0.0),
            (np.int64(48), (np.float64(1), np.float64(2)), np.float64(0)),
        )
    }
    assert len(prints) == 1
    assert PatchStream(catalog, size_px=48, mpp=np.float32(1)).sampler.mpp == (1.0,)


def test_numbers_beyond_the_patches_are_refused(catalog: Catalog) -> None:
    stream = GridStream(catalog, size_px=48, mpp=1.0)
    for number in (-1, 10**9):
        with pytest.raises(IndexError, match=f"patch {number} of {len(stream)}"):
            GridStream(catalog, size_px=48, mpp=1.0).sample(number)
    with pytest.raises(ValueError, match="stride_px: got inf"):
        GridStream(catalog, size_px=48, mpp=1.0, stride_px=float("inf"))
