"""Are the sample slides and patches what they claim to be? OpenSlide and tifffile are the judges."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import cv2
import make_sample_slides
import numpy as np
import numpy.typing as npt
import openslide
import pandas as pd
import pyramid_from_image
import pytest
import tifffile
from make_sample_slides import make_patches, make_slides, paint_slide
from sample_fields import Canvas, noise
from sample_tissue import TISSUE_CLASSES, paint_tissue
from svs_writer import SlideSpec, write_slide
from tile_encoding import ENCODINGS

U8 = npt.NDArray[np.uint8]
SLIDES = 8
# Mean absolute error that each codec may leave; a wrong colour marking leaves 30 and more.
CODEC_LOSS = {
    "jpeg-rgb": 3,
    "jpeg-ycbcr": 4,
    "jpeg-ycbcr-420": 4,
    "jp2k-ycbcr": 5,
    "jp2k-rgb": 5,
    "deflate": 0,
    "none": 0,
}


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_slides(tmp_path_factory.mktemp("slides"), seed=3, slides=SLIDES, small=True, progress=False).parent


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("patches")
    return make_patches(folder, seed=3, patches_per_class=20, patch_size=48, progress=False)


def read_level(slide: openslide.OpenSlide, level: int) -> U8:
    image = slide.read_region((0, 0), level, slide.level_dimensions[level])
    return np.asarray(image, dtype=np.uint8)[..., :3]


@cache
def painted(number: int) -> tuple[SlideSpec, U8]:
    spec, painter = paint_slide(number, seed=3, small=True)
    return spec, np.concatenate(list(painter.bands(spec.band_px)))


def mean_error(a: U8, b: U8) -> float:
    assert a.shape == b.shape
    return float(np.abs(a.astype(np.float32) - b).mean())


def area_mean(image: U8, downsample: int) -> U8:
    height, width = (edge // downsample for edge in image.shape[:2])
    blocks = image[: height * downsample, : width * downsample].astype(np.float64)
    mean = blocks.reshape(height, downsample, width, downsample, 3).mean(axis=(1, 3))
    return np.rint(mean).astype(np.uint8)


@pytest.mark.parametrize("number", range(SLIDES))
def test_openslide_reads_what_was_painted(slides: Path, number: int) -> None:
    spec, pixels = painted(number)
    with openslide.OpenSlide(slides / f"slide_{number:02d}.svs") as slide:
        assert slide.properties["openslide.vendor"] == "aperio"
        expected = [(spec.width_px // d, spec.height_px // d) for d in (1, 4, 16)]
        assert list(slide.level_dimensions) == expected
        assert {"thumbnail", "label", "macro"} == set(slide.associated_images)
        thumbnail = np.asarray(slide.associated_images["thumbnail"].convert("RGB"))
        if spec.mpp is None:
            assert "openslide.mpp-x" not in slide.properties
            assert "openslide.objective-power" not in slide.properties
        else:
            assert float(slide.properties["openslide.mpp-x"]) == pytest.approx(spec.mpp)
            assert slide.properties["openslide.objective-power"] == str(spec.app_mag)
        level0 = read_level(slide, 0)
        assert mean_error(level0, pixels) <= CODEC_LOSS[spec.encoding]
        glass = (slice(200), slice(200))  # of the same colour in every tile, whatever the codec
        assert np.abs(level0[glass].mean(axis=(0, 1)) - pixels[glass].mean(axis=(0, 1))).max() < 1
        small = cv2.resize(pixels, thumbnail.shape[1::-1], interpolation=cv2.INTER_AREA)
        assert mean_error(thumbnail, np.asarray(small, dtype=np.uint8)) < 6
        for level, downsample in ((1, 4), (2, 16)):
            stored, mean = read_level(slide, level), area_mean(pixels, downsample)
            error = mean_error(stored, mean)
            # The lower levels are all detail, which costs the codecs more; one pixel off would cost far more.
            assert error < 2 * CODEC_LOSS[spec.encoding]
            assert error < 0.65 * mean_error(stored, np.roll(mean, 1, axis=1))


def test_slides_table_lists_every_file_and_encoding(slides: Path) -> None:
    table = pd.read_csv(slides / "slides.csv", dtype={"mpp": str}, keep_default_na=False)
    assert list(table.columns) == ["id", "file", "patient", "hospital", "mpp", "encoding", "split"]
    assert sorted(table["file"]) == sorted(path.name for path in slides.glob("*.svs"))
    assert set(table["encoding"]) == set(ENCODINGS) - {"deflate", "none"}
    assert (table["mpp"] == "").sum() == 1
    assert "0.5000" in set(table["mpp"])
    assert set(table["split"]) == {"train", "val", "test"}
    assert (table.groupby("patient")[["hospital", "split"]].nunique() == 1).all(axis=None)


def test_jpeg_rgb_tiles_carry_no_colour_marking(slides: Path) -> None:
    with tifffile.TiffFile(slides / "slide_00.svs") as tiff:
        page = tiff.pages.first
        assert (page.compression, page.photometric) == (7, 2)
        assert page.jpegtables is not None
        with (slides / "slide_00.svs").open("rb") as file:
            file.seek(page.dataoffsets[0])
            tile = file.read(page.databytecounts[0])
    assert tile[:4] == b"\xff\xd8\xff\xc0"  # the frame follows at once: no JFIF, no Adobe marker, no tables
    assert tile[12:21:3] == b"\x00\x01\x02"  # component ids from which libjpeg guesses YCbCr
    assert b"\xff\xdb" in page.jpegtables
    assert b"\xff\xc4" in page.jpegtables


def test_pages_come_in_aperio_order(slides: Path) -> None:
    with tifffile.TiffFile(slides / "slide_07.svs") as tiff:
        pages = [(page.is_tiled, int(page.subfiletype), int(page.compression)) for page in tiff.pages]
        assert tiff.is_bigtiff
    assert pages == [(True, 0, 7), (False, 0, 7), (True, 0, 7), (True, 0, 7), (False, 1, 5), (False, 9, 7)]


@pytest.mark.parametrize(("number", "compression"), [(2, 33005), (4, 33003)])
def test_jpeg2000_slides_are_marked_by_compression(slides: Path, number: int, compression: int) -> None:
    with tifffile.TiffFile(slides / f"slide_{number:02d}.svs") as tiff:
        assert (tiff.pages.first.compression, tiff.pages.first.photometric) == (compression, 2)


def test_slides_have_glass_tissue_and_pen() -> None:
    for number in range(SLIDES):
        _, pixels = painted(number)
        saturation = np.ptp(pixels[::8, ::8].astype(np.int16), axis=2)
        tissue = float((saturation > 35).mean())
        assert 0.05 < tissue < 0.75, number
        corner = pixels[:30, :30].astype(np.float32)
        assert corner.mean() > 200
        assert 0 < corner.std(axis=(0, 1)).max() < 4  # off-white, with noise


def test_same_seed_gives_same_bytes_whatever_the_number_of_workers(slides: Path, tmp_path: Path) -> None:
    make_slides(tmp_path, seed=3, slides=3, small=True, workers=1, progress=False)
    for path in sorted(tmp_path.glob("*.svs")):
        assert path.read_bytes() == (slides / path.name).read_bytes()
    other, _ = paint_slide(0, seed=4, small=True)
    assert other != painted(0)[0]


def test_patches_are_balanced_and_groups_are_disjoint(index: Path) -> None:
    table = pd.read_csv(index)
    assert list(table.columns) == ["path", "label", "group_id", "split"]
    assert table["path"].is_unique
    assert set(table["label"]) == set(TISSUE_CLASSES)
    per_split = table.groupby(["split", "label"]).size().unstack()
    assert (per_split.nunique(axis=1) == 1).all()
    assert per_split["gland"].to_dict() == {"train": 8, "val": 4, "test": 8}
    assert (table.groupby("group_id")["split"].nunique() == 1).all()
    hospitals = table["group_id"].str.extract(r"(hospital_\d+)")[0]
    by_split = hospitals.groupby(table["split"]).agg(set)
    assert not by_split["test"] & (by_split["train"] | by_split["val"])
    for path in table["path"]:
        image = cv2.imread(str(index.parent / path))
        assert image is not None, path
        assert image.shape == (48, 48, 3)


def test_patches_repeat_with_the_seed_and_no_two_are_equal(index: Path, tmp_path: Path) -> None:
    again = make_patches(tmp_path, seed=3, patches_per_class=20, patch_size=48, workers=1, progress=False)
    assert again.read_bytes() == index.read_bytes()
    images = [(index.parent / path).read_bytes() for path in pd.read_csv(index)["path"]]
    assert images == [(tmp_path / path).read_bytes() for path in pd.read_csv(again)["path"]]
    assert len(set(images)) == len(images)


@pytest.mark.parametrize("size_px", [16, 64])
def test_a_square_smaller_than_its_cells_is_painted(size_px: int) -> None:
    """Of seed 0, no cell's centre lies on a square of fat so small."""
    with np.errstate(invalid="raise"):
        square = paint_tissue("fat", np.random.default_rng(0), size_px=size_px, mpp=0.25)
    # Of fat: the walls of its cells, or stroma, take up eosin.
    assert (square & 255).mean() > 2


