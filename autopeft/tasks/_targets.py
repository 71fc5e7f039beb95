"""Targets in a table: labels by name, numbers, or texts. Each knows its column, and finds all faults in it."""

from __future__ import annotations

import contextlib
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from autopeft.errors import ConfigError, Fault
from autopeft.tasks import named

MOST_REALS = 20  # labels such as 2.5 stars; more of them are measurements
# Types of cells that are neither a text nor a label.
NESTED = (list, tuple, dict, bytes, np.ndarray)
MISSING = ("NAType", "NaTType")  # pandas' missing values, by the names of their types: pandas is not imported for them
WHOLE = re.compile(r"0|-?[1-9][0-9]*")
HIDDEN = -1  # label of rows whose labels are kept secret, as in GLUE on the hub


@dataclass(frozen=True, slots=True)
class RowFault(Fault):
    """Something wrong in some rows of a split: a fault, or rows that are left out, as `data.on_fault` says.

    Attributes:
        rows: Their indices.
    """

    rows: tuple[int, ...] = ()


def row_fault(path: str, split: str, rows: Sequence[int], what: str) -> RowFault:
    """Says `train has 3 rows without a label: row 3, 7, 9`."""
    return RowFault(path, f"{split} has {n_rows(rows)} {what}: {some_rows(rows)}", rows=tuple(rows))


class Target(Protocol):
    """The true value of each row of a table.

    Attributes:
        columns: Column → the key of the config's `data` that names it.
    """

    columns: Mapping[str, str]

    def shape_faults(self, table: Mapping[str, Sequence[Any]], split: str) -> list[Fault]:
        """Finds cells that cannot be a target."""

    def is_unlabelled(self, table: Mapping[str, Sequence[Any]]) -> bool:
        """Whether a test split has no targets."""

    def about(
        self, train: Mapping[str, Sequence[Any]], given: Sequence[Any] | None
    ) -> tuple[dict[str, Any], list[Fault]]:
        """Returns `Dataset.about` of the training rows, and their faults.

        Args:
            given: Names of labels that came with the data; None if there are none.
        """

    def encode(
        self, table: Mapping[str, Sequence[Any]], split: str, about: Mapping[str, Any]
    ) -> tuple[dict[str, Any], np.ndarray | None, list[Fault]]:
        """Returns (`Raw.targets`, `Raw.strata`, faults) of a split."""


class Labels:
    """One label a row. Labels are told apart by their names as text: `1` and `"1"` are one.

    An integer is an index into the names only if a table of names came with the data, or if `label_names` leaves no
    doubt: no name is a whole number, or the labels of train are whole numbers and none of them is a name.

    Args:
        data: The config's data section.
        may_lack: Labels that other splits may have if train has no row of them.
    """

    def __init__(self, data: Mapping[str, Any], may_lack: Sequence[str] = ()) -> None:
        (self.column,) = named(data, "label")
        self.columns: Mapping[str, str] = {self.column: "label"}
        self.label_names, self.may_lack = data.get("label_names"), may_lack
        self._known, self._index = "train", dict[str, int]()
        self._codes: list[int] = []  # code → index; none if integers are names
        self._of_train: set[int] = set()

    def shape_faults(self, table: Mapping[str, Sequence[Any]], split: str) -> list[Fault]:
        """Finds rows with several labels."""
        for row, value in enumerate(table[self.column]):
            if isinstance(value, NESTED):
                return [Fault("data.label", f"{split} has {value!r:.60} in row {row}; expected one label a row")]
        return []

    def is_unlabelled(self, table: Mapping[str, Sequence[Any]]) -> bool:
        """Whether all labels are missing, or all are -1 and no label of train is."""
        hides = str(HIDDEN) not in self._index
        return all(is_missing(value) or (hides and value == HIDDEN) for value in table[self.column])

    def about(
        self, train: Mapping[str, Sequence[Any]], given: Sequence[Any] | None
    ) -> tuple[dict[str, Any], list[Fault]]:
        """Names the labels: from the config, else from the data's own table of names, else those of train in order."""
        column = train[self.column]
        of_table = None if given is None else list(map(str, given))
        names = list(self.label_names or of_table or in_order(label_name(v) for v in column if not is_missing(v)))
        self._known = "label_names" if self.label_names or given else "train"
        faults = self._faults_of_names(names, len(column))
        if self._known == "train":
            names += [name for name in self.may_lack if name not in names]
        self._index = {name: number for number, name in enumerate(names)}
        if of_table is not None and set(of_table) == set(names):
            self._codes = [self._index[name] for name in of_table]
        elif self._known == "label_names" and (of_table is not None or self._has_codes(column)):
            self._codes = list(range(len(names)))
        self._of_train = {index for value in column if (index := self._index_of(value)) is not None}
        return {"label_names": names, "n_outputs": len(names)}, faults

    def encode(
        self, table: Mapping[str, Sequence[Any]], split: str, about: Mapping[str, Any]
    ) -> tuple[dict[str, Any], np.ndarray | None, list[Fault]]:
        """Returns label indices, as targets and as strata."""
        labels = np.zeros(len(table[self.column]), dtype=np.int64)
        missing: list[int] = []
        unknown: dict[str, list[int]] = {}
        unseen: dict[str, list[int]] = {}
        for row, value in enumerate(table[self.column]):
            index = None if is_missing(value) else self._index_of(value)
            if is_missing(value):
                missing.append(row)
            elif index is None:
                unknown.setdefault(label_name(value), []).append(row)
            elif index not in self._of_train and about["label_names"][index] not in self.may_lack:
                unseen.setdefault(about["label_names"][index], []).append(row)
            else:
                labels[row] = index
        faults: list[Fault] = []
        if missing:
            faults.append(row_fault("data.label", split, missing, "without a label"))
        faults += _unknown_labels(split, unknown, self._known, about["label_names"])
        faults += _unknown_labels(split, unseen, "train", about["label_names"])
        return {"label": labels}, labels, faults

    def _has_codes(self, train: Sequence[Any]) -> bool:
        """Whether integers are indices into `label_names`, by the names and by train."""
        if not any(WHOLE.fullmatch(name) for name in self._index):
            return True
        values = [value for value in train if not is_missing(value)]
        return all(_is_integer(value) and label_name(value) not in self._index for value in values)

    def _index_of(self, value: Any) -> int | None:
        if is_missing(value):
            return None
        if self._codes and _is_integer(value):
            return self._codes[int(value)] if 0 <= int(value) < len(self._codes) else None
        return self._index.get(label_name(value))

    def _faults_of_names(self, names: Sequence[str], n: int) -> list[Fault]:
        message = ""
        if len(names) < 2:
            message = f"a classification has two labels or more; train has only {list(names)}"
        elif self._known == "train" and len(names) == n > 2:
            message = (
                f"each of the {n:,} rows of train has a label of its own: is {self.column!r} the column of labels?"
            )
        elif self._known == "train" and sum(map(_is_real, names)) > MOST_REALS:
            message = (
                f"{self.column!r} holds {len(names):,} different numbers such as {names[1]}: a classification needs "
                "classes"
            )
        return [Fault("data.label", message)] if message else []


