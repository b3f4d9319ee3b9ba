"""Several processes leave the store that one would leave, byte for byte."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from broken_backbones import Ending, Failing
from fm_eval import (
    BackboneError,
    ColourHistogram,
    EmbedSettings,
    LoadedBackbone,
    embed_dataset,
    embed_images,
    load_backbone,
    load_dataset,
)

# 48 images are six batches of 7 and one of 6.
ONE = EmbedSettings(batch_size=7, threads=1)
TWO = dataclasses.replace(ONE, devices=2)


def files_of(store: Path) -> dict[str, bytes]:
    """Everything in a store but when it was made."""
    files = {str(path.relative_to(store)): path for path in store.rglob("*") if path.is_file()}
    return {
        name: b"\n".join(line for line in path.read_bytes().splitlines() if b'"created"' not in line)
        for name, path in files.items()
        if not name.endswith(".lock")
    }


def test_two_processes_leave_the_same_store_as_one(
    make_dataset: Callable[..., Path], make_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    dataset, backbone = load_dataset(make_dataset(splits=False)), load_backbone(str(make_checkpoint()))
    one = embed_dataset(dataset, backbone, store=tmp_path / "one", settings=ONE)
    two = embed_dataset(dataset, backbone, store=tmp_path / "two", settings=TWO)
    assert (one.computed, two.computed) == (48, 48)
    assert np.array_equal(one.values, two.values)
    stored = files_of(tmp_path / "one")
    assert sum(name.endswith("embeddings.npy") for name in stored) == 1
    assert files_of(tmp_path / "two") == stored


def _broken(kind: type[ColourHistogram]) -> LoadedBackbone:
    loaded = load_backbone("fm_eval.ColourHistogram", args={"bins": 4, "input_size_px": 32})
    return dataclasses.replace(loaded, model=kind(bins=4, input_size_px=32))


def test_what_fails_in_a_process_is_told_and_what_was_embedded_is_kept(
    make_dataset: Callable[..., Path], tmp_path: Path
) -> None:
    dataset = load_dataset(make_dataset(splits=False))
    with pytest.raises(BackboneError, match=r"failed .*out of memory"):
        embed_dataset(dataset, _broken(Failing), store=tmp_path, settings=TWO)
    # The first batch of each process.
    [part] = tmp_path.rglob("*.part")
    assert part.stat().st_size == 12 + 14 * (32 + 4 * 64 + 4)


def test_a_process_that_ends_is_told(make_dataset: Callable[..., Path]) -> None:
    paths = sorted(make_dataset().parent.glob("*.png"))
    with pytest.raises(BackboneError, match=r"process \d of 2 ended with code 9 before its work was done"):
        embed_images(paths, _broken(Ending), TWO)


def test_a_backbone_that_no_other_process_can_have_is_refused(make_dataset: Callable[..., Path]) -> None:
    class Local(ColourHistogram):
        pass

    paths = sorted(make_dataset().parent.glob("*.png"))[:14]
    with pytest.raises(BackboneError, match=r"cannot be handed to another process .*use devices=1"):
        embed_images(paths, _broken(Local), TWO)


@pytest.mark.skipif(torch.cuda.device_count() > 3, reason="has the devices that are asked for")
def test_devices_that_are_not_there_are_refused(make_dataset: Callable[..., Path]) -> None:
    paths = sorted(make_dataset().parent.glob("*.png"))[:14]
    with pytest.raises(BackboneError, match="devices=4 with device=cuda; this machine has"):
        embed_images(paths, _broken(ColourHistogram), EmbedSettings(device="cuda", devices=4))
