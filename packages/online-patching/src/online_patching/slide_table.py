"""How is the slide table of a million slides kept in memory and in a file?

A ``SlideTable`` is an Arrow table in order of the slides' ids; nothing becomes a Python object before it is asked for.
``table[k]`` is a ``SlideRow``, ``number_of(id)`` a binary search, ``numbers(name)`` a whole column as NumPy. In a file
it is plain Parquet with typed columns, the user's behind the catalog's own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import numpy.typing as npt

from online_patching.errors import CatalogError
from online_patching.slide_row import Scalar, SlideRow

if TYPE_CHECKING:
    import pyarrow as pa

TABLE_VERSION = 2
_VERSION_KEY = b"online_patching.format_version"
# Rows that iteration turns into Python objects at a time.
ROWS_AT_A_TIME = 1024

# name: (Arrow type, unit or meaning). `text` repeats few values, so it is kept as a dictionary in memory.
OWN_COLUMNS: dict[str, tuple[str, str]] = {
    "id": ("string", "unique in the catalog"),
    "url": ("string", "where the slide lies"),
    "folder": ("text", "where the slide's files lie; null: slides/<id> below the catalog"),
    "size": ("int64", "bytes of the slide's objects"),
    "version": ("string", "entity tag or time that is pinned"),
    "objects": ("int32", "number of the slide's objects"),
    "vendor": ("text", "format"),
    "mpp": ("double", "um per pixel of level 0 that holds"),
    "mpp_file": ("double", "um per pixel of level 0 that the file states"),
    "mpp_source": ("text", "file, given or assumed"),
    "magnification": ("double", "power of the objective that the file states"),
    "width_px": ("int32", "width of level 0"),
    "height_px": ("int32", "height of level 0"),
    "levels": ("int16", "number of levels"),
    "coarsest_downsample": ("double", "level-0 pixels per pixel of the coarsest level"),
    "tiles": ("int64", "number of tiles of all levels"),
    "front_bytes": ("int32", "length of the front of the slide's tile table"),
    "experimental": ("bool", "indexed with experimental formats allowed"),
    "foreground_area_level0_px2": ("double", "area of the foreground in square level-0 pixels"),
    "foreground_area_mm2": ("double", "area of the foreground in mm2"),
    "foreground_method": ("text", "how the foreground was found"),
    "foreground_digest": ("string", "digest of the foreground's polygon"),
}
NULLABLE = (
    *("folder", "mpp", "mpp_file", "mpp_source", "magnification"),
    *("foreground_area_level0_px2", "foreground_area_mm2", "foreground_method", "foreground_digest"),
)
# Tables of earlier versions lack them: there they have no values.
ADDED_COLUMNS = ("foreground_method", "foreground_digest")
# Names that metadata may not give to a column: the catalog's own.
RESERVED_COLUMNS = frozenset(OWN_COLUMNS) - {"id", "mpp"}
_PINNED = ("size", "mpp", "foreground_area_level0_px2")


class SlideTable(Sequence[SlideRow]):
    """The slide table: a sequence of rows in order of their ids.

    Attributes:
        arrow: The Arrow table behind it, for users and for whole-column work.
    """

    def __init__(self, arrow: pa.Table, name: str = "slide table") -> None:
        self.arrow = _ordered(_conformed(arrow, name), name)
        self.user_columns = tuple(column for column in self.arrow.column_names if column not in OWN_COLUMNS)
        # One chunk a column: an element is then one look-up.
        self._columns: dict[str, Any] = (
            {c: self.arrow[c].chunk(0) for c in self.arrow.column_names} if len(self) else {}
        )
        self._id_ends, self._id_bytes = _text_buffers(self._columns["id"]) if len(self) else (memoryview(b""),) * 2

    @classmethod
    def from_rows(cls, rows: Iterable[SlideRow]) -> SlideTable:
        """The table of some rows."""
        return cls(_arrow_of(list(rows)))

    @classmethod
    def from_parquet(cls, data: bytes, name: str) -> SlideTable:
        """The table of a Parquet file's bytes.

        Raises:
            CatalogError: It is damaged, or no slide table.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            # Tables of earlier versions lack some.
            there = pq.read_schema(pa.BufferReader(data)).names
            text = [column for column, (kind, _) in OWN_COLUMNS.items() if kind == "text" and column in there]
            # Without Arrow's data set layer, whose import costs a second; one thread needs half the memory of many.
            arrow = pq.ParquetFile(pa.BufferReader(data), read_dictionary=text).read(use_threads=False)
            table = cls(arrow, name)
        except (pa.ArrowException, OSError) as error:
            raise CatalogError(f"{name}: the slide table is damaged ({error}); index the slides again") from error
        pa.default_memory_pool().release_unused()
        return table

    def to_parquet(self) -> bytes:
        """The bytes of the table's file: the same for the same rows, however they came together."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        fields = [_field(name, "string" if kind == "text" else kind) for name, (kind, _) in OWN_COLUMNS.items()]
        fields += [pa.field(name, self.arrow.schema.field(name).type) for name in self.user_columns]
        schema = pa.schema(fields, metadata={_VERSION_KEY: str(TABLE_VERSION).encode()})
        sink = pa.BufferOutputStream()
        pq.write_table(self.arrow.select(schema.names).cast(schema), sink, compression="zstd")
        return bytes(sink.getvalue().to_pybytes())

    def __reduce__(self) -> tuple[type[SlideTable], tuple[pa.Table]]:
        return SlideTable, (self.arrow,)

    def __len__(self) -> int:
        return int(self.arrow.num_rows)

    @overload
    def __getitem__(self, number: int) -> SlideRow: ...

    @overload
    def __getitem__(self, number: slice) -> list[SlideRow]: ...

    def __getitem__(self, number: int | slice) -> SlideRow | list[SlideRow]:
        if isinstance(number, slice):
            return [self[k] for k in range(*number.indices(len(self)))]
        if not -len(self) <= number < len(self):
            raise IndexError(f"slide number {number} of {len(self)}")
        place = int(number) % len(self)
        return self._row({name: column[place].as_py() for name, column in self._columns.items()})

    def __iter__(self) -> Iterator[SlideRow]:
        for start in range(0, len(self), ROWS_AT_A_TIME):
            yield from map(self._row, self.arrow.slice(start, ROWS_AT_A_TIME).to_pylist())

    def _row(self, values: dict[str, Any]) -> SlideRow:
        own = {name: values[name] for name in OWN_COLUMNS if name != "foreground_area_mm2"}
        columns = {name: values[name] for name in self.user_columns if values[name] is not None}
        return SlideRow(**own, columns=columns)

    def number_of(self, slide_id: str) -> int | None:
        """Row number of a slide, or None where there is no such slide."""
        # Arrow orders text by its UTF-8 bytes, which is the order of Python's code points too. Its buffers give them
        # in a fraction of the time that its scalars take: this is part of every patch.
        wanted, ends, text = slide_id.encode("utf-8", "surrogatepass"), self._id_ends, self._id_bytes
        low, high = 0, len(self)
        while low < high:
            middle = (low + high) // 2
            if bytes(text[ends[middle] : ends[middle + 1]]) < wanted:
                low = middle + 1
            else:
                high = middle
        return low if low < len(self) and text[ends[low] : ends[low + 1]] == wanted else None

    def known_number(self, slide_id: str, name: str) -> int:
        """The same for a slide that must be there; ``name`` is the catalog's, for the message.

        Raises:
            CatalogError: No such slide.
        """
        number = self.number_of(slide_id)
        if number is None:
            known = ", ".join(row.id for row in self[:5]) + (", ..." if len(self) > 5 else "")
            raise CatalogError(f"{name}: no slide {slide_id!r} among {len(self)} ({known})")
        return number

    def value(self, number: int, column: str) -> Any:
        """One value of one row."""
        return self._columns[column][number].as_py()

    def numbers(self, column: str) -> npt.NDArray[np.float64]:
        """A numeric column, float64 (N,), NaN where it has no value."""
        if not len(self):
            return np.empty(0)
        import pyarrow as pa

        return _floats(self._columns[column].cast(pa.float64(), safe=False))

    def example(self, column: str) -> list[Scalar]:
        """A value of a user column's type, or none where there is no such column; it tells the type, nothing else."""
        if column not in self.user_columns:
            return []
        kind = self.arrow.schema.field(column).type
        import pyarrow as pa

        kinds: tuple[tuple[Any, Scalar], ...] = (
            (pa.types.is_boolean, False),
            (pa.types.is_integer, 0),
            (pa.types.is_floating, 0.0),
        )
        return [next((value for is_kind, value in kinds if is_kind(kind)), "")]

    def updated(self, rows: Sequence[SlideRow]) -> SlideTable:
        """This table with some rows added, or put in the place of those of the same id."""
        if not rows:
            return self
        import pyarrow as pa
        import pyarrow.compute as pc

        added = _arrow_of(rows)
        kept = self.arrow.filter(pc.invert(pc.is_in(self.arrow["id"], value_set=added["id"].combine_chunks())))
        # Where types differ, Arrow widens whole numbers to fractions; anything else becomes text.
        for name in set(kept.column_names) & set(added.column_names) - set(OWN_COLUMNS):
            kind = _common_type(kept.schema.field(name).type, added.schema.field(name).type)
            kept, added = _with_type(kept, name, kind), _with_type(added, name, kind)
        return SlideTable(pa.concat_tables([kept, added], promote_options="permissive"))

    def without(self, slide_ids: Sequence[str]) -> SlideTable:
        """This table without some slides."""
        if not slide_ids:
            return self
        import pyarrow as pa
        import pyarrow.compute as pc

        named = pc.is_in(self.arrow["id"], value_set=pa.array(slide_ids, pa.string()))
        return SlideTable(self.arrow.filter(pc.invert(named)))

    def fingerprint(self) -> str:
        """Short hash of ids, sizes, versions, resolutions and foregrounds, in order."""
        digest = hashlib.sha256(f"{TABLE_VERSION} {len(self)}".encode())
        texts = ["id", "version"] if len(self) else []
        # A table of an earlier version keeps its fingerprint.
        texts += ["foreground_digest"] if self.arrow["foreground_digest"].null_count < len(self) else []
        for name in texts:
            lengths, data = _text_bytes(self._columns[name])
            digest.update(lengths)
            digest.update(data)
        for name in _PINNED:
            # NaN has many bit patterns.
            values = self.numbers(name)
            digest.update(np.where(np.isnan(values), np.nan, values).astype("<f8").tobytes())
        return digest.hexdigest()[:16]