@pytest.mark.parametrize("tissue", TISSUE_CLASSES)
def test_a_square_of_tissue_continues_itself(tissue: str) -> None:
    square = paint_tissue(tissue, np.random.default_rng(5), size_px=512, mpp=0.25)
    dyes = np.stack([square >> 8, square & 255]).astype(np.float32)
    for axis in (1, 2):
        steps = np.abs(np.diff(dyes, axis=axis, append=dyes.take([0], axis=axis))).mean(axis=(0, 3 - axis))
        assert steps[-1] < 1.3 * np.quantile(steps[:-1], 0.99)


@pytest.mark.parametrize("scale_um", [1.2, 5, 40])
def test_noise_has_unit_variance_and_wraps(scale_um: float) -> None:
    field = noise(Canvas(size_px=1008, mpp=0.25), np.random.default_rng(0), scale_um=scale_um)
    assert field.shape == (1008, 1008)
    assert float(field.std()) == pytest.approx(1, abs=0.05)
    for axis in (0, 1):
        steps = np.abs(np.diff(field, axis=axis, append=field.take([0], axis=axis))).mean(axis=1 - axis)
        assert steps[-1] < 1.5 * steps[:-1].max()


@pytest.fixture(scope="module")
def image_file(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, U8]:
    _, pixels = painted(3)
    path = tmp_path_factory.mktemp("image") / "section.png"
    cv2.imwrite(str(path), cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))
    return path, pixels


