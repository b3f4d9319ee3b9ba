from __future__ import annotations

import itertools
import json
import logging
import os
import pickle
import shutil
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st
from online_patching import (
    Catalog,
    CatalogError,
    CorruptTileError,
    PatchStream,
    SamplingError,
    SlideFormatError,
    StorageError,
    loop,
    patch_feed,
)
from online_patching.jobs import compute_foreground, index_cohort
from online_patching.patch_filters import Sharpness, StainedShare, WhiteShare
from online_patching.shard import Shard
from online_patching.stream_metrics import StreamMetrics
from written_slides import tissue_image, write_pyramid


def take(stream: PatchStream, count: int) -> list[dict[str, Any]]:
    return list(itertools.islice(stream, count))


def same(left: list[dict[str, Any]], right: list[dict[str, Any]]) -> bool:
    return all(
        {k: v for k, v in a.items() if k != "image"} == {k: v for k, v in b.items() if k != "image"}
        and (a["image"] == b["image"]).all()
        for a, b in zip(left, right, strict=True)
    )


@given(
    world=st.integers(1, 5),
    workers=st.integers(1, 4),
    per_rank=st.integers(1, 6),
    start_batch=st.integers(0, 10**9),
)
def test_shards_are_disjoint_and_keep_the_order_of_global_batches(
    world: int, workers: int, per_rank: int, start_batch: int
) -> None:
    size = world * per_rank
    batches: dict[int, list[int]] = {}
    for rank in range(world):
        for worker in range(workers):
            shard = Shard(size, rank, world, worker, workers)
            indices = itertools.islice(shard.indices(start_batch * size), 3 * per_rank)
            for k in range(3):
                part = list(itertools.islice(indices, per_rank))
                batches.setdefault(start_batch + worker + k * workers, []).extend(part)
                assert shard.position_after(part[-1]) == (start_batch + worker + k * workers + 1) * size
                if per_rank > 1:
                    assert shard.position_after(part[0]) == (start_batch + worker + k * workers) * size
    assert set(batches) == set(range(start_batch, start_batch + 3 * workers))
    for number, indices_of_batch in batches.items():
        assert indices_of_batch == list(range(number * size, (number + 1) * size))


def test_patches_are_what_the_slides_hold(catalog: Catalog) -> None:
    stream = PatchStream(catalog, size_px=64, mpp=[0.5, 1.0, 2.0], seed=1, columns=["patient"])
    for k, patch in enumerate(take(stream, 120)):
        assert patch["index"] == k
        assert patch["image"].shape == (64, 64, 3)
        assert patch["image"].dtype == np.uint8
        assert patch["image"].flags.c_contiguous
        assert patch["patient"] == f"p-{patch['slide_id']}"
        base = catalog.row(patch["slide_id"]).mpp
        assert base is not None
        side = 64 * patch["mpp"] / base
        box = shapely.box(
            *(patch["x_level0_px"], patch["y_level0_px"]), patch["x_level0_px"] + side, patch["y_level0_px"] + side
        )
        share = catalog.foreground(patch["slide_id"]).intersection(box).area / side**2
        assert patch["foreground"] == pytest.approx(share)
        assert share >= 0.4
    alone = catalog.slide(patch["slide_id"]).read_patch(
        x_level0_px=patch["x_level0_px"], y_level0_px=patch["y_level0_px"], size_px=64, mpp=patch["mpp"]
    )
    np.testing.assert_array_equal(patch["image"], alone)


def test_the_same_seed_gives_the_same_stream_and_another_does_not(catalog_url: str) -> None:
    first, again, other = (
        take(PatchStream(Catalog.open(catalog_url), size_px=48, mpp=1.0, seed=seed), 40) for seed in (3, 3, 4)
    )
    assert same(first, again)
    assert not same(first, other)