def empty_table() -> SlideTable:
    """A table without slides."""
    return SlideTable.from_rows([])


def common_kind(values: Iterable[Scalar]) -> type | None:
    """The one type that a column of these values gets: bool, int, float or str; None where there is no value.

    Whole numbers among fractions become fractions, anything else that is mixed becomes text.
    """
    kinds = {type(value) for value in values if value is not None}
    if len(kinds) <= 1:
        return next(iter(kinds), None)
    return float if kinds == {int, float} else str


def as_kind(value: Scalar, kind: type | None) -> Scalar:
    """A value as the type of its column."""
    if value is None or kind is None or type(value) is kind:
        return value
    if kind is str:
        return str(value).lower() if isinstance(value, bool) else str(value)
    result: Scalar = kind(value)
    return result


def _arrow_type(kind: str) -> Any:
    import pyarrow as pa

    return pa.dictionary(pa.int32(), pa.string()) if kind == "text" else pa.type_for_alias(kind)


def _field(name: str, kind: str) -> Any:
    import pyarrow as pa

    return pa.field(name, _arrow_type(kind), name in NULLABLE, metadata={b"description": OWN_COLUMNS[name][1].encode()})


def _arrow_of(rows: Sequence[SlideRow]) -> pa.Table:
    import pyarrow as pa

    data = {
        name: pa.array([getattr(row, name) for row in rows], _arrow_type(kind))
        for name, (kind, _) in OWN_COLUMNS.items()
    }
    for name in sorted({name for row in rows for name in row.columns}):
        values = [row.columns.get(name) for row in rows]
        kind = common_kind(values)
        if kind is not None:
            data[name] = pa.array([as_kind(value, kind) for value in values])
    return pa.table(data)


