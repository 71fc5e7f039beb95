"""Reads CSV and TSV: values stay as they are written, rows stay on the disk, and nothing is swallowed in silence."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from autopeft.errors import ConfigError, Fault
from autopeft.tasks._columns import ArrowColumn, on_disk
from autopeft.tasks._format import Format, opened

ROWS = 1_000  # that are in memory at once
WHOLE = re.compile(r"0|-?[1-9][0-9]*")
NUMBER = re.compile(r"-?[0-9]+([.][0-9]+)?([eE][-+]?[0-9]+)?")
CANDIDATES = (";", "\t", ",", "|")
MOST_VALUES = 1_000  # different values of a column by which a row is told from prose
MOST_SUSPECTS = 200  # fields with line breaks that are looked at
MOST_LINES = 20  # of one of them


def separated(path: Path, format: Format) -> Mapping[str, Sequence[Any]]:
    """Reads the columns, from a memory map; whole numbers if each entry is one.

    Raises:
        ConfigError: The file is not separated so, or a quotation mark swallowed rows.
    """
    from pandas.errors import ParserError

    seen = _Seen()
    try:
        table = on_disk(_batches(path, format, seen))
    except ParserError as fault:
        why = re.sub(r"^.*C error: ", "", str(fault).splitlines()[0])
        raise _fault(f"{path} cannot be read: {why}; {_hint(path, format, why)}") from fault
    assert table is not None, "pandas refuses a file without a line"
    if format.quoting == "auto":
        seen.require_no_swallowed(path, format)
    whole = [int if each else None for each in seen.is_whole]
    return {name: ArrowColumn(table[at], whole[at]) for at, name in enumerate(table.column_names)}


def header_of(path: Path, format: Format) -> list[str]:
    """Reads the names of the columns; [] for an empty file."""
    with opened(path) as file, io.TextIOWrapper(file, encoding=format.codec, newline="") as text:
        return _names(next(csv.reader(text, **_dialect(path, format)), []))


def seems_separated(path: Path, format: Format) -> str | None:
    """Returns a separator that the first lines hold equally often, if they do not hold the one that was said."""
    with opened(path) as file, io.TextIOWrapper(file, encoding=format.codec, newline="") as text:
        header = text.readline(10_000)
        more = [text.readline(10_000) for _ in range(3)]
    if format.separator_of(path) in header:
        return None
    found = [mark for mark in CANDIDATES if mark in header and all(mark in line for line in more if line.strip())]
    return max(found, key=header.count, default=None)


def separator_hint(path: Path, format: Format) -> str:
    """Says which separator a file of one column seems to have; nothing if it seems to have none."""
    mark = seems_separated(path, format)
    return "" if mark is None else f" {path.name} seems to be separated by {mark!r}: say `separator: {_written(mark)}`"


def _written(mark: str) -> str:
    return "tab" if mark == "\t" else f'"{mark}"'


def _hint(path: Path, format: Format, why: str) -> str:
    """Says what to do about a file that cannot be parsed."""
    seems = separator_hint(path, format).strip()
    if seems:
        return f"{seems} under `data`"
    if "EOF inside string" in why:
        return "a quotation mark has no end; if none of them encloses a field, say `quoting: none` under `data`"
    return f"quote what holds a {'tab' if format.separator_of(path) == chr(9) else 'comma'} or begins with a quote"


def _batches(path: Path, format: Format, seen: _Seen) -> Iterator[Any]:
    """Yields the rows as Arrow batches of text, and notes what is seen in them."""
    import pandas as pd
    import pyarrow as pa

    # Without a header of pandas' own: with one, a comma too many in each row would make the first column its index. In
    # a file of one column an empty line is a row.
    is_spaced = _is_spaced(path, format)
    with opened(path) as file:
        reader = pd.read_csv(
            file, sep=format.separator_of(path), header=None, dtype=str, keep_default_na=False, na_values=[""],
            skip_blank_lines=len(header_of(path, format)) != 1, chunksize=ROWS, encoding=format.codec,
            quoting=_dialect(path, format)["quoting"], skipinitialspace=is_spaced,
        )  # fmt: skip
        header: list[str] = []
        for frame in reader:
            if not header:
                header = _names(map(str, frame.iloc[0]))
                if len(set(header)) < len(header):
                    twice = next(name for at, name in enumerate(header) if name in header[:at])
                    raise _fault(f"{path} has two columns {twice!r}: rename one")
                seen.begin(len(header))
                frame = frame.iloc[1:]
            columns = [[value if isinstance(value, str) else None for value in frame[at]] for at in range(len(header))]
            seen.add(columns)
            yield pa.record_batch([pa.array(column, pa.string()) for column in columns], names=header)


def _dialect(path: Path, format: Format) -> dict[str, Any]:
    quoting = csv.QUOTE_NONE if format.quoting == "none" else csv.QUOTE_MINIMAL
    return {"delimiter": format.separator_of(path), "quoting": quoting}


def _names(cells: Any) -> list[str]:
    """Returns the header's names without spaces around them."""
    return [cell.strip() for cell in cells]


