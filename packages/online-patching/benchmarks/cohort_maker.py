"""Which slides do the benchmarks read?

1. At least eight different files of 8,000 px and more with the grid sizes and encodings of real scanners, all at
   0.25 um/px, painted once and kept; the first is the large slide (about 16,000 x 12,000 px).
2. A cohort of 200 entries: hard links to those files, so that every entry is a slide of its own to all readers, while
   the disk holds each file once.
3. Two catalogs, of the cohort and of the large slide alone, made by the package itself.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import tifffile
from measuring import TOOLS
from online_patching import PatchingError
from online_patching.jobs import compute_foreground, index_cohort

sys.path.insert(0, str(TOOLS))

from make_sample_slides import paint_slide
from pyramid_from_image import pyramid_from_image
from svs_writer import write_slide

CodecName = Literal["jpeg", "jpeg2000"]
ENTRIES = 200
MPP = 0.25
QUICK_ENTRIES = 6
_SUFFIXES = (".svs", ".tif", ".tiff")
# TIFF compressions.
_COMPRESSIONS: dict[CodecName, tuple[int, ...]] = {"jpeg": (7,), "jpeg2000": (33003, 33005)}


@dataclass(frozen=True, slots=True)
class _Painting:
    """Which slide of the sample generator is stored how."""

    number: int
    encoding: str
    seed: int = 0


# Numbers of the generator with its own sizes and tiles; what it stores as JPEG 2000 is stored as JPEG here.
_PAINTINGS: dict[CodecName, tuple[_Painting, ...]] = {
    "jpeg": (
        _Painting(0, "jpeg-rgb"),
        _Painting(1, "jpeg-ycbcr"),
        _Painting(2, "jpeg-rgb"),
        _Painting(3, "jpeg-rgb"),
        _Painting(4, "jpeg-ycbcr"),
        _Painting(5, "jpeg-ycbcr-420"),
        _Painting(6, "jpeg-rgb"),
        _Painting(7, "jpeg-rgb"),
    ),
    "jpeg2000": tuple(
        _Painting(number, encoding, seed)
        for seed in range(1, 5)
        for number, encoding in ((2, "jp2k-rgb"), (4, "jp2k-ycbcr"))
    ),
}


@dataclass(frozen=True, slots=True)
class Cohort:
    """Slides and their catalogs.

    Attributes:
        codec: How the tiles are stored.
        files: The different files; the first is the large slide.
        entries: The slides of the cohort by their ids.
        catalog: Folder of the cohort's catalog.
        large_catalog: Folder of the catalog of the large slide alone, whose id is ``large_id``.
        large_id: Id of the large slide.
    """

    codec: CodecName
    files: tuple[Path, ...]
    entries: dict[str, Path]
    catalog: Path
    large_catalog: Path
    large_id: str


def cohort_of(parser: argparse.ArgumentParser, arguments: argparse.Namespace, codec: CodecName) -> Cohort:
    """The cohort that the arguments of ``measuring.parser_of`` ask for; ends the program where there is none."""
    try:
        return make_cohort(
            arguments.folder, codec, quick=arguments.quick, image=arguments.image, slides=arguments.slides
        )
    except (ValueError, PatchingError) as error:
        parser.error(str(error))


def make_cohort(
    folder: Path, codec: CodecName, *, quick: bool = False, image: Path | None = None, slides: Path | None = None
) -> Cohort:
    """Paint, link and index what is not there yet.

    Args:
        folder: Where all is kept.
        codec: How the tiles are stored.
        quick: Two slides of about 2,000 px and few entries.
        image: An image to make the large slide from.
        slides: A folder of slides to use instead of painted ones; all count as 0.25 um/px.
    """
    place = folder / (codec + ("-quick" if quick else "") + (f"-{slides.name}" if slides else ""))
    files = _files_of(slides, codec) if slides else _paint_all(place / "files", codec, quick=quick)
    if image is not None:
        files = [_paint_image(image, place / "files", codec), *files[1:]]
    links = place / "entries"
    # Links to other files than now would be other slides under the same names.
    shutil.rmtree(links, ignore_errors=True)
    links.mkdir(parents=True)
    entries: dict[str, Path] = {}
    for k in range(QUICK_ENTRIES if quick else ENTRIES):
        source = files[k % len(files)]
        entry = links / f"entry_{k:03}{source.suffix}"
        _link(source, entry)
        entries[entry.stem] = entry
    catalog = index(place / "catalog", list(map(str, entries.values())))
    large_catalog = index(place / f"catalog-{files[0].stem}", [str(files[0])])
    return Cohort(codec, tuple(files), entries, catalog, large_catalog, files[0].stem)


def index(catalog: Path, urls: list[str]) -> Path:
    """Bring a catalog up to date, and give it its foreground; every slide counts as 0.25 um/px."""
    names = {url.rpartition("/")[2].rpartition(".")[0] for url in urls}
    report = index_cohort(urls, str(catalog), columns={name: {"mpp": MPP} for name in names}, progress=False)
    foreground = compute_foreground(str(catalog), progress=False)
    failures = [*report.failures, *foreground.failures]
    if failures:
        raise RuntimeError(f"{catalog}: {len(failures)} slides failed, the first: {failures[0]}")
    return catalog


def _files_of(folder: Path, codec: CodecName) -> list[Path]:
    files = [
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in _SUFFIXES and _compression(path) in _COMPRESSIONS[codec]
    ]
    if not files:
        raise ValueError(f"{folder}: no {codec} slides named {', '.join(_SUFFIXES)}; give other --slides or --codecs")
    # The first is the large slide.
    return sorted(files, key=lambda path: (-path.stat().st_size, path))


def _compression(path: Path) -> int:
    with tifffile.TiffFile(path) as tiff:
        return int(tiff.pages.first.compression)


def _paint_all(folder: Path, codec: CodecName, *, quick: bool) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    paintings = _PAINTINGS[codec][: 2 if quick else None]
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(lambda painting: _paint(folder, painting, quick=quick), paintings))


def _paint(folder: Path, painting: _Painting, *, quick: bool) -> Path:
    path = folder / f"{painting.encoding}_{painting.number}_{painting.seed}.svs"
    if not path.exists():
        spec, painter = paint_slide(painting.number, seed=painting.seed, small=quick)
        spec = replace(spec, encoding=painting.encoding, mpp=MPP, app_mag=40, name=path.stem)
        write_slide(path, spec, painter.bands(spec.band_px))
    return path


def _paint_image(image: Path, folder: Path, codec: CodecName) -> Path:
    encoding = _PAINTINGS[codec][0].encoding
    path = folder / f"{encoding}_{image.stem}.svs"
    if not path.exists():
        pyramid_from_image(image, path, mpp=MPP, encoding=encoding)
    return path


def _link(source: Path, entry: Path) -> None:
    try:
        entry.hardlink_to(source)
    except OSError:
        # Another file system, or one without hard links.
        shutil.copy2(source, entry)
