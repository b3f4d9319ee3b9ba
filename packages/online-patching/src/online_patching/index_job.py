"""How are many slides indexed at once, so that a stopped run loses nothing?

One event loop, ``workers`` slides at a time; what computes or blocks runs in threads. A slide's files are written
before its row, and its row marks it as done. The slide table is written now and then and at the end; all that it can
lack is taken up from the slides' own rows by the next run.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from tqdm import tqdm

from online_patching.bytesource import PinnedObject, shown_url
from online_patching.catalog_files import FOREGROUND, SLIDE_ROW, TILE_TABLE, CatalogFolder
from online_patching.errors import NotFoundError, PatchingError
from online_patching.failures import Failure, failure_of
from online_patching.index import SlideIndex, index_slide
from online_patching.index_plan import IndexPlan, SlideTask, duplicate_of, with_user_facts
from online_patching.progress import progress_bar
from online_patching.slide_row import SlideRow, combined_info, row_of
from online_patching.slide_table import SlideTable
from online_patching.storage import Store, open_object
from online_patching.stored_slide import read_stored_tiles
from online_patching.tiletable import encode_tile_table, front_bytes

# The slide table is written after so many new slides (or a tenth of those it has), or after so many seconds.
CHECKPOINT_SLIDES = 2000
CHECKPOINT_SECONDS = 300.0

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class IndexOptions:
    """How slides are indexed; see ``jobs.index_cohort``."""

    mpp: float | Mapping[str, float] | None = None
    assume_mpp_from_magnification: bool = False
    experimental: bool = False


class IndexJob:
    """Indexes slides into a catalog folder.

    Attributes:
        table: The slide table as far as it is gathered.
        failures: Slides that were left out.
        done: Slides indexed now.
        kept: Slides that were up to date.
        requests: Range requests made for headers.
        bytes_read: Bytes of headers received.
    """

    def __init__(
        self, folder: CatalogFolder, store: Store, table: SlideTable, options: IndexOptions, *, is_new: bool
    ) -> None:
        self.table = table
        self.failures: list[Failure] = []
        self.done = self.kept = self.requests = self.bytes_read = 0
        self._folder = folder
        self._store = store
        self._options = options
        # In a new catalog no slide has a row of its own to look for.
        self._is_new = is_new
        self._pending: list[SlideRow] = []
        self._written_at = time.monotonic()
        self._writing = asyncio.Lock()

    async def run(self, plan: IndexPlan, *, workers: int, progress: bool) -> None:
        """Index all slides of a plan, ``workers`` at a time, and write the slide table."""
        tasks = plan.tasks
        queue = iter(tasks)
        with progress_bar(total=len(tasks), desc="index slides", unit="slide", disable=not progress) as bar:
            await asyncio.gather(*(self._work(queue, bar) for _ in range(min(workers, len(tasks)))))
        await asyncio.to_thread(self._drop_renamed, plan.renamed)
        await self._write_table()

    def _drop_renamed(self, renamed: Mapping[str, str]) -> None:
        """Take out the former ids of slides that are in the table under their new ids now; their files go first."""
        self.table, self._pending = self.table.updated(self._pending), []
        dropped = []
        for slide_id, old_id in renamed.items():
            number, old_number = self.table.number_of(slide_id), self.table.number_of(old_id)
            if number is None or old_number is None:
                continue
            # The former id may be another slide's by now.
            if self.table.value(number, "url") == self.table.value(old_number, "url"):
                dropped.append(old_id)
                for name in (SLIDE_ROW, FOREGROUND, TILE_TABLE):
                    self._folder.remove_slide_file(self.table[old_number], name)
        self.table = self.table.without(dropped)

    async def _work(self, queue: Iterator[SlideTask], bar: tqdm[None]) -> None:
        for task in queue:
            try:
                await self._index(task)
            except Exception as error:
                # One slide's fault, also one that nobody foresaw, must not stop the others.
                self.failures.append(failure_of(task.slide_id, task.url, error))
            bar.set_postfix_str(f"{self.bytes_read / 1e6:.1f} MB, {len(self.failures)} left out", refresh=False)
            bar.update()
            if not self._writing.locked() and self._is_time_to_write():
                await self._write_table()

    def _is_time_to_write(self) -> bool:
        enough = max(CHECKPOINT_SLIDES, len(self.table) // 10)
        late = time.monotonic() - self._written_at > CHECKPOINT_SECONDS
        return len(self._pending) >= enough or (late and bool(self._pending))

    async def _write_table(self) -> None:
        async with self._writing:
            rows, self._pending = self._pending, []
            self.table = await asyncio.to_thread(self.table.updated, rows)
            await asyncio.to_thread(self._folder.write_table, self.table)
            self._written_at = time.monotonic()

    async def _index(self, task: SlideTask) -> None:
        number = self.table.number_of(task.slide_id)
        in_table = None if number is None else self.table[number]
        known = in_table
        if known is None and not self._is_new:
            known = await asyncio.to_thread(self._folder.read_slide_row, task.slide_id)
        if known is not None and known.url != task.url:
            await self._check_moved(known, task)
        elif known is not None and await self._is_unchanged(known, task):
            row = self._with_user_facts(known, task)
            if row != known:
                await asyncio.to_thread(self._folder.write_slide_row, row)
            if row != in_table:
                self._pending.append(row)
            self.kept += 1
            return
        found = await index_slide(task.url, self._store, experimental=self._options.experimental)
        # Two steps: the list may be another one when the thread is done.
        row = await asyncio.to_thread(self._write_slide, task, found, known)
        self._pending.append(row)
        self.done += 1
        self.requests += found.requests
        self.bytes_read += found.bytes_read

    async def _check_moved(self, known: SlideRow, task: SlideTask) -> None:
        """Let a slide have its id where the catalog's slide of that id is gone: it was moved.

        Raises:
            CatalogError: Both exist.
        """
        try:
            await self._store.open(known.url).info()
        except NotFoundError:
            return
        raise duplicate_of(known, task.url)

    async def _is_unchanged(self, row: SlideRow, task: SlideTask) -> bool:
        """Whether every object of a slide has the size and version that are pinned, by the listing where it tells."""
        if row.objects == 1 and task.listed is not None and task.listed.version and task.listed == row.info:
            return True
        try:
            objects = await self._pinned_objects(row)
        except PatchingError:
            # A tile table that cannot be read is made again.
            return False
        if combined_info(objects) != row.info:
            # A run that was killed had begun to index the slide anew.
            return False
        infos = await asyncio.gather(*(self._store.open(each.url).info() for each in objects))
        return all(info == each.info for info, each in zip(infos, objects, strict=True))

    async def _pinned_objects(self, row: SlideRow) -> tuple[PinnedObject, ...]:
        table = open_object(self._folder.slide_url(row, TILE_TABLE), self._folder.storage_options)
        return (await read_stored_tiles(table, row.front_bytes)).front.objects

    def _with_user_facts(self, row: SlideRow, task: SlideTask) -> SlideRow:
        return with_user_facts(
            row,
            task,
            mpp=self._options.mpp,
            assume_mpp_from_magnification=self._options.assume_mpp_from_magnification,
        )

    def _write_slide(self, task: SlideTask, found: SlideIndex, known: SlideRow | None) -> SlideRow:
        data = encode_tile_table(found.header, found.objects, found.tiles)
        row = row_of(
            task.slide_id,
            task.url,
            header=found.header,
            objects=found.objects,
            tiles=found.tiles,
            front_bytes=front_bytes(data),
            experimental=self._options.experimental,
        )
        if known is not None:
            # What the user said of the slide holds for its new version too.
            row = replace(row, columns=known.columns)
            if known.mpp_source == "given":
                if row.mpp_file not in (None, known.mpp_file, known.mpp):
                    # What was said for a file that stated nothing may be wrong for one that does.
                    _logger.warning(
                        "slide %s: its new version states %g um/px, the %g given for the one before still holds; "
                        "say which with --mpp %s=VALUE",
                        row.id,
                        row.mpp_file,
                        known.mpp,
                        row.id,
                    )
                row = replace(row, mpp=known.mpp, mpp_source="given")
        row = self._with_user_facts(row, task)
        self._folder.write_slide_file(row, TILE_TABLE, data)
        if known is not None:
            self._folder.remove_slide_file(row, FOREGROUND)
        self._folder.write_slide_row(row)
        return row


def vanished_slides(table: SlideTable, tasks: Sequence[SlideTask], roots: Sequence[str]) -> list[Failure]:
    """Slides of the catalog that lay below a folder that was listed and lie there no more.

    Args:
        table: The catalog.
        tasks: All slides that were found.
        roots: URLs of the folders that were listed.
    """
    if not roots or not len(table):
        return []
    found = {task.url for task in tasks}
    prefixes = tuple(root.rstrip("/") + "/" for root in roots)
    gone = [
        (number, url)
        for number, url in enumerate(table.arrow["url"].to_pylist())
        if url.startswith(prefixes) and url not in found
    ]
    reason = "no such object any more; its row stays in the catalog: put the file back, or index into another catalog"
    return [
        failure_of(str(table.value(number, "id")), url, NotFoundError(f"{shown_url(url)}: {reason}"))
        for number, url in gone
    ]
