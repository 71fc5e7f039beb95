"""What a trial gets wrong: which classes it takes for which, and the validation rows with the largest loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from autopeft.history import Record
from autopeft.reports import text
from autopeft.reports.facts import Facts
from autopeft.reports.table import Column, Table

MOST_CLASSES = 12  # of a whole matrix; with more classes, the pairs that are confused most often are shown
MOST_PAIRS = 15
MOST_ROWS = 10

# Trial number → its rows with the largest loss, as `training.worst` wrote them.
Worst = Mapping[int, Sequence[Mapping[str, Any]]]


def chosen(facts: Facts) -> dict[str, Record]:
    """Returns the best trial and the knee, by title; one entry if they are the same."""
    best, knee = facts.front[0] if facts.front else None, facts.knee
    found = {"best and knee": best} if best is knee else {"best": best, "knee": knee}
    return {title: record for title, record in found.items() if record is not None}


def mistake_tables(facts: Facts, worst: Worst) -> list[Table]:
    """Makes the tables of the best trial and of the knee, those that have rows."""
    tables = []
    for title, record in chosen(facts).items():
        of = f"{title}, trial {record.number}"
        tables += [confusions(facts, record, of), worst_rows(worst.get(record.number, ()), of)]
    return [table for table in tables if len(table)]


def confusions(facts: Facts, record: Record, of: str) -> Table:
    """Makes the confusion matrix of a trial on validation; of many classes, the pairs that are confused most often.

    Without rows if the ledger has no pairs: its task has no classes, or an older autopeft wrote it.
    """
    pairs = record.detail.get("confused")
    names = [str(name) for name in facts.header["dataset"].get("label_names", ())]
    title = f"Confused: {of}"
    if pairs is None or not names:
        return Table(title, (), ())
    rows = record.detail["rows"]
    if len(names) > MOST_CLASSES:
        return _pairs(title, names, rows, pairs)
    correct = record.detail["correct"]
    counts = {(true, predicted): count for true, predicted, count in pairs}
    columns = (Column("true", "true class"), *(Column(str(at), name, str, True) for at, name in enumerate(names)))
    shown = tuple(
        {
            "true": name,
            **{str(at): correct[true] if at == true else counts.get((true, at), 0) for at in range(len(names))},
        }
        for true, name in enumerate(names)
    )
    return Table(
        title, columns, shown, "Rows of validation: a line for the true class, a column for the predicted one."
    )


def _pairs(title: str, names: Sequence[str], rows: Sequence[int], pairs: Sequence[Sequence[int]]) -> Table:
    shown = tuple(
        {"true": names[true], "predicted": names[predicted], "count": count, "share": count / max(rows[true], 1)}
        for true, predicted, count in pairs[:MOST_PAIRS]
    )
    columns = (
        Column("true", "true class"),
        Column("predicted", "predicted as"),
        Column("count", "rows", text.count, True),
        Column("share", "of the true class", lambda value: f"{value:.0%}", True),
    )
    return Table(title, columns, shown, f"The most confused pairs of {len(names)} classes, on validation.")


def worst_rows(rows: Sequence[Mapping[str, Any]], of: str) -> Table:
    """Makes a table of the validation rows with the largest loss."""
    columns = (
        Column("row", "row of the file", str, True),
        Column("input", "input"),
        Column("expected", "expected"),
        Column("predicted", "predicted", str),
        Column("loss", "loss", text.score, True),
    )
    return Table(f"Most wrong: {of}", columns, tuple(rows[:MOST_ROWS]), "Rows are counted from 0, without the header.")
