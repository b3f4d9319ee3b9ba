"""The conformance suite of contract one: what every patch stream has to keep, whoever wrote it.

A stream passes if, made twice from the same arguments, it serves the same patches in the same order for any number of
ranks and workers, and continues from any position as if it had never stopped.
"""

from __future__ import annotations

import itertools
import json
import pickle
from collections.abc import Callable
from typing import Any, get_type_hints

import numpy as np
import pytest
from jsonargparse import ArgumentParser
from online_patching import Catalog, GridStream, PatchStream
from online_patching.patch_filters import Sharpness, StainedShare, WhiteShare
from online_patching.slide_choice import ByGroup
from ssl_train.contract import PatchStream as TrainerStream

MakeStream = Callable[[], Any]
Patch = dict[str, Any]


KINDS = (
    *("one magnification", "four magnifications", "by area"),
    *("a range of magnifications", "filtered", "grid"),
)


@pytest.fixture(params=KINDS)
def make_stream(request: pytest.FixtureRequest, catalog: Catalog) -> MakeStream:
    """Every kind of stream that the project serves; each call makes a fresh one."""
    arguments: dict[str, dict[str, Any]] = {
        "one magnification": {"mpp": 1.0, "seed": 1},
        "four magnifications": {"mpp": [2.0, 1.0, 0.5, 0.25], "seed": 2},
        "by area": {"mpp": [0.5, 1.0], "seed": 3, "slide_sampling": "area"},
        "a range of magnifications": {"mpp_range": [0.3, 1.5], "slide_sampling": ByGroup("width_px")},
        "filtered": {"mpp": 0.5, "filters": [Sharpness(least_variance=5), WhiteShare(most_share=0.6)]},
    }
    if request.param == "grid":
        return lambda: GridStream(catalog, size_px=48, mpp=0.5)
    return lambda: PatchStream(catalog, size_px=48, **arguments[request.param])


def take(stream: Any, count: int) -> list[Patch]:
    return list(itertools.islice(stream, count))


def assert_same(left: list[Patch], right: list[Patch]) -> None:
    assert [p["index"] for p in left] == [p["index"] for p in right]
    for a, b in zip(left, right, strict=True):
        assert {k: v for k, v in a.items() if k != "image"} == {k: v for k, v in b.items() if k != "image"}
        np.testing.assert_array_equal(a["image"], b["image"])


def at(stream: Any, position: int) -> Any:
    stream.load_state_dict({**stream.state_dict(), "position": position})
    return stream


def test_every_patch_has_the_keys_and_types_of_the_contract(make_stream: MakeStream) -> None:
    for number, patch in enumerate(take(make_stream(), 20)):
        image = patch["image"]
        assert isinstance(image, np.ndarray)
        assert (image.dtype, image.ndim, image.shape[2]) == (np.uint8, 3, 3)
        assert image.flags.c_contiguous
        assert patch["index"] == number
        types = {"slide_id": str, "x_level0_px": int, "y_level0_px": int, "mpp": float, "foreground": float}
        assert {name: type(patch[name]) for name in types} == types
        assert 0 < patch["foreground"] <= 1


def test_two_streams_of_the_same_arguments_are_the_same(make_stream: MakeStream) -> None:
    assert_same(take(make_stream(), 24), take(make_stream(), 24))


