"""Scores with an interval over the rows that they are of: what was generated, and metrics of the user's a row."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from autopeft.reports import text
from autopeft.reports.facts import Facts
from autopeft.reports.table import Column, Table
from autopeft.trial import Status

COLUMNS = (
    Column("who", "what"),
    Column("split", "split"),
    Column("metric", "score", text.metric_title),
    Column("value", "value", text.score, True),
    Column("low", "from", text.score, True),
    Column("high", "to", text.score, True),
    Column("rows", "rows", text.count, True),
    Column("interval", "interval", is_detail=True),
)
NOTE = (
    "From, to: a 95 % interval over the choice of rows, for one model as it was trained. Confirmed on test: the means over "
    "the seeds of scores and ends."
)


def row_scores(facts: Facts) -> Table:
    """Makes a table of the untrained baselines, the best trial and the knee; no row if the task has no such scores."""
    rows = [row for who, split, details in _details(facts) for row in _rows(who, split, details)]
    return Table("Scores over rows", COLUMNS, tuple(rows), NOTE if rows else "")


def _details(facts: Facts) -> Iterator[tuple[str, str, Sequence[Mapping[str, Any]]]]:
    """Yields what is scored, its split, and the ledger's details of each retraining."""
    confirmed = [entry for entry in facts.history.confirmations if entry.status is Status.COMPLETE]
    names = facts.history.baseline_names
    for name, detail in facts.header.get("baseline_details", {}).items():
        yield names[name], "validation", [detail]
        yield names[name], "test", [entry.detail for entry in confirmed if entry.name == name]
    members = {"best": facts.front[0] if facts.front else None, "knee": facts.knee}
    if members["knee"] is members["best"]:
        members = {"best and knee": members["best"]}
    for place, record in members.items():
        if record is not None:
            who = f"{place}, trial {record.number}"
            yield who, "validation", [record.detail]
            yield who, "test", [entry.detail for entry in confirmed if entry.number == record.number]


def _rows(who: str, split: str, details: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    found = [detail.get("row_scores", {}) for detail in details]
    for metric in dict.fromkeys(name for each in found for name in each):
        scores = [each[metric] for each in found if metric in each]
        means = {
            key: None
            if any(score[key] is None for score in scores)
            else float(np.mean([score[key] for score in scores]))
            for key in ("value", "low", "high")
        }
        yield {"who": who, "split": split, "metric": metric, **means, **{k: scores[0][k] for k in ("rows", "interval")}}
