"""References that others made, as slides; and hostile ones, as errors."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kerchunk.tiff
import numpy as np
import pytest
import tifffile
from fsspec.implementations.reference import LazyReferenceMapper
from online_patching import Catalog, NotFoundError, Slide, SlideChangedError, SlideFormatError, open_slide
from online_patching.bytesource import split_reference_url
from online_patching.cli import main
from online_patching.jobs import index_cohort
from online_patching.references import ReferenceFormat, export_references
from s3_server import S3Server
from shared_fixtures import real_files
from written_slides import tissue_image, write_pyramid

FORMATS: tuple[ReferenceFormat, ...] = ("kerchunk-json", "kerchunk-parquet")
NAMES = {"kerchunk-json": "refs.json", "kerchunk-parquet": "refs.parquet"}


def assert_same_pixels(slide: Slide, expected: Slide) -> None:
    def sizes(each: Slide) -> list[tuple[int, int, int, int]]:
        return [(g.width_px, g.height_px, g.tile_width_px, g.tile_height_px) for g in each.levels]

    assert sizes(slide) == sizes(expected)
    for level, geometry in enumerate(slide.levels):
        window = {"x_px": 0, "y_px": 0, "width_px": geometry.width_px, "height_px": geometry.height_px}
        window["y_px"], window["height_px"] = max(0, geometry.height_px - 500), min(geometry.height_px, 500)
        ours, theirs = (each.read_level(level=level, **window) for each in (slide, expected))
        np.testing.assert_array_equal(ours, theirs)


def write_tifffile_references(path: Path, output: Path, *, version: int, url: str | None = None) -> None:
    with tifffile.imread(path, aszarr=True) as store:
        store.write_fsspec(output, url=path.parent.as_uri() if url is None else url, version=version)


@pytest.mark.parametrize("version", [0, 1])
@pytest.mark.parametrize("compression", [None, "deflate", "zstd", "lzw"])
def test_what_tifffile_writes_of_a_pyramid(tmp_path: Path, compression: str | None, version: int) -> None:
    path = tmp_path / "a b.tif"
    image = tissue_image(700, 500, 1)
    write_ome_like_pyramid(path, image, compression)
    write_tifffile_references(path, tmp_path / "refs.json", version=version, url="")
    assert_same_pixels(open_slide(str(tmp_path / "refs.json")), open_slide(str(path)))


def write_ome_like_pyramid(path: Path, image: Any, compression: str | None) -> None:
    """A pyramid that tifffile takes for one series, with and without predictor."""
    with tifffile.TiffWriter(path) as writer:
        for k in range(3):
            writer.write(
                np.ascontiguousarray(image[:: 2**k, :: 2**k]),
                tile=(128, 128),
                photometric="rgb",
                compression=compression,
                predictor=compression is not None,
                subfiletype=int(k > 0),
                metadata=None,
            )


@pytest.mark.parametrize("photometric", ["rgb", "ycbcr"])
def test_what_tifffile_writes_of_a_jpeg_level(tmp_path: Path, photometric: str) -> None:
    path = tmp_path / "a.tif"
    image = tissue_image(500, 400, 2)
    tifffile.imwrite(path, image, tile=(128, 128), photometric=photometric, compression="jpeg", metadata=None)
    write_tifffile_references(path, tmp_path / "refs.json", version=0)
    assert_same_pixels(open_slide(str(tmp_path / "refs.json")), open_slide(str(path)))


def test_what_kerchunk_writes_of_a_tiff(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, tissue_image(500, 400, 4), tile=(128, 128), compression="deflate", metadata=None)
    references = kerchunk.tiff.tiff_to_zarr(str(path))
    (tmp_path / "refs.json").write_text(json.dumps({"version": 1, "refs": references}))
    assert_same_pixels(open_slide(str(tmp_path / "refs.json")), open_slide(str(path)))


@pytest.mark.slides_parity
def test_what_tifffile_writes_of_real_slides(tmp_path: Path) -> None:
    compared = 0
    for path in real_files("SLIDES_DIR", ".svs", ".tif", ".tiff"):
        output = tmp_path / f"{path.stem}.json"
        try:
            expected = open_slide(str(path))
            write_tifffile_references(path, output, version=1)
        except (SlideFormatError, tifffile.TiffFileError, ValueError):
            continue
        if expected.header.encodings[0].colour.samples != 3:
            # Grey, or with opacity: the arrays of others have as many channels as are stored.
            with pytest.raises(SlideFormatError, match=path.stem):
                open_slide(str(output))
            continue
        slide = open_slide(str(output))
        if path.stem != "unreadable" and len(slide.levels) == len(expected.levels):
            assert_same_pixels(slide, expected)
            compared += 1
    if not real_files("SLIDES_DIR", ".svs"):
        pytest.skip("no SLIDES_DIR")
    assert compared >= 2, "tifffile wrote references of no real slide that was compared"


@pytest.mark.parametrize("kind", FORMATS)
def test_our_own_export_comes_back(slide_folder: Path, catalog: Catalog, tmp_path: Path, kind: ReferenceFormat) -> None:
    output = str(tmp_path / NAMES[kind])
    export_references(catalog, output, format=kind)
    for slide_id in "abc":
        slide = open_slide(f"{output}#{slide_id}")
        assert slide.mpp == catalog.row(slide_id).mpp
        assert_same_pixels(slide, catalog.slide(slide_id))
    with pytest.raises(SlideFormatError, match=rf"of 3 slides \(a, b, c\); name one, as {NAMES[kind]}#a"):
        open_slide(output)
    with pytest.raises(SlideFormatError, match="no slide 'd' among 3"):
        open_slide(f"{output}#d")


@pytest.mark.parametrize("kind", FORMATS)
def test_references_are_indexed_like_slides(
    slide_folder: Path, catalog: Catalog, tmp_path: Path, kind: ReferenceFormat, capsys: pytest.CaptureFixture[str]
) -> None:
    both, one = str(tmp_path / NAMES[kind]), str(tmp_path / "sub" / NAMES[kind])
    export_references(catalog, both, format=kind)
    export_references(catalog, one, format=kind, slides=["c"])
    index = ["index", f"{both}#a", f"{both}#b", one, "--catalog", str(tmp_path / "catalog")]
    assert main(index) == 0
    assert "indexed 3 slides" in capsys.readouterr().out
    imported = Catalog.open(str(tmp_path / "catalog"))
    assert [row.id for row in imported] == ["a", "b", "refs"]
    assert_same_pixels(imported.slide("b"), catalog.slide("b"))
    assert_same_pixels(imported.slide("refs"), catalog.slide("c"))
    assert imported.row("a").objects == catalog.row("a").objects
    assert main(index) == 0
    assert "3 were up to date" in capsys.readouterr().out
    assert main(["index", both, "--catalog", str(tmp_path / "other")]) == 2
    assert "of 3 slides (a, b, c); name one" in capsys.readouterr().err


def test_the_object_is_pinned_at_import(tmp_path: Path) -> None:
    write_pyramid(tmp_path / "a.svs", tissue_image(400, 300, 1))
    index_cohort([str(tmp_path / "a.svs")], str(tmp_path / "catalog"), progress=False)
    output = str(tmp_path / "refs.json")
    export_references(Catalog.open(str(tmp_path / "catalog")), output, format="kerchunk-json")
    slide = open_slide(output)
    (tmp_path / "a.svs").write_bytes((tmp_path / "a.svs").read_bytes() + b"x")
    with pytest.raises(SlideChangedError, match=r"a\.svs"):
        slide.read_level(level=0, x_px=0, y_px=0, width_px=9, height_px=9)


def test_what_kerchunks_writer_makes_is_read(slide_folder: Path, tmp_path: Path) -> None:
    catalog = str(tmp_path / "catalog")
    index_cohort([str(slide_folder / "a.svs")], catalog, progress=False)
    export_references(Catalog.open(catalog), str(tmp_path / "refs.json"), format="kerchunk-json")
    document = json.loads((tmp_path / "refs.json").read_text())
    (url,) = document["templates"].values()
    mapper = LazyReferenceMapper.create(str(tmp_path / "theirs.parquet"), record_size=50, engine="pyarrow")
    for key, value in document["refs"].items():
        mapper[key] = value if isinstance(value, str) else [url, *value[1:]]
    mapper.flush()
    assert_same_pixels(open_slide(str(tmp_path / "theirs.parquet")), open_slide(str(slide_folder / "a.svs")))


def test_tiles_that_were_not_stored_stay_white_through_parquet(tmp_path: Path) -> None:
    image = tissue_image(256, 256, 1)
    tiles = [image[:128, :128], None, image[128:, :128], None]
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        arguments: dict[str, Any] = {"photometric": "rgb", "compression": "zstd", "predictor": True, "metadata": None}
        writer.write(
            (tile if tile is None else np.ascontiguousarray(tile) for tile in tiles),
            shape=image.shape,
            dtype=np.uint8,
            tile=(128, 128),
            **arguments,
        )
    index_cohort([str(tmp_path / "a.tif")], str(tmp_path / "catalog"), progress=False)
    export_references(Catalog.open(str(tmp_path / "catalog")), str(tmp_path / "r.parquet"), format="kerchunk-parquet")
    slide = open_slide(str(tmp_path / "r.parquet"))
    assert_same_pixels(slide, open_slide(str(tmp_path / "a.tif")))
    assert (slide.read_level(level=0, x_px=128, y_px=0, width_px=128, height_px=256) == 255).all()


def test_references_in_a_bucket_name_objects_beside_them(s3_server: S3Server, tmp_path: Path) -> None:
    write_ome_like_pyramid(tmp_path / "a.tif", tissue_image(300, 260, 1), "zstd")
    for name, url in (("beside", ""), ("local", tmp_path.as_uri()), ("absolute", str(tmp_path))):
        write_tifffile_references(tmp_path / "a.tif", tmp_path / f"{name}.json", version=0, url=url)
    bucket, options = s3_server.upload(tmp_path, "references"), s3_server.storage_options
    slide = open_slide(f"{bucket}/beside.json", storage_options=options)
    assert_same_pixels(slide, open_slide(str(tmp_path / "a.tif")))
    for name in ("local", "absolute"):
        with pytest.raises(SlideFormatError, match=r"local file .* references in a remote store must not"):
            open_slide(f"{bucket}/{name}.json", storage_options=options)


def test_colours_that_nobody_states_are_refused(good: str, tmp_path: Path) -> None:
    document = json.loads(good)
    _set(ZARRAY, "compressor", {"id": "imagecodecs_jpeg", "colorspace_data": 2})(document)
    (tmp_path / "x.json").write_text(json.dumps(document))
    # The tiles of this file say it themselves, with a JFIF marker.
    assert open_slide(str(tmp_path / "x.json")).header.encodings[0].colour == "ycbcr"
    document["refs"]["a/0/0.0.0"] = ["{{u0}}", 0, 100]
    (tmp_path / "x.json").write_text(json.dumps(document))
    with pytest.raises(SlideFormatError, match="neither colorspace_jpeg nor their own markers state"):
        open_slide(str(tmp_path / "x.json"))


# What is wrong with references, made from good ones of two levels: a change, and the reason that the error gives.
def _set(path: str, name: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(document: dict[str, Any]) -> None:
        refs = document["refs"]
        refs[path] = json.dumps({**json.loads(refs[path]), name: value})

    return change


def _chunk(value: Any, key: str = "a/0/0.0.0") -> Callable[[dict[str, Any]], None]:
    return lambda document: document["refs"].update({key: value})


ZARRAY = "a/0/.zarray"
HOSTILE: list[tuple[Callable[[dict[str, Any]], Any], str]] = [
    (_set(ZARRAY, "shape", [1200, 1500, 4]), "a level is .height, width, 3. uint8"),
    (_set(ZARRAY, "shape", [10**30, 1500, 3]), "sides up to 16777216"),
    (_set(ZARRAY, "shape", [1200, True, 3]), "a level is"),
    (_set(ZARRAY, "shape", [-1, 1500, 3]), "a level is"),
    (_set(ZARRAY, "shape", {}), "a level is"),
    (_set(ZARRAY, "shape", [1_200_000, 1_500_000, 3]), "11719 x 9375 tiles .allowed: 4194304"),
    (_set(ZARRAY, "chunks", [0, 128, 3]), "a level is"),
    (_set(ZARRAY, "chunks", [1 << 20, 1 << 20, 3]), "allowed: sides up to 16777216, 16777216 px a tile"),
    (_set(ZARRAY, "dtype", "<u2"), "a level is"),
    (_set(ZARRAY, "order", "F"), "allowed: 'C'"),
    (_set(ZARRAY, "zarr_format", 3), "not of Zarr format 2"),
    (_set(ZARRAY, "compressor", {"id": "blosc"}), "codec 'blosc'; known: imagecodecs_jpeg"),
    (_set(ZARRAY, "compressor", {"id": ["x"]}), "compressor without an id"),
    (_set(ZARRAY, "compressor", {"id": "imagecodecs_jpeg"}), "not stated to be RGB"),
    (
        _set(
            ZARRAY, "compressor", {"id": "imagecodecs_jpeg", "colorspace_data": 2, "colorspace_jpeg": 2, "tables": "ä"}
        ),
        "array 'a/0'",
    ),
    (_set(ZARRAY, "filters", [{"id": "shuffle"}]), "filters other than horizontal differences"),
    (_chunk("base64:AAAA"), "holds chunks inline"),
    (_chunk(["{{u0}}"]), "only byte ranges are read"),
    (_chunk([None, 1, 2]), "only byte ranges are read"),
    (_chunk(["{{u0}}", 1.5, 2]), "only byte ranges are read"),
    (_chunk(["{{u0}}", -1, 2]), "has the range -1"),
    (_chunk(["{{u0}}", 1, 1 << 40]), "has the range"),
    (_chunk(["{{u0}}", 1 << 40, 1000]), "1 references lie past the end of .*a.svs"),
    (_chunk(["other.svs", 1, 2]), "lie in several objects"),
    (_chunk(["{{u0}}", 1, 2], "a/0/99.0.0"), "lies outside of its array"),
    (_chunk(["{{u0}}", 1, 2], "a/0/0.0.1"), "lies outside of its array"),
    (_chunk(["{{u0}}", 1, 2], "a/0/0.0"), "is no chunk key"),
    (_chunk("{}", "a/../b/.zarray"), "'..' is no name"),
    (_chunk("[1]", ZARRAY), "a JSON list, not an object"),
    (_chunk("{", ZARRAY), "not valid JSON"),
    (_set(ZARRAY, "shape", [1200, 400, 3]), "not levels of one pyramid|outside"),
    (lambda document: document.update(templates={}), "template in .* is not given"),
    (lambda document: document.update(templates={"u0": "{{u0}}{{u0}}"}), "template in .* is not given"),
    (lambda document: document.update(templates={"u0": "memory://x"}), "it refers to 'memory://x'; allowed"),
    (lambda document: document.update(templates={"u0": "simplecache::file:///etc/passwd"}), "it refers to"),
    (lambda document: document.update(templates={"u0": "http://["}), "an object that cannot be: .*Invalid IPv6"),
    (lambda document: document.update(templates={"u0": "http://"}), "an object that cannot be: .*no host"),
    (lambda document: document.update(templates={"u0": "http://h:99999/x"}), "an object that cannot be: .*Port"),
    (lambda document: document.update(templates={"u0": "a\0"}), "an object that cannot be: .*NUL"),
    (lambda document: document.update(templates={"u0": "\ud800"}), "an object that cannot be: .*encode"),
    (lambda document: document.update(templates=[]), "templates that are no texts"),
    (lambda document: document.update(gen=[{"key": "x"}]), "to be generated"),
    (lambda document: document.update(version=2), "no kerchunk references"),
    (lambda document: document.update(refs=[]), "no kerchunk references"),
    (lambda document: document.update(refs={}), "no Zarr array"),
]


@pytest.fixture(scope="module")
def good(slide_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("good")
    index_cohort([str(slide_folder / "a.svs")], str(folder / "catalog"), progress=False)
    export_references(Catalog.open(str(folder / "catalog")), str(folder / "r.json"), format="kerchunk-json")
    return (folder / "r.json").read_text()


@pytest.mark.parametrize(("change", "reason"), HOSTILE, ids=range(len(HOSTILE)))
def test_what_is_not_understood_is_refused_by_name(
    good: str, tmp_path: Path, change: Callable[[dict[str, Any]], Any], reason: str
) -> None:
    document = json.loads(good)
    change(document)
    (tmp_path / "x.json").write_text(json.dumps(document))
    started = time.process_time()
    with pytest.raises(SlideFormatError, match=reason) as caught:
        open_slide(str(tmp_path / "x.json"))
    assert "x.json" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert time.process_time() - started < 5


def test_a_missing_target_is_named(good: str, tmp_path: Path) -> None:
    document = json.loads(good)
    document["templates"]["u0"] = "gone.svs"
    (tmp_path / "x.json").write_text(json.dumps(document))
    with pytest.raises(NotFoundError, match=r"gone\.svs"):
        open_slide(str(tmp_path / "x.json"))


def test_huge_and_deep_json_cost_little(tmp_path: Path) -> None:
    """Read in a process of its own, whose memory is measured."""
    with (tmp_path / "huge.json").open("wb") as file:
        file.write(b'{"version": 1, "refs": {')
        file.truncate(100 << 20)
    (tmp_path / "deep.json").write_text('{"refs":' + "[" * 1_000_000)
    zarray = {"zarr_format": 2, "shape": [65536, 1048576, 3], "chunks": [256, 256, 3], "dtype": "|u1"}
    many = ", ".join(f'"{k // 4096}.{k % 4096}.0": ["a", 0, 1]' for k in range(100_000))
    (tmp_path / "many.json").write_text(f'{{".zarray": {json.dumps(zarray)}, {many}}}')
    (tmp_path / "other.json").write_text('{"type": "FeatureCollection", "features": []}')
    program = """
