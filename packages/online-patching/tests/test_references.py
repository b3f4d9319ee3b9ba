"""Exported references, read by a process that knows fsspec, zarr and imagecodecs only."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import imagecodecs
import numpy as np
import openslide
import pytest
import tifffile
from online_patching import Catalog, CatalogError, SlideFormatError, open_slide
from online_patching.cli import main
from online_patching.decode import Pixels, decode_tile
from online_patching.formats.header import Codec, Colour, TileEncoding
from online_patching.formats.zarr_codecs import blank_chunk, codecs_of
from online_patching.geometry import LevelGeometry
from online_patching.jobs import index_cohort
from online_patching.listing import list_slides
from online_patching.reference_files import JsonWriter, LevelArray, ParquetWriter, public_url
from online_patching.references import ReferenceFormat, export_references
from online_patching.storage import open_folder
from online_patching.zarr_view import zarr_key
from s3_server import S3Server
from shared_fixtures import real_files
from slide_checks import OTHER_PIXELS
from written_dicom import write_dicom
from written_slides import tissue_image, write_pyramid

Window = tuple[str, int, int, int, int]
FORMATS: tuple[ReferenceFormat, ...] = ("kerchunk-json", "kerchunk-parquet")
PLAIN = {(codec, Colour.RGB) for codec in Codec} | {(Codec.JPEG, Colour.YCBCR), (Codec.JPEG, Colour.GREY)}
NAMES = {"kerchunk-json": "refs.json", "kerchunk-parquet": "refs.parquet"}


def read_plainly(
    references: str, windows: list[Window], folder: Path, *, options: Mapping[str, Any] | None = None
) -> list[Pixels]:
    output = folder / "out.npz"
    program = Path(__file__).parent / "plain_reader.py"
    arguments = [references, json.dumps(options) if options else "", json.dumps(windows), str(output)]
    done = subprocess.run([sys.executable, program, *arguments], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    with np.load(output) as arrays:
        return [arrays[f"arr_{k}"] for k in range(len(windows))]


def windows_of(catalog: Catalog, slide_id: str, side: int = 300) -> list[Window]:
    """The corners and a random place of every level."""
    rng = np.random.default_rng(0)
    found = []
    for level, geometry in enumerate(catalog.header(slide_id).levels):
        tall, wide = min(side, geometry.height_px), min(side, geometry.width_px)
        low, right = geometry.height_px - tall, geometry.width_px - wide
        random = (int(rng.integers(low + 1)), int(rng.integers(right + 1)))
        for y, x in {(0, 0), (0, right), (low, 0), (low, right), random}:
            found.append((f"{zarr_key(slide_id)}/{level}", y, y + tall, x, x + wide))
    return found


def ours(catalog: Catalog, windows: list[Window]) -> list[Pixels]:
    group: Any = catalog.zarr()
    return [group[path][y0:y1, x0:x1] for path, y0, y1, x0, x1 in windows]


def assert_plainly_read_as_ours(
    catalog: Catalog,
    windows: list[Window],
    folder: Path,
    kind: ReferenceFormat,
    *,
    slides: list[str] | None = None,
    options: Mapping[str, Any] | None = None,
) -> list[Pixels]:
    output = str(folder / NAMES[kind])
    report = export_references(catalog, output, format=kind, slides=slides)
    assert report.left_out == []
    read = read_plainly(output, windows, folder, options=options)
    for pixels, expected in zip(read, ours(catalog, windows), strict=True):
        np.testing.assert_array_equal(pixels, expected)
    return read


def write_encodings(folder: Path) -> list[Path]:
    """A slide in every encoding that independent writers make."""
    image = tissue_image(500, 390, 5)
    for name, compression, predictor in (
        ("raw", None, False),
        ("deflate", "deflate", True),
        ("deflate plain", "deflate", False),
        ("lzw", "lzw", True),
        ("zstd", "zstd", True),
        ("packbits", "packbits", False),
        ("webp", "webp", False),
        ("jpeg_rgb", "jpeg", False),
    ):
        write_pyramid(folder / f"{name}.tif", image, compression=compression, predictor=predictor)
    for name, compression in (("jpeg_ycbcr", "jpeg"), ("j2k_33005", 33005)):
        photometric = "ycbcr" if name == "jpeg_ycbcr" else "rgb"
        subsampling = (2, 2) if photometric == "ycbcr" else None
        tifffile.imwrite(
            folder / f"{name}.tif",
            image,
            tile=(128, 128),
            photometric=photometric,
            compression=compression,
            subsampling=subsampling,
            metadata=None,
        )
    grey = np.ascontiguousarray(image[..., 1])
    tifffile.imwrite(folder / "jpeg_grey.tif", grey, tile=(128, 128), compression="jpeg", metadata=None)
    write_dicom(folder / "jpegls.dcm", image, series="1.2.3", codec="jpegls")
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def encodings(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    paths = write_encodings(tmp_path_factory.mktemp("encodings"))
    url = str(tmp_path_factory.mktemp("encodings-catalog"))
    index_cohort(map(str, paths), url, progress=False)
    return Catalog.open(url)


@pytest.mark.parametrize("kind", FORMATS)
def test_every_encoding_reads_plainly_as_ours(encodings: Catalog, tmp_path: Path, kind: ReferenceFormat) -> None:
    assert len(encodings) == 12
    windows = [window for row in encodings for window in windows_of(encodings, row.id)]
    assert_plainly_read_as_ours(encodings, windows, tmp_path, kind)
    for row in encodings:
        back, slide = open_slide(f"{tmp_path / NAMES[kind]}#{row.id}"), encodings.slide(row.id)
        assert back.header.encodings == slide.header.encodings
        for level, geometry in enumerate(slide.levels):
            whole = {"x_px": 0, "y_px": 0, "width_px": geometry.width_px, "height_px": geometry.height_px}
            pixels, expected = (each.read_level(level=level, **whole) for each in (back, slide))
            np.testing.assert_array_equal(pixels, expected)


@pytest.mark.parametrize("codec", [Codec.JPEG, Codec.WEBP, Codec.JPEG_LS, Codec.PACKBITS, Codec.DEFLATE, Codec.RAW])
def test_a_blank_chunk_is_white_in_every_codec(codec: Codec) -> None:
    geometry, encoding = LevelGeometry(256, 256, 128, 64, 1.0), TileEncoding(codec)
    blank = blank_chunk(codecs_of(encoding, geometry), geometry)
    assert (decode_tile(blank, encoding, 128, 64) == 255).all()


@pytest.mark.slides_parity
@pytest.mark.parametrize("kind", FORMATS)
def test_real_slides_read_plainly_as_openslide_reads_them(tmp_path: Path, kind: ReferenceFormat) -> None:
    paths = {}
    for path in real_files("SLIDES_DIR", ".svs", ".tif", ".tiff", ".dicom"):
        try:
            slide = open_slide(str(path))
            oracle = openslide.OpenSlide(str(path))
            # A slide with corrupt tiles is left to the test of those.
            oracle.read_region((0, 0), slide.levels.index(slide.levels[-1]), (200, 200))
        except (SlideFormatError, openslide.OpenSlideError):
            continue
        paths[path.stem] = path
    if not paths:
        pytest.skip("no SLIDES_DIR")
    index_cohort(map(str, paths.values()), str(tmp_path / "catalog"), progress=False)
    catalog = Catalog.open(str(tmp_path / "catalog"))
    left_out = export_references(catalog, str(tmp_path / f"all-{NAMES[kind]}"), format=kind).left_out
    plain = [slide_id for slide_id in paths if not any(f"slide {slide_id}:" in line for line in left_out)]
    for slide_id in set(paths) - set(plain):
        # Only what plain readers would give other colours or channels of may be left out.
        assert any((e.codec, e.colour) not in PLAIN for e in catalog.header(slide_id).encodings), left_out
    windows = [window for slide_id in plain for window in windows_of(catalog, slide_id)]
    read = assert_plainly_read_as_ours(catalog, windows, tmp_path, kind, slides=plain)
    oracles = {
        zarr_key(slide_id): openslide.OpenSlide(str(path))
        for slide_id, path in paths.items()
        if path.name not in OTHER_PIXELS
    }
    for (path, y0, y1, x0, x1), pixels in zip(windows, read, strict=True):
        key, _, level = path.rpartition("/")
        if level == "0" and key in oracles:
            region = np.asarray(oracles[key].read_region((x0, y0), 0, (x1 - x0, y1 - y0)))
            inside = region[..., 3] == 255
            np.testing.assert_array_equal(pixels[inside], region[..., :3][inside])


@pytest.mark.parametrize("kind", FORMATS)
def test_slides_in_a_bucket_read_plainly(
    s3_server: S3Server, slide_folder: Path, tmp_path: Path, kind: ReferenceFormat
) -> None:
    url, options = s3_server.upload(slide_folder, f"exported-{kind}"), s3_server.storage_options
    index_cohort(list_slides(url, options), str(tmp_path / "catalog"), slide_storage_options=options, progress=False)
    catalog = Catalog.open(str(tmp_path / "catalog"), slide_storage_options=options)
    windows = [*windows_of(catalog, "b"), *windows_of(catalog, "c")]
    assert_plainly_read_as_ours(catalog, windows, tmp_path, kind, options=options)
    written = b"".join(file.read_bytes() for file in (tmp_path).rglob("*") if file.is_file())
    assert options["secret"].encode() not in written


def write_sparse(path: Path) -> None:
    """Three of its twelve tiles are not stored."""
    image = tissue_image(512, 384, 3)

    def tiles() -> Any:
        for k in range(12):
            y, x = k // 4 * 128, k % 4 * 128
            yield None if k in (3, 5, 11) else np.ascontiguousarray(image[y : y + 128, x : x + 128])

    with tifffile.TiffWriter(path) as writer:
        writer.write(
            tiles(),
            shape=image.shape,
            dtype=np.uint8,
            tile=(128, 128),
            photometric="rgb",
            compression="jpeg",
            metadata=None,
        )


@pytest.mark.parametrize("kind", FORMATS)
def test_tiles_that_were_not_stored_read_plainly_as_white(tmp_path: Path, kind: ReferenceFormat) -> None:
    write_sparse(tmp_path / "sparse.tif")
    index_cohort([str(tmp_path / "sparse.tif")], str(tmp_path / "catalog"), progress=False)
    catalog = Catalog.open(str(tmp_path / "catalog"))
    (pixels,) = assert_plainly_read_as_ours(catalog, [("sparse/0", 0, 384, 0, 512)], tmp_path, kind)
    assert (pixels[:128, 384:] == 255).all()
    assert (pixels[128:256, 128:256] == 255).all()
    assert (pixels[256:, 384:] == 255).all()
    assert (pixels[:128, 128:256] != 255).any()


def write_33003(path: Path, *, next_level: bool = False) -> None:
    """Unsubsampled YCbCr in JPEG 2000, as no marker in the stream tells; the next level is zstd."""
    rgb = tissue_image(256, 256, 1)
    image = cv2.cvtColor(rgb, cv2.COLOR_RGB2YCrCb)[..., [0, 2, 1]]
    tiles = [
        imagecodecs.jpeg2k_encode(np.ascontiguousarray(image[y : y + 128, x : x + 128]), codecformat="J2K", mct=False)
        for y in (0, 128)
        for x in (0, 128)
    ]
    with tifffile.TiffWriter(path) as writer:
        writer.write(
            iter(tiles),
            shape=image.shape,
            dtype=np.uint8,
            tile=(128, 128),
            photometric="rgb",
            compression=33003,
            resolution=(20_000, 20_000),
            resolutionunit="CENTIMETER",
            metadata=None,
        )
        if next_level:
            small = np.ascontiguousarray(rgb[::2, ::2])
            writer.write(small, tile=(128, 128), photometric="rgb", compression="zstd", subfiletype=1, metadata=None)


def test_what_a_plain_reader_would_read_wrongly_is_left_out_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_33003(tmp_path / "ycc.tif")
    write_pyramid(tmp_path / "good.tif", tissue_image(300, 300, 1))
    catalog = str(tmp_path / "catalog")
    index_cohort([str(tmp_path / "ycc.tif"), str(tmp_path / "good.tif")], catalog, progress=False)
    output = str(tmp_path / "refs.json")
    export = ["export", "--catalog", catalog, "--format", "kerchunk-json", "--output", output]
    assert main(export) == 1
    shown = capsys.readouterr()
    assert shown.out == "exported 2 levels of 1 slides: 10 tiles\n"
    lines = shown.err.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("slide ycc: level 0 not exported: JPEG 2000 in YCbCr (33003) without subsampled chroma")
    assert lines[1].startswith("slide ycc: not exported")
    assert not any("ycc" in key for key in json.loads(Path(output).read_text())["refs"])
    assert main(export) == 2
    assert "refs.json: exists; name another output" in capsys.readouterr().err
    assert main([*export[:-1], output + "2", "--slides", "none"]) == 2
    assert "no slide 'none'" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["catalog", "good.tif", "refs.json", "ycc.tif"]


def test_a_level_that_is_left_out_changes_no_resolution(tmp_path: Path) -> None:
    write_33003(tmp_path / "x.tif", next_level=True)
    index_cohort([str(tmp_path / "x.tif")], str(tmp_path / "catalog"), progress=False)
    catalog = Catalog.open(str(tmp_path / "catalog"))
    assert catalog.row("x").mpp == pytest.approx(0.5)
    report = export_references(catalog, str(tmp_path / "refs.json"), format="kerchunk-json")
    assert (report.slides, report.levels, report.tiles, len(report.left_out)) == (1, 1, 1, 1)
    references = json.loads((tmp_path / "refs.json").read_text())["refs"]
    assert [level["path"] for level in json.loads(references["x/.zattrs"])["levels"]] == ["1"]
    slide = open_slide(str(tmp_path / "refs.json"))
    assert slide.mpp == pytest.approx(1.0)
    whole = {"x_px": 0, "y_px": 0, "width_px": 128, "height_px": 128}
    np.testing.assert_array_equal(slide.read_level(level=0, **whole), catalog.slide("x").read_level(level=1, **whole))


def test_a_reference_costs_few_bytes(tmp_path: Path) -> None:
    """Of a level of 40,000 tiles of 3 to 20 KB that lie one behind the other."""
    geometry = LevelGeometry(51_200, 51_200, 256, 256, 1.0)
    lengths = np.random.default_rng(0).integers(3000, 20_000, 40_000)
    ranges = list(zip((np.cumsum(lengths) - lengths).tolist(), lengths.tolist(), strict=True))
    url = "s3://bucket/cohort/slide.svs"
    array = LevelArray("slide/0", geometry, codecs_of(TileEncoding(Codec.JPEG), geometry), {}, url)
    with (
        JsonWriter(str(tmp_path / "r.json"), urls={url}) as as_json,
        ParquetWriter(str(tmp_path / "r.parquet")) as parts,
    ):
        for writer in (as_json, parts):
            writer.array(array)
            writer.tiles(array, 0, ranges)
    assert (tmp_path / "r.json").stat().st_size / 40_000 < 50
    assert sum(file.stat().st_size for file in (tmp_path / "r.parquet").rglob("*")) / 40_000 < 5


def test_a_place_that_cannot_be_written_is_one_line(
    encodings: Catalog, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    output = str(tmp_path / "file" / "refs.json")
    assert main(["export", "--catalog", encodings.url, "--format", "kerchunk-json", "--output", output]) == 2
    assert "refs.json: cannot be written" in capsys.readouterr().err


def test_urls_carry_no_credentials_and_arguments_are_checked(encodings: Catalog, tmp_path: Path) -> None:
    assert public_url("https://me:word@host/a b.svs?sig=secret#x") == "https://host/a b.svs"
    assert public_url("/data/a.svs") == "file:///data/a.svs"
    with pytest.raises(ValueError, match="allowed kerchunk-json, kerchunk-parquet"):
        export_references(encodings, str(tmp_path / "x"), format="zarr")  # type: ignore[arg-type]
    with pytest.raises(CatalogError, match="no slide 'x'"):
        export_references(encodings, str(tmp_path / "x"), format="kerchunk-json", slides=["x"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", FORMATS)
def test_an_export_goes_to_a_bucket_as_well(
    encodings: Catalog, s3_server: S3Server, tmp_path: Path, kind: ReferenceFormat
) -> None:
    (tmp_path / "mark").write_text("")
    bucket = s3_server.upload(tmp_path, f"references-{kind}")
    output = f"{bucket}/set/{NAMES[kind]}"
    export_references(encodings, output, format=kind, slides=["raw"], storage_options=s3_server.storage_options)
    here = tmp_path / "here" / NAMES[kind]
    export_references(encodings, str(here), format=kind, slides=["raw"])
    filesystem, root = open_folder(output, s3_server.storage_options)
    files = [here] if here.is_file() else [file for file in here.rglob("*") if file.is_file()]
    for file in files:
        name = root if here.is_file() else f"{root}/{file.relative_to(here).as_posix()}"
        assert filesystem.cat_file(name) == file.read_bytes()
