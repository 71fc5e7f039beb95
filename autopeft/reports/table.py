"""Tables of a search as plain rows: the CLI, the notebook, HTML and Markdown show the same ones."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from autopeft.history import History, Record
from autopeft.reports import text
from autopeft.reports.facts import SIZE, Baseline, Confirmed, Describe, Facts
from autopeft.trial import Status

Format = Callable[[Any], str]
MOST_TRIALS = 1000  # rows of a report's table of trials: one of 10,000 opens slowly, and nobody reads it
MOST_REASONS = 200  # rows of its tables of failures and of refusals
ALL_OF_THEM = "`autopeft trials RUN` has all"


@dataclass(frozen=True, slots=True)
class Column:
    """One column.

    Attributes:
        key: Key in the rows' mappings.
        title: Title for people.
        format: Turns a value into text. An absent value is a dash.
        is_number: Whether the column is aligned to the right.
        is_detail: Whether a narrow terminal leaves the column out.
    """

    key: str
    title: str
    format: Format = str
    is_number: bool = False
    is_detail: bool = False

    def show(self, row: Mapping[str, Any]) -> str:
        value = row[self.key]
        return text.ABSENT if value is None or value == "" else self.format(value)


@dataclass(frozen=True)
class Table:
    """Columns and rows; each row has every column's key, with None for an absent value.

    Attributes:
        title: Title of the table.
        columns: In order.
        rows: Values, not yet text.
        note: Remark that a reader needs to understand the numbers; empty if there is none.
    """

    title: str
    columns: tuple[Column, ...]
    rows: tuple[Mapping[str, Any], ...]
    note: str = ""

    def __len__(self) -> int:
        return len(self.rows)

    def cells(self) -> list[list[str]]:
        """All rows as text."""
        return [[column.show(row) for column in self.columns] for row in self.rows]

    def markdown(self) -> str:
        """Returns a Markdown table. Text from outside is escaped."""
        head = "| " + " | ".join(text.markdown(column.title) for column in self.columns) + " |"
        rule = "|" + "|".join("---:" if column.is_number else "---" for column in self.columns) + "|"
        body = ["| " + " | ".join(text.markdown(value) for value in cells) + " |" for cells in self.cells()]
        return "\n".join([head, rule, *body])

    def csv(self) -> str:
        """Returns CSV with the keys as its header and full values. No cell can be read as a formula."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow([text.cell(column.key) for column in self.columns])
        for row in self.rows:
            writer.writerow([text.cell(row[column.key]) for column in self.columns])
        return out.getvalue()

    def html(self) -> str:
        """As a plain `<table>`, for a notebook."""
        head = "".join(f"<th>{escape(column.title)}</th>" for column in self.columns)
        body = "".join(
            "<tr>"
            + "".join(
                f"<td{' align=right' if column.is_number else ''}>{escape(value)}</td>"
                for column, value in zip(self.columns, cells, strict=True)
            )
            + "</tr>"
            for cells in self.cells()
        )
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"

    _repr_html_ = html


def front_table(history: History, describe: Describe) -> Table:
    """The front, the best score first."""
    return front(Facts(history, describe))


def trials_table(history: History, describe: Describe) -> Table:
    """Everything that was asked for, and how it ended."""
    return trials(Facts(history, describe))


def front(facts: Facts) -> Table:
    """The front, the best score first; with confirmed numbers and the drop if there are any."""
    rows = [_front_row(facts, record) for record in facts.front]
    columns = [
        Column("trial", "trial", str, True),
        Column("name", "configuration"),
        Column("score", f"{text.metric_title(facts.metric)}, {facts.validation_label}", text.score, True),
    ]
    if facts.confirmed or facts.fruitless:
        columns += [
            Column("test", f"{text.metric_title(facts.metric)}, test, mean ± 95 % CI", str, True),
            Column("seeds", "seeds", str, True, is_detail=True),
            Column("drop", "drop", text.signed, True),
        ]
    columns += _size_columns(facts)
    columns += [
        Column(objective.metric, text.metric_title(objective.metric), lambda value: f"{value:,.4g}", True)
        for objective in facts.objectives[1:]
        if objective.metric != facts.size_metric
    ]
    if facts.baseline("head"):
        columns.append(
            Column(
                "gain",
                "over frozen head" if facts.is_maximized else "better than frozen head",
                text.signed,
                True,
                is_detail=True,
            )
        )
    columns.append(Column("place", "", str))
    return Table("The front", tuple(columns), tuple(rows), _confirmed_note(facts))


