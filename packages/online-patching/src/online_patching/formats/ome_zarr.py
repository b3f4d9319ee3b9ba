"""Which slide is in an OME-Zarr folder: its levels, resolution and axes?

OME-Zarr (NGFF) 0.4 keeps its metadata in ``.zattrs`` of a Zarr v2 group, 0.5 in ``zarr.json`` of a v3 group. The steps:
read the group's document (of a bioformats2raw folder: of its first series), take the first entry of ``multiscales``,
read the metadata of every array that it names (from the group's consolidated metadata where it has some), check that
they are levels of one 8-bit RGB or grey picture. Only documents are read, each by one request, and nothing outside of
the folder: the arrays' paths are relative and hold no ``..``.

Source: ngff.openmicroscopy.org, versions 0.4 and 0.5, sections "multiscales" and "bioformats2raw.layout".
"""

from __future__ import annotations

import asyncio
import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from online_patching.bytesource import PinnedObject, join_url, shown_url
from online_patching.errors import NotFoundError, SlideFormatError, StorageError
from online_patching.formats.header import Codec, Colour, FoundSlide, SlideHeader, TileEncoding
from online_patching.formats.pyramid import MAX_LEVELS, downsampled
from online_patching.formats.zarr_array import ZarrArray, checked_array
from online_patching.geometry import LevelGeometry
from online_patching.storage import Store

if TYPE_CHECKING:
    from zarr import AsyncArray

VERSIONS = ("0.4", "0.5")
MAX_DOCUMENT_BYTES = 4 << 20

_AXES = ("t", "c", "z", "y", "x")
_UM_PER_UNIT = {
    "micrometer": 1.0, "um": 1.0, "\u00b5m": 1.0, "\u03bcm": 1.0,
    "millimeter": 1000.0, "mm": 1000.0, "nanometer": 0.001, "nm": 0.001,
}  # fmt: skip
# One folder or file name: nothing that a URL or a path would read as more than that.
_SEGMENT = re.compile(r"[^/\\?#%:\x00-\x1f]+")


@dataclass(frozen=True, slots=True)
class OmeZarrSlide:
    """An OME-Zarr slide and the opened arrays behind its levels.

    Attributes:
        found: Header and pinned metadata objects.
        folder_url: The folder that the arrays' names are relative to.
        axes: One letter an axis, such as ``tczyx``.
        arrays: The array of every level, finest first.
        requests: Documents that were asked for.
        bytes_read: Bytes received.
    """

    found: FoundSlide
    folder_url: str
    axes: str
    arrays: tuple[AsyncArray[Any], ...]
    requests: int
    bytes_read: int


async def read_ome_zarr(store: Store, url: str) -> OmeZarrSlide:
    """Read the metadata of an OME-Zarr folder.

    Args:
        store: Opens objects.
        url: The folder.

    Raises:
        NotFoundError: No Zarr metadata lies there.
        StorageError: The store cannot be reached.
        SlideFormatError: Not an OME-Zarr image, or one that is no 8-bit RGB or grey picture.
    """
    folder = url.rstrip("/")
    reader = _DocumentReader(store)
    group = await reader.read_group(folder)
    if "multiscales" not in group.ome and "bioformats2raw.layout" in group.ome:
        # Each series is an image of its own (label and macro come behind); the first is the slide.
        folder = join_url(folder, "0")
        group = await reader.read_group(folder)
    image = _read_multiscales(group)
    arrays = await reader.read_arrays(folder, group, image.paths)
    order = sorted(range(len(arrays)), key=lambda k: -arrays[k].shape[image.axes.index("x")])
    arrays = [arrays[k] for k in order]
    levels = _levels(group, image.axes, arrays)
    header = SlideHeader(
        vendor="ome-zarr",
        mpp=_mpp(image, order[0]),
        levels=levels,
        encodings=tuple(TileEncoding(Codec.ZARR, _colour(group, image.axes, array)) for array in arrays),
        properties={"ome-zarr version": image.version, "axes": image.axes}
        | ({"name": image.name} if image.name else {}),
    )
    found = FoundSlide(header, (), tuple(reader.objects))
    # Importing zarr takes longer than opening any other slide.
    from online_patching.formats.zarr_store import open_array

    opened = [await open_array(store, join_url(folder, a.name), a, found.objects[0]) for a in arrays]
    return OmeZarrSlide(found, folder, image.axes, tuple(opened), reader.requests, reader.bytes_read)


