"""Scores with an interval over rows: of baselines, of the best trial and the knee, on validation and test."""

from __future__ import annotations

from types import SimpleNamespace

from autopeft.reports.rows import row_scores
from autopeft.trial import Status


def score(value, low, high, rows=8, interval="Wilson"):
    return {"exact_match": {"value": value, "low": low, "high": high, "rows": rows, "interval": interval}}


def confirmation(name, number, detail, status=Status.COMPLETE):
    return SimpleNamespace(name=name, number=number, detail=detail, status=status)


def facts(confirmations=(), details=None, record=None):
    record = record or SimpleNamespace(number=4, detail={"row_scores": score(0.5, 0.2, 0.8)})
    names = {"majority": "untouched base"}
    history = SimpleNamespace(confirmations=list(confirmations), baseline_names=names)
    header = {"baseline_details": details or {}}
    return SimpleNamespace(history=history, header=header, front=[record], knee=record)


def test_means_over_seeds_on_test():
    found = [
        confirmation("trial 4", 4, {"row_scores": score(0.25, 0.1, 0.5)}),
        confirmation("trial 4", 4, {"row_scores": score(0.75, 0.3, 0.9)}),
        confirmation("trial 4", 4, {}, Status.FAILED),
        confirmation("majority", None, {"row_scores": score(0.0, 0.0, 0.3)}),
    ]
    table = row_scores(facts(found, {"majority": {"row_scores": score(0.125, 0.0, 0.4)}}))
    shown = [(row["who"], row["split"], row["value"], row["low"], row["high"]) for row in table.rows]
    assert shown == [
        ("untouched base", "validation", 0.125, 0.0, 0.4),
        ("untouched base", "test", 0.0, 0.0, 0.3),
        ("best and knee, trial 4", "validation", 0.5, 0.2, 0.8),
        ("best and knee, trial 4", "test", 0.5, 0.2, 0.7),
    ]
    assert "| 0.125" in table.markdown()


def test_an_interval_that_is_not_known_is_a_dash():
    record = SimpleNamespace(number=1, detail={"row_scores": score(0.5, None, None, 1, "")})
    (row,) = row_scores(facts(record=record)).rows
    assert row["low"] is None and row["rows"] == 1


def test_other_tasks_have_no_such_table():
    assert not row_scores(facts(record=SimpleNamespace(number=1, detail={"rows": [1, 2]}))).rows