import resource, sys, time
from online_patching import PatchingError, open_slide
import pyarrow
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
started = time.process_time()
try:
    open_slide(sys.argv[1])
except PatchingError as error:
    print(type(error).__name__, error)
print(time.process_time() - started, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""
    for name, reason in (
        ("huge", "bytes of JSON (allowed"),
        ("deep", "nested too deep"),
        ("many", "no such file"),
        ("other", "no Zarr array"),
    ):
        command = [sys.executable, "-c", program, str(tmp_path / f"{name}.json")]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
        error, costs = done.stdout.splitlines()
        assert reason in error
        seconds, megabytes = map(float, costs.split())
        assert seconds < (3 if name == "many" else 1), name
        assert megabytes < 256, name


def test_a_single_array_whose_chunks_have_other_keys_is_refused(good: str, tmp_path: Path) -> None:
    zarray = json.loads(good)["refs"][ZARRAY]
    (tmp_path / "x.json").write_text(json.dumps({".zarray": zarray, "0.0": ["a.svs", 0, 10]}))
    with pytest.raises(SlideFormatError, match=r"'0\.0' is no chunk key such as"):
        open_slide(str(tmp_path / "x.json"))


def test_parquet_that_is_none(tmp_path: Path, good: str) -> None:
    folder = tmp_path / "x.parquet"
    folder.mkdir()
    with pytest.raises(NotFoundError, match="zmetadata"):
        open_slide(str(folder))
    (folder / ".zmetadata").write_text('{"metadata": {}, "record_size": 0}')
    with pytest.raises(SlideFormatError, match="record_size 0"):
        open_slide(str(folder))
    metadata = {key: json.loads(value) for key, value in json.loads(good)["refs"].items() if ".z" in key}
    (folder / ".zmetadata").write_text(json.dumps({"metadata": metadata, "record_size": 1000}))
    with pytest.raises(SlideFormatError, match="without a single stored chunk"):
        open_slide(str(folder))
    (folder / "a" / "0").mkdir(parents=True)
    (folder / "a" / "0" / "refs.0.parq").write_bytes(b"PAR1 no")
    with pytest.raises(SlideFormatError, match="no Parquet file"):
        open_slide(str(folder))


@pytest.mark.parametrize(
    ("url", "parts"),
    [
        ("refs.json", ("refs.json", "")),
        ("s3://b/refs.json#a/b", ("s3://b/refs.json", "a/b")),
        ("refs.parquet/", ("refs.parquet", "")),
        ("refs.parq#x", ("refs.parq", "x")),
        ("https://h/r.json?sig=1#x", ("https://h/r.json?sig=1", "x")),
        ("a.svs", None),
        ("a#b.svs", None),
    ],
)
def test_a_fragment_picks_the_slide(url: str, parts: tuple[str, str] | None) -> None:
    assert split_reference_url(url) == parts
