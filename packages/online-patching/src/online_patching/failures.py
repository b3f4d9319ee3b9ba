"""What did a job do, and which slides did it leave out, and why? The values, and the table that keeps them.

``failures.parquet`` holds one row a slide that could not be indexed, in order of ids and URLs. A slide is tried again
whenever it is given again, and its row goes when that succeeds.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass

from online_patching.bytesource import shown_url
from online_patching.catalog_files import FAILURES, CatalogFolder
from online_patching.errors import CatalogError, NotFoundError, PatchingError

COLUMNS = ("id", "url", "error", "reason")


@dataclass(frozen=True, slots=True, order=True)
class Failure:
    """A slide that a job left out.

    Attributes:
        slide: Its id.
        url: Where it lies, without credentials.
        error: Type of the error.
        reason: Why, and how to go on, in one line.
    """

    slide: str
    url: str
    error: str
    reason: str


@dataclass(frozen=True, slots=True)
class JobReport:
    """What a job did.

    Attributes:
        done: Slides worked on now, but for those left out.
        kept: Slides that were up to date, or not asked for.
        failures: Slides left out.
        requests: Range requests made for headers.
        bytes_read: Bytes of headers received, or of tiles read for thumbnails.
        notes: What else the user should know, one line each.
    """

    done: int
    kept: int
    failures: tuple[Failure, ...]
    requests: int = 0
    bytes_read: int = 0
    notes: tuple[str, ...] = ()


def failure_of(slide_id: str, url: str, error: Exception) -> Failure:
    """The failure that an error means; one that is no statement about the slide is told as what it is."""
    reason = " ".join(str(error).split())
    if not isinstance(error, PatchingError):
        reason = (
            f"{shown_url(url)}: working on it failed in an unexpected way ({type(error).__name__}: {reason}); please"
            " report this with the slide"
        )
    return Failure(slide_id, shown_url(url), type(error).__name__, reason)


def read_failures(folder: CatalogFolder) -> list[Failure]:
    """The failures that a catalog keeps; none where it has no such table."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(pa.BufferReader(folder.read(FAILURES))).read(list(COLUMNS))
        return [Failure(*row.values()) for row in table.to_pylist()]
    except NotFoundError:
        return []
    except (pa.ArrowException, OSError) as error:
        raise CatalogError(f"{folder.shown_url}: {FAILURES} is damaged ({error}); delete it and index again") from error


def write_failures(folder: CatalogFolder, failures: Iterable[Failure]) -> None:
    """Write the table of failures."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [astuple(failure) for failure in sorted(set(failures))]
    columns = [pa.array([row[k] for row in rows], pa.string()) for k in range(len(COLUMNS))]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(dict(zip(COLUMNS, columns, strict=True))), sink, compression="zstd")
    folder.write(sink.getvalue().to_pybytes(), FAILURES)


def failed_lines(failures: Sequence[Failure]) -> list[str]:
    """One line a slide that was left out."""
    return [f"left out {failure.slide}: {failure.reason}" for failure in failures]
