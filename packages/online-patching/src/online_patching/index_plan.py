"""Which slides does an indexing run work on, under which ids, and with what the user says of them?

Pure planning: a list of slides, the catalog's table and the user's statements become tasks, and the failures that are
known before anything is read (two slides of one id, credentials in a URL).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from urllib.parse import parse_qsl, urlsplit

from online_patching.bytesource import ObjectInfo, PinnedObject, shown_url
from online_patching.errors import CatalogError
from online_patching.failures import Failure, failure_of
from online_patching.metadata import Metadata, absolute_url, file_name_of, join_metadata
from online_patching.slide_row import Scalar, SlideRow
from online_patching.slide_table import SlideTable, as_kind, common_kind
from online_patching.tcga import parse_barcode

# Parts of a query that let whoever has the URL read the object.
_SECRETS = ("sig", "signature", "x-amz-signature", "x-goog-signature", "token", "access_token", "key", "apikey")


@dataclass(frozen=True, slots=True)
class SlideTask:
    """One slide to index.

    Attributes:
        slide_id: Its id in the catalog.
        url: Where it lies.
        listed: Size and version as a listing told them, or None.
        columns: What the user says of it, in the types of the catalog's columns.
    """

    slide_id: str
    url: str
    listed: ObjectInfo | None
    columns: dict[str, Scalar]


@dataclass(frozen=True, slots=True)
class IndexPlan:
    """What an indexing run does.

    Attributes:
        tasks: The slides, in order of their URLs.
        failures: Slides that are left out already.
        notes: What of the user's metadata was left out, one line each.
        renamed: Former ids of slides that the user's metadata gives other ids, by their new ids.
    """

    tasks: tuple[SlideTask, ...]
    failures: tuple[Failure, ...]
    notes: tuple[str, ...]
    renamed: dict[str, str]


def plan_index(
    slides: Iterable[str | PinnedObject],
    table: SlideTable,
    *,
    metadata: Metadata | None = None,
    columns: Mapping[str, Mapping[str, Scalar]] | None = None,
) -> IndexPlan:
    """Plan an indexing run.

    Args:
        slides: URLs, or what a listing told of the objects.
        table: The catalog as it is.
        metadata: The user's table.
        columns: The user's columns by slide id; they win over ``metadata``.
    """
    listed = {absolute_url(s if isinstance(s, str) else s.url): None if isinstance(s, str) else s.info for s in slides}
    urls = sorted(listed)
    pairs = zip(table.arrow["url"].to_pylist(), table.arrow["id"].to_pylist(), strict=True)
    known_ids = {url: slide_id for url, slide_id in pairs if url in listed}
    joined = join_metadata(metadata, urls, known_ids)
    holders: dict[str, str] = {}
    failures: list[Failure] = []
    chosen: list[tuple[str, str, dict[str, Scalar]]] = []
    for url in urls:
        slide_id = joined.ids[url]
        if _carries_credentials(url):
            failures.append(failure_of(slide_id, url, CatalogError(_credentials_reason(url))))
            continue
        holder = holders.setdefault(slide_id, _holder(slide_id, url, table, listed))
        if holder != url:
            failures.append(failure_of(slide_id, url, _duplicate(slide_id, holder, url)))
            continue
        said = {**joined.columns.get(url, {}), **(columns or {}).get(slide_id, {})}
        chosen.append((slide_id, url, said))
    kinds = _column_kinds(table, [said for _, _, said in chosen])
    tasks = tuple(
        SlideTask(slide_id, url, listed[url], {name: as_kind(value, kinds[name]) for name, value in said.items()})
        for slide_id, url, said in chosen
    )
    former = {task.slide_id: known_ids.get(task.url, task.slide_id) for task in tasks}
    renamed = {slide_id: old for slide_id, old in former.items() if old != slide_id}
    return IndexPlan(tasks, tuple(failures), joined.notes, renamed)


def _holder(slide_id: str, url: str, table: SlideTable, listed: Mapping[str, object]) -> str:
    """The slide that has an id: the one in the catalog if it is given now as well, else the first of those given."""
    number = table.number_of(slide_id)
    known = None if number is None else str(table.value(number, "url"))
    return known if known is not None and known in listed else url


def _duplicate(slide_id: str, holder: str, url: str) -> CatalogError:
    return CatalogError(
        f"slide id {slide_id!r} is given twice: {shown_url(holder)} keeps it, {shown_url(url)} is left out; give them"
        " ids of their own with metadata columns 'file' (URL) and 'id', or index one of them into another catalog"
    )


def duplicate_of(row: SlideRow, url: str) -> CatalogError:
    """The error of a slide whose id another slide of the catalog has."""
    return _duplicate(row.id, row.url, url)


def _carries_credentials(url: str) -> bool:
    parts = urlsplit(url)
    if len(parts.scheme) < 2:
        return False
    names = {name.lower() for name, _ in parse_qsl(parts.query)}
    # abfs://container@account names no user; only a password makes it a credential.
    return parts.password is not None or not names.isdisjoint(_SECRETS)


def _credentials_reason(url: str) -> str:
    return (
        f"{shown_url(url)}: the URL carries credentials, which a catalog does not keep; give the URL without them and"
        " the credentials as storage_options (--slide-storage-options)"
    )


def _column_kinds(table: SlideTable, said: Sequence[Mapping[str, Scalar]]) -> dict[str, type | None]:
    """The type of every user column, from all that is said and from what the catalog has already."""
    values: dict[str, set[type]] = {}
    for columns in said:
        for name, value in columns.items():
            if value is not None:
                values.setdefault(name, set()).add(type(value))
    examples = {name: [kind() for kind in sorted(kinds, key=str)] for name, kinds in values.items()}
    return {
        name: common_kind([*examples.get(name, []), *table.example(name)])
        for name in {name for columns in said for name in columns}
    }


def with_user_facts(
    row: SlideRow,
    task: SlideTask,
    *,
    mpp: float | Mapping[str, float] | None = None,
    assume_mpp_from_magnification: bool = False,
) -> SlideRow:
    """The row with the user's columns and the resolution that holds.

    That is, the first of these that is known: what the user says of this slide (``mpp`` by id, or a column ``mpp``),
    what its file states (or was given in its place before), one ``mpp`` for all, what was given or assumed before, and
    10 / magnification where that is asked for.

    Raises:
        CatalogError: An mpp that is no number above 0.
    """
    barcode = parse_barcode(file_name_of(row.url))
    said = {name: value for name, value in task.columns.items() if name != "mpp" and value is not None}
    columns = {**(barcode.columns() if barcode is not None else {}), **row.columns, **said}
    row = replace(row, columns=columns)
    by_id = mpp.get(row.id) if isinstance(mpp, Mapping) else None
    own = task.columns.get("mpp") if by_id is None else by_id
    if own is not None:
        return replace(row, mpp=_positive_mpp(own, row.id), mpp_source="given")
    if row.mpp_file is not None:
        return row
    if isinstance(mpp, (int, float)):
        return replace(row, mpp=_positive_mpp(mpp, row.id), mpp_source="given")
    if row.mpp is None and assume_mpp_from_magnification and row.magnification is not None:
        return replace(row, mpp=10 / row.magnification, mpp_source="assumed")
    return row


def _positive_mpp(value: Scalar, slide_id: str) -> float:
    try:
        mpp = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        mpp = 0.0
    if not 0 < mpp < 1000:
        raise CatalogError(f"slide {slide_id}: mpp {value!r} given, allowed a number above 0 (um per pixel)")
    return mpp
