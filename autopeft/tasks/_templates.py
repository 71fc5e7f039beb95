"""Texts that are made of several columns: `"Question: {question}\\nAnswer:"`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from autopeft.errors import Fault
from autopeft.tasks._targets import NESTED, Texts, is_missing, row_fault, text_faults

PART = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")  # {{ and }} are braces; {name} is a column; others are faults


def is_template(value: Any) -> bool:
    """Whether a value of the config's `data` is a template: whether it has a brace."""
    return isinstance(value, str) and ("{" in value or "}" in value)


def columns_in(value: str) -> list[str]:
    """Returns the columns that a template names, or the column that a plain value is."""
    if not is_template(value):
        return [value]
    return list(dict.fromkeys(part[1] for part in PART.finditer(value) if part[1]))


def template_fault(value: str) -> str | None:
    """Says what is wrong with a template; None if it is right, or none."""
    if not is_template(value):
        return None
    for part in PART.finditer(value):
        if part[0] in ("{", "}"):
            return f"has a single {part[0]!r} in {value!r}: a column is {{name}}, a brace is written twice"
        if part[0] == "{}":
            return f"has no column's name in {{}} of {value!r}"
    return None if columns_in(value) else f"names no column in {value!r}: a column is {{name}}"


def fill(template: str, cells: Mapping[str, Any]) -> str:
    """Writes the cells of a row into a template. A missing cell is an empty text."""

    def written(part: re.Match[str]) -> str:
        if part[1] is None:
            return part[0][0]
        cell = cells[part[1]]
        return "" if is_missing(cell) else str(cell)

    return PART.sub(written, template)


class Filled(Sequence[str]):
    """A template over columns, row by row. Nothing is written before it is asked for.

    Args:
        template: The template.
        table: Its columns.
    """

    def __init__(self, template: str, table: Mapping[str, Sequence[Any]]) -> None:
        self.template, self.table = template, {name: table[name] for name in columns_in(template)}

    def __len__(self) -> int:
        return len(next(iter(self.table.values())))

    def __getitem__(self, at: Any) -> Any:
        cells = {name: column[at] for name, column in self.table.items()}
        if not isinstance(at, slice):
            return fill(self.template, cells)
        rows = zip(*cells.values(), strict=True)
        return [fill(self.template, dict(zip(cells, row, strict=True))) for row in rows]


def texts_of(value: str, table: Mapping[str, Sequence[Any]]) -> Sequence[Any]:
    """Returns a text a row: a column, or a template over several."""
    return Filled(value, table) if is_template(value) else table[value]


def row_faults(table: Mapping[str, Sequence[Any]], value: str, key: str, split: str) -> list[Fault]:
    """Finds rows without a text: an empty cell of a column; of a template, rows whose cells are all empty.

    Args:
        value: A column or a template.
        key: Key of `data` that has this value.
    """
    if not is_template(value):
        return text_faults(table, {value: key}, split)
    columns = {name: table[name] for name in columns_in(value)}
    empty: list[int] = []
    nested: list[int] = []
    for row, cells in enumerate(zip(*columns.values(), strict=True)):
        if any(isinstance(cell, NESTED) for cell in cells):
            nested.append(row)
        elif all(is_missing(cell) or not str(cell).strip() for cell in cells):
            empty.append(row)
    names = " and ".join(map(repr, columns))
    what = {f"with a list in {names}; expected text": nested, f"with an empty {names}": empty}
    return [row_fault(f"data.{key}", split, rows, said) for said, rows in what.items() if rows]


class Written(Texts):
    """A text a row, from a column or a template over columns, which a language model learns to write.

    Args:
        data: The config's data section.
        key: Key of `data` that has the column's name or the template; also the name of the target.
        n_outputs: Size of the model's output layer; 0 to keep that of the checkpoint.
    """

    def __init__(self, data: Mapping[str, Any], key: str, n_outputs: int) -> None:
        self.value = str(data.get(key) or key)
        self.key, self.n_outputs = key, n_outputs
        self.columns = dict.fromkeys(columns_in(self.value), key)

    def is_unlabelled(self, table: Mapping[str, Sequence[Any]]) -> bool:
        """Whether all cells of its columns are missing."""
        return all(is_missing(value) for column in self.columns for value in table[column])

    def encode(
        self, table: Mapping[str, Sequence[Any]], split: str, about: Mapping[str, Any]
    ) -> tuple[dict[str, Any], np.ndarray | None, list[Fault]]:
        """The texts as they are, written when they are read."""
        return {self.key: texts_of(self.value, table)}, None, row_faults(table, self.value, self.key, split)
