"""Which slides lie behind the URLs that a user names?

Each URL is a slide, a folder, or a glob with fsspec's meaning (``*`` within a name, ``**`` across folders, ``?``,
``[abc]``). A folder is listed once, page by page, and whatever ends like a slide is a candidate; what it really is, its
first bytes tell when it is opened. A folder that ends in ``.zarr`` is one slide: its chunks are not listed. Size and
version come from the listing where the store tells them there, so that indexing need not ask again.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NoReturn

from online_patching import loop
from online_patching.bytesource import (
    ObjectInfo,
    PinnedObject,
    check_url,
    join_url,
    local_path,
    shown_url,
    split_object_url,
    split_reference_url,
    storage_error,
)
from online_patching.errors import AccessDeniedError, NotFoundError, StorageError
from online_patching.fsspec_source import object_info
from online_patching.obstore_source import info_of
from online_patching.obstore_store import ObstorePlace, obstore_place
from online_patching.storage import Store, open_folder, stat_info

TIFF_SUFFIXES = (".svs", ".tif", ".tiff", ".btf", ".scn", ".bif", ".ndpi")
DICOM_SUFFIXES = (".dcm", ".dicom")
ZARR_SUFFIX = ".zarr"
# A set of references is a file among many of its kind: only one that is named is meant.
REFERENCES_SUFFIXES = (".json", ".parquet", ".parq")
SLIDE_SUFFIXES = (*TIFF_SUFFIXES, *DICOM_SUFFIXES, ZARR_SUFFIX)

CandidateKind = Literal["file", "dicom", "zarr", "references"]

_MAGIC = re.compile(r"[*?\[]")
# Objects that a store lists a request.
LIST_CHUNK = 1000
# The last name that a folder could hold: whether a store lists by bytes or folder by folder, what follows comes next.
_LAST_IN_FOLDER = "/\U0010ffff"


@dataclass(frozen=True, slots=True)
class Candidate:
    """Something that is probably a slide, or (DICOM) one file of a slide.

    Attributes:
        url: URL or local path.
        kind: ``dicom`` files of one folder may be one slide; ``zarr`` is a folder; ``references`` are kerchunk's.
        pinned: The object with the size and version that the listing told; None for folders and where a URL was named.
    """

    url: str
    kind: CandidateKind
    pinned: PinnedObject | None = None


@dataclass(frozen=True, slots=True)
class _Found:
    """One entry of a listing: its path below the place that was listed, and what the store tells of it."""

    path: str
    info: ObjectInfo | None


def list_slides(url: str, storage_options: Mapping[str, Any] | None = None) -> list[str]:
    """URLs of the slides that a URL names; see ``find_slides``."""
    return [candidate.url for candidate in find_slides([url], storage_options)]


def find_slides(urls: Iterable[str], storage_options: Mapping[str, Any] | None = None) -> list[Candidate]:
    """The slides behind URLs, each a slide, a folder, or a glob.

    Args:
        urls: URLs or local paths.
        storage_options: Options of the storage client, in fsspec's dialect.

    Returns:
        Candidates in the order of the URLs, and of their names within one; each once.

    Raises:
        NotFoundError: A folder, bucket or file does not exist.
        StorageError: A store cannot be reached or listed, or a folder or glob holds no slide.
    """
    found: dict[str, Candidate] = {}
    for url in urls:
        for candidate in _candidates_of(str(url), dict(storage_options or {})):
            found.setdefault(candidate.url, candidate)
    return list(found.values())


def dicom_folders(candidates: Iterable[Candidate]) -> dict[str, list[Candidate]]:
    """DICOM candidates by the URL of their folder: the files of one folder may be the levels of one slide."""
    folders: dict[str, list[Candidate]] = {}
    for candidate in candidates:
        if candidate.kind == "dicom":
            folders.setdefault(candidate.url.rpartition("/")[0], []).append(candidate)
    return folders


def kind_of(name: str) -> CandidateKind | None:
    """What a name promises, or None where it is not a slide's."""
    lowered = name.rstrip("/").lower()
    if lowered.endswith(ZARR_SUFFIX):
        return "zarr"
    if lowered.endswith(DICOM_SUFFIXES):
        return "dicom"
    if lowered.endswith(TIFF_SUFFIXES):
        return "file"
    return "references" if lowered.endswith(REFERENCES_SUFFIXES) else None