def _is_spaced(path: Path, format: Format) -> bool:
    """Whether a space follows each separator of the header: then it follows those of the rows, too."""
    if format.separator_of(path).isspace():
        return False
    with opened(path) as file, io.TextIOWrapper(file, encoding=format.codec, newline="") as text:
        cells = next(csv.reader(text, **_dialect(path, format)), [])[1:]
    return bool(cells) and all(cell.startswith(" ") for cell in cells)


@dataclass(slots=True)
class _Suspect:
    """A field that holds line breaks: its row, its column, and its first lines."""

    row: int
    column: int
    lines: list[str]


@dataclass(slots=True)
class _Seen:
    """What a file's rows showed while they were read.

    Attributes:
        is_whole, is_number: By column, whether each entry is a whole number, or a number.
        values: By column, its different values; None if there are many.
        broken: By column, the number of fields with line breaks.
        suspects: The first such fields.
    """

    rows: int = 0
    is_whole: list[bool] = field(default_factory=list)
    is_number: list[bool] = field(default_factory=list)
    values: list[set[str] | None] = field(default_factory=list)
    broken: list[int] = field(default_factory=list)
    suspects: list[_Suspect] = field(default_factory=list)

    def begin(self, n_columns: int) -> None:
        self.is_whole, self.is_number, self.broken = [True] * n_columns, [True] * n_columns, [0] * n_columns
        self.values = [set() for _ in range(n_columns)]

    def add(self, columns: Sequence[Sequence[str | None]]) -> None:
        """Notes the next rows."""
        for at, column in enumerate(columns):
            self.is_whole[at] = self.is_whole[at] and all(value is None or WHOLE.fullmatch(value) for value in column)
            self.is_number[at] = self.is_number[at] and all(v is None or NUMBER.fullmatch(v) for v in column)
            known = self.values[at]
            if known is not None:
                known.update(value for value in column if value is not None and len(value) < 100)
                self.values[at] = known if len(known) <= MOST_VALUES else None
            for row, value in enumerate(column, start=self.rows):
                if value is not None and "\n" in value:
                    self.broken[at] += 1
                    if len(self.suspects) < MOST_SUSPECTS:
                        self.suspects.append(_Suspect(row, at, value.split("\n", MOST_LINES)[:MOST_LINES]))
        self.rows += len(columns[0])

    def require_no_swallowed(self, path: Path, format: Format) -> None:
        """Raises ConfigError if fields hold rows of the file.

        A line of such a field has as many fields as a row. One of them has a value of a column of few values, as of
        labels; or the file's quotation marks do not pair, as text follows one that would end a field. A column in which
        most fields have line breaks is meant so.
        """
        separator = format.separator_of(path)
        likely = [each for each in self.suspects if 2 * self.broken[each.column] <= self.rows]
        cells = {each.row: self._rows_in(each, separator) for each in likely}
        swallowed = [row for row, inside in cells.items() if any(self._is_value(at, cell) for at, cell in inside)]
        if not swallowed and any(cells.values()) and not _is_well_formed(path, format):
            swallowed = [row for row, inside in cells.items() if inside]
        if swallowed:
            rows = sorted(swallowed)
            shown = ", ".join(map(str, rows[:5])) + (", …" if len(rows) > 5 else "")
            raise _fault(
                f"{path}: a field of row {shown} holds whole rows of the file, as a text begins with a quotation mark. If "
                "quotation marks enclose no field here, say `quoting: none` under `data`; if the field is meant so, "
                "`quoting: standard`"
            )

    def _rows_in(self, suspect: _Suspect, separator: str) -> list[tuple[int, str]]:
        """Returns the cells, each with its column, of lines of a field that could be rows of the file."""
        n_columns = len(self.is_whole)
        first, *others = (line.rstrip("\r") for line in suspect.lines)
        cells: list[tuple[int, str]] = []
        rest = first.rsplit(separator, n_columns - 1 - suspect.column)  # the remainder of the field's own row
        if len(rest) == n_columns - suspect.column:
            cells += [(suspect.column + at, cell) for at, cell in enumerate(rest) if at]
        for line in others:
            whole = line.split(separator)
            if len(whole) == n_columns:
                cells += [(at, cell) for at, cell in enumerate(whole) if at != suspect.column]
        return cells

    def _is_value(self, at: int, cell: str) -> bool:
        """Whether a column of few values has this one, or a column of numbers could have it."""
        values = self.values[at]
        if values is not None and 5 * len(values) <= 4 * self.rows:
            return cell in values
        return self.is_number[at] and NUMBER.fullmatch(cell) is not None


def _is_well_formed(path: Path, format: Format) -> bool:
    """Whether a separator or a line's end follows each quotation mark that ends a field."""
    with opened(path) as file, io.TextIOWrapper(file, encoding=format.codec, newline="") as text:
        limit = csv.field_size_limit(2**31 - 1)
        try:
            return all(True for _ in csv.reader(text, **_dialect(path, format), strict=True))
        except csv.Error:
            return False
        finally:
            csv.field_size_limit(limit)


def _fault(message: str) -> ConfigError:
    return ConfigError([Fault("data", message)])