@dataclass(frozen=True, slots=True)
class _Group:
    """A group's document: its OME attributes, and metadata of its arrays where it holds them."""

    url: str
    zarr_format: int
    ome: dict[str, Any]
    consolidated: dict[str, Any]

    def error(self, message: str) -> SlideFormatError:
        return SlideFormatError(f"{shown_url(self.url)}: {message}")


class _DocumentReader:
    """Reads JSON documents, each by one request that also tells its version; counts them."""

    def __init__(self, store: Store) -> None:
        self.objects: list[PinnedObject] = []
        self.requests = 0
        self.bytes_read = 0
        self._store = store

    async def read_group(self, folder: str) -> _Group:
        """The document of a group: ``zarr.json``, or ``.zattrs`` where there is none."""
        url = join_url(folder, "zarr.json")
        try:
            document, pinned = await self._read(url)
        except StorageError as error:
            # Stores that do not let one list say "forbidden" of what is missing.
            url = join_url(folder, ".zattrs")
            try:
                ome, pinned = await self._read(url)
            except NotFoundError as missing:
                if not isinstance(error, NotFoundError):
                    raise error from missing
                raise NotFoundError(
                    f"{shown_url(folder)}: no zarr.json and no .zattrs there: not a Zarr folder"
                ) from missing
            self.objects.append(pinned)
            return _Group(url, 2, ome, {})
        self.objects.append(pinned)
        attributes = document.get("attributes")
        ome = attributes.get("ome", {}) if isinstance(attributes, dict) else {}
        consolidated = document.get("consolidated_metadata")
        known = consolidated.get("metadata") if isinstance(consolidated, dict) else None
        return _Group(url, 3, ome if isinstance(ome, dict) else {}, known if isinstance(known, dict) else {})

    async def read_arrays(self, folder: str, group: _Group, paths: tuple[str, ...]) -> list[ZarrArray]:
        """The arrays of all levels."""
        if all(path in group.consolidated for path in paths):
            return [checked_array(group.consolidated[p], name=p, where=f"{shown_url(group.url)} ({p})") for p in paths]
        name = ".zarray" if group.zarr_format == 2 else "zarr.json"
        urls = [join_url(folder, path, name) for path in paths]
        answers = await asyncio.gather(*(self._read(url) for url in urls))
        self.objects += [pinned for _, pinned in answers]
        return [
            checked_array(document, name=path, where=shown_url(url))
            for (document, _), path, url in zip(answers, paths, urls, strict=True)
        ]

    async def _read(self, url: str) -> tuple[dict[str, Any], PinnedObject]:
        self.requests += 1
        data, info = await self._store.open(url).read_whole(max_bytes=MAX_DOCUMENT_BYTES)
        self.bytes_read += len(data)
        try:
            document = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise SlideFormatError(f"{shown_url(url)}: not JSON ({str(error)[:100]}): the file is damaged") from error
        if not isinstance(document, dict):
            raise SlideFormatError(f"{shown_url(url)}: not a JSON object: the file is damaged")
        return document, PinnedObject(url, info)


@dataclass(frozen=True, slots=True)
class _Multiscales:
    """The first multiscale image of a group, checked."""

    version: str
    name: str
    axes: str
    units: tuple[str, ...]
    paths: tuple[str, ...]
    scales: tuple[tuple[float, ...] | None, ...]


def _read_multiscales(group: _Group) -> _Multiscales:
    for kind, remedy in (("plate", "one image of a well"), ("well", "one of its images"), ("image-label", "the image")):
        if kind in group.ome:
            raise group.error(f"it holds a {kind}, which is no slide; open {remedy} by its own path")
    entries = group.ome.get("multiscales")
    if not isinstance(entries, list) or not entries or not isinstance(entries[0], dict):
        raise group.error("no multiscales: not an OME-Zarr image; write it with ome-zarr or bioformats2raw")
    image = entries[0]
    version = group.ome.get("version") if group.zarr_format == 3 else image.get("version", VERSIONS[0])
    if not isinstance(version, str) or ".".join(version.split(".")[:2]) not in VERSIONS:
        raise group.error(f"OME-Zarr version {str(version)[:20]!r}, allowed: {', '.join(VERSIONS)}; convert the image")
    axes, units = _axes(group, image.get("axes"))
    datasets = image.get("datasets")
    if not isinstance(datasets, list) or not 0 < len(datasets) <= MAX_LEVELS:
        raise group.error(f"multiscales names no datasets, or more than {MAX_LEVELS}: the file is damaged")
    if not all(isinstance(dataset, dict) for dataset in datasets):
        raise group.error("a dataset of multiscales is no JSON object: the file is damaged")
    paths = tuple(_path(group, dataset.get("path")) for dataset in datasets)
    if len(set(paths)) < len(paths):
        raise group.error("two datasets of multiscales have one path: the file is damaged")
    common = _scale(image, len(axes), (1.0,) * len(axes))
    own = [_scale(dataset, len(axes), None) for dataset in datasets]
    scales = tuple(
        None if scale is None or common is None else tuple(a * b for a, b in zip(scale, common, strict=True))
        for scale in own
    )
    name = image.get("name")
    return _Multiscales(version, name[:200] if isinstance(name, str) else "", axes, units, paths, scales)


