"""Reads a table from a file, with its columns by name. Values stay as they are written: `007` stays text."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from autopeft.errors import ConfigError, Fault, did_you_mean
from autopeft.tasks._columns import BLOCK, ArrowColumn, on_disk
from autopeft.tasks._format import (
    EXPECTED,
    SEPARATORS,
    TEXTS,
    Format,
    is_known,
    kind_of,
    no_encoding,
    opened,
    require_text,
    unknown_kind,
)
from autopeft.tasks._separated import header_of, separated, separator_hint

Table = Mapping[str, Sequence[Any]]
STANDARD = Format()


def read_file(path: str | Path, format: Format = STANDARD) -> Table:
    """Reads the columns of a CSV, TSV, JSON, JSON Lines, Parquet or Excel file. A missing value is None.

    Raises:
        ConfigError: The file is of another kind, written otherwise, or damaged.
    """
    path = Path(path)
    if path.is_dir():
        raise _fault(f"{path} is a folder: expected a file, one of {EXPECTED}")
    if not is_known(path):
        raise _fault(unknown_kind(path))
    kind = kind_of(path)
    try:
        if kind in TEXTS:
            require_text(path, format)
        if kind in SEPARATORS:
            return separated(path, format)
        if kind == ".jsonl":
            return _of_rows(_json_lines(path, format), path)
        if kind == ".json":
            return _json(path, format)
        return _parquet(path) if kind == ".parquet" else _sheet(path)
    except UnicodeError as fault:
        raise no_encoding(path, format, fault) from fault
    except (ValueError, OSError, EOFError) as fault:
        raise _fault(f"{path} cannot be read: {(str(fault).splitlines() or [type(fault).__name__])[0]}") from fault


def columns_of(path: Path, format: Format = STANDARD) -> list[str] | None:
    """Reads the names of a table's columns from its first line or its schema; None if these do not tell.

    Raises:
        ConfigError: The file is in another encoding.
    """
    try:
        if kind_of(path) == ".parquet":
            from pyarrow import parquet

            return list(parquet.read_schema(path).names)
        if kind_of(path) in TEXTS:
            require_text(path, format)
        if kind_of(path) in SEPARATORS:
            return header_of(path, format) or None
        if kind_of(path) == ".jsonl":
            with opened(path) as file, io.TextIOWrapper(file, encoding=format.codec) as text:
                row = json.loads(text.readline() or "null")
            return list(row) if isinstance(row, dict) else None
    except UnicodeError as fault:
        raise no_encoding(path, format, fault) from fault
    except ConfigError:
        raise
    except Exception:  # of the file: the task names the fault when it reads the whole
        pass
    return None


def no_column(name: str, where: str, columns: Sequence[str], path: str | Path | None, format: Format) -> str:
    """Says that a table lacks a column, and what may be the reason.

    Args:
        where: What lacks it: a split, a file.
        path: The table's file; None if it has none.
    """
    message = f"no column {name!r} in {where}.{did_you_mean(name, columns)} There are: {', '.join(columns)}"
    if path is not None and len(columns) == 1 and kind_of(Path(path)) in SEPARATORS:
        message += f".{separator_hint(Path(path), format)}".rstrip(".")
    return message


def read_columns(file: Path, columns: Sequence[str], format: Format = STANDARD) -> Table:
    """Reads some columns of a file of rows without labels.

    Raises:
        ConfigError: A column is missing, or the file cannot be read.
    """
    try:
        table = read_file(file, format)
    except ConfigError as fault:
        raise ConfigError([Fault("", inner.message) for inner in fault.faults], str(file)) from fault
    faults = [
        Fault(column, no_column(column, str(file), list(table), file, format).replace("no column", "no such column", 1))
        for column in columns
        if column not in table
    ]
    if faults:
        raise ConfigError(faults, str(file))
    return {column: table[column] for column in columns}


def _sheet(path: Path) -> Table:
    """Reads the only sheet of an Excel file; its first row has the names. Empty rows at its end are none."""
    try:
        from openpyxl import load_workbook
    except ImportError as fault:
        raise _fault(
            f"{path}: Excel files need openpyxl: pip install 'autopeft[excel]', or save the sheet as .csv"
        ) from fault
    from zipfile import BadZipFile

    try:
        book = load_workbook(path, read_only=True, data_only=True)
    except (BadZipFile, KeyError) as fault:
        raise _fault(f"{path} cannot be read: it is no Excel file, or a damaged one ({fault})") from fault
    if len(book.sheetnames) > 1:
        raise _fault(f"{path} has {len(book.sheetnames)} sheets, {', '.join(book.sheetnames)}: save one as .csv")
    rows = [list(row) for row in book.worksheets[0].iter_rows(values_only=True)]
    book.close()
    while rows and all(value is None for value in rows[-1]):
        del rows[-1]
    names = [str(name).strip() for name in (rows[0] if rows else []) if name is not None]
    if not names or len(set(names)) < len(names) or names != [str(name).strip() for name in rows[0][: len(names)]]:
        raise _fault(f"{path}: expected a name, each once, at the top of each column of the sheet")
    return {name: [row[at] for row in rows[1:]] for at, name in enumerate(names)}


def _parquet(path: Path) -> Table:
    """The columns, from a memory map: a file of row groups that are compressed cannot be mapped itself."""
    from pyarrow import parquet

    file = parquet.ParquetFile(path)
    table = on_disk(file.iter_batches(batch_size=BLOCK))
    if table is None:
        return {name: [] for name in file.schema_arrow.names}
    return {name: ArrowColumn(table[name]) for name in table.column_names}


def _json_lines(path: Path, format: Format) -> list[Any]:
    rows = []
    with opened(path) as file, io.TextIOWrapper(file, encoding=format.codec) as text:
        for number, line in enumerate(text, start=1):
            if line.strip():
                try:
                    rows.append(json.loads(line))
                except ValueError as fault:
                    raise _fault(f"{path}, line {number}, is no JSON ({fault}): each line is one object") from fault
    return rows


def _json(path: Path, format: Format) -> Table:
    """Reads a list of objects, or a mapping of columns, as pandas writes them."""
    with opened(path) as file:
        content = json.loads(file.read().decode(format.codec))
    if isinstance(content, list):
        return _of_rows(content, path)
    columns = list(content.values()) if isinstance(content, dict) else []
    if not columns or not all(isinstance(column, (list, dict)) for column in columns):
        raise _fault(f"{path}: expected a list of objects, one a row")
    lists = {name: list(column.values()) if isinstance(column, dict) else column for name, column in content.items()}
    if len({len(column) for column in lists.values()}) > 1:
        raise _fault(f"{path}: its columns have different lengths")
    return lists


def _of_rows(rows: list[Any], path: Path) -> Table:
    wrong = next((number for number, row in enumerate(rows) if not isinstance(row, dict)), None)
    if wrong is not None:
        raise _fault(f"{path}: row {wrong} is {json.dumps(rows[wrong])[:40]}; expected an object with a key a column")
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}


def _fault(message: str) -> ConfigError:
    return ConfigError([Fault("data", message)])