@pytest.mark.parametrize(("world_size", "num_workers"), [(1, 1), (1, 3), (2, 1), (3, 2)])
@pytest.mark.parametrize("start_batch", [0, 2])
def test_global_batches_do_not_depend_on_ranks_and_workers(
    make_stream: MakeStream, world_size: int, num_workers: int, start_batch: int
) -> None:
    size, batches = 6, 6
    whole = take(at(make_stream(), start_batch * size), size * batches)
    found: dict[int, Patch] = {}
    for rank in range(world_size):
        for worker in range(num_workers):
            shard = at(make_stream(), start_batch * size).shard(
                global_batch_size=size, rank=rank, world_size=world_size, worker=worker, num_workers=num_workers
            )
            for patch in take(shard, size // world_size * (batches // num_workers)):
                batch, place = divmod(patch["index"], size)
                assert (batch - start_batch) % num_workers == worker
                assert place // (size // world_size) == rank
                assert patch["index"] not in found, "two shards served the same sample"
                found[patch["index"]] = patch
    assert_same([found[index] for index in sorted(found)], whole)


def test_resuming_equals_never_having_stopped(make_stream: MakeStream) -> None:
    whole = take(make_stream(), 30)
    stopped = make_stream()
    take(stopped, 18)
    state = json.loads(json.dumps(stopped.state_dict()))
    assert state["position"] == 18
    assert isinstance(state["format_version"], int)
    resumed = make_stream()
    resumed.load_state_dict(state)
    assert_same(take(resumed, 12), whole[18:])


def test_a_seek_costs_nothing_however_far(make_stream: MakeStream) -> None:
    stream = make_stream()
    last = len(stream) - 1 if hasattr(stream, "__len__") else 10**15
    far = at(stream, last)
    assert take(far, 1)[0]["index"] == last


def test_a_state_of_a_newer_format_is_refused(make_stream: MakeStream) -> None:
    stream = make_stream()
    with pytest.raises(ValueError, match="format_version"):
        stream.load_state_dict({**stream.state_dict(), "format_version": 10**6})


def test_streams_travel_to_workers(make_stream: MakeStream) -> None:
    stream = at(make_stream(), 6)
    assert_same(take(pickle.loads(pickle.dumps(stream)), 6), take(at(make_stream(), 6), 6))


ARGUMENTS: dict[str, dict[str, Any]] = {
    "plain": {"mpp": [1.0]},
    "weights": {"mpp": [0.5, 1.0], "mpp_weights": [1, 3], "slide_sampling": "area"},
    "classes": {
        "mpp_range": [0.3, 1.5],
        "slide_sampling": {"class_path": "online_patching.slide_choice.ByGroup", "init_args": {"column": "width_px"}},
        "filters": [
            {"class_path": "online_patching.patch_filters.StainedShare", "init_args": {"hue": [80, 180]}},
            {"class_path": "online_patching.patch_filters.Sharpness", "init_args": {"least_variance": 5}},
        ],
    },
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_the_trainer_accepts_the_stream_by_its_class_path(name: str, small_cohort: tuple[str, dict[str, Any]]) -> None:
    url, options = small_cohort
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--stream", type=TrainerStream)
    arguments = {"catalog": url, "size_px": 48, "slide_storage_options": options, **ARGUMENTS[name]}
    stream = {"class_path": "online_patching.PatchStream", "init_args": arguments}
    parsed = parser.parse_object({"stream": stream})
    made = parser.instantiate(parsed).stream
    assert isinstance(made, PatchStream)
    if name == "classes":
        assert made.sampler.slide_sampling == ByGroup("width_px")
        assert made.filters == (StainedShare(hue=(80, 180)), Sharpness(least_variance=5))
    # What a run saves as its configuration is read again.
    again = parser.instantiate(parser.parse_string(parser.dump(parsed))).stream
    assert again.fingerprint() == made.fingerprint()


def test_every_stream_has_the_methods_of_the_contract(small_cohort: tuple[str, dict[str, Any]]) -> None:
    url, options = small_cohort
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--stream", type=TrainerStream)
    arguments = {"catalog": url, "size_px": 48, "mpp": 1.0, "slide_storage_options": options}
    grid = {"class_path": "online_patching.GridStream", "init_args": arguments}
    made = parser.instantiate(parser.parse_object({"stream": grid})).stream
    assert isinstance(made, GridStream)
    for kind, name in itertools.product(
        (PatchStream, GridStream), ("__iter__", "shard", "state_dict", "load_state_dict")
    ):
        ours, theirs = (get_type_hints(getattr(owner, name)) for owner in (kind, TrainerStream))
        assert list(ours) == list(theirs), f"{name}: parameters differ from the contract"