def _size_columns(facts: Facts) -> list[Column]:
    if facts.size_metric is None:
        return []
    columns = [Column("size", text.metric_title(facts.size_metric), text.count, True)]
    if facts.size_metric == SIZE and facts.model_parameters:
        columns.append(Column("share", "of the model", str, True, is_detail=True))
    return columns


def _front_row(facts: Facts, record: Record) -> dict[str, Any]:
    head = facts.baseline("head")
    return {
        "trial": record.number,
        "name": facts.names[record.number],
        "method": record.params["method"],
        "score": facts.score(record),
        **_test(facts.confirmation(record), facts.fruitless.get(record.number)),
        **_size(facts, facts.size(record)),
        **{objective.metric: record.metrics[objective.metric] for objective in facts.objectives[1:]},
        "gain": None if head is None or head.record is record else facts.better(facts.score(record), head.score),
        "place": "knee" if facts.knee is record else "",
    }


def _test(found: Confirmed | None, fruitless: int | None = None) -> dict[str, Any]:
    """Returns the test columns of a row. `fruitless` is the number of retrainings if none has a score."""
    if found is None:
        nothing = None if fruitless is None else f"none of {fruitless} seeds"
        return {"test": nothing, "seeds": None, "drop": None, "label": None}
    seeds = None if found.sample.is_fixed else found.seeds
    return {"test": found.value, "seeds": seeds, "drop": found.drop, "label": found.label}


def _size(facts: Facts, size: float | None) -> dict[str, Any]:
    whole = facts.model_parameters
    return {"size": size, "share": text.share(size, whole) if size is not None and whole else None}


def _confirmed_note(facts: Facts) -> str:
    if not facts.confirmed:
        return ""
    note = "Drop: validation less test, positive where the search promised too much."
    if facts.incomplete:
        note += " Of 2 of 5 seeds, say: the mean of the retrainings that gave a number; the others are under Failures."
    return note


def baselines(facts: Facts) -> Table:
    """The baselines, and by how much the front's best is better than each."""
    best = facts.front[0] if facts.front else None

    def row(baseline: Baseline) -> dict[str, Any]:
        return {
            "title": baseline.title,
            "trial": None if baseline.record is None else baseline.record.number,
            "score": baseline.score,
            **_test(baseline.confirmed),
            **_size(facts, baseline.size),
            "behind": None if best is None else facts.better(facts.score(best), baseline.score),
        }

    columns = [
        Column("title", "baseline"),
        Column("trial", "trial", str, True),
        Column("score", f"{text.metric_title(facts.metric)}, validation", text.score, True),
    ]
    if facts.confirmed:
        columns += [Column("test", "test, mean ± 95 % CI", str, True), Column("seeds", "seeds", str, True)]
    columns += [
        *_size_columns(facts),
        Column("behind", f"front's best {'has over it' if facts.is_maximized else 'is better by'}", text.signed, True),
    ]
    note = "Frozen head and full fine-tuning are the best trials of the methods head and full, where they were run."
    return Table("Baselines", tuple(columns), tuple(row(baseline) for baseline in facts.baselines), note)