def _unknown_labels(split: str, found: Mapping[str, Sequence[int]], known: str, names: Sequence[str]) -> list[Fault]:
    """Makes the fault for labels that another split, or the table of names, lacks."""
    if not found:
        return []
    shown = ", ".join(f"{name!r} (row {rows[0]})" for name, rows in list(found.items())[:5])
    has = ", ".join(map(repr, names[:5])) + (", …" if len(names) > 5 else "")
    return [
        RowFault(
            "data.label",
            f"{split} has labels that {known} has not: {shown}"
            + (f"; its labels are {has}" if known == "train" else ""),
            rows=tuple(row for rows in found.values() for row in rows),
        )
    ]


def label_name(value: Any) -> str:
    """Returns a label's name: text as it is, `1.0` as 1, since integers beside a missing value become real numbers."""
    if isinstance(value, (float, np.floating)) and float(value).is_integer():
        return str(int(value))
    return str(value)


def in_order(names: Iterable[str]) -> list[str]:
    """Returns names once each: whole numbers by value, then the others by their letters."""
    return sorted(set(names), key=lambda name: (0, int(name), "") if WHOLE.fullmatch(name) else (1, 0, name))


def alike(names: Sequence[str]) -> list[str]:
    """Says which labels differ by spaces, by capitals or by the writing of a number only."""
    groups: dict[str, list[str]] = {}
    for name in names:
        plain = " ".join(unicodedata.normalize("NFKC", name).casefold().split())
        with contextlib.suppress(ValueError):
            plain = f"{float(plain):g}" if plain not in ("nan", "inf", "infinity") else plain
        groups.setdefault(plain, []).append(name)
    return [
        f"the labels {', '.join(map(repr, group))} are classes of their own, and look alike"
        for group in groups.values()
        if len(group) > 1
    ]


def _is_integer(value: Any) -> bool:
    """Whether a cell is a number without a fraction, and no truth value."""
    if isinstance(value, (bool, np.bool_)):
        return False
    return isinstance(value, (int, np.integer)) or (isinstance(value, (float, np.floating)) and value.is_integer())


