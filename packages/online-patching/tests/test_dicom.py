"""DICOM whole-slide images: pixels against OpenSlide and pydicom, what a series is, what indexing costs."""

from __future__ import annotations

import asyncio
import io
import struct
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import imagecodecs
import numpy as np
import openslide
import pydicom
import pytest
from online_patching import Slide, SlideFormatError, open_slide
from online_patching.bytesource import ByteRange, ByteSource, ObjectInfo, PinnedObject
from online_patching.errors import NotFoundError, SlideChangedError, StorageError
from online_patching.formats.dicom_slide import dicom_slides
from online_patching.index import SlideIndex, index_slide
from online_patching.loop import run
from online_patching.storage import Store
from PIL import Image
from pydicom.encaps import encapsulate
from s3_server import S3Server
from shared_fixtures import real_files, real_folder
from written_dicom import Pixels, encode, tiles_of, write_dicom
from written_slides import tissue_image

DICOM_SUFFIXES = (".dcm", ".dicom")
IMAGE = tissue_image(300, 200, 3)
TILE = 64
SPARSE = [13, 0, 7, 3, 9, 19]


def whole(slide: Slide, level: int = 0) -> Pixels:
    geometry = slide.levels[level]
    return slide.read_level(level=level, x_px=0, y_px=0, width_px=geometry.width_px, height_px=geometry.height_px)


def assert_openslide_reads_the_same(slide: Slide, path: Path) -> None:
    with openslide.OpenSlide(str(path)) as oracle:
        assert [(g.width_px, g.height_px) for g in slide.levels] == list(oracle.level_dimensions)
        for level, size in enumerate(oracle.level_dimensions):
            expected = np.asarray(oracle.read_region((0, 0), level, size))
            stored = expected[..., 3] == 255
            assert stored.any()
            np.testing.assert_array_equal(whole(slide, level)[stored], expected[..., :3][stored])
            assert (whole(slide, level)[~stored] == 255).all()
        assert slide.mpp == pytest.approx(float(oracle.properties["openslide.mpp-x"]))


def opens(path: Path) -> bool:
    try:
        openslide.OpenSlide(str(path)).close()
    except openslide.OpenSlideError:
        return False
    return True


def slide_or_refusal(path: Path) -> Slide | str:
    try:
        return open_slide(str(path))
    except SlideFormatError as error:
        return str(error)


@pytest.mark.slides_parity
@pytest.mark.parametrize("path", real_files("SLIDES_DIR", *DICOM_SUFFIXES), ids=lambda path: path.name)
def test_real_files_read_as_openslide_or_pydicom_reads_them(path: Path) -> None:
    """Whatever OpenSlide opens has the same pixels; the rest those of pydicom, or is refused by name."""
    if opens(path):
        assert_openslide_reads_the_same(open_slide(str(path)), path)
        return
    slide = slide_or_refusal(path)
    if isinstance(slide, str):
        assert path.name in slide
        return
    dataset = pydicom.dcmread(path)
    assert dataset.DimensionOrganizationType == "TILED_FULL"
    level = [g.width_px for g in slide.levels].index(dataset.TotalPixelMatrixColumns)
    frames = dataset.pixel_array.reshape(-1, dataset.Rows, dataset.Columns, 3)
    geometry = slide.levels[level]
    for number, frame in enumerate(frames):
        x, y = number % geometry.tiles_x * dataset.Columns, number // geometry.tiles_x * dataset.Rows
        stored = whole(slide, level)[y : y + dataset.Rows, x : x + dataset.Columns]
        np.testing.assert_array_equal(stored, frame[: stored.shape[0], : stored.shape[1]])


@pytest.mark.slides_parity
def test_some_real_file_was_compared() -> None:
    if real_folder("SLIDES_DIR") is None:
        pytest.skip("no SLIDES_DIR")
    assert any(opens(path) for path in real_files("SLIDES_DIR", *DICOM_SUFFIXES))