@pytest.mark.parametrize("vendor", ["aperio", "generic"])
@pytest.mark.parametrize("encoding", list(ENCODINGS))
def test_pyramid_from_image(image_file: tuple[Path, U8], tmp_path: Path, encoding: str, vendor: str) -> None:
    source, pixels = image_file
    output = tmp_path / ("slide.svs" if vendor == "aperio" else "slide.tiff")
    command = [str(source), str(output), "--mpp", "0.69", "--encoding", encoding, "--vendor", vendor]
    code = pyramid_from_image.main([*command, "--downsamples", "1,2,8", "--quality", "75"])
    if vendor == "generic" and encoding.startswith("jp2k"):
        assert code == 1
        assert not output.exists()
        return
    assert code == 0
    with openslide.OpenSlide(output) as slide:
        assert slide.properties["openslide.vendor"] == {"aperio": "aperio", "generic": "generic-tiff"}[vendor]
        assert float(slide.properties["openslide.mpp-x"]) == pytest.approx(0.69, rel=1e-6)
        assert [round(d) for d in slide.level_downsamples] == [1, 2, 8]
        assert mean_error(read_level(slide, 0), pixels) <= CODEC_LOSS[encoding]
        if CODEC_LOSS[encoding] == 0:
            for level, downsample in ((1, 2), (2, 8)):
                difference = read_level(slide, level).astype(int) - area_mean(pixels, downsample)
                assert np.abs(difference).max() <= 1  # rounding of halves


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--tile", "100"], "tile 100: must be a multiple of 16"),
        (["--tile", "240", "--encoding", "none"], "multiple of 32"),
        (["--mpp", "nan"], "mpp nan: must be a positive number"),
        (["--mpp", "-1"], "mpp -1.0: must be a positive number"),
        (["--downsamples", "1,9999"], "too small for downsample 9999"),
        (["--downsamples", "4,16"], "must rise from 1"),
        (["--quality", "0"], "quality 0: must be between 1 and 100"),
    ],
)
def test_pyramid_refuses_in_one_line(
    image_file: tuple[Path, U8],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    words: str,
) -> None:
    output = tmp_path / "slide.svs"
    assert pyramid_from_image.main([str(image_file[0]), str(output), *options]) == 1
    message = capsys.readouterr().err
    assert words in message
    assert message.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_pyramid_refuses_what_is_not_an_image(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"not an image")
    assert pyramid_from_image.main([str(bad), str(tmp_path / "slide.svs")]) == 1
    assert pyramid_from_image.main([str(tmp_path / "absent.png"), str(tmp_path / "slide.svs")]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert "bad.png: not an image" in lines[0]
    assert "absent.png: no such file" in lines[1]


def test_a_writer_that_fails_leaves_no_file(tmp_path: Path) -> None:
    spec = SlideSpec(width_px=300, height_px=512, tile_px=256)
    with pytest.raises(ValueError, match="band at row 256"):
        write_slide(tmp_path / "a.svs", spec, [np.zeros((256, 300, 3), np.uint8), np.zeros((9, 300, 3), np.uint8)])
    with pytest.raises(ValueError, match="bands ended at row 256 of 512"):
        write_slide(tmp_path / "a.svs", spec, [np.zeros((256, 300, 3), np.uint8)])
    assert list(tmp_path.iterdir()) == []


def test_command_line_says_what_to_give(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as stop:
        make_sample_slides.main([])
    assert stop.value.code == 2
    assert "--output FOLDER" in capsys.readouterr().err
    assert make_sample_slides.main(["--patches", str(tmp_path), "--patches-per-class", "2"]) == 1
    assert "patches per class 2" in capsys.readouterr().err
