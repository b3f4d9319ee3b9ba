"""Who can tell where the tiles of a remote slide lie: this package and its peers, behind one small protocol.

``index`` is what is timed: from a URL to the offsets and lengths of every tile, in the form in which a user of that
library gets them. ``tiles`` turns that into arrays for the comparison and is not timed. Storage clients are made
beforehand and kept warm; what is known of an object is not.
"""

from __future__ import annotations

import asyncio
import io
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import fsspec
import numpy as np
import numpy.typing as npt
import tifffile
from kerchunk.tiff import tiff_to_zarr  # type: ignore[import-untyped]
from online_patching import loop
from online_patching.index import SlideIndex, index_slide
from online_patching.jobs import INDEX_WORKERS, index_cohort
from online_patching.storage import Store

Ranges = npt.NDArray[np.int64]
"""(2, N): offset and length of each tile of an image, in row-major order."""

# The fastest of the grid that `indexing.py --caches` measures on the generated slides.
BEST_CACHE: dict[str, Any] = {"cache_type": "blockcache", "block_size": 1024 * 1024}
CACHES: tuple[dict[str, Any], ...] = tuple(
    {"cache_type": kind, "block_size": size * 1024}
    for kind in ("readahead", "bytes", "blockcache", "background")
    for size in (64, 256, 1024, 4096)
)


@dataclass(frozen=True, slots=True)
class Client:
    """One way to index a slide.

    Attributes:
        name: For the tables.
        index: URL to whatever the library gives.
        tiles: The ranges of every image in it.
        cohort: URLs of many slides to their indices, in parallel; None where the library has no way of its own that
            differs from a loop.
    """

    name: str
    index: Callable[[str], Any]
    tiles: Callable[[Any], list[Ranges]]
    cohort: Callable[[list[str]], object] | None = None


OURS = "online-patching"


def clients(options: Mapping[str, Any]) -> tuple[list[Client], list[str]]:
    """All clients that are installed, this package first, and a line for each that is not.

    Args:
        options: Storage options of an S3 server, with key, secret and endpoint, in fsspec's dialect.
    """
    found = [
        _ours(options),
        tifffile_client(options, None),
        tifffile_client(options, BEST_CACHE),
        _tifffile_references(options),
        _kerchunk(options),
    ]
    missing = []
    for make in (_async_tiff, _virtual_tiff):
        try:
            found.append(make(options))
        except ImportError as error:
            missing.append(f"not compared: {error.name} is not installed (dependency group 'bench')")
    return found, missing


def _ours(options: Mapping[str, Any]) -> Client:
    def index(url: str) -> SlideIndex:
        return loop.run(index_slide(url, Store(options)))

    def cohort(urls: list[str]) -> None:
        with TemporaryDirectory() as folder:
            report = index_cohort(
                urls, str(Path(folder) / "catalog"), storage_options={}, slide_storage_options=options, progress=False
            )
        assert report.done == len(urls), f"{len(urls)} slides, indexed {report.done}: {report.failures[:1]}"

    return Client(OURS, index, lambda found: [_ranges(t.offset, t.length) for t in found.tiles], cohort)


def tifffile_client(options: Mapping[str, Any], cache: Mapping[str, Any] | None) -> Client:
    """The tifffile library over an fsspec file, with fsspec's own cache or another one."""
    name = "tifffile, " + ("default cache" if cache is None else _cache_name(cache))

    def index(url: str) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
        with _opened(url, options, cache) as tiff:
            levels = [level for series in tiff.series for level in series.levels]
            return [(page.dataoffsets, page.databytecounts) for level in levels for page in level.pages if page]

    def cohort(urls: list[str]) -> None:
        with ThreadPoolExecutor(INDEX_WORKERS) as pool:
            list(pool.map(index, urls))

    return Client(name, index, lambda found: [_ranges(*each) for each in found], cohort if cache else None)


def _cache_name(cache: Mapping[str, Any]) -> str:
    return f"{cache['cache_type']} {cache['block_size'] // 1024} KB"


@contextmanager
def _opened(url: str, options: Mapping[str, Any], cache: Mapping[str, Any] | None) -> Iterator[tifffile.TiffFile]:
    filesystem = fsspec.filesystem("s3", **options)
    with filesystem.open(url, **(cache or {})) as file, tifffile.TiffFile(file, name=url.rpartition("/")[2]) as tiff:
        yield tiff