@pytest.mark.parametrize("undefined_lengths", [False, True], ids=["lengths", "undefined"])
@pytest.mark.parametrize("frames_of", [None, SPARSE], ids=["full", "sparse"])
@pytest.mark.parametrize(
    ("codec", "photometric", "table"),
    [
        ("raw", "RGB", "none"),
        ("jpeg", "YBR_FULL_422", "basic"),
        ("jpeg", "RGB", "extended"),
        ("jpeg", "YBR_FULL_422", "none"),
        ("jpeg2000", "YBR_RCT", "basic"),
        ("jpeg2000", "RGB", "none"),
        ("jpeg2000_lossy", "YBR_ICT", "extended"),
        ("jpeg2000_lossy", "RGB", "basic"),
    ],
)
def test_written_levels_read_as_openslide_reads_them(
    tmp_path: Path, codec: str, photometric: str, table: Any, frames_of: list[int] | None, undefined_lengths: bool
) -> None:
    path = write_dicom(
        tmp_path / "a.dcm",
        IMAGE,
        series="1.2.3",
        codec=codec,
        photometric=photometric,
        table=table,
        frames_of=frames_of,
        undefined_lengths=undefined_lengths,
    )
    assert_openslide_reads_the_same(open_slide(str(path)), path)


@pytest.mark.parametrize(("stored", "stated"), [("RGB", "YBR_FULL_422"), ("YBR_FULL", "RGB")])
def test_the_photometric_interpretation_decides_whatever_the_stream_says(
    tmp_path: Path, stored: str, stated: str
) -> None:
    changes = {"PhotometricInterpretation": stated}
    path = write_dicom(tmp_path / "a.dcm", IMAGE, series="1.2.3", photometric=stored, changes=changes)
    assert_openslide_reads_the_same(open_slide(str(path)), path)


@pytest.mark.parametrize("frames_of", [None, SPARSE], ids=["full", "sparse"])
@pytest.mark.parametrize("codec", ["raw", "implicit", "jpegls", "jpeg2000", "htj2k"])
def test_lossless_levels_give_the_pixels_that_were_written(
    tmp_path: Path, codec: str, frames_of: list[int] | None
) -> None:
    slide = open_slide(
        str(write_dicom(tmp_path / "a.dcm", IMAGE, series="1.2.3", codec=codec, tile=TILE, frames_of=frames_of))
    )
    expected = np.full_like(IMAGE, 255)
    for number in range(len(tiles_of(IMAGE, TILE))) if frames_of is None else frames_of:
        y, x = number // 5 * TILE, number % 5 * TILE
        expected[y : y + TILE, x : x + TILE] = IMAGE[y : y + TILE, x : x + TILE]
    np.testing.assert_array_equal(whole(slide), expected)


def test_nearly_lossless_jpeg_ls_reads_as_pydicom_reads_it(tmp_path: Path) -> None:
    path = write_dicom(tmp_path / "a.dcm", IMAGE[:TILE, :TILE], series="1.2.3", codec="jpegls_near", tile=TILE)
    expected = pydicom.dcmread(path).pixel_array
    assert (expected != IMAGE[:TILE, :TILE]).any()
    np.testing.assert_array_equal(whole(open_slide(str(path))), expected)


def test_full_ycbcr_jpeg_reads_as_pillow_reads_it(tmp_path: Path) -> None:
    image = IMAGE[:TILE, :TILE]
    write_dicom(tmp_path / "a.dcm", image, series="1.2.3", photometric="YBR_FULL", tile=TILE)
    expected = np.asarray(Image.open(io.BytesIO(encode(image, "jpeg", "YBR_FULL"))))
    np.testing.assert_array_equal(whole(open_slide(str(tmp_path / "a.dcm"))), expected)


def test_grey_jpeg_reads_as_pillow_reads_it(tmp_path: Path) -> None:
    grey = np.ascontiguousarray(IMAGE[:TILE, :TILE, 0])
    frame = bytes(imagecodecs.jpeg8_encode(grey, level=90))
    changes = {"SamplesPerPixel": 1, "PhotometricInterpretation": "MONOCHROME2", "PlanarConfiguration": None}
    changes["PixelData"] = encapsulate([frame])
    path = write_dicom(tmp_path / "a.dcm", IMAGE[:TILE, :TILE], series="1.2.3", tile=TILE, changes=changes)
    expected = np.asarray(Image.open(io.BytesIO(frame)))
    np.testing.assert_array_equal(whole(open_slide(str(path))), np.repeat(expected[..., None], 3, axis=2))