def _candidates_of(url: str, options: dict[str, Any]) -> Sequence[Candidate]:
    check_url(url)
    web = url.startswith(("http://", "https://"))
    path = local_path(url)
    exists = path is not None and Path(path).exists()
    pattern = _MAGIC.search(url if not web else url.partition("?")[0])
    if pattern and not exists:
        if web:
            _refuse_web(url)
        root, below = _split_glob(url)
        found = _match(_walk(root, options), root, below, url)
        # The name of an object may hold a character that means something in a glob.
        return found or _named(url, options) or _nothing(url, root, _walk(root, options))
    if split_reference_url(url) is not None:
        return [Candidate(url, "references")]
    kind = kind_of(url.partition("?")[0] if web else url)
    if kind is not None and not (exists and kind != "zarr" and Path(path or "").is_dir()):
        return [Candidate(url if kind != "zarr" else url.rstrip("/"), kind)]
    if web:
        _refuse_web(url)
    if path is not None and not exists:
        raise NotFoundError(f"{url}: no such folder or file; check the spelling")
    if path is not None and not Path(path).is_dir():
        return [Candidate(url, "file")]
    found = _match(_walk(url, options), url, None, url)
    return found or _named(url, options) or _nothing(url, url, _walk(url, options))


def _refuse_web(url: str) -> NoReturn:
    raise StorageError(
        f"{shown_url(url)}: a web server has no listing, so folders and globs cannot be searched there; name the"
        f" slides, whose names end in {', '.join(SLIDE_SUFFIXES)}"
    )


def _named(url: str, options: dict[str, Any]) -> list[Candidate]:
    """The object of exactly this name, if there is one."""
    if local_path(url) is not None or not split_object_url(url)[2]:
        return []
    try:
        info = loop.run(Store(options).open(url).info())
    except (NotFoundError, AccessDeniedError):
        return []
    return [Candidate(url, kind_of(url) or "file", PinnedObject(url, info))]


def _nothing(url: str, root: str, entries: Iterator[_Found]) -> NoReturn:
    """Say what lies there instead."""
    suffixes = Counter(PurePosixPath(entry.path).suffix or "no suffix" for entry in entries)
    if not suffixes and local_path(url) is None:
        raise NotFoundError(f"{shown_url(root)}: no such folder, or an empty one; check the spelling and the endpoint")
    seen = ", ".join(f"{count} {suffix}" for suffix, count in suffixes.most_common(4)) or "nothing at all"
    raise StorageError(
        f"{shown_url(url)}: no slides found (below {shown_url(root)} lie: {seen}); slides end in"
        f" {', '.join(SLIDE_SUFFIXES)}: check the folder or the pattern"
    )


def _match(entries: Iterator[_Found], root: str, below: str | None, asked: str) -> list[Candidate]:
    """The candidates among the entries of a root, in order of their names."""
    fits = _glob_filter(below) if below is not None else None
    references = asked.lower().endswith(REFERENCES_SUFFIXES)
    found = []
    for entry in entries:
        kind = kind_of(entry.path)
        if kind is None or (kind == "references" and not references) or (fits is not None and not fits(entry.path)):
            continue
        url = join_url(root, entry.path) if root else entry.path
        found.append(Candidate(url, kind, PinnedObject(url, entry.info) if entry.info is not None else None))
    return sorted(found, key=lambda candidate: candidate.url)