def test_resuming_is_a_seek_with_any_number_of_ranks(catalog: Catalog) -> None:
    stream = PatchStream(catalog, size_px=48, mpp=1.0, seed=3)
    whole = take(stream, 36)
    state = json.loads(json.dumps(stream.state_dict()))
    assert state["position"] == 36
    resumed = PatchStream(catalog, size_px=48, mpp=1.0, seed=3)
    resumed.load_state_dict({**state, "position": 12})
    assert same(take(resumed, 24), whole[12:])
    parts = []
    for rank in range(2):
        for worker in range(2):
            start = PatchStream(catalog, size_px=48, mpp=1.0, seed=3)
            start.load_state_dict({**state, "position": 12})
            parts += take(start.shard(global_batch_size=12, rank=rank, world_size=2, worker=worker, num_workers=2), 6)
    assert same(sorted(parts, key=lambda patch: patch["index"]), whole[12:])


def test_states_that_do_not_fit_are_refused(catalog: Catalog) -> None:
    stream = PatchStream(catalog, size_px=48, mpp=1.0, seed=3)
    state = stream.state_dict()
    for change, reason in (
        ({"seed": 4}, "seed 4"),
        ({"fingerprint": "x"}, "fingerprint"),
        ({"format_version": 9}, "format_version 9"),
        ({"format_version": 1}, "format_version 1, allowed 2"),
        ({"position": -1}, "position: got -1"),
    ):
        with pytest.raises(ValueError, match=reason):
            stream.load_state_dict({**state, **change})
    for other in (
        *({"mpp": 0.5}, {"size_px": 64}, {"slide_sampling": "area"}, {"filters": [StainedShare()]}),
        *({"mpp": [1.0, 2.0]}, {"mpp": [1.0], "mpp_range": None, "min_foreground": 0.5}),
    ):
        with pytest.raises(ValueError, match="fingerprint"):
            PatchStream(catalog, **{"size_px": 48, "mpp": 1.0, "seed": 3, **other}).load_state_dict(state)
    stream.load_state_dict({**state, "position": 5})
    with pytest.raises(ValueError, match="not a multiple"):
        next(iter(stream.shard(global_batch_size=4, rank=0, world_size=1, worker=0, num_workers=1)))
    with pytest.raises(ValueError, match="multiple of the number of ranks"):
        stream.shard(global_batch_size=5, rank=0, world_size=2, worker=0, num_workers=1)


def test_slides_are_uniform_and_magnifications_only_those_served(catalog: Catalog) -> None:
    stream = PatchStream(catalog, size_px=64, mpp=[0.25, 0.5], seed=0)
    samples = [stream.sampler.draw(k) for k in range(3000)]
    counts = {name: sum(s.slide_id == name for s in samples) for name in "abc"}
    assert all(abs(count - 1000) < 5 * np.sqrt(1000 * 2 / 3) for count in counts.values())
    assert {s.mpp for s in samples if s.slide_id == "a"} == {0.5}, "0.5 um/px does not serve 0.25"
    assert {s.mpp for s in samples if s.slide_id == "c"} == {0.25, 0.5}, "0.26 um/px counts as 40x"
    by_area = PatchStream(catalog, size_px=64, mpp=0.5, seed=0, slide_sampling="area")
    areas = {row.id: row.foreground_area_mm2 or 0 for row in catalog}
    share = sum(by_area.sampler.draw(k).slide_id == "a" for k in range(3000)) / 3000
    assert share == pytest.approx(areas["a"] / sum(areas.values()), abs=0.05)


