"""Several labels a row in a table: a set of labels, or a label in each of several columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from autopeft.errors import Fault
from autopeft.tasks import named
from autopeft.tasks._targets import Labels, RowFault, is_missing, row_fault

KEY = "labels"  # the key of `data` that names the columns
YES, NO = ("1", "1.0", "true", "yes"), ("0", "0.0", "false", "no")


class LabelSets:
    """Any number of labels a row: one column of lists, or of text with separators; or a yes/no column a label.

    An empty cell of a column of sets is a row without a label. Targets: `labels` (n_rows, n_labels), 0 or 1.

    Args:
        data: The config's data section.
        separator: What stands between the labels of a text.
    """

    def __init__(self, data: Mapping[str, Any], separator: str) -> None:
        self.names = named(data, KEY)
        self.columns: Mapping[str, str] = dict.fromkeys(self.names, KEY)
        self.label_names, self.separator = data.get("label_names"), separator
        self._has_names = False  # that came with the data, or stand in the config

    def shape_faults(self, table: Mapping[str, Sequence[Any]], split: str) -> list[Fault]:
        """Finds cells of yes/no columns that are neither."""
        faults = []
        for name in self.names if len(self.names) > 1 else ():
            wrong = [row for row, value in enumerate(table[name]) if not is_missing(value) and _yes(value) is None]
            if wrong:
                got = f"{table[name][wrong[0]]!r:.40} in row {wrong[0]}"
                faults.append(Fault(f"data.{KEY}", f"{split} has {got} of {name!r}; expected 1 or 0, yes or no"))
        return faults

    def is_unlabelled(self, table: Mapping[str, Sequence[Any]]) -> bool:
        """Whether each cell of each column is missing. An empty list is none."""
        return all(is_missing(value) for name in self.names for value in table[name])

    def about(
        self, train: Mapping[str, Sequence[Any]], given: Sequence[Any] | None
    ) -> tuple[dict[str, Any], list[Fault]]:
        """Names the labels: the columns; or the config's names, the data's own, or those that train has, in order."""
        if len(self.names) > 1:
            names = list(self.names)
        else:
            found = {label for cell in train[self.names[0]] for label in self._set(cell)}
            self._has_names = bool(self.label_names or given)
            names = list(map(str, self.label_names or given or sorted(found, key=_in_order)))
        faults = []
        if len(names) < 2:
            faults.append(Fault(f"data.{KEY}", f"expected two labels or more; train has {names or 'none'}"))
        return {"labels": names, "n_outputs": len(names)}, faults

    def encode(
        self, table: Mapping[str, Sequence[Any]], split: str, about: Mapping[str, Any]
    ) -> tuple[dict[str, Any], np.ndarray | None, list[Fault]]:
        """Returns a column a label. A row's stratum is the rarest of its labels."""
        if len(self.names) > 1:
            held, faults = self._of_columns(table, split)
        else:
            held, faults = self._of_sets(table[self.names[0]], split, about["labels"])
        if not held.shape[1]:  # `about` says so
            return {KEY: held}, None, faults
        rarest = np.where(held == 1, held.sum(axis=0, dtype=np.int64), len(held) + 1).argmin(axis=1)
        return {KEY: held}, np.where(held.any(axis=1), rarest, -1).astype(np.int64), faults

    def _of_columns(self, table: Mapping[str, Sequence[Any]], split: str) -> tuple[np.ndarray, list[Fault]]:
        faults: list[Fault] = []
        held = np.zeros((len(table[self.names[0]]), len(self.names)), dtype=np.uint8)
        for at, name in enumerate(self.names):
            missing = []
            for row, value in enumerate(table[name]):
                held[row, at] = bool(_yes(value))
                if is_missing(value):
                    missing.append(row)
            if missing:
                faults.append(row_fault(f"data.{KEY}", split, missing, f"without {name!r}"))
        return held, faults

    def _of_sets(self, column: Sequence[Any], split: str, names: Sequence[str]) -> tuple[np.ndarray, list[Fault]]:
        sets = [self._set(cell) for cell in column]
        index = {name: at for at, name in enumerate(names)}
        are_whole = all(label.isdigit() for held in sets for label in held)
        if self._has_names and are_whole and not any(name.isdigit() for name in names):
            index = {str(at): at for at in range(len(names))}  # codes
        encoded = np.zeros((len(sets), len(names)), dtype=np.uint8)
        unknown: dict[str, list[int]] = {}
        for row, labels in enumerate(sets):
            for label in labels:
                if label in index:
                    encoded[row, index[label]] = 1
                else:
                    unknown.setdefault(label, []).append(row)
        if not unknown:
            return encoded, []
        shown = ", ".join(f"{label!r} (row {rows[0]})" for label, rows in list(unknown.items())[:5])
        known = "label_names" if self._has_names else "train"
        wrong = tuple({row: None for rows in unknown.values() for row in rows})
        return encoded, [RowFault(f"data.{KEY}", f"{split} has labels that {known} has not: {shown}", rows=wrong)]

    def _set(self, cell: Any) -> list[str]:
        """Returns the labels of a cell."""
        if isinstance(cell, (list, tuple, np.ndarray)):
            return [str(label).strip() for label in cell]
        if is_missing(cell):
            return []
        return [label.strip() for label in str(cell).split(self.separator) if label.strip()]


