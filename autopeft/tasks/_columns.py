"""Columns of tables that stay on the disk: rows are read when they are asked for."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

BLOCK = 1024  # rows that become Python objects at once


class ArrowColumn(Sequence[Any]):
    """A column of an Arrow table, which may be a memory map.

    Args:
        values: A `pyarrow.ChunkedArray`.
        convert: Applied to each value that is not missing.
    """

    def __init__(self, values: Any, convert: Callable[[Any], Any] | None = None) -> None:
        self.values, self.convert = values, convert

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, at: Any) -> Any:
        if isinstance(at, slice):
            return self._python(self.values[at])
        return self._python(self.values.slice(range(len(self))[at], 1))[0]

    def __iter__(self) -> Iterator[Any]:
        for at in range(0, len(self), BLOCK):
            yield from self[at : at + BLOCK]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    def some(self, rows: np.ndarray) -> list[Any]:
        """The values of some rows. Chunk by chunk: Arrow itself would copy the whole column first."""
        ends = np.cumsum([len(chunk) for chunk in self.values.chunks])
        of = np.searchsorted(ends, rows, side="right")
        found: list[Any] = [None] * len(rows)
        for number in np.unique(of):
            places = np.flatnonzero(of == number)
            chunk = self.values.chunks[number]
            inside = rows[places] - (ends[number] - len(chunk))
            for place, value in zip(places, self._python(chunk.take(inside)), strict=True):
                found[place] = value
        return found

    def _python(self, values: Any) -> list[Any]:
        found: list[Any] = values.to_pylist()
        convert = self.convert
        return found if convert is None else [None if value is None else convert(value) for value in found]


class Picked(Sequence[Any]):
    """Some rows of a column, in an order of their own; nothing is copied.

    Args:
        column: The whole.
        rows: (n_rows,) indices into it.
    """

    def __init__(self, column: Sequence[Any], rows: np.ndarray) -> None:
        self.column, self.rows = column, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, at: Any) -> Any:
        if isinstance(at, slice):
            rows = self.rows[at]
            return (
                self.column.some(rows) if isinstance(self.column, ArrowColumn) else [self.column[int(r)] for r in rows]
            )
        return self.column[int(self.rows[at])]

    def __iter__(self) -> Iterator[Any]:
        for at in range(0, len(self), BLOCK):
            yield from self[at : at + BLOCK]


def picked(column: Sequence[Any], rows: np.ndarray) -> Sequence[Any]:
    """Some rows of a column: of one that is in memory a copy, of one on the disk a view."""
    if isinstance(column, np.ndarray):
        return column[rows]
    if isinstance(column, list):
        return [column[row] for row in rows]
    if isinstance(column, Picked):
        return Picked(column.column, column.rows[rows])
    return Picked(column, rows)


def on_disk(batches: Iterable[Any]) -> Any:
    """A table of Arrow record batches as a memory map of a file that has no name any more.

    Only one batch at a time is in memory. None if there are no batches.
    """
    import pyarrow as pa

    handle, path = tempfile.mkstemp(prefix="autopeft-rows-", suffix=".arrow")
    os.close(handle)
    try:
        writer = None
        for batch in batches:
            if writer is None:
                writer = pa.ipc.new_file(path, batch.schema)
            writer.write(batch)
        if writer is None:
            return None
        writer.close()
        return pa.ipc.open_file(pa.memory_map(path)).read_all()
    finally:
        os.unlink(path)  # the map keeps what it shows