def test_slides_that_cannot_serve_are_left_out_by_name(
    slide_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    url = str(tmp_path / "c")
    index_cohort([str(slide_folder / "no_mpp.svs"), str(slide_folder / "a.svs")], url, progress=False)
    with pytest.raises(CatalogError, match="online-patching foreground"):
        PatchStream(url, size_px=64, mpp=1.0)
    compute_foreground(url, progress=False)
    with caplog.at_level(logging.WARNING):
        stream = PatchStream(url, size_px=64, mpp=1.0)
    assert "slide no_mpp left out: no mpp" in caplog.text
    assert {patch["slide_id"] for patch in take(stream, 20)} == {"a"}
    with pytest.raises(CatalogError, match="none of 2 slides serves"):
        PatchStream(url, size_px=64, mpp=0.1)
    with pytest.raises(CatalogError, match="cannot serve"):
        PatchStream(url, size_px=64, mpp=0.1, on_missing_mpp="error")
    enlarged = PatchStream(url, size_px=64, mpp=0.1, on_missing_mpp="enlarge")
    assert take(enlarged, 1)[0]["image"].shape == (64, 64, 3)
    with pytest.raises(CatalogError, match="no catalog column 'label'"):
        PatchStream(url, size_px=64, mpp=1.0, columns=["label"])


@pytest.mark.parametrize(
    "wrong",
    [
        {"size_px": 0},
        {"mpp": []},
        {"mpp": -1.0},
        {"min_foreground": 1.5},
        {"seed": -1},
        {"slide_sampling": "best"},
        {"level_policy": "best"},
        {"on_missing_mpp": "best"},
        {"on_corrupt": "ignore"},
    ],
)
def test_wrong_arguments_are_refused_at_once(catalog: Catalog, wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}: got"):
        PatchStream(catalog, **{"mpp": 1.0, **wrong})


@pytest.fixture(scope="module")
def corrupt_catalog(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A catalog of one good slide and one whose tiles were damaged after indexing, behind its back."""
    folder = tmp_path_factory.mktemp("corrupt")
    write_pyramid(folder / "good.svs", tissue_image(900, 900, 1))
    write_pyramid(folder / "bad.svs", tissue_image(900, 900, 2), downsamples=(1,), tile=256)
    url = str(folder / "catalog")
    index_cohort([str(folder / f"{n}.svs") for n in ("good", "bad")], url, progress=False)
    compute_foreground(url, progress=False)
    catalog = Catalog.open(url)
    path = folder / "bad.svs"
    data, stat = bytearray(path.read_bytes()), path.stat()
    for start, length in loop.run(catalog.handle("bad").tiles.lookup.ranges(0, range(8))):
        data[start : start + length] = bytes(length)
    path.write_bytes(data)
    # Rot of the disk: neither size nor time of the file tell of it.
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    return url


def test_corrupt_tiles_are_drawn_anew_deterministically_and_counted(corrupt_catalog: str) -> None:
    first = PatchStream(corrupt_catalog, size_px=64, mpp=0.5, seed=0, most_corrupt_share=1)
    patches = take(first, 96)
    assert first.corrupt_patches["bad"] > 5
    assert set(first.corrupt_patches) == {"bad"}
    assert [patch["index"] for patch in patches] == list(range(96))
    assert same(patches, take(PatchStream(corrupt_catalog, size_px=64, mpp=0.5, seed=0, most_corrupt_share=1), 96))
    sharded = PatchStream(corrupt_catalog, size_px=64, mpp=0.5, seed=0, most_corrupt_share=1)
    take(sharded.shard(global_batch_size=8, rank=0, world_size=1, worker=0, num_workers=1), 96)
    # A shard may have read further ahead than the consumer took.
    assert sharded.corrupt_patches["bad"] > 5, "the count of a shard is lost to the owner of the stream"
    with pytest.raises(CorruptTileError, match=r"bad\.svs: level 0, tile"):
        take(PatchStream(corrupt_catalog, size_px=64, mpp=0.5, seed=0, on_corrupt="raise"), 96)


def test_a_stream_stops_when_too_much_is_corrupt_and_names_the_slides(corrupt_catalog: str) -> None:
    with pytest.raises(SlideFormatError, match=r"bad \(\d+\) of 1 slides; .*where=\"id not in \('bad',\)\"") as caught:
        take(PatchStream(corrupt_catalog, size_px=64, mpp=0.5, most_corrupt_share=0.02), 2000)
    assert "patches had tiles that do not decode, allowed 2.0% (most_corrupt_share)" in str(caught.value)
    # What the message proposes is the way out.
    without = PatchStream(corrupt_catalog, size_px=64, mpp=0.5, most_corrupt_share=0.02, where="id not in ('bad',)")
    assert {patch["slide_id"] for patch in take(without, 600)} == {"good"}
    assert not without.metrics().corrupt_patches


def test_a_store_that_fails_is_an_error_and_nothing_is_drawn_in_its_place(
    catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = PatchStream(catalog, size_px=48, mpp=1.0, seed=3)
    taken = iter(stream)
    next(taken)

    async def refuse(*_: object, **__: object) -> None:
        raise StorageError("the store is away")

    monkeypatch.setattr(Catalog, "read_or_report", refuse)
    with pytest.raises(StorageError, match="the store is away"):
        list(itertools.islice(taken, 10_000))
    assert not stream.metrics().corrupt_patches
    assert stream.position == stream.metrics().patches


def test_metrics_count_what_was_handed_over_and_waited_for(catalog: Catalog) -> None:
    stream = PatchStream(catalog, size_px=48, mpp=1.0, seed=3)
    assert stream.metrics() == StreamMetrics()
    taken = iter(stream)
    for _ in itertools.islice(taken, 40):
        time.sleep(0.005)
    metrics = stream.metrics()
    assert metrics.patches == 40
    # The consumer was the slow one: at least 0.2 s were its own.
    assert metrics.seconds >= 0.19
    assert metrics.wait_seconds < metrics.seconds - 0.18
    assert metrics.ready_patches > 32, "it has read ahead"
    next(taken)
    later = stream.metrics() - metrics
    assert later.patches == 1
    assert later.ready_patches == stream.metrics().ready_patches
    assert (metrics + later).patches == 41
    # A copy in another process counts for itself.
    assert pickle.loads(pickle.dumps(stream)).metrics().patches == 0


def test_filters_draw_another_patch_the_same_on_every_rank(catalog: Catalog) -> None:
    filters = [WhiteShare(most_share=0.2, white_from=225), Sharpness(least_variance=1)]
    without = take(PatchStream(catalog, size_px=64, mpp=0.5, seed=0, min_foreground=0.1), 96)
    stream = PatchStream(catalog, size_px=64, mpp=0.5, seed=0, min_foreground=0.1, filters=filters)
    patches = take(stream, 96)
    assert [patch["index"] for patch in patches] == list(range(96))
    assert all(each.keeps(patch["image"]) for patch in patches for each in filters)
    kept = [all(each.keeps(patch["image"]) for each in filters) for patch in without]
    assert 5 < sum(kept) < 91
    for filtered, patch, is_kept in zip(patches, without, kept, strict=True):
        assert same([filtered], [patch]) is is_kept, "only what is refused is drawn anew"
    refused = Counter(patch["slide_id"] for patch, is_kept in zip(without, kept, strict=True) if not is_kept)
    assert all(stream.filtered_patches[name] >= count for name, count in refused.items())
    parts = []
    for rank in range(2):
        part = PatchStream(catalog, size_px=64, mpp=0.5, seed=0, min_foreground=0.1, filters=filters)
        parts += take(part.shard(global_batch_size=12, rank=rank, world_size=2, worker=0, num_workers=1), 48)
    assert same(sorted(parts, key=lambda patch: patch["index"]), patches)


def test_a_filter_that_keeps_nothing_is_an_error_and_no_endless_search(
    catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patch_feed, "CHUNK_PATCHES", 4)
    monkeypatch.setattr(patch_feed, "CHUNKS_AHEAD", 1)
    stream = PatchStream(catalog, size_px=48, mpp=1.0, filters=[WhiteShare(most_share=0, white_from=0)])
    with pytest.raises(SamplingError, match=r"sample 0: 64 draws gave no patch .*refused by WhiteShare"):
        take(stream, 1)


def test_a_slide_that_changes_under_a_stream_stops_it(slide_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.svs"
    shutil.copy(slide_folder / "a.svs", path)
    url = str(tmp_path / "c")
    index_cohort([str(path)], url, progress=False)
    compute_foreground(url, progress=False)
    stream = PatchStream(url, size_px=64, mpp=1.0)
    write_pyramid(path, tissue_image(1500, 1200, 9))
    with pytest.raises(Exception, match="changed since it was indexed"):
        take(stream, 1)
