"""Words and their tags in a table: lists, or text with spaces between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from autopeft.errors import Fault
from autopeft.tasks import named
from autopeft.tasks._entities import OUTSIDE
from autopeft.tasks._targets import RowFault, is_missing, row_fault


def words_of(cell: Any) -> list[str]:
    """Returns the words, or tags, of a cell."""
    if is_missing(cell):
        return []
    return list(map(str, cell)) if isinstance(cell, (list, tuple, np.ndarray)) else str(cell).split()


def word_faults(table: Mapping[str, Sequence[Any]], columns: Mapping[str, str], split: str) -> list[Fault]:
    """Finds rows without a word, and empty words."""
    faults: list[Fault] = []
    for name, key in columns.items():
        rows = [words_of(cell) for cell in table[name]]
        empty = [row for row, words in enumerate(rows) if not words or not all(word.strip() for word in words)]
        if empty:
            faults.append(row_fault(f"data.{key}", split, empty, "with no word or an empty one"))
    return faults


class WordTags:
    """One tag a word, in BIO: `O`, `B-person`, `I-person`. Integer codes are read if there are names for them.

    Args:
        data: The config's data section.
    """

    def __init__(self, data: Mapping[str, Any]) -> None:
        (self.column,), (self.words,) = named(data, "tags"), named(data, "tokens")
        self.columns: Mapping[str, str] = {self.column: "tags"}
        self.label_names = data.get("label_names")
        self._are_named = False

    def shape_faults(self, table: Mapping[str, Sequence[Any]], split: str) -> list[Fault]:
        """Finds rows whose number of tags is not that of the words."""
        for row, (words, tags) in enumerate(zip(table[self.words], table[self.column], strict=True)):
            if not is_missing(tags) and len(words_of(tags)) != len(words_of(words)):
                has = f"{len(words_of(tags))} tags for {len(words_of(words))} words"
                return [Fault("data.tags", f"{split} has {has} in row {row}; expected a tag a word")]
        return []

    def is_unlabelled(self, table: Mapping[str, Sequence[Any]]) -> bool:
        """All missing."""
        return all(is_missing(tags) for tags in table[self.column])

    def about(
        self, train: Mapping[str, Sequence[Any]], given: Sequence[Any] | None
    ) -> tuple[dict[str, Any], list[Fault]]:
        """Names the tags: from the config, else from the data's own table of names, else those of train, `O` first."""
        self._are_named = bool(self.label_names or given)  # not by train alone
        found = {tag for cell in train[self.column] for tag in words_of(cell)}
        names = list(
            map(str, self.label_names or given or sorted(found, key=lambda tag: (tag != OUTSIDE, tag[2:], tag)))
        )
        wrong = [name for name in names if name != OUTSIDE and (name[:2] not in ("B-", "I-") or len(name) == 2)]
        faults = []
        if wrong or OUTSIDE not in names or len(names) < 2:
            got = ", ".join(map(repr, (wrong or names)[:5])) or "none"
            faults.append(
                Fault(
                    "data.tags",
                    f"tags are O, B-… and I-…; got {got}. Integer codes need data.label_names, their names in order",
                )
            )
        return {"label_names": names, "n_outputs": len(names)}, faults

    def encode(
        self, table: Mapping[str, Sequence[Any]], split: str, about: Mapping[str, Any]
    ) -> tuple[dict[str, Any], np.ndarray | None, list[Fault]]:
        """Returns tag indices by row. The strata are rows with an entity, and rows without."""
        index = {name: number for number, name in enumerate(about["label_names"])}
        cells = [words_of(cell) for cell in table[self.column]]
        if self._are_named and not any(tag in index for cell in cells for tag in cell):  # no name: indices
            index = {str(number): number for number in range(len(about["label_names"]))}
        unknown: dict[str, list[int]] = {}
        for row, cell in enumerate(cells):
            for tag in cell:
                if tag not in index:
                    unknown.setdefault(tag, []).append(row)
        missing = [row for row, cell in enumerate(cells) if not cell]
        faults: list[Fault] = []
        if missing:
            faults.append(row_fault("data.tags", split, missing, "without tags"))
        if unknown:
            shown = ", ".join(f"{tag!r} (row {rows[0]})" for tag, rows in list(unknown.items())[:5])
            known = "label_names" if self.label_names else "train"
            wrong = tuple({row: None for rows in unknown.values() for row in rows})
            faults.append(RowFault("data.tags", f"{split} has tags that {known} has not: {shown}", rows=wrong))
        tags = [[index.get(tag, 0) for tag in cell] for cell in cells]
        outside = about["label_names"].index(OUTSIDE) if OUTSIDE in about["label_names"] else 0
        strata = np.array([any(tag != outside for tag in cell) for cell in tags], dtype=np.int64)
        return {"tags": tags}, strata, faults
