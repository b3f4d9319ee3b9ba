"""A small cohort and its catalog."""

from __future__ import annotations

from pathlib import Path

import pytest
from online_patching import Catalog
from online_patching.jobs import compute_foreground, index_cohort
from shared_fixtures import azure_server, moto_server, nginx_server, s3_server  # noqa: F401
from written_slides import tissue_image, write_pyramid


@pytest.fixture(scope="session")
def slide_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three slides of different size and resolution, and one without mpp."""
    folder = tmp_path_factory.mktemp("slides")
    write_pyramid(folder / "a.svs", tissue_image(1500, 1200, 1), mpp=0.5)
    write_pyramid(folder / "b.svs", tissue_image(1100, 1600, 2), mpp=0.25, bigtiff=True)
    write_pyramid(folder / "c.svs", tissue_image(900, 900, 3), mpp=0.26, compression="zstd")
    write_pyramid(folder / "no_mpp.svs", tissue_image(600, 600, 4), mpp=None)
    return folder


@pytest.fixture(scope="session")
def catalog_url(slide_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A catalog of the slides with mpp, with foreground and two user columns."""
    url = str(tmp_path_factory.mktemp("catalog"))
    columns = {name: {"patient": f"p-{name}", "split": "train"} for name in "abc"}
    index_cohort([str(slide_folder / f"{n}.svs") for n in "abc"], url, columns=columns, progress=False)
    compute_foreground(url, progress=False)
    return url


@pytest.fixture
def catalog(catalog_url: str) -> Catalog:
    return Catalog.open(catalog_url)
