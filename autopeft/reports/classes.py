"""scikit-learn's classification report of a trial, from the ledger's counts by class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from autopeft.history import Record
from autopeft.reports import text
from autopeft.reports.facts import Facts
from autopeft.reports.table import Column, Table
from autopeft.trial import Status

MOST_ROWS = 20  # classes in a text; if there are more, those with the lowest F1
AVERAGES = ("macro average", "weighted average")


def class_scores(rows: np.ndarray, predicted: np.ndarray, correct: np.ndarray) -> np.ndarray:
    """Computes precision, recall and F1, (n_classes + 2, 3): of each class, then their plain mean over the classes that
    occur, then their mean weighted by rows.

    Args:
        rows, predicted, correct: (n_classes,): rows of the class, rows predicted as the class, and rows that are both.
            A class without rows or predictions scores 0, as with scikit-learn's `zero_division=0`.
    """
    precision = correct / np.maximum(predicted, 1)
    recall = correct / np.maximum(rows, 1)
    f1 = 2 * correct / np.maximum(rows + predicted, 1)
    scores = np.stack([precision, recall, f1], axis=1)
    occurs = (rows > 0) | (predicted > 0)  # scikit-learn's macro average leaves out all other classes
    return np.vstack([scores, scores[occurs].mean(axis=0), rows @ scores / max(rows.sum(), 1)])


def class_tables(facts: Facts, most: int | None = None) -> list[Table]:
    """Makes a table for the best trial and one for the knee; none if the ledger has no counts.

    Args:
        most: Classes to show at most; all if None.
    """
    members = {"best": facts.front[0] if facts.front else None, "knee": facts.knee}
    if members["knee"] is members["best"]:
        members = {"best and knee": members["best"]}
    tables = (class_table(facts, record, place, most) for place, record in members.items() if record is not None)
    return [table for table in tables if table.rows]


def class_table(facts: Facts, record: Record, place: str = "", most: int | None = None) -> Table:
    """Makes a table of precision, recall and F1 by class, on validation, and on test if confirmed (mean over seeds)."""
    confirmations = [c for c in facts.history.confirmations if c.number == record.number]
    retrained = [c.detail for c in confirmations if c.status is Status.COMPLETE]
    counts = {"validation": [record.detail], "test": retrained}
    found = {split: _scores(facts, split, each) for split, each in counts.items()}
    parts = {split: scores for split, scores in found.items() if scores is not None}
    what = str(record.detail.get("of", "class"))
    names = _names(facts, record)
    columns = [Column("class", what)]
    rows: list[dict[str, Any]] = [{"class": name} for name in (*names, *AVERAGES)]
    for split, scores in parts.items():
        support = _rows(facts, split, counts[split])
        columns.append(Column(f"{split}_rows", f"rows of {split}", text.count, True))
        keys = {"precision": f"{split}_precision", "recall": f"{split}_recall", "F1": f"{split}_f1"}
        columns += [Column(key, title, text.score, True) for title, key in keys.items()]
        for row, values, count in zip(rows, scores, [*support, support.sum(), support.sum()], strict=True):
            row |= {f"{split}_rows": int(count)}
            row |= {key: float(value) for key, value in zip(keys.values(), values, strict=True)}
    note = "Validation: one seed." if "validation" in parts else ""
    if "test" in parts:
        of = f" of {len(confirmations)}" if len(retrained) < len(confirmations) else ""
        note += f" Test: the mean of {len(retrained)}{of} fresh {'seed' if len(confirmations) == 1 else 'seeds'}."
    if most is not None and len(names) > most and parts:
        first = next(iter(parts))
        kept = sorted(np.argsort(parts[first][: -len(AVERAGES), 2], kind="stable")[:most])
        rows = [*(rows[index] for index in kept), *rows[-len(AVERAGES) :]]
        many = text.plural(len(names), what, "classes" if what == "class" else None)
        note += f" Of {many}, the {most} with the lowest F1 on {first}."
    title = f"By {what}: {place + ', ' if place else ''}trial {record.number}"
    return Table(title, tuple(columns), tuple(rows) if parts else (), note.strip())


def _scores(facts: Facts, split: str, counts: Sequence[Mapping[str, Any]]) -> np.ndarray | None:
    """Averages the scores over retrainings; None without retrainings, counts by class, or rows of the classes."""
    if not counts or not all("predicted" in each for each in counts) or _rows(facts, split, counts) is None:
        return None
    rows = _rows(facts, split, counts)
    each = [class_scores(rows, np.array(c["predicted"]), np.array(c["correct"])) for c in counts]
    mean: np.ndarray = np.mean(each, axis=0)
    return mean


def _rows(facts: Facts, split: str, counts: Sequence[Mapping[str, Any]]) -> Any:
    """Returns the rows of each class; from the header in ledgers of schema 1."""
    of_header = facts.header["dataset"].get("label_rows", {}).get(split)
    rows = next((each["rows"] for each in counts if "rows" in each), of_header)
    return None if rows is None else np.array(rows)


def _names(facts: Facts, record: Record) -> list[Any]:
    """Returns the names beside the counts, such as types of entities, else the labels; empty without either."""
    return list(record.detail.get("names", facts.header["dataset"].get("label_names", ())))
