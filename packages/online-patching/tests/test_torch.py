"""The stream through torch's DataLoader: the same batches with any workers, and no hang after a fork."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from online_patching import Catalog, PatchStream, open_slide
from online_patching.jobs import compute_foreground, index_cohort
from online_patching.torch import PatchDataset
from s3_server import S3Server
from torch.utils.data import DataLoader, Dataset


def batches(loader: Any, count: int) -> list[dict[str, Any]]:
    return list(itertools.islice(loader, count))


def assert_equal(left: list[dict[str, Any]], right: list[dict[str, Any]]) -> None:
    for a, b in zip(left, right, strict=True):
        assert a.keys() == b.keys()
        assert torch.equal(a["image"], b["image"])
        assert a["index"].tolist() == b["index"].tolist()
        assert a["slide_id"] == b["slide_id"]


@pytest.fixture(scope="module")
def s3_catalog(
    s3_server: S3Server, slide_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, dict[str, Any]]:
    url = s3_server.upload(slide_folder, "torch-slides")
    catalog = str(tmp_path_factory.mktemp("s3catalog"))
    options = s3_server.storage_options
    index_cohort([f"{url}/{n}.svs" for n in "abc"], catalog, slide_storage_options=options, progress=False)
    compute_foreground(catalog, slide_storage_options=options, progress=False)
    return catalog, options


# torch warns of a fork in a process with threads; that such a fork works is what is tested here.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("start_method", ["fork", "forkserver", "spawn"])
def test_workers_of_every_start_method_read_the_same_from_a_store(
    s3_catalog: tuple[str, dict[str, Any]], start_method: str
) -> None:
    url, options = s3_catalog
    stream = PatchStream(Catalog.open(url, slide_storage_options=options), size_px=48, mpp=1.0, seed=5)
    dataset = PatchDataset(stream, batch_size=6)
    # Read here first: the parent's client is then in use when the workers start.
    expected = batches(DataLoader(dataset, batch_size=None), 6)
    assert expected[0]["image"].shape == (6, 48, 48, 3)
    assert expected[0]["image"].dtype == torch.uint8
    loader = DataLoader(dataset, batch_size=None, num_workers=2, multiprocessing_context=start_method, timeout=120)
    assert_equal(batches(loader, 6), expected)


def test_ranks_share_a_global_batch(catalog: Catalog) -> None:
    stream = PatchStream(catalog, size_px=48, mpp=1.0, seed=5)
    whole = batches(PatchDataset(stream, batch_size=8), 3)
    parts = [batches(PatchDataset(stream, batch_size=4, rank=rank, world_size=2), 3) for rank in range(2)]
    for k in range(3):
        assert parts[0][k]["index"].tolist() + parts[1][k]["index"].tolist() == whole[k]["index"].tolist()
    with pytest.raises(ValueError, match="batch_size: got 0"):
        PatchDataset(stream, batch_size=0)


class SlideDataset(Dataset[torch.Tensor]):
    """What users write: a slide that was opened in the parent and is read in the workers."""

    def __init__(self, url: str, options: dict[str, Any]) -> None:
        self.slide = open_slide(url, storage_options=options)

    def __len__(self) -> int:
        return 6

    def __getitem__(self, k: int) -> torch.Tensor:
        return torch.from_numpy(self.slide.read_patch(x_level0_px=100 * k, y_level0_px=90 * k, size_px=64, mpp=1.0))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_slide_opened_before_the_fork_reads_in_the_workers(
    s3_server: S3Server, s3_catalog: tuple[str, dict[str, Any]]
) -> None:
    url, options = s3_catalog
    dataset = SlideDataset(Catalog.open(url).row("a").url, options)
    expected = torch.stack([dataset[k] for k in range(6)])
    loader = DataLoader(dataset, batch_size=2, num_workers=2, timeout=120)
    assert torch.equal(torch.cat(list(loader)), expected)
