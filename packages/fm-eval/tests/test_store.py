from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from fm_eval import (
    BackboneError,
    ColourHistogram,
    EmbedSettings,
    LoadedBackbone,
    PatchDataset,
    StoreError,
    embed_dataset,
    embed_images,
    load_backbone,
    load_dataset,
)
from fm_eval.row_log import RowLog
from torch import Tensor

_SETTINGS = EmbedSettings(batch_size=4, threads=2)


class _Counting(ColourHistogram):
    """Counts the images it is given, and fails after some."""

    def __init__(self, *, bins: int = 4, fail_after: int | None = None) -> None:
        super().__init__(bins=bins, input_size_px=32)
        self.images = 0
        self.batches: list[int] = []
        self.fail_after = fail_after

    def __call__(self, images_BHWC: Tensor, /) -> Tensor:
        self.images += len(images_BHWC)
        self.batches.append(len(images_BHWC))
        if self.fail_after is not None and self.images > self.fail_after:
            raise RuntimeError("power failure")
        return super().__call__(images_BHWC)


def _counting(bins: int = 4, fail_after: int | None = None) -> tuple[_Counting, LoadedBackbone]:
    loaded = load_backbone("fm_eval.ColourHistogram", args={"bins": bins, "input_size_px": 32})
    model = _Counting(bins=bins, fail_after=fail_after)
    return model, dataclasses.replace(loaded, model=model)


@pytest.fixture
def dataset(make_dataset: Callable[..., Path]) -> PatchDataset:
    return load_dataset(make_dataset())


def test_embeddings_are_stored_and_never_computed_again(dataset: PatchDataset, tmp_path: Path) -> None:
    model, backbone = _counting()
    first = embed_dataset(dataset, backbone, store=tmp_path / "store", settings=_SETTINGS)
    assert np.array_equal(
        first.values,
        embed_images(dataset.images, load_backbone("fm_eval.ColourHistogram", args={"bins": 4, "input_size_px": 32})),
    )
    assert (model.images, first.computed) == (48, 48)
    again = embed_dataset(dataset, backbone, store=tmp_path / "store", settings=_SETTINGS)
    assert np.array_equal(first.values, again.values)
    assert (model.images, again.computed) == (48, 0)
    assert [folder.name.rpartition("-")[0] for folder in first.folders] == ["data-train", "data-val", "data-test"]
    provenance = json.loads((first.folders[0] / "provenance.json").read_text())
    assert provenance["shape"] == [24, 64]
    assert provenance["weights_sha256"] == backbone.weights_sha256


def test_another_split_of_the_same_images_is_read(make_dataset: Callable[..., Path], tmp_path: Path) -> None:
    index, store = make_dataset(), tmp_path / "store"
    model, backbone = _counting()
    whole = embed_dataset(load_dataset(index), backbone, store=store, settings=_SETTINGS)
    for seed in (0, 1):
        made = load_dataset(index, split="group", split_seed=seed)
        found = embed_dataset(made, backbone, store=store, settings=_SETTINGS)
        assert np.array_equal(found.values, whole.values)
        assert found.computed == 0
    # and a single new image is the only one that is embedded
    (index.parent / "c0_g0_0.png").write_bytes((index.parent / "c1_g0_0.png").read_bytes())
    changed = embed_dataset(load_dataset(index), backbone, store=store, settings=_SETTINGS)
    assert (changed.computed, model.images) == (0, 48)
    assert np.array_equal(changed.values[0], whole.values[16])
    from PIL import Image

    Image.new("RGB", (40, 40), (1, 2, 3)).save(index.parent / "c0_g0_0.png")
    assert embed_dataset(load_dataset(index), backbone, store=store, settings=_SETTINGS).computed == 1


