"""One command over a bucket in which every kind of slide lies, good ones and bad ones."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
from online_patching import Catalog, MissingMppError, PatchRequest, SlideChangedError, open_slide
from online_patching.cli import main
from online_patching.cohort import cohort_slides
from s3_server import S3Server
from tiff_bytes import Page, tiff_bytes
from written_dicom import write_dicom
from written_slides import pyramid_of, tissue_image, write_pyramid
from written_vendor_slides import write_ndpi
from written_zarrs import write_ome_zarr

IMAGE = tissue_image(512, 384, 11)
HALF = np.asarray(cv2.resize(IMAGE, (256, 192), interpolation=cv2.INTER_AREA), np.uint8)
ARCHIVE_SERIES, FLAT_SERIES = "1.2.826.0.1.77", ("1.2.826.0.1.78", "1.2.826.0.1.79")
UNKNOWN_COMPRESSION = 52479


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cohort")
    for name in ("plain.svs", "with space + 50%.svs", "unicode-😐.svs", "TCGA-CR-7395-01A-01-TS1.svs"):
        write_pyramid(folder / name, IMAGE)
    write_pyramid(folder / "no_mpp.svs", IMAGE, mpp=None)
    archive, flat = folder / ARCHIVE_SERIES, folder / "flat"
    archive.mkdir()
    flat.mkdir()
    write_dicom(archive / "a.dcm", IMAGE, series=ARCHIVE_SERIES)
    write_dicom(archive / "b.dcm", HALF, series=ARCHIVE_SERIES, mpp=1.0)
    write_dicom(archive / "label.dcm", HALF, series=ARCHIVE_SERIES, flavour="LABEL")
    for k, series in enumerate(FLAT_SERIES):
        write_dicom(flat / f"flat-{k}.dcm", IMAGE, series=series)
    write_ome_zarr(folder / "zarr.ome.zarr", pyramid_of(IMAGE), version="0.5")
    (folder / "twice").mkdir()
    write_pyramid(folder / "twice" / "plain.svs", HALF)
    (folder / "text.svs").write_bytes(b"no slide" * 100)
    page = Page(512, 512, tags={259: (3, [UNKNOWN_COMPRESSION])})
    (folder / "unknown.tiff").write_bytes(tiff_bytes([page]))
    (folder / "cut.svs").write_bytes((folder / "plain.svs").read_bytes()[:-2000])
    write_ndpi(folder / "vendor.ndpi", tissue_image(1024, 512, 4))
    return folder


GOOD = {"plain", "with space + 50%", "unicode-😐", "TCGA-CR-7395-01A-01-TS1", "no_mpp", "zarr", "flat-0", "flat-1"}


def expect_cohort(catalog: Catalog, failures: list[dict[str, str]], captured_error: str) -> None:
    assert {row.id for row in catalog.rows} == GOOD | {ARCHIVE_SERIES}
    assert len(catalog.header(ARCHIVE_SERIES).levels) == 2
    reasons = {(row["id"], row["url"].rpartition("/")[2]): row["reason"] for row in failures}
    assert set(reasons) == {
        *(("plain", "plain.svs"), ("text", "text.svs"), ("unknown", "unknown.tiff"), ("cut", "cut.svs")),
        ("vendor", "vendor.ndpi"),
    }
    assert "given twice" in reasons["plain", "plain.svs"]
    assert "not a slide" in reasons["text", "text.svs"]
    assert str(UNKNOWN_COMPRESSION) in reasons["unknown", "unknown.tiff"]
    assert "cut off" in reasons["cut", "cut.svs"]
    assert "--experimental" in reasons["vendor", "vendor.ndpi"]
    assert "no_mpp" in captured_error
    assert "--assume-mpp-from-magnification" in captured_error
    assert "Traceback" not in captured_error
    tcga = catalog.table().to_pandas().set_index("id").loc["TCGA-CR-7395-01A-01-TS1"]
    assert (tcga["patient"], tcga["preservation"]) == ("TCGA-CR-7395", "flash-frozen")


def test_a_bucket_of_good_and_bad_slides(
    cohort: Path,
    s3_server: S3Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    bucket = s3_server.upload(cohort, "mixed-cohort")
    assert main(["index", bucket, "--catalog", str(tmp_path)]) == 1
    catalog = Catalog.open(str(tmp_path))
    expect_cohort(catalog, pq.read_table(tmp_path / "failures.parquet").to_pylist(), capsys.readouterr().err)

    requests = [PatchRequest(slide_id, 100, 80, 96, 1.0) for slide_id in sorted(GOOD - {"no_mpp"} | {ARCHIVE_SERIES})]
    for request, patch in zip(requests, catalog.read_patches(requests), strict=True):
        alone = open_slide(catalog.row(request.slide_id).url.replace(bucket, str(cohort)))
        np.testing.assert_array_equal(patch, alone.read_patch(x_level0_px=100, y_level0_px=80, size_px=96, mpp=1.0))
    with pytest.raises(MissingMppError, match=r"no_mpp.*mpp"):
        catalog.read_patches([PatchRequest("no_mpp", 0, 0, 96, 1.0)])

    # Nothing changed: nothing is read again, and the bad ones are tried again.
    assert main(["index", bucket, "--catalog", str(tmp_path), "--experimental"]) == 1
    assert "indexed 1 slides, 9 were up to date" in capsys.readouterr().out
    assert "vendor" in {row.id for row in Catalog.open(str(tmp_path)).rows}

    # A slide is replaced: reading says so, and so says the store, whatever the size.
    s3_server.client().upload_file(str(cohort / "no_mpp.svs"), "mixed-cohort", "plain.svs")
    with pytest.raises(SlideChangedError, match=r"plain\.svs.*index"):
        catalog.read_patches([PatchRequest("plain", 0, 0, 96, 1.0)])


def test_dicom_is_one_slide_a_series(cohort: Path) -> None:
    def names(url: Path) -> list[str]:
        slides = cohort_slides(str(url))
        return [(slide if isinstance(slide, str) else slide.url).removeprefix(f"{cohort}/") for slide in slides]

    assert names(cohort / ARCHIVE_SERIES) == [f"{ARCHIVE_SERIES}/"]
    assert names(cohort / "flat") == ["flat/flat-0.dcm", "flat/flat-1.dcm"]
    assert names(cohort / ARCHIVE_SERIES / "b.dcm") == [f"{ARCHIVE_SERIES}/b.dcm"]