class LabelColumns:
    """A label in each of several columns. Targets: `labels` (n_rows, n_columns), indices into each column's names.

    Args:
        data: The config's data section.
    """

    def __init__(self, data: Mapping[str, Any]) -> None:
        self.names = named(data, KEY)
        self.columns: Mapping[str, str] = dict.fromkeys(self.names, KEY)
        self.each = {name: Labels({**data, "label": name, "label_names": None}) for name in self.names}

    def shape_faults(self, table: Mapping[str, Sequence[Any]], split: str) -> list[Fault]:
        """Finds rows with several labels in one column."""
        return [_here(fault, name) for name, of in self.each.items() for fault in of.shape_faults(table, split)]

    def is_unlabelled(self, table: Mapping[str, Sequence[Any]]) -> bool:
        """Whether no column has labels."""
        return all(of.is_unlabelled(table) for of in self.each.values())

    def about(
        self, train: Mapping[str, Sequence[Any]], given: Sequence[Any] | None
    ) -> tuple[dict[str, Any], list[Fault]]:
        """Names the labels of each column. A table of names that came with the data is of the first column."""
        faults, names = [], {}
        if len(self.names) < 2:
            faults.append(Fault(f"data.{KEY}", f"names {self.names}; expected two columns or more"))
        for at, (name, of) in enumerate(self.each.items()):
            about, wrong = of.about(train, given if at == 0 else None)
            names[name] = about["label_names"]
            faults += [_here(fault, name) for fault in wrong]
        return {"outputs": names, "n_outputs": sum(map(len, names.values()))}, faults

    def encode(
        self, table: Mapping[str, Sequence[Any]], split: str, about: Mapping[str, Any]
    ) -> tuple[dict[str, Any], np.ndarray | None, list[Fault]]:
        """Returns label indices by column. The strata are the labels of the column that has most."""
        faults, columns = [], []
        for name, of in self.each.items():
            targets, _, wrong = of.encode(table, split, {"label_names": about["outputs"][name]})
            columns.append(targets["label"])
            faults += [_here(fault, name) for fault in wrong]
        finest = max(range(len(columns)), key=lambda at: len(about["outputs"][self.names[at]]))
        return {KEY: np.stack(columns, axis=1)}, columns[finest], faults


def _yes(value: Any) -> bool | None:
    """Reads a yes or a no; None for anything else."""
    word = str(value).strip().lower()
    return True if word in YES else False if word in NO else None


def _in_order(name: str) -> tuple[bool, int, str]:
    """Sorts whole numbers by value, before names."""
    return (not name.isdigit(), int(name) if name.isdigit() else 0, name)


def _here(fault: Fault, column: str) -> Fault:
    return replace(fault, path=f"data.{KEY}", message=f"{column!r}: {fault.message}")