def write_series(folder: Path, series: str, *, prefix: str = "", **options: Any) -> None:
    """Three levels, named so that their order says nothing, and pictures that are no levels."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, divisor in (("b", 1), ("c", 2), ("a", 4)):
        size = (IMAGE.shape[1] // divisor, IMAGE.shape[0] // divisor)
        level = np.asarray(cv2.resize(IMAGE, size, interpolation=cv2.INTER_AREA), np.uint8)
        write_dicom(folder / f"{prefix}{name}.dcm", level, series=series, mpp=0.25 * divisor, **options)
    for flavour in ("LABEL", "THUMBNAIL"):
        write_dicom(folder / f"{prefix}{flavour}.dcm", IMAGE[:50, :60], series=series, flavour=flavour)


def test_the_levels_of_a_series_are_found_from_its_folder_and_from_each_file(tmp_path: Path) -> None:
    write_series(tmp_path / "slide", "1.2.3")
    write_dicom(tmp_path / "slide" / "copy.DCM", IMAGE[:50], series="1.2.99", flavour="OVERVIEW")
    (tmp_path / "slide" / "notes.txt").write_text("not a slide")
    for name in ("a.dcm", "b.dcm", "THUMBNAIL.dcm", "", "/"):
        url = f"{tmp_path}/slide" + (f"/{name}" if name.strip("/") else name)
        slide = open_slide(url)
        assert_openslide_reads_the_same(slide, tmp_path / "slide" / "b.dcm")
        assert [round(g.downsample, 2) for g in slide.levels] == [1, 2, 4]
        assert slide.mpp == 0.25
        assert slide.header.vendor == "dicom"
        assert slide.header.level_objects == (0, 1, 2)
        assert slide.header.properties["objective-power"] == "20"


def test_files_without_suffix_are_levels_too(tmp_path: Path) -> None:
    write_series(tmp_path, "1.2.3")
    (tmp_path / "a.dcm").rename(tmp_path / "4_1")
    (tmp_path / "b.dcm").rename(tmp_path / "1.2.840.77")
    (tmp_path / "README").write_text("no slide")
    for name in ("", "c.dcm", "4_1"):
        assert_openslide_reads_the_same(open_slide(f"{tmp_path}/{name}"), tmp_path / "1.2.840.77")


def test_a_file_that_is_tiff_as_well_goes_by_its_name(tmp_path: Path) -> None:
    path = write_dicom(tmp_path / "a.dcm", IMAGE, series="1.2.3")
    path.write_bytes(b"II*\0" + struct.pack("<I", 1 << 20) + path.read_bytes()[8:])
    assert_openslide_reads_the_same(open_slide(str(path)), path)
    with pytest.raises(SlideFormatError, match=r"a\.tif: its headers point"):
        open_slide(str(path.rename(tmp_path / "a.tif")))


def test_a_file_named_without_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_series(tmp_path, "1.2.3")
    monkeypatch.chdir(tmp_path)
    assert_openslide_reads_the_same(open_slide("c.dcm"), Path("b.dcm"))


def test_each_level_is_pinned(tmp_path: Path) -> None:
    write_series(tmp_path, "1.2.3")
    slide = open_slide(str(tmp_path))
    path = tmp_path / "c.dcm"
    path.write_bytes(path.read_bytes() + bytes(8))
    assert whole(slide, 0).shape == IMAGE.shape
    with pytest.raises(SlideChangedError, match=r"c\.dcm"):
        whole(slide, 1)


def test_a_copy_of_a_level_is_no_second_level(tmp_path: Path) -> None:
    write_series(tmp_path, "1.2.3")
    (tmp_path / "copy.dcm").write_bytes((tmp_path / "b.dcm").read_bytes())
    assert_openslide_reads_the_same(open_slide(str(tmp_path)), tmp_path / "b.dcm")


def test_resolution_from_the_size_of_the_whole(tmp_path: Path) -> None:
    size = {"ImagedVolumeWidth": 0.06, "ImagedVolumeHeight": 0.04}
    path = write_dicom(tmp_path / "a.dcm", IMAGE, series="1.2.3", mpp=None, changes=size)
    assert open_slide(str(path)).mpp == pytest.approx(0.2)
    path = write_dicom(tmp_path / "b.dcm", IMAGE, series="1.2.4", mpp=None)
    assert open_slide(str(path)).mpp is None


def test_a_folder_of_several_series_asks_for_a_file(tmp_path: Path) -> None:
    write_series(tmp_path, "1.2.3", prefix="x-")
    write_series(tmp_path, "1.2.4", prefix="y-")
    with pytest.raises(SlideFormatError, match=r"2 DICOM series .* naming a file.*x-b\.dcm.*y-b\.dcm"):
        open_slide(str(tmp_path))
    assert run(dicom_slides(Store(), str(tmp_path))) == [f"{tmp_path}/x-b.dcm", f"{tmp_path}/y-b.dcm"]
    assert len(open_slide(f"{tmp_path}/x-c.dcm").levels) == 3


def test_what_a_cohort_opens_in_a_folder(tmp_path: Path) -> None:
    write_series(tmp_path / "one", "1.2.3")
    assert run(dicom_slides(Store(), f"{tmp_path}/one")) == [f"{tmp_path}/one/"]
    assert run(dicom_slides(Store(), f"{tmp_path}/one/")) == [f"{tmp_path}/one/"]
    # A damaged file may be a level: it is named, so that opening it says why.
    (tmp_path / "one" / "cut.dcm").write_bytes((tmp_path / "one" / "b.dcm").read_bytes()[:300])
    assert run(dicom_slides(Store(), f"{tmp_path}/one")) == [f"{tmp_path}/one/b.dcm", f"{tmp_path}/one/cut.dcm"]
    with pytest.raises(SlideFormatError, match=r"cut\.dcm"):
        open_slide(f"{tmp_path}/one")
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "other.dcm").write_bytes(b"something else" * 40)
    assert run(dicom_slides(Store(), f"{tmp_path}/none")) == []
    with pytest.raises(SlideFormatError, match="no slide in this folder"):
        open_slide(f"{tmp_path}/none/")


def test_a_series_in_a_bucket(s3_server: S3Server, tmp_path: Path) -> None:
    write_series(tmp_path / "with space", "1.2.3")
    write_series(tmp_path / "plain", "1.2.4")
    bucket = s3_server.upload(tmp_path, "dicom-test")
    for url in (f"{bucket}/with space/", f"{bucket}/with space", f"{bucket}/with space/a.dcm"):
        slide = open_slide(url, storage_options=s3_server.storage_options)
        assert_openslide_reads_the_same(slide, tmp_path / "with space" / "b.dcm")
    # A store without listings gives the level that was named.
    http = open_slide(f"{s3_server.endpoint_url}/dicom-test/plain/c.dcm")
    np.testing.assert_array_equal(whole(http), whole(slide, 1))


class CountingSource:
    """A source that counts its range requests."""

    def __init__(self, source: ByteSource, counts: Counter[str]) -> None:
        self.url, self._source, self._counts = source.url, source, counts

    async def info(self) -> ObjectInfo:
        return await self._source.info()

    async def read_start(self, length: int) -> tuple[bytes, ObjectInfo]:
        self._counts[Path(self.url).name] += 1
        return await self._source.read_start(length)

    async def read_ranges(self, ranges: Sequence[ByteRange], *, expected: ObjectInfo | None = None) -> list[bytes]:
        self._counts[Path(self.url).name] += len(ranges)
        return await self._source.read_ranges(ranges, expected=expected)


class CountingStore(Store):
    """Counts range requests by file, and forbids listings where asked to."""

    def __init__(self, listing_error: Exception | None = None) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self._listing_error = listing_error

    def open(self, url: str) -> ByteSource:
        return CountingSource(super().open(url), self.counts)

    async def list_folder(self, folder_url: str) -> list[PinnedObject]:
        if self._listing_error is not None:
            raise StorageError(f"{folder_url}: forbidden") from self._listing_error
        return await super().list_folder(folder_url)


def test_forbidden_listings_give_one_level_and_broken_ones_an_error(tmp_path: Path) -> None:
    write_series(tmp_path, "1.2.3")
    index = run(index_slide(f"{tmp_path}/c.dcm", CountingStore(PermissionError())))
    assert [g.width_px for g in index.header.levels] == [150]
    with pytest.raises(StorageError, match="forbidden"):
        run(index_slide(f"{tmp_path}/c.dcm", CountingStore(ConnectionError())))
    with pytest.raises(NotFoundError):
        open_slide(f"{tmp_path}/missing/")
    with pytest.raises(NotFoundError, match=r"x\.dcm"):
        open_slide(f"{tmp_path}/x.dcm")


@pytest.mark.parametrize("table", ["basic", "extended"])
def test_headers_cost_a_handful_of_requests(tmp_path: Path, table: Any) -> None:
    path = write_dicom(tmp_path / "a.dcm", np.zeros((400, 400, 3), np.uint8), series="1.2.3", tile=8, table=table)
    store = CountingStore()
    index = run(index_slide(str(path), store))
    frames = 2500
    assert len(index.tiles[0].offset) == frames
    assert index.requests == store.counts["a.dcm"] <= 9
    assert index.bytes_read <= 1.3 * frames * (4 if table == "basic" else 16) + 5 * 16 * 1024


@pytest.mark.parametrize("undefined_lengths", [False, True], ids=["lengths", "undefined"])
def test_a_large_colour_profile_is_stepped_over(tmp_path: Path, undefined_lengths: bool) -> None:
    path, kind = pydicom.Dataset(), pydicom.Dataset()
    kind.CodeValue = "111744"
    path.IlluminationTypeCodeSequence, path.ICCProfile, path.ObjectiveLensPower = [kind], bytes(13 << 20), "40"
    changes = {"OpticalPathSequence": [path]}
    write_dicom(tmp_path / "a.dcm", IMAGE, series="1.2.3", changes=changes, undefined_lengths=undefined_lengths)
    index = run(index_slide(f"{tmp_path}/a.dcm", Store()))
    assert index.header.properties["objective-power"] == "40"
    assert index.bytes_read < 50_000


def test_a_chain_of_small_frames_is_walked_in_windows(tmp_path: Path) -> None:
    path = write_dicom(tmp_path / "a.dcm", np.zeros((400, 400, 3), np.uint8), series="1.2.3", tile=8, table="none")
    assert path.stat().st_size > 1 << 20
    assert run(index_slide(str(path), Store())).requests <= 6


def test_indexing_a_flat_folder_asks_each_file_once_who_it_is(tmp_path: Path) -> None:
    slides = 6
    for k in range(slides):
        write_series(tmp_path, f"1.2.{k}", prefix=f"{k}-", codec="raw")
    store = CountingStore()
    listed = run(dicom_slides(store, str(tmp_path)))
    assert len(listed) == slides
    assert set(store.counts.values()) == {1}
    assert len(store.counts) == 5 * slides
    for url in listed:
        assert len(run(index_slide(url, store)).header.levels) == 3
    assert max(store.counts.values()) <= 4
    (tmp_path / "0-b.dcm").unlink()
    write_dicom(tmp_path / "0-b.dcm", IMAGE, series="1.2.77")
    assert len(run(index_slide(f"{tmp_path}/0-c.dcm", store)).header.levels) == 2


def test_slides_of_one_folder_that_are_indexed_together_share_the_scan(tmp_path: Path) -> None:
    for k in range(4):
        write_series(tmp_path, f"1.3.{k}", prefix=f"{k}-", codec="raw")
    store = CountingStore()

    async def together() -> list[SlideIndex]:
        return await asyncio.gather(*(index_slide(f"{tmp_path}/{k}-b.dcm", store) for k in range(4)))

    assert [len(index.header.levels) for index in run(together())] == [3] * 4
    assert {store.counts[f"{k}-LABEL.dcm"] for k in range(4)} == {1}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"TotalPixelMatrixFocalPlanes": 3}, "3 focal planes"),
        ({"NumberOfOpticalPaths": 2}, "2 optical paths"),
        ({"NumberOfFrames": 40}, "40 frames on a grid of 5 x 4"),
        ({"NumberOfFrames": 19}, "20 tiles expected, 19 frames"),
        ({"ConcatenationUID": "1.2.3"}, "concatenation"),
        ({"PlanarConfiguration": 1}, "planar configuration 1"),
        ({"BitsAllocated": 16, "BitsStored": 12}, "3, 16, 12, 0"),
        ({"SamplesPerPixel": 1, "PhotometricInterpretation": "MONOCHROME2"}, "MONOCHROME2"),
        ({"PhotometricInterpretation": "YBR_FULL"}, "YBR_FULL"),
        ({"Rows": 0}, "tiles of 64 x 0 px"),
        ({"TotalPixelMatrixRows": None}, "a level of 300 x 0 px"),
        ({"TotalPixelMatrixColumns": 1 << 24, "TotalPixelMatrixRows": 1 << 24, "Rows": 1}, "tiles"),
        ({"ImageType": ["DERIVED", "PRIMARY"]}, "ImageType"),
        ({"SeriesInstanceUID": None}, "SeriesInstanceUID"),
        ({"SOPInstanceUID": None}, "SOPInstanceUID"),
        ({"PixelData": None}, "past its end|no pixels"),
    ],
)
def test_what_is_not_one_picture_of_8_bit_rgb_is_refused_by_name(
    tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    write_dicom(tmp_path / "a.dcm", IMAGE, series="1.2.3", codec="raw", changes=changes)
    with pytest.raises(SlideFormatError, match=rf"a\.dcm.*({reason})"):
        open_slide(f"{tmp_path}/a.dcm")


def test_positions_that_are_no_tiles_are_refused(tmp_path: Path) -> None:
    def with_position(change: Callable[[Any], None]) -> None:
        path = write_dicom(tmp_path / "a.dcm", IMAGE, series="1.2.3", frames_of=SPARSE)
        dataset = pydicom.dcmread(path)
        change(dataset.PerFrameFunctionalGroupsSequence)
        dataset.save_as(path)
        open_slide(str(path))

    def place(column: int) -> Callable[[Any], None]:
        def change(groups: Any) -> None:
            groups[1].PlanePositionSlideSequence[0].ColumnPositionInTotalImagePixelMatrix = column

        return change

    with pytest.raises(SlideFormatError, match=r"a\.dcm.*off the tile grid"):
        with_position(place(5))
    with pytest.raises(SlideFormatError, match=r"a\.dcm.*outside of the level"):
        with_position(place(1 + 10 * TILE))
    with pytest.raises(SlideFormatError, match=r"a\.dcm.*outside of the level"):
        with_position(place(1 - TILE))
    with pytest.raises(SlideFormatError, match=r"a\.dcm.*several frames at one place"):
        with_position(lambda groups: groups.__setitem__(1, groups[0]))
    with pytest.raises(SlideFormatError, match=r"a\.dcm.*frame 3 of 6 has no position"):
        with_position(lambda groups: groups[2].__delattr__("PlanePositionSlideSequence"))
    with pytest.raises(SlideFormatError, match=r"a\.dcm.*positions of 5 frames, 6 stored"):
        with_position(lambda groups: groups.pop())


def test_positions_are_found_however_they_are_stored(tmp_path: Path) -> None:
    """Columns and rows in another place as well, which the search finds too, leave it to the walk over the items."""
    path = write_dicom(tmp_path / "a.dcm", IMAGE, series="1.2.3", codec="raw", frames_of=SPARSE)
    expected = whole(open_slide(str(path)))
    dataset = pydicom.dcmread(path)
    for groups in dataset.PerFrameFunctionalGroupsSequence:
        position = groups.PlanePositionSlideSequence[0]
        extra = pydicom.Dataset()
        extra.ColumnPositionInTotalImagePixelMatrix, extra.RowPositionInTotalImagePixelMatrix = 1, 1
        position.add_new(0x0048021B, "SQ", [extra])
    dataset.save_as(path)
    np.testing.assert_array_equal(whole(open_slide(str(path))), expected)


@pytest.mark.parametrize("table", ["basic", "none"])
def test_frames_in_several_fragments_are_refused(tmp_path: Path, table: Any) -> None:
    path = write_dicom(tmp_path / "a.dcm", IMAGE, series="1.2.3", table=table, fragments=2)
    with pytest.raises(SlideFormatError, match=r"a\.dcm.*one fragment a frame"):
        open_slide(str(path))


def test_levels_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    write_dicom(tmp_path / "a.dcm", IMAGE, series="1.2.3")
    write_dicom(tmp_path / "b.dcm", IMAGE, series="1.2.3")
    with pytest.raises(SlideFormatError, match=r"a\.dcm and b\.dcm are two levels of 300 px"):
        open_slide(str(tmp_path))
    write_dicom(tmp_path / "b.dcm", IMAGE[:80, :80], series="1.2.3", tile=16)
    with pytest.raises(SlideFormatError, match=r"b\.dcm.*not levels of one pyramid"):
        open_slide(str(tmp_path))


def test_other_dicom_files_and_syntaxes_are_named(tmp_path: Path) -> None:
    path = write_dicom(tmp_path / "a.dcm", IMAGE, series="1.2.3", codec="raw")
    data = path.read_bytes()
    path.write_bytes(data.replace(b"1.2.840.10008.5.1.4.1.1.77.1.6", b"1.2.840.10008.5.1.4.1.1.77.1.4"))
    with pytest.raises(SlideFormatError, match=r"a\.dcm.*77\.1\.4', not a whole-slide image"):
        open_slide(str(path))
    for syntax in (b"1.2.840.10008.1.2.2", b"1.2.840.10008.1.2.5"):
        path.write_bytes(data.replace(b"1.2.840.10008.1.2.1\0", syntax + b"\0"))
        with pytest.raises(SlideFormatError, match=rf"a\.dcm.*transfer syntax.*{syntax.decode()}"):
            open_slide(str(path))
