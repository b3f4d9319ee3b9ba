"""What the cross-package tests share: a server, and a small cohort in its bucket."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from online_patching import Catalog
from online_patching.jobs import compute_foreground, index_cohort
from online_patching.listing import list_slides
from s3_server import S3Server
from shared_fixtures import s3_server  # noqa: F401
from written_slides import tissue_image, write_pyramid


@pytest.fixture(scope="session")
def small_cohort(s3_server: S3Server, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any]]:  # noqa: F811
    """URL of a catalog of three slides in a bucket, and the options that read them."""
    folder = tmp_path_factory.mktemp("cohort")
    for k, mpp in enumerate((0.5, 0.25, 0.26)):
        write_pyramid(folder / f"slide_{k}.svs", tissue_image(1200 + 200 * k, 1100, k), mpp=mpp)
    url = s3_server.upload(folder, "small-cohort")
    shutil.rmtree(folder)
    catalog = str(tmp_path_factory.mktemp("catalog"))
    options = s3_server.storage_options
    index_cohort(list_slides(url, options), catalog, slide_storage_options=options, progress=False)
    compute_foreground(catalog, slide_storage_options=options, progress=False)
    return catalog, options


@pytest.fixture
def catalog(small_cohort: tuple[str, dict[str, Any]]) -> Catalog:
    url, options = small_cohort
    return Catalog.open(url, slide_storage_options=options)


@pytest.fixture(scope="session")
def repository() -> Path:
    return Path(__file__).parent.parent