def _conformed(arrow: pa.Table, name: str) -> pa.Table:
    """The table with the catalog's own columns in their types, the user's behind them, one chunk a column."""
    import pyarrow as pa

    for column in set(ADDED_COLUMNS) - set(arrow.column_names):
        arrow = arrow.append_column(column, pa.nulls(len(arrow), _arrow_type(OWN_COLUMNS[column][0])))
    missing = sorted(set(OWN_COLUMNS) - set(arrow.column_names))
    if missing:
        raise CatalogError(f"{name}: the slide table has no column {missing[0]!r}; index the slides again")
    for column, (kind, _) in OWN_COLUMNS.items():
        if arrow.schema.field(column).type != _arrow_type(kind):
            place = arrow.column_names.index(column)
            arrow = arrow.set_column(place, column, arrow[column].cast(_arrow_type(kind)))
        if arrow[column].null_count and column not in NULLABLE:
            raise CatalogError(f"{name}: column {column!r} of the slide table has rows without a value")
    user = [c for c in sorted(arrow.column_names) if c not in OWN_COLUMNS and arrow[c].null_count < len(arrow)]
    return arrow.select([*OWN_COLUMNS, *user]).replace_schema_metadata(None).unify_dictionaries().combine_chunks()


def _ordered(arrow: pa.Table, name: str) -> pa.Table:
    """The table in order of ids, each once; tables of our own writing are in order already."""
    import pyarrow.compute as pc

    ids = arrow["id"]
    if len(ids) > 1 and not pc.all(pc.less(ids[:-1], ids[1:])).as_py():
        arrow = arrow.sort_by("id").combine_chunks()
        ids = arrow["id"]
        twice = pc.index(pc.equal(ids[:-1], ids[1:]), True).as_py()
        if twice >= 0:
            raise CatalogError(f"{name}: slide id {ids[twice].as_py()!r} is in two rows of the slide table")
    return arrow


