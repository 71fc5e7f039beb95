"""Reads a table from a file, with its columns by name. Values stay as they are written: `007` stays text."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from autopeft.errors import ConfigError, Fault, did_you_mean
from autopeft.tasks._columns import BLOCK, ArrowColumn, on_disk

ENDINGS = (".csv", ".tsv", ".jsonl", ".json", ".parquet")
SEPARATORS = {".csv": ",", ".tsv": "\t"}
ROWS = 1_000  # of a table of text that are in memory at once
WHOLE = re.compile(r"0|-?[1-9][0-9]*")

Table = Mapping[str, Sequence[Any]]


def read_file(path: str | Path) -> Table:
    """Reads the columns of a CSV, TSV, JSON, JSON Lines or Parquet file. A missing value is None.

    Raises:
        ConfigError: The file is of another kind, or damaged.
    """
    path = Path(path)
    if path.is_dir():
        raise _fault(f"{path} is a folder: expected a file, one of {', '.join(ENDINGS)}")
    try:
        if path.suffix in SEPARATORS:
            return _separated(path, SEPARATORS[path.suffix])
        if path.suffix == ".jsonl":
            return _of_rows(_json_lines(path), path)
        if path.suffix == ".json":
            return _json(path)
        if path.suffix == ".parquet":
            return _parquet(path)
    except UnicodeDecodeError as fault:
        wrong = f"{fault.object[fault.start]:#04x}"
        raise _fault(f"{path} is not UTF-8: it has a byte {wrong}; save it as UTF-8") from fault
    except (ValueError, OSError) as fault:
        raise _fault(f"{path} cannot be read: {str(fault).splitlines()[0]}") from fault
    raise _fault(f"{path.name}: expected one of {', '.join(ENDINGS)}")


def read_columns(file: Path, columns: Sequence[str]) -> Table:
    """Reads some columns of a file of rows without labels.

    Raises:
        ConfigError: A column is missing, or the file cannot be read.
    """
    try:
        table = read_file(file)
    except ConfigError as fault:
        raise ConfigError([Fault("", inner.message) for inner in fault.faults], str(file)) from fault
    faults = [
        Fault(column, f"no such column in {file}.{did_you_mean(column, table)} There are: {', '.join(table)}")
        for column in columns
        if column not in table
    ]
    if faults:
        raise ConfigError(faults, str(file))
    return {column: table[column] for column in columns}


def _parquet(path: Path) -> Table:
    """The columns, from a memory map: a file of row groups that are compressed cannot be mapped itself."""
    from pyarrow import parquet

    file = parquet.ParquetFile(path)
    table = on_disk(file.iter_batches(batch_size=BLOCK))
    if table is None:
        return {name: [] for name in file.schema_arrow.names}
    return {name: ArrowColumn(table[name]) for name in table.column_names}


def _separated(path: Path, separator: str) -> Table:
    """The columns, from a memory map; whole numbers if each entry is one."""
    from pandas.errors import ParserError

    is_whole: list[bool] = []
    try:
        table = on_disk(_batches(path, separator, is_whole))
    except ParserError as fault:
        why = re.sub(r"^.*C error: ", "", str(fault).splitlines()[0])
        hint = f"quote what holds a {'comma' if separator == ',' else 'tab'} or begins with a quote"
        raise _fault(f"{path} cannot be read: {why}; {hint}") from fault
    assert table is not None, "pandas refuses a file without a line"
    whole = [int if each else None for each in is_whole]
    return {name: ArrowColumn(table[at], whole[at]) for at, name in enumerate(table.column_names)}


def _batches(path: Path, separator: str, is_whole: list[bool]) -> Iterator[Any]:
    """The rows as Arrow batches of text. Says of each column whether all its entries are whole numbers."""
    import pandas as pd
    import pyarrow as pa

    # Without a header of pandas' own: with one, a comma too many in each row would make the first column its index. In
    # a file of one column an empty line is a row.
    reader = pd.read_csv(
        path, sep=separator, header=None, dtype=str, keep_default_na=False, na_values=[""],
        skip_blank_lines=not _has_one_column(path, separator), chunksize=ROWS,
    )  # fmt: skip
    header: list[str] = []
    with reader:
        for frame in reader:
            if not header:
                header = [str(name) for name in frame.iloc[0]]
                if len(set(header)) < len(header):
                    twice = next(name for at, name in enumerate(header) if name in header[:at])
                    raise _fault(f"{path} has two columns {twice!r}: rename one")
                is_whole += [True] * len(header)
                frame = frame.iloc[1:]
            columns = [[value if isinstance(value, str) else None for value in frame[at]] for at in range(len(header))]
            for at, column in enumerate(columns):
                is_whole[at] = is_whole[at] and all(value is None or WHOLE.fullmatch(value) for value in column)
            yield pa.record_batch([pa.array(column, pa.string()) for column in columns], names=header)


def _has_one_column(path: Path, separator: str) -> bool:
    with open(path, newline="", encoding="utf-8-sig") as file:
        return len(next(csv.reader(file, delimiter=separator), [])) == 1


def _json_lines(path: Path) -> list[Any]:
    rows = []
    with open(path, encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                try:
                    rows.append(json.loads(line))
                except ValueError as fault:
                    raise _fault(f"{path}, line {number}, is no JSON ({fault}): each line is one object") from fault
    return rows


def _json(path: Path) -> Table:
    """Reads a list of objects, or a mapping of columns, as pandas writes them."""
    content = json.loads(path.read_text(encoding="utf-8-sig"))
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