def _axes(group: _Group, value: object) -> tuple[str, tuple[str, ...]]:
    if not isinstance(value, list) or not 2 <= len(value) <= len(_AXES) or not all(isinstance(a, dict) for a in value):
        raise group.error("axes is no list of 2 to 5 axes with names: the file is damaged")
    names = [axis.get("name") for axis in value]
    if (
        not set(map(repr, names)) <= set(map(repr, _AXES))
        or len(set(names)) < len(names)
        or not {"x", "y"} <= set(names)
    ):
        raise group.error(f"axes {str(names)[:80]}, allowed: y and x, and any of t, c, z, each once")
    return "".join(map(str, names)), tuple(str(axis.get("unit", "")) for axis in value)


def _path(group: _Group, value: object) -> str:
    segments = value.split("/") if isinstance(value, str) and len(value) <= 1024 else [""]
    if any(_SEGMENT.fullmatch(segment) is None or segment in (".", "..") for segment in segments):
        raise group.error(f"a dataset's path is {str(value)[:80]!r}, allowed: a relative path inside of the slide")
    return "/".join(segments)


def _scale(owner: dict[str, Any], axes: int, default: tuple[float, ...] | None) -> tuple[float, ...] | None:
    """The scale of a dataset or image; ``default`` where it states none, None where it is no such thing."""
    transforms = owner.get("coordinateTransformations")
    if not isinstance(transforms, list):
        return default
    stated = [t.get("scale") for t in transforms if isinstance(t, dict) and t.get("type") == "scale"]
    if not stated:
        return default
    scale = stated[0]
    if not isinstance(scale, list) or len(scale) != axes:
        return None
    if any(isinstance(value, bool) or not isinstance(value, (int, float)) for value in scale):
        return None
    return tuple(float(value) if abs(value) < 1e12 else 0.0 for value in scale)


def _mpp(image: _Multiscales, dataset: int) -> float | None:
    """Resolution of level 0 in um per pixel, or None where scale or unit do not say."""
    scale = image.scales[dataset]
    if scale is None:
        return None
    sides = [scale[k] * _UM_PER_UNIT.get(image.units[k], 0.0) for k in (image.axes.index("x"), image.axes.index("y"))]
    return sum(sides) / 2 if all(0 < side < 1000 for side in sides) else None


def _levels(group: _Group, axes: str, arrays: list[ZarrArray]) -> tuple[LevelGeometry, ...]:
    levels: list[LevelGeometry] = []
    x, y = axes.index("x"), axes.index("y")
    for array in arrays:
        if len(array.shape) != len(axes):
            raise group.error(f"array {array.name} has {len(array.shape)} axes, multiscales says {axes}: damaged")
        for axis in set(axes) & {"t", "z"}:
            if array.shape[axes.index(axis)] != 1:
                length = array.shape[axes.index(axis)]
                raise group.error(f"array {array.name}: {length} planes along {axis}, allowed: 1; export one plane")
        width, height = array.shape[x], array.shape[y]
        levels.append(LevelGeometry(width, height, array.chunks[x], array.chunks[y], 1.0))
    return tuple(downsampled(level, levels[0], error=group.error, padded=False) for level in levels)


def _colour(group: _Group, axes: str, array: ZarrArray) -> Colour:
    channels = array.shape[axes.index("c")] if "c" in axes else 1
    if channels not in (1, 3):
        raise group.error(
            f"array {array.name} has {channels} channels, allowed: 3 (RGB) or 1 (grey); fluorescence is not read"
        )
    return Colour.RGB if channels == 3 else Colour.GREY
