"""Targets in a table: labels by name, numbers, or texts. Each knows its column, and finds all faults in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from autopeft.errors import ConfigError, Fault
from autopeft.tasks import named

MOST_REALS = 20  # labels such as 2.5 stars; more of them are measurements
# Types of cells that are neither a text nor a label.
NESTED = (list, tuple, dict, bytes, np.ndarray)


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
    """One label a row.

    Args:
        data: The config's data section.
    """

    def __init__(self, data: Mapping[str, Any]) -> None:
        (self.column,) = named(data, "label")
        self.columns: Mapping[str, str] = {self.column: "label"}
        self.label_names = data.get("label_names")
        self._known, self._are_codes = "train", False

    def shape_faults(self, table: Mapping[str, Sequence[Any]], split: str) -> list[Fault]:
        """Finds rows with several labels."""
        for row, value in enumerate(table[self.column]):
            if isinstance(value, NESTED):
                return [Fault("data.label", f"{split} has {value!r:.60} in row {row}; expected one label a row")]
        return []

    def is_unlabelled(self, table: Mapping[str, Sequence[Any]]) -> bool:
        """Whether all labels are missing, or all are -1 as in GLUE on the hub."""
        return all(is_missing(value) or value == -1 for value in table[self.column])

    def about(
        self, train: Mapping[str, Sequence[Any]], given: Sequence[Any] | None
    ) -> tuple[dict[str, Any], list[Fault]]:
        """Names the labels: from the config, else from the data's own table of names, else those of train in order."""
        column = train[self.column]
        names = self.label_names or given
        self._known = "label_names" if names else "train"
        # The table of a data set names integer codes; labels of the config may be names or codes.
        self._are_codes = self.label_names is None and given is not None
        if names:
            names = list(map(str, names))
        else:
            names = list(map(str, _names_of(column)))
        faults = []
        if len(names) < 2:
            faults.append(Fault("data.label", f"a classification has two labels or more; train has only {names}"))
        elif self._known == "train" and len(names) == len(column) > 2:
            faults.append(
                Fault(
                    "data.label",
                    f"each of the {len(names):,} rows of train has a label of its own: is {self.column!r} the column of "
                    "labels?",
                )
            )
        elif self._known == "train" and sum(map(_is_real, names)) > MOST_REALS:
            faults.append(
                Fault(
                    "data.label",
                    f"{self.column!r} holds {len(names):,} different numbers such as {names[1]}: a classification needs "
                    "classes",
                )
            )
        return {"label_names": names, "n_outputs": len(names)}, faults

    def encode(
        self, table: Mapping[str, Sequence[Any]], split: str, about: Mapping[str, Any]
    ) -> tuple[dict[str, Any], np.ndarray | None, list[Fault]]:
        """Returns label indices, as targets and as strata."""
        names = about["label_names"]
        values = [None if is_missing(value) else _whole(value) for value in table[self.column]]
        index = {name: number for number, name in enumerate(names)}
        are_whole = all(isinstance(value, (int, np.integer)) for value in values if value is not None)
        # An integer that is not a name is an index. If the data has a table of names, every integer is an index.
        are_indices = are_whole and (self._are_codes or not any(str(value) in index for value in values))
        labels = np.zeros(len(values), dtype=np.int64)
        missing: list[int] = []
        unknown: dict[str, int] = {}
        for row, value in enumerate(values):
            if value is None:
                missing.append(row)
            elif are_indices and 0 <= int(value) < len(names):
                labels[row] = int(value)
            elif str(value) in index and not are_indices:
                labels[row] = index[str(value)]
            else:
                unknown.setdefault(str(value), row)
        faults = []
        if missing:
            faults.append(Fault("data.label", f"{split} has {n_rows(missing)} without a label: {some_rows(missing)}"))
        if unknown:
            shown = ", ".join(f"{value!r} (row {row})" for value, row in list(unknown.items())[:5])
            faults.append(Fault("data.label", f"{split} has labels that {self._known} has not: {shown}"))
        return {"label": labels}, labels, faults


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
        faults = []
        if missing:
            faults.append(Fault("data.label", f"{split} has {n_rows(missing)} without a number: {some_rows(missing)}"))
        if wrong:
            first = table[self.column][wrong[0]]
            faults.append(
                Fault(
                    "data.label", f"{split} has {n_rows(wrong)} that are no finite number: {first!r} in row {wrong[0]}"
                )
            )
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
    faults = []
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
            faults.append(
                Fault(f"data.{key}", f"{split} has {n_rows(empty)} with an empty {name!r}: {some_rows(empty)}")
            )
    return faults


def is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and np.isnan(value))


def n_rows(rows: Sequence[int]) -> str:
    return "1 row" if len(rows) == 1 else f"{len(rows):,} rows"


def some_rows(rows: Sequence[int]) -> str:
    shown = ", ".join(map(str, rows[:5]))
    return f"row {shown}" + (", …" if len(rows) > 5 else "")


def _names_of(column: Sequence[Any]) -> list[Any]:
    """Returns the labels of a column in order: integers by value, others by name."""
    values = {_whole(value) for value in column if not is_missing(value)}
    return sorted(
        values,
        key=lambda value: (
            not isinstance(value, (int, np.integer)),
            value if isinstance(value, (int, np.integer)) else 0,
            str(value),
        ),
    )


def _whole(value: Any) -> Any:
    """Turns `1.0` into the label 1, as integers beside a missing value become floats. `true` stays the label True."""
    if isinstance(value, (bool, np.bool_)):
        return str(bool(value))
    return int(value) if isinstance(value, float) and value.is_integer() else value


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