def trials(facts: Facts, most: int | None = None) -> Table:
    """Everything that was asked for. A stopped trial has no score, as its last one was not final.

    Args:
        most: Number of rows at most (see `_chosen`); all if None.
    """
    rows = []
    records = _chosen(facts, most)
    for record in records:
        seconds = record.metrics.get("train_seconds")
        rows.append(
            {
                "trial": record.number,
                "status": record.standing,
                "place": "knee" if facts.knee is record else "front" if record.number in facts.front_numbers else "",
                "method": record.params["method"],
                "name": facts.names[record.number],
                "score": facts.score(record) if record.is_complete else None,
                "size": {**record.known, **record.metrics}.get(facts.size_metric or ""),
                "rungs": len(record.reports) or None,
                "train_seconds": seconds,
                "why": facts.redactor.message(record.error or record.refusal),
            }
        )
    columns = [
        Column("trial", "trial", str, True),
        Column("status", "status"),
        Column("place", "place"),
        Column("name", "configuration"),
        Column("score", text.metric_title(facts.metric), text.score, True),
        Column("size", text.metric_title(facts.size_metric or SIZE), text.count, True),
        Column("rungs", "rungs", str, True, is_detail=True),
        Column("train_seconds", "training", text.duration, True, is_detail=True),
        Column("why", "why", text.shortened),
    ]
    note = f"Scores are of {facts.validation_label}. A stopped trial has none: its last one was not final."
    if len(records) < len(facts.history.records):
        which = "the front, the baselines, the best of the others, and some that ended otherwise"
        note = f"{len(records):,} of {len(facts.history.records):,}: {which}; {ALL_OF_THEM}. {note}"
    return Table("All trials", tuple(columns), tuple(rows), note)


def _chosen(facts: Facts, most: int | None) -> list[Record]:
    """Returns the records that a table of at most so many rows has, by number.

    Those that reports speak of come first: the front, the baselines, what was confirmed. The rest of the room is shared by
    what ended in one way or another, in turns: complete ones by score, others the latest first.
    """
    records = facts.history.records
    if most is None or len(records) <= most:
        return records
    chosen = set(facts.front_numbers) | {b.record.number for b in facts.baselines if b.record is not None}
    chosen |= {entry.number for entry in facts.history.confirmations if entry.number is not None}
    queues: dict[str, list[Record]] = {}
    for record in records:
        if record.number not in chosen:
            queues.setdefault(record.standing, []).append(record)
    for standing, queue in queues.items():  # the last one is taken first
        if standing == str(Status.COMPLETE):
            queue.sort(key=facts.score, reverse=not facts.is_maximized)
    while len(chosen) < most and any(queues.values()):
        chosen |= {queue.pop().number for queue in list(queues.values())[: most - len(chosen)] if queue}
        queues = {standing: queue for standing, queue in queues.items() if queue}
    return [records[number] for number in sorted(chosen)]


def failures(facts: Facts, most: int | None = None) -> Table:
    """Trials that failed or ran out of memory, each with its reason, and retrainings without a score."""
    rows = [
        {
            "trial": record.number,
            "status": record.standing,
            "name": facts.names[record.number],
            "why": facts.redactor.message(record.error),
        }
        for record in facts.failures
    ]
    rows += [{"trial": None, "status": "confirming", "name": name, "why": why} for name, why in facts.confirm_failures]
    columns = (
        Column("trial", "trial", str, True),
        Column("status", "status"),
        Column("name", "configuration"),
        Column("why", "why"),
    )
    return _cut("Failures", columns, rows, most)


def _cut(title: str, columns: tuple[Column, ...], rows: Sequence[Mapping[str, Any]], most: int | None) -> Table:
    """Makes a table of the first rows, with a note if there are more."""
    if most is None or len(rows) <= most:
        return Table(title, columns, tuple(rows))
    return Table(title, columns, tuple(rows[:most]), f"The first {most:,} of {len(rows):,}; {ALL_OF_THEM}.")


def refusals(facts: Facts, most: int | None = None) -> Table:
    """Reasons why configurations were refused before training, and how often."""
    rows = tuple({"count": count, "why": reason} for reason, count in facts.refusals)
    return _cut("Refused", (Column("count", "configurations", text.count, True), Column("why", "why")), rows, most)


def resumes(facts: Facts) -> Table:
    """Resumes of the search: the machine that went on, and the changes of the config."""
    rows = []
    for event in facts.history.resumes:
        changes: Any = event.get("changes") or ()
        shown = facts.redactor.message("; ".join(map(str, changes)))
        rows.append({"seconds": event["seconds"], "changes": shown or "nothing"})
    columns = (Column("seconds", "after", text.duration, True), Column("changes", "changed"))
    return Table("Resumes", columns, tuple(rows))