@pytest.mark.parametrize("tear", [0, 1, 100, 400])
def test_an_interrupted_run_goes_on_at_the_batch(dataset: PatchDataset, tmp_path: Path, tear: int) -> None:
    store = tmp_path / "store"
    _, failing = _counting(fail_after=12)
    with pytest.raises(BackboneError, match="power failure"):
        embed_dataset(dataset, failing, store=store, settings=_SETTINGS)
    [part] = store.rglob("*.part")
    with part.open("r+b") as file:
        file.truncate(part.stat().st_size - tear)
    model, backbone = _counting()
    found = embed_dataset(dataset, backbone, store=store, settings=_SETTINGS)
    row_bytes = 32 + 4 * 64 + 4
    kept = 12 - -(-tear // row_bytes)
    batch = _SETTINGS.batch_size
    # A torn batch is embedded anew as a whole: in batches of other images, rows would differ in their last bits.
    assert model.images == 48 - kept // batch * batch
    assert model.batches == [batch] * (model.images // batch)
    assert not list(store.rglob("*.part"))
    _, fresh = _counting()
    assert np.array_equal(found.values, embed_images(dataset.images, fresh))


def test_a_killed_process_leaves_what_it_embedded(make_dataset: Callable[..., Path], tmp_path: Path) -> None:
    """A real process, killed without warning while it embeds."""
    index, store = make_dataset(), tmp_path / "store"
    program = f"""
import dataclasses, os, signal
from pathlib import Path
from fm_eval import ColourHistogram, EmbedSettings, embed_dataset, load_backbone, load_dataset
class Killed(ColourHistogram):
    calls = 0
    def __call__(self, images):
        self.calls += 1
        if self.calls == 4:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(images)
loaded = load_backbone("fm_eval.ColourHistogram", args={{"bins": 4, "input_size_px": 32}})
loaded = dataclasses.replace(loaded, model=Killed(bins=4, input_size_px=32))
embed_dataset(load_dataset({str(index)!r}), loaded, store=Path({str(store)!r}), settings=EmbedSettings(batch_size=4))
"""
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == -9
    model, backbone = _counting()
    found = embed_dataset(load_dataset(index), backbone, store=store, settings=_SETTINGS)
    assert (found.computed, model.images) == (36, 36)
    _, fresh = _counting()
    assert np.array_equal(found.values, embed_images(load_dataset(index).images, fresh))


def test_two_processes_share_the_work(dataset: PatchDataset, tmp_path: Path) -> None:
    model, backbone = _counting()
    results: list[int] = []

    def work() -> None:
        results.append(embed_dataset(dataset, backbone, store=tmp_path / "store", settings=_SETTINGS).computed)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(results) == model.images == 48


def test_other_models_and_precisions_have_their_own_embeddings(dataset: PatchDataset, tmp_path: Path) -> None:
    store = tmp_path / "store"
    for bins, precision in ((4, "fp32"), (5, "fp32"), (4, "bf16")):
        _, backbone = _counting(bins=bins)
        settings = dataclasses.replace(_SETTINGS, precision=precision)  # type: ignore[arg-type]
        found = embed_dataset(dataset, backbone, store=store, settings=settings)
        assert (found.computed, found.values.shape) == (48, (48, bins**3))


def test_a_cache_of_another_model_is_refused(dataset: PatchDataset, tmp_path: Path) -> None:
    store = tmp_path / "store"
    one = embed_dataset(dataset, _counting(bins=4)[1], store=store, settings=_SETTINGS).folders[0]
    other = embed_dataset(dataset, _counting(bins=5)[1], store=store, settings=_SETTINGS).folders[0]
    for name in ("provenance.json", "embeddings.npy"):
        (one / name).write_bytes((other / name).read_bytes())
    with pytest.raises(StoreError, match=r"holds embeddings of another model, weights .* delete the folder"):
        embed_dataset(dataset, _counting(bins=4)[1], store=store, settings=_SETTINGS)


@pytest.mark.parametrize("file", ["embeddings.npy", "provenance.json"])
def test_a_damaged_entry_is_refused(dataset: PatchDataset, tmp_path: Path, file: str) -> None:
    _, backbone = _counting()
    entry = embed_dataset(dataset, backbone, store=tmp_path / "store", settings=_SETTINGS).folders[1]
    content = bytearray((entry / file).read_bytes())
    content[-9] ^= 1
    (entry / file).write_bytes(content if file.endswith("npy") else content[:-10])
    with pytest.raises(StoreError, match="delete the folder"):
        embed_dataset(dataset, backbone, store=tmp_path / "store", settings=_SETTINGS)


def test_a_store_that_cannot_be_written_is_named(dataset: PatchDataset, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be written"):
        embed_dataset(dataset, _counting()[1], store=tmp_path / "file", settings=_SETTINGS)


def test_nothing_that_is_not_finite_is_stored(dataset: PatchDataset, tmp_path: Path) -> None:
    class Broken(ColourHistogram):
        def __call__(self, images_BHWC: Tensor, /) -> Tensor:
            return super().__call__(images_BHWC).masked_fill_(torch.tensor(True), torch.inf)

    _, backbone = _counting()
    broken = dataclasses.replace(backbone, model=Broken(bins=4, input_size_px=32))
    with pytest.raises(BackboneError, match=r"c0_g0_0\.png holds NaN or infinity"):
        embed_dataset(dataset, broken, store=tmp_path / "store", settings=_SETTINGS)
    assert embed_dataset(dataset, backbone, store=tmp_path / "store", settings=_SETTINGS).computed == 48


def test_the_log_forgets_rows_from_the_first_bad_one_on(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
    digests = [f"{row:064x}" for row in range(6)]
    with RowLog(tmp_path / "log") as log:
        log.append(digests[:4], values[:4])
        log.append(digests[4:], values[4:])
    content = bytearray((tmp_path / "log").read_bytes())
    content[12 + 2 * (32 + 12 + 4) + 40] ^= 1  # a value of row 2
    (tmp_path / "log").write_bytes(content)
    with RowLog(tmp_path / "log") as log:
        assert [digest in log for digest in digests] == [True, True, False, False, False, False]
        log.append(digests[2:], values[2:])
    with RowLog(tmp_path / "log") as log:
        assert np.array_equal(np.stack([log[digest] for digest in digests]), values)