def _common_type(left: Any, right: Any) -> Any:
    import pyarrow as pa

    if left == right:
        return left
    numeric = {pa.int64(), pa.float64()}
    return pa.float64() if {left, right} <= numeric else pa.string()


def _with_type(arrow: pa.Table, name: str, kind: Any) -> pa.Table:
    return arrow.set_column(arrow.column_names.index(name), name, arrow[name].cast(kind))


def _text_buffers(column: Any) -> tuple[memoryview, memoryview]:
    """Where each text of a column starts, and the last one ends, in the bytes of all."""
    _, offsets, data = column.buffers()
    bounds = memoryview(offsets).cast("B").cast("i")[column.offset : column.offset + len(column) + 1]
    return bounds, memoryview(data or b"").cast("B")


def _text_bytes(column: Any) -> tuple[bytes, memoryview]:
    """Lengths and bytes of a column of text, whatever its offset in its buffers."""
    bounds, data = _text_buffers(column)
    return np.diff(np.asarray(bounds)).astype("<i4").tobytes(), data[bounds[0] : bounds[-1]]


def _floats(column: Any) -> npt.NDArray[np.float64]:
    """A column of fractions, NaN where it has no value; Arrow's own way to it imports pandas, which costs a second."""
    place = slice(column.offset, column.offset + len(column))
    validity, data = column.buffers()
    values = np.frombuffer(data, np.float64)[place]
    if not column.null_count:
        return values
    valid = np.unpackbits(np.frombuffer(validity, np.uint8), bitorder="little")[place]
    return np.where(valid, values, np.nan)
