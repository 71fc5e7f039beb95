"""Tables: the same rows for CLI, notebook and reports."""

from __future__ import annotations

import csv
import io

from autopeft.history import History
from autopeft.reports import table
from autopeft.reports.facts import Facts
from tests.reports import histories as h


def test_the_front_table_has_the_front():
    history = History(h.search(40))
    shown = table.front_table(history, h.describe)
    assert [row["trial"] for row in shown.rows] == [record.number for record in history.front()]
    assert [column.key for column in shown.columns] == ["trial", "name", "score", "size", "share", "gain", "place"]
    assert sum("knee" in row["place"] for row in shown.rows) == 1


def test_confirmed_columns_appear_with_confirmations():
    shown = table.front_table(History(h.confirmed(h.search(40))), h.describe)
    assert {"test", "seeds", "drop"} <= {column.key for column in shown.columns}
    assert all("±" in row["test"] for row in shown.rows)


def test_the_trials_table_has_everything_and_no_partial_score():
    history = History(h.search(60))
    shown = table.trials_table(history, h.describe)
    assert len(shown) == len(history.records)
    by_status = {row["status"] for row in shown.rows}
    assert by_status == {"COMPLETE", "STOPPED", "FAILED", "OUT_OF_MEMORY", "REFUSED", "RUNNING"}
    for row in shown.rows:
        assert (row["score"] is not None) == (row["status"] == "COMPLETE")
        assert bool(row["why"]) == (row["status"] in ("FAILED", "OUT_OF_MEMORY", "REFUSED"))


def test_every_row_has_every_column():
    history = History(h.confirmed(h.search(60)))
    for make in (table.front, table.trials, table.baselines):
        shown = make(Facts(history, h.describe))
        assert all(len(cells) == len(shown.columns) for cells in shown.cells())
        assert list(csv.DictReader(io.StringIO(shown.csv())))
        assert shown._repr_html_().startswith("<table>")


def test_markdown_cells_stay_in_their_column():
    evil = "a|b `c` [x](http://y) <b> www.z.org #1\nnew"
    shown = table.Table("t", (table.Column("name", "na|me"),), ({"name": evil},))
    lines = shown.markdown().splitlines()
    assert len(lines) == 3
    assert lines[2] == r"| a\|b \`c\` \[x\](http\://y) \<b\> www\.z.org \#1 new |"


def test_absent_is_a_dash_not_a_zero():
    column = table.Column("x", "x", lambda value: f"{value:.1f}")
    assert [column.show({"x": value}) for value in (None, "", 0.0)] == ["–", "–", "0.0"]
