"""One order for all topologies: whatever ranks, workers and batches a run has, stops with and goes on with."""

from __future__ import annotations

import asyncio
import itertools
import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from online_patching import Catalog, PatchStream, patch_feed

TOTAL = 144
# Divisors of these batches are the batches of a rank.
BATCHES = (1, 2, 3, 4, 6, 8, 12, 24)


@dataclass(frozen=True)
class Topology:
    """How a run reads: ranks x workers, and patches of all ranks together in a batch."""

    batch: int
    ranks: int
    workers: int


@st.composite
def topologies(draw: st.DrawFn, *, position: int = 0) -> Topology:
    """Any whose batches begin at a position."""
    batch = draw(st.sampled_from([b for b in BATCHES if position % b == 0]))
    ranks = draw(st.sampled_from([r for r in (1, 2, 3, 4) if batch % r == 0]))
    return Topology(batch, ranks, draw(st.integers(1, 3)))


@st.composite
def runs(draw: st.DrawFn) -> list[tuple[Topology, int]]:
    """Topologies one after the other, each with the position at which it ends; the last one ends near ``TOTAL``."""
    found: list[tuple[Topology, int]] = []
    position = 0
    for is_last in (False, draw(st.booleans()), True):
        topology = draw(topologies(position=position))
        left = (TOTAL - position) // topology.batch
        position += topology.batch * (left if is_last else draw(st.integers(0, left)))
        found.append((topology, position))
        if is_last:
            return found
    return found


def make_stream(catalog: Catalog) -> PatchStream:
    return PatchStream(catalog, size_px=24, mpp=[0.5, 1.0, 2.0], seed=9)


@pytest.fixture(scope="module")
def whole(catalog_url: str) -> list[dict[str, Any]]:
    return list(itertools.islice(make_stream(Catalog.open(catalog_url)), TOTAL))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(parts=runs())
def test_the_sequence_is_the_same_however_often_and_wherever_the_topology_changes(
    catalog: Catalog, whole: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, parts: list[tuple[Topology, int]]
) -> None:
    # The real read-ahead would read thousands of patches for every example.
    monkeypatch.setattr(patch_feed, "CHUNK_PATCHES", 5)
    monkeypatch.setattr(patch_feed, "CHUNKS_AHEAD", 2)
    found: list[dict[str, Any]] = []
    state = make_stream(catalog).state_dict()
    for topology, end in parts:
        begin = state["position"]
        here: dict[int, dict[str, Any]] = {}
        for rank, worker in itertools.product(range(topology.ranks), range(topology.workers)):
            stream = make_stream(catalog)
            stream.load_state_dict(json.loads(json.dumps(state)))
            shard = stream.shard(
                global_batch_size=topology.batch,
                rank=rank,
                world_size=topology.ranks,
                worker=worker,
                num_workers=topology.workers,
            )
            batches = range(begin // topology.batch + worker, end // topology.batch, topology.workers)
            for patch in itertools.islice(shard, len(batches) * topology.batch // topology.ranks):
                assert patch["index"] not in here, "served twice"
                here[patch["index"]] = patch
        found += [here[number] for number in sorted(here)]
        # What the trainer consumed, as it counts it itself.
        state = {**state, "position": end}
    assert [patch["index"] for patch in found] == list(range(parts[-1][1]))
    for patch, expected in zip(found, whole, strict=False):
        assert {k: v for k, v in patch.items() if k != "image"} == {k: v for k, v in expected.items() if k != "image"}
        np.testing.assert_array_equal(patch["image"], expected["image"])


def test_a_seek_to_any_sample_takes_no_time_and_a_state_is_small(catalog: Catalog) -> None:
    stream = make_stream(catalog)
    next(iter(stream))
    for position in (10**9, 2**63):
        started = time.process_time()
        stream.load_state_dict({**stream.state_dict(), "position": position})
        patch = next(iter(stream))
        assert time.process_time() - started < 1
        assert patch["index"] == position
    assert len(json.dumps(stream.state_dict())) < 10_000


def test_a_stream_is_read_inside_of_a_running_loop(catalog: Catalog, whole: list[dict[str, Any]]) -> None:
    async def cell() -> list[dict[str, Any]]:
        # As in a notebook, whose cells run in its own loop.
        return list(itertools.islice(make_stream(catalog), 6))

    patches = asyncio.run(cell())
    assert [p["index"] for p in patches] == [p["index"] for p in whole[:6]]
    np.testing.assert_array_equal(patches[5]["image"], whole[5]["image"])


def test_streams_are_read_in_workers_of_pytest_xdist(catalog_url: str, tmp_path: Path) -> None:
    (tmp_path / "test_inside.py").write_text(
        "import os, itertools, pytest\n"
        "from online_patching import PatchStream\n"
        "@pytest.mark.parametrize('seed', range(4))\n"
        "def test_patches(seed):\n"
        "    assert os.environ['PYTEST_XDIST_WORKER'] in ('gw0', 'gw1')\n"
        f"    stream = PatchStream({catalog_url!r}, size_px=24, mpp=1.0, seed=seed)\n"
        "    assert [p['index'] for p in itertools.islice(stream, 40)] == list(range(40))\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-n", "2", "-p", "no:cacheprovider", "--rootdir", str(tmp_path)]
    done = subprocess.run(
        [*command, str(tmp_path)], capture_output=True, text=True, timeout=120, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 passed" in done.stdout
