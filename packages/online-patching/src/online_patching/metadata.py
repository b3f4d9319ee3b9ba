"""Which rows of a user's table belong to which slides?

1. ``read_metadata``: a CSV becomes typed columns. A column is whole numbers, fractions, true/false or text as a whole;
   numbers with leading zeros are text, empty cells are no value.
2. ``join_metadata``: its rows meet the slides, by the first of these columns that it has:

   - ``file`` (``filename``, ``file_name``, ``url``, ``path``): a slide's URL, file name, or file name without suffix. A
     column ``id`` beside it gives the slides their ids;
   - ``id`` (``slide_id``): a slide's id;
   - a column of TCGA barcodes (``BARCODE_COLUMNS``; of several, the one with the longest barcodes): it joins to every
     slide whose own barcode, at the start of its file name, goes on from there. Of several rows that fit a slide the
     most exact one counts.

Nothing is guessed: a row that fits no slide, rows that say different things of one slide, and a file name that two
slides have are left out and reported.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Literal
from urllib.parse import unquote, urlsplit

from online_patching.bytesource import local_path, split_object_url, split_reference_url
from online_patching.listing import REFERENCES_SUFFIXES, SLIDE_SUFFIXES
from online_patching.slide_row import Scalar
from online_patching.slide_table import RESERVED_COLUMNS, as_kind, common_kind
from online_patching.tcga import parse_barcode

FILE_COLUMNS = ("file", "filename", "file_name", "url", "path")
ID_COLUMNS = ("id", "slide_id")
BARCODE_COLUMNS = (
    *("barcode", "slide_barcode", "slide_submitter_id", "sample_barcode", "sample_submitter_id", "sample", "sample_id"),
    *("submitter_id", "case_submitter_id", "case_barcode", "bcr_patient_barcode", "patient_barcode", "tcga_barcode"),
    *("case", "case_id", "patient", "patient_id"),
)

# x.ome.tiff and x.ome.zarr are both x.
OME_SUFFIX = ".ome"

Columns = dict[str, Scalar]


@dataclass(frozen=True, slots=True)
class Metadata:
    """A user's table.

    Attributes:
        by: What its key column holds.
        rows: (key, id the slide gets or None, columns) of every row, in the table's order.
    """

    by: Literal["file", "id", "barcode"]
    rows: tuple[tuple[str, str | None, Columns], ...]


@dataclass(frozen=True, slots=True)
class MetadataJoin:
    """What a user's table says of the slides.

    Attributes:
        ids: Id of each slide, by its URL.
        columns: Columns of each slide that a row fits, by its URL.
        notes: One line for each kind of row that was left out, with its number and an example.
    """

    ids: dict[str, str]
    columns: dict[str, Columns] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def slide_id_of(url: str) -> str:
    """The id a slide gets: its file name without the suffixes of slides (a folder's name may hold dots of its own).

    Of references to several slides it is what picks one of them (``refs.json#id``).
    """
    place, slide = split_reference_url(url) or (url, "")
    if slide:
        return unquote(slide)
    name = file_name_of(place)
    for suffix in (*SLIDE_SUFFIXES, *REFERENCES_SUFFIXES, OME_SUFFIX):
        if name.lower().endswith(suffix) and len(name) > len(suffix):
            name = name[: -len(suffix)]
    return name


def absolute_url(url: str) -> str:
    """The URL; of a local path the absolute one, so that a catalog may be used from any folder."""
    path = local_path(url)
    if path is None:
        return url
    absolute = Path(path).absolute()
    # Behind a link to a folder, ".." is not the folder that the path's text says.
    plain = Path(os.path.normpath(absolute))
    return str(plain if ".." in absolute.parts and plain.resolve() == absolute.resolve() else absolute)


def file_name_of(url: str) -> str:
    """The last part of a URL or path; the bucket's name where nothing follows it."""
    if local_path(url) is not None:
        return PurePosixPath(url).name
    scheme, bucket, name = split_object_url(url)
    if scheme in ("http", "https"):
        name = unquote(urlsplit(url).path)
    return PurePosixPath(name).name or bucket


def read_metadata(path: Path) -> Metadata:
    """Read a CSV with a header line.

    Raises:
        ValueError: It cannot be read, has no column to join by, or a column with a name of the catalog's own.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, restval="")
            names = [name.strip() for name in reader.fieldnames or ()]
            texts = [[(row[name] or "").strip() for name in reader.fieldnames or ()] for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"--metadata {path}: cannot be read ({getattr(error, 'strerror', None) or error})") from error
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(f"--metadata {path}: column {repeated[0]!r} is there twice; rename one")
    return _metadata_of({name: [row[k] for row in texts] for k, name in enumerate(names)}, str(path))


def _metadata_of(columns: Mapping[str, Sequence[str]], path: str) -> Metadata:
    lower = {name.lower(): name for name in reversed(list(columns))}
    by, key = _key_of(columns, lower, path)
    id_column = next((lower[name] for name in ID_COLUMNS if name in lower), None)
    own_keys = {key} if by != "barcode" else set()
    dropped = own_keys | ({id_column} if id_column is not None else set())
    kept = {name: typed(values) for name, values in columns.items() if name not in dropped and name}
    for name in kept:
        if name in RESERVED_COLUMNS:
            raise ValueError(f"--metadata {path}: column {name!r} has the name of one of the catalog's own; rename it")
    ids = columns[id_column] if by == "file" and id_column is not None else None
    rows = []
    for k, text in enumerate(columns[key]):
        found = {name: values[k] for name, values in kept.items() if values[k] is not None}
        if text:
            rows.append((text, (ids[k] or None) if ids is not None else None, found))
    return Metadata(by, tuple(rows))


def _key_of(
    columns: Mapping[str, Sequence[str]], lower: Mapping[str, str], path: str
) -> tuple[Literal["file", "id", "barcode"], str]:
    for name in FILE_COLUMNS:
        if name in lower:
            return "file", lower[name]
    for name in ID_COLUMNS:
        if name in lower:
            return "id", lower[name]
    barcodes = {lower[name]: _barcode_length(columns[lower[name]]) for name in BARCODE_COLUMNS if name in lower}
    best = max(barcodes, key=lambda name: barcodes[name], default=None)
    if best is None or not barcodes[best]:
        raise ValueError(
            f"--metadata {path}: no column to join by; it needs 'file', 'id' or TCGA barcodes in one of"
            f" {', '.join(BARCODE_COLUMNS)}; it has {', '.join(columns) or 'no columns'}"
        )
    return "barcode", best


def _barcode_length(values: Iterable[str]) -> int:
    """Length of the longest TCGA barcode of a column; 0 where it holds none."""
    return max((len(barcode.whole) for barcode in map(parse_barcode, values) if barcode is not None), default=0)


def typed(texts: Sequence[str]) -> list[Scalar]:
    """A column of a CSV as one type: the narrowest of bool, int, float and str that all its values have."""
    values = [_typed(text) if text else None for text in texts]
    kind = common_kind(values)
    if kind is str:
        return [text or None for text in texts]
    return [as_kind(value, kind) for value in values]


def _typed(text: str) -> Scalar:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    digits = text.lstrip("+-")
    if (
        (digits[:1] == "0" and digits[1:2].isdigit())
        or "_" in text
        or text.lower().lstrip("+-") in ("nan", "inf", "infinity")
    ):
        return text
    for kind in (int, float):
        try:
            value = kind(text)
        except ValueError:
            continue
        # Arrow's whole numbers have 64 bits.
        return value if kind is float or -(2**63) <= value < 2**63 else text
    return text


def join_metadata(
    metadata: Metadata | None, urls: Sequence[str], known_ids: Mapping[str, str] | None = None
) -> MetadataJoin:
    """Which row says what of which slide.

    Args:
        metadata: The user's table, or None.
        urls: URLs of all slides.
        known_ids: Ids that slides have already, by URL; they keep them unless ``metadata`` gives others.
    """
    ids = {url: (known_ids or {}).get(url) or slide_id_of(url) for url in urls}
    if metadata is None:
        return MetadataJoin(ids)
    if metadata.by == "barcode":
        return _join_by_barcode(metadata, ids)
    names_of: Callable[[str], Sequence[str]] = (
        (lambda url: (url, file_name_of(url), slide_id_of(url))) if metadata.by == "file" else (lambda url: (ids[url],))
    )
    slides: dict[str, list[str]] = {}
    for url in urls:
        for name in dict.fromkeys(names_of(url)):
            slides.setdefault(name, []).append(url)
    rows: dict[str, list[tuple[str, str | None, Columns]]] = {}
    unmatched, ambiguous = [], []
    for row in metadata.rows:
        fitting = slides.get(row[0]) or slides.get(absolute_url(row[0]), [])
        if not fitting:
            unmatched.append(row[0])
        elif len(fitting) > 1 and metadata.by == "file":
            ambiguous.append(row[0])
        for url in fitting if len(fitting) == 1 or metadata.by == "id" else ():
            rows.setdefault(url, []).append(row)
    columns: dict[str, Columns] = {}
    for url, found in rows.items():
        if any(row[1:] != found[0][1:] for row in found):
            ambiguous.append(found[0][0])
            continue
        columns[url] = found[0][2]
        ids[url] = found[0][1] or ids[url]
    return MetadataJoin(ids, columns, _notes(unmatched, ambiguous))


def _join_by_barcode(metadata: Metadata, ids: dict[str, str]) -> MetadataJoin:
    by_barcode: dict[str, list[Columns]] = {}
    for key, _, columns in metadata.rows:
        barcode = parse_barcode(key)
        by_barcode.setdefault(key if barcode is None else barcode.whole, []).append(columns)
    used: set[str] = set()
    ambiguous: set[str] = set()
    joined: dict[str, Columns] = {}
    for url in ids:
        barcode = parse_barcode(file_name_of(url))
        fitting = [p for p in barcode.prefixes() if p in by_barcode] if barcode is not None else []
        used.update(fitting)
        if fitting:
            first, *others = by_barcode[fitting[0]]
            if any(other != first for other in others):
                ambiguous.add(fitting[0])
            else:
                joined[url] = first
    unmatched = [key for key in by_barcode if key not in used]
    return MetadataJoin(ids, joined, _notes(unmatched, sorted(ambiguous)))


def _notes(unmatched: Sequence[str], ambiguous: Sequence[str]) -> tuple[str, ...]:
    found = []
    if unmatched:
        found.append(f"metadata: {len(unmatched)} rows fit no slide, such as {unmatched[0]!r}")
    if ambiguous:
        found.append(
            f"metadata: {len(ambiguous)} rows or slides are ambiguous and left out, such as {ambiguous[0]!r}: one row a"
            " slide is needed; name each slide by its URL in a column 'file'"
        )
    return tuple(found)