def _glob_filter(pattern: str) -> Callable[[str], bool]:
    from fsspec.utils import glob_translate

    expression = re.compile(glob_translate(pattern))
    return lambda path: expression.match(path) is not None


def _split_glob(url: str) -> tuple[str, str]:
    """The folder above the first part that holds a pattern, and the pattern below it."""
    magic = _MAGIC.search(url)
    assert magic is not None, "only globs are split"
    root, _, first = url[: magic.start()].rpartition("/")
    if root.endswith("/") or (not root and "://" in url):
        raise StorageError(
            f"{shown_url(url)}: the bucket or container itself is a pattern; name it, and glob inside it"
        )
    absolute = url.startswith("/") and not root
    return ("/" if absolute else root or "."), first + url[magic.start() :]


def _walk(root: str, options: dict[str, Any]) -> Iterator[_Found]:
    """Everything below a root; a folder that ends in .zarr is one entry."""
    path = local_path(root)
    if path is not None:
        return _walk_disk(path)
    try:
        place = obstore_place(root, options)
    except Exception as error:
        raise storage_error(root, error) from error
    return _walk_obstore(root, place) if place is not None else _walk_fsspec(root, options)


def _walk_disk(root: str) -> Iterator[_Found]:
    waiting = [""]
    while waiting:
        folder = waiting.pop()
        try:
            with os.scandir(os.path.join(root, folder)) as entries:  # noqa: PTH118
                found = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            raise storage_error(join_url(root, folder) if folder else root, error) from error
        for entry in found:
            name = f"{folder}/{entry.name}" if folder else entry.name
            if not entry.is_dir():
                # A dangling link is listed, and is an error of its own when it is opened.
                yield _Found(name, stat_info(entry.stat()) if entry.is_file() else None)
            elif entry.name.lower().endswith(ZARR_SUFFIX):
                yield _Found(name, None)
            elif not entry.is_symlink():
                waiting.append(name)


def _walk_obstore(root: str, place: ObstorePlace) -> Iterator[_Found]:
    """The pages of a listing in order of the names; the chunks of a Zarr folder are jumped over."""
    prefix = place.name.strip("/")
    cut = len(prefix) + 1 if prefix else 0
    offset: str | None = None
    while True:
        zarr: str | None = None
        for chunk in _chunks(root, place, prefix, offset):
            for meta in chunk:
                path = meta["path"][cut:]
                inside = _zarr_folder(path)
                if inside is None:
                    yield _Found(path, info_of(meta))
                elif inside != zarr:
                    yield _Found(inside, None)
                zarr = inside
            if zarr is not None:
                break
        if zarr is None:
            return
        offset = f"{prefix}/{zarr}{_LAST_IN_FOLDER}" if prefix else f"{zarr}{_LAST_IN_FOLDER}"


def _chunks(root: str, place: ObstorePlace, prefix: str, offset: str | None) -> Iterator[Sequence[Mapping[str, Any]]]:
    import obstore

    try:
        yield from obstore.list(place.store, prefix or None, offset=offset, chunk_size=LIST_CHUNK)
    except Exception as error:
        raise storage_error(root, error) from error


def _zarr_folder(path: str) -> str | None:
    """The part of a path that ends in .zarr, if the path lies inside of such a folder."""
    position = path.lower().find(f"{ZARR_SUFFIX}/")
    return path[: position + len(ZARR_SUFFIX)] if position >= 0 else None


def _walk_fsspec(root: str, options: dict[str, Any]) -> Iterator[_Found]:
    try:
        filesystem, folder = open_folder(root, options)
        found = filesystem.find(folder, detail=True)
    except Exception as error:
        raise storage_error(root, error) from error
    seen = None
    for name, details in sorted(found.items()):
        path = name[len(folder) :].lstrip("/")
        zarr = _zarr_folder(path)
        if zarr is None:
            yield _Found(path, object_info(details))
        elif zarr != seen:
            yield _Found(zarr, None)
        seen = zarr
