"""Which slides of a catalog take part?

A filter over the catalog's columns (``where="split == 'train' and preservation == 'FFPE'"``) and a random share of what
it leaves, for studies of data size (paper, section IV-D1): subsets of one seed are nested, so that the slides of 1 %
are among those of 10 %, and a slide that joins the catalog later moves no other one in or out but at the margin.

The filter is in Python's syntax, but it is read, never run: columns, constants, comparisons, ``in``, ``is None``,
``and``, ``or``, ``not``. A column that has no value for a slide makes a comparison unknown, and only slides for which
the whole is true take part, as in SQL.
"""

from __future__ import annotations

import ast
import hashlib
import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from online_patching.errors import CatalogError

if TYPE_CHECKING:
    import pyarrow as pa

    from online_patching.slide_table import SlideTable

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

_COMPARISONS: dict[type[ast.cmpop], str] = {
    ast.Eq: "equal",
    ast.NotEq: "not_equal",
    ast.Lt: "less",
    ast.LtE: "less_equal",
    ast.Gt: "greater",
    ast.GtE: "greater_equal",
}
_CONSTANTS = str, int, float, bool
# Columns named in the message about one that does not exist.
NAMED_COLUMNS = 12


def chosen_slides(rows: SlideTable, *, where: str | None = None, share: float = 1.0, seed: int = 0) -> Bools:
    """Which slides take part, bool (N,) in order of the rows.

    Args:
        rows: The slide table.
        where: Filter over its columns, the catalog's own and the user's; None: all slides.
        share: Of the slides that the filter leaves, this part (rounded up), chosen by chance.
        seed: Of that chance; it is another one than the stream's, so that runs of several seeds see one subset.

    Raises:
        CatalogError: The filter cannot be read, names no column, compares what cannot be compared, or leaves no slide.
        ValueError: ``share`` or ``seed`` out of range.
    """
    if not 0 < share <= 1:
        raise ValueError(f"slide_share: got {share!r}, allowed above 0 up to 1")
    if seed < 0:
        raise ValueError(f"slide_share_seed: got {seed!r}, allowed at least 0")
    chosen = np.ones(len(rows), np.bool_) if where is None else _Filter(where, rows.arrow).matches()
    if where is not None and not chosen.any():
        raise CatalogError(f"where={where!r} leaves none of {len(rows)} slides; see the columns with `Catalog.table()`")
    if share < 1:
        numbers = np.flatnonzero(chosen)
        ranks = [_rank(str(rows.value(number, "id")), seed) for number in numbers.tolist()]
        kept = numbers[np.argsort(np.array(ranks, np.uint64), kind="stable")[: math.ceil(share * len(numbers))]]
        chosen = np.zeros(len(rows), np.bool_)
        chosen[kept] = True
    return chosen


def without_slides(slide_ids: Iterable[str]) -> str:
    """The filter that leaves some slides out, for ``where``."""
    names = [repr(slide_id) for slide_id in sorted(slide_ids)]
    return f"id not in ({', '.join(names)}{',' if len(names) == 1 else ''})"


def _rank(slide_id: str, seed: int) -> int:
    """A slide's place in the order in which growing subsets take slides up."""
    text = f"{seed} {slide_id}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")


class _Filter:
    """One filter over one table."""

    def __init__(self, where: str, table: pa.Table) -> None:
        self._where = where
        self._table = table

    def matches(self) -> Bools:
        """The slides for which it is true, bool (N,)."""
        import pyarrow as pa
        import pyarrow.compute as pc

        try:
            tree = ast.parse(self._where.strip(), mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise self._error(f"cannot be read ({error})") from error
        try:
            answer = self._truth(tree)
        except pa.ArrowException as error:
            raise self._error(f"compares values of different types ({error})") from error
        except RecursionError as error:
            raise self._error("is nested too deeply") from error
        found: Bools = pc.fill_null(answer, False).to_numpy(zero_copy_only=False)
        return found

    def _error(self, reason: str) -> CatalogError:
        return CatalogError(
            f"where={self._where!r} {reason}; allowed are comparisons of columns and constants with and, or, not, in"
            " and is None, for example \"split == 'train' and mpp < 0.3\""
        )

    def _truth(self, node: ast.expr) -> Any:
        """Boolean array of a condition, null where it is unknown."""
        import pyarrow as pa
        import pyarrow.compute as pc

        if isinstance(node, ast.BoolOp):
            join = pc.and_kleene if isinstance(node.op, ast.And) else pc.or_kleene
            answer = self._truth(node.values[0])
            for value in node.values[1:]:
                answer = join(answer, self._truth(value))
            return answer
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            return pc.invert(self._truth(node.operand))
        if isinstance(node, ast.Compare):
            answer, left = None, node.left
            for kind, right in zip(node.ops, node.comparators, strict=True):
                part = self._compared(left, kind, right)
                answer, left = part if answer is None else pc.and_kleene(answer, part), right
            return answer
        if isinstance(node, ast.Name) and pa.types.is_boolean((column := self._column(node.id)).type):
            return column
        raise self._error(f"has {ast.unparse(node)!r} where a condition is needed")

    def _compared(self, left: ast.expr, kind: ast.cmpop, right: ast.expr) -> Any:
        import pyarrow as pa
        import pyarrow.compute as pc

        if isinstance(kind, (ast.In, ast.NotIn)):
            if not isinstance(right, (ast.List, ast.Tuple, ast.Set)) or not isinstance(left, ast.Name):
                raise self._error(f"has {ast.unparse(right)!r} where a column is to be `in` a list of constants")
            column, values = self._column(left.id), [self._constant(each) for each in right.elts]
            answer = pc.is_in(column, value_set=pa.array(values, column.type))
            # Unknown where there is no value, as with every other comparison.
            answer = pc.if_else(pc.is_valid(column), answer, pa.scalar(None, pa.bool_()))
            return answer if isinstance(kind, ast.In) else pc.invert(answer)
        if isinstance(kind, (ast.Is, ast.IsNot)):
            is_none = isinstance(right, ast.Constant) and right.value is None
            if not is_none or not isinstance(left, ast.Name):
                raise self._error("uses `is` for another thing than `column is None` or `column is not None`")
            return (pc.is_null if isinstance(kind, ast.Is) else pc.is_valid)(self._column(left.id))
        sides = [self._value(side) for side in (left, right)]
        if not any(isinstance(side, pa.ChunkedArray) for side in sides):
            raise self._error("compares two constants")
        return pc.call_function(_COMPARISONS[type(kind)], sides)

    def _value(self, node: ast.expr) -> Any:
        import pyarrow as pa

        return self._column(node.id) if isinstance(node, ast.Name) else pa.scalar(self._constant(node))

    def _column(self, name: str) -> pa.ChunkedArray:
        import pyarrow as pa

        if name not in self._table.column_names:
            names = self._table.column_names[::-1]
            shown = ", ".join(names[:NAMED_COLUMNS]) + (", ..." if len(names) > NAMED_COLUMNS else "")
            raise CatalogError(f"where={self._where!r} names {name!r}, which is no column of the catalog ({shown})")
        column = self._table[name]
        return column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column

    def _constant(self, node: ast.expr) -> Any:
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            value = self._constant(node.operand)
            if not isinstance(value, str):
                return -value
        if isinstance(node, ast.Constant) and isinstance(node.value, _CONSTANTS):
            return node.value
        raise self._error(f"has {ast.unparse(node)!r} where a column or a constant is needed")