def _tifffile_references(options: Mapping[str, Any]) -> Client:
    def index(url: str) -> str:
        references = io.StringIO()
        with _opened(url, options, BEST_CACHE) as tiff, tiff.series[0].aszarr() as store:
            store.write_fsspec(references, url=url.rpartition("/")[0])
        return references.getvalue()

    return Client("tifffile write_fsspec", index, lambda found: _referenced(json.loads(found)))


def _kerchunk(options: Mapping[str, Any]) -> Client:
    cache = {f"default_{name}": value for name, value in BEST_CACHE.items()}

    def index(url: str) -> dict[str, Any]:
        return dict(tiff_to_zarr(url, remote_options={**options, **cache}))

    return Client("kerchunk", index, _referenced)


def _async_tiff(options: Mapping[str, Any]) -> Client:
    from async_tiff import TIFF
    from async_tiff.store import S3Store  # type: ignore[import-not-found]

    stores: dict[str, Any] = {}
    gate = asyncio.Semaphore(INDEX_WORKERS)

    async def read(url: str) -> list[Any]:
        bucket, _, path = url.removeprefix("s3://").partition("/")
        if bucket not in stores:
            stores[bucket] = S3Store(bucket, **_obstore_options(options))
        async with gate:
            tiff = await TIFF.open(path, store=stores[bucket])
        tiled = [ifd for ifd in tiff.ifds if ifd.tile_offsets]
        return [(ifd.tile_offsets, ifd.tile_byte_counts) for ifd in tiled]

    async def read_all(urls: list[str]) -> None:
        await asyncio.gather(*(read(url) for url in urls))

    return Client(
        "async-tiff",
        lambda url: loop.run(read(url)),
        lambda found: [_ranges(*each) for each in found],
        lambda urls: loop.run(read_all(urls)),
    )


def _virtual_tiff(options: Mapping[str, Any]) -> Client:
    from obspec_utils.registry import ObjectStoreRegistry
    from obstore.store import S3Store
    from virtual_tiff import VirtualTIFF

    registries: dict[str, Any] = {}

    def index(url: str) -> Any:
        bucket = url.removeprefix("s3://").partition("/")[0]
        if bucket not in registries:
            registries[bucket] = ObjectStoreRegistry({f"s3://{bucket}": S3Store(bucket, **_obstore_options(options))})
        return VirtualTIFF()(url, registry=registries[bucket])

    def tiles(found: Any) -> list[Ranges]:
        manifests = [array.manifest for array in found._group.arrays.values()]
        return [_ranges(m._offsets.ravel(), m._lengths.ravel()) for m in manifests]

    return Client("virtual-tiff", index, tiles)


def _obstore_options(options: Mapping[str, Any]) -> dict[str, Any]:
    client = options["client_kwargs"]
    return {
        "endpoint": client["endpoint_url"],
        "region": client["region_name"],
        "access_key_id": options["key"],
        "secret_access_key": options["secret"],
        "client_options": {"allow_http": True},
    }


def _referenced(references: Mapping[str, Any]) -> list[Ranges]:
    """The chunks of every array in a version 0 reference set; chunks without a reference have length 0."""
    images = []
    for key, value in references.items():
        if key.rpartition("/")[2] != ".zarray":
            continue
        array = json.loads(value)
        grid = [math.ceil(size / chunk) for size, chunk in zip(array["shape"], array["chunks"], strict=True)]
        ranges = np.zeros((2, math.prod(grid)), np.int64)
        pattern = re.compile(re.escape(key.removesuffix(".zarray")) + r"(\d+(?:\.\d+)*)")
        for name, reference in references.items():
            place = pattern.fullmatch(name)
            if place and isinstance(reference, list):
                number = np.ravel_multi_index([int(k) for k in place[1].split(".")], grid)
                ranges[:, number] = reference[1:]
        images.append(ranges)
    return images


def _ranges(offsets: Any, lengths: Any) -> Ranges:
    """Offsets of tiles that are not stored mean nothing and become 0."""
    ranges = np.array([offsets, lengths], dtype=np.int64)
    ranges[0, ranges[1] == 0] = 0
    return ranges


def same_tiles(expected: list[Ranges], found: list[Ranges]) -> bool:
    """Whether every level of ours is among the images that another client found, tile by tile."""
    return all(any(np.array_equal(level, image) for image in found) for level in expected)