class Numbers:
    """One real number a row.

    Args:
        data: The config's data section.
    """

    def __init__(self, data: Mapping[str, Any]) -> None:
        (self.column,) = named(data, "label")
        self.columns: Mapping[str, str] = {self.column: "label"}

    def shape_faults(self, table: Mapping[str, Sequence[Any]], split: str) -> list[Fault]:
        return []

    def is_unlabelled(self, table: Mapping[str, Sequence[Any]]) -> bool:
        """All missing."""
        return all(is_missing(value) for value in table[self.column])

    def about(
        self, train: Mapping[str, Sequence[Any]], given: Sequence[Any] | None
    ) -> tuple[dict[str, Any], list[Fault]]:
        """No statistics here: splits are carved later, and those of training are of its own rows."""
        values, wrong = self._values(train, "train")
        if not wrong and not values.std() > 0:  # `encode` reports what is wrong
            return {"n_outputs": 1}, [Fault("data.label", f"{self.column!r} is {values[0]:g} in each row of train")]
        return {"n_outputs": 1}, []

    def encode(
        self, table: Mapping[str, Sequence[Any]], split: str, about: Mapping[str, Any]
    ) -> tuple[dict[str, Any], np.ndarray | None, list[Fault]]:
        """The numbers as they are."""
        values, faults = self._values(table, split)
        return {"value": values}, None, faults

    def _values(self, table: Mapping[str, Sequence[Any]], split: str) -> tuple[np.ndarray, list[Fault]]:
        values, missing, wrong = np.zeros(len(table[self.column])), [], []
        for row, value in enumerate(table[self.column]):
            if is_missing(value):
                missing.append(row)
                continue
            try:
                values[row] = float("nan") if isinstance(value, bool) else float(value)
            except (TypeError, ValueError):
                values[row] = float("nan")
            if not np.isfinite(values[row]):
                wrong.append(row)
        faults: list[Fault] = []
        if missing:
            faults.append(row_fault("data.label", split, missing, "without a number"))
        if wrong:
            first = table[self.column][wrong[0]]
            said = f"{split} has {n_rows(wrong)} that are no finite number: {first!r} in row {wrong[0]}"
            faults.append(RowFault("data.label", said, rows=tuple(wrong)))
        return values, faults


class Texts:
    """A text a row, which a language model learns to write.

    Args:
        data: The config's data section.
        key: Key of `data` that names the column; also the name of the target.
        n_outputs: Size of the model's output layer; 0 to keep that of the checkpoint.
    """

    def __init__(self, data: Mapping[str, Any], key: str, n_outputs: int) -> None:
        (self.column,) = named(data, key)
        self.key, self.n_outputs = key, n_outputs
        self.columns: Mapping[str, str] = {self.column: key}

    def shape_faults(self, table: Mapping[str, Sequence[Any]], split: str) -> list[Fault]:
        return []

    def is_unlabelled(self, table: Mapping[str, Sequence[Any]]) -> bool:
        """All missing."""
        return all(is_missing(value) for value in table[self.column])

    def about(
        self, train: Mapping[str, Sequence[Any]], given: Sequence[Any] | None
    ) -> tuple[dict[str, Any], list[Fault]]:
        return {"n_outputs": self.n_outputs}, []

    def encode(
        self, table: Mapping[str, Sequence[Any]], split: str, about: Mapping[str, Any]
    ) -> tuple[dict[str, Any], np.ndarray | None, list[Fault]]:
        """The texts as they are."""
        return {self.key: table[self.column]}, None, text_faults(table, self.columns, split)


def text_faults(table: Mapping[str, Sequence[Any]], columns: Mapping[str, str], split: str) -> list[Fault]:
    """Finds cells that are not a text, or empty. `columns` is column → the key of `data` that names it."""
    faults: list[Fault] = []
    for name, key in columns.items():
        nested: tuple[int, str] | None = None
        empty: list[int] = []
        for row, value in enumerate(table[name]):
            if isinstance(value, NESTED):
                nested = (row, type(value).__name__)
                break
            if is_missing(value) or not str(value).strip():
                empty.append(row)
        if nested is not None:
            faults.append(
                Fault(f"data.{key}", f"{split} has a {nested[1]} in row {nested[0]} of {name!r}; expected text")
            )
        elif empty:
            faults.append(row_fault(f"data.{key}", split, empty, f"with an empty {name!r}"))
    return faults


def is_missing(value: Any) -> bool:
    """Whether a cell is empty: None, NaN, or what pandas' nullable types have in its place."""
    if value is None or type(value).__name__ in MISSING:
        return True
    return isinstance(value, (float, np.floating)) and bool(np.isnan(value))


def n_rows(rows: Sequence[int]) -> str:
    return "1 row" if len(rows) == 1 else f"{len(rows):,} rows"


def some_rows(rows: Sequence[int]) -> str:
    shown = ", ".join(map(str, rows[:5]))
    return f"row {shown}" + (", …" if len(rows) > 5 else "")


def _is_real(name: Any) -> bool:
    """Whether a label is a number with a fraction: `0.37`."""
    try:
        return not float(name).is_integer()
    except (ValueError, OverflowError):  # a name; infinity
        return False


def nothing_wrong(faults: Sequence[Fault], source: str = "data") -> None:
    """Raises ConfigError with all the faults, if there are some."""
    if faults:
        raise ConfigError(list({(fault.path, fault.message): fault for fault in faults}.values()), source)
