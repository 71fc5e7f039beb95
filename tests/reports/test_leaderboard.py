"""Leaderboards: confirmed first, tied together, baselines named, other data apart."""

from __future__ import annotations

import csv
import io
import json

import pytest

from autopeft.errors import UnknownName, UsageError
from autopeft.history import History
from autopeft.reports import leaderboard
from autopeft.reports.leaderboard import Entry, boards, render
from tests.reports import histories as h


@pytest.fixture(scope="module")
def entries():
    return [
        Entry("a", History(h.confirmed(h.search(40, seed=3))), h.describe),
        Entry("b", History(h.confirmed(h.search(40, seed=4), seeds=3, seed=1)), h.describe),
        Entry("c", History(h.search(40, seed=5)), h.describe),
    ]


def test_confirmed_first_then_the_unconfirmed_each_by_score(entries):
    (board,) = boards(entries)
    standing = [row.confirmed is not None for row in board.rows]
    assert standing == sorted(standing, reverse=True)
    means = [row.confirmed.interval.mean for row in board.rows if row.confirmed]
    assert means == sorted(means, reverse=True)
    assert {row.search for row in board.rows if row.confirmed is None} == {"c"}
    assert all(row.standing.startswith("unconfirmed") for row in board.rows if row.confirmed is None)


def test_groups_grow_down_the_board(entries):
    (board,) = boards(entries, by="all")
    groups = [row.group for row in board.rows if row.confirmed]
    assert groups == sorted(groups)
    assert groups[0] == 1
    assert len(set(groups)) > 1


def test_trivial_baselines_are_named_and_the_majority_class_once(entries):
    (board,) = boards(entries)
    roles = [row.role for row in board.rows]
    assert roles.count("majority class") == 1
    assert sum("frozen head" in role for role in roles) == 3
    assert sum("full fine-tuning" in role for role in roles) == 3


def test_who_stands_for_a_search_is_chosen_by_validation(entries):
    (board,) = boards(entries)
    for entry in entries:
        (best,) = [row for row in board.rows if row.search == entry.name and row.role.startswith("best")]
        assert best.trial == entry.history.front()[0].number


def test_by_method_has_one_row_a_method_and_search(entries):
    (board,) = boards(entries, by="method")
    rows = [(row.search, row.method) for row in board.rows if row.role.startswith("best")]
    assert len(rows) == len(set(rows))
    assert {method for _, method in rows} >= {"lora", "head", "full"}


def test_other_data_or_metric_stands_apart(entries):
    dataset = {**h.header()["dataset"], "label_names": ["x", "y"]}
    other = Entry("d", History(h.search(12, dataset=dataset)), h.describe)
    objectives = [{**h.OBJECTIVES[0], "metric": "f1"}, h.OBJECTIVES[1]]
    f1 = Entry("e", History(h.search(12, objectives=objectives)), h.describe)
    found = boards([entries[0], other, f1])
    assert [board.metric for board in found] == ["accuracy", "accuracy", "f1"]


def test_two_models_of_one_name_are_told_apart_by_the_folder_above():
    model = h.header()["model"]
    other = {**model, "path": "elsewhere/mini", "revision": "sha256:2233"}
    runs = [Entry("a", History(h.search(8)), h.describe), Entry("b", History(h.search(8, model=other)), h.describe)]
    (board,) = boards(runs)
    assert {row.model for row in board.rows if row.trial is not None} == {"models/mini", "elsewhere/mini"}
    same = {**model, "path": "a copy of it/mini"}
    (board,) = boards([runs[0], Entry("c", History(h.search(8, model=same)), h.describe)])
    assert {row.model for row in board.rows} == {"mini"}


def test_one_seed_is_in_no_group():
    history = History(h.confirmed(h.search(20), seeds=1))
    (board,) = boards([Entry("a", history, h.describe)])
    assert {row.group for row in board.rows if row.trial is not None} == {0}
    assert any("one seed" in note for note in board.notes)


def test_formats_agree(entries):
    data = json.loads(render(entries, "json"))
    assert (data["schema"], data["kind"]) == (1, "autopeft.leaderboard")
    rows = list(csv.DictReader(io.StringIO(render(entries, "csv"))))
    (board,) = data["boards"]
    assert [row["name"] for row in rows] == [row["name"] for row in board["rows"]]
    assert rows[0]["rank"] == "1"
    assert float(rows[0]["test_mean"]) == board["rows"][0]["test"]["mean"]
    assert rows[-1]["rank"] == rows[-1]["test_mean"] == ""
    assert render(entries).count("\n|") == len(rows) + 2
    page = render(entries, "html")
    assert page.startswith("<!doctype html>")
    assert all(f"trial {row['trial']}" in page for row in board["rows"] if row["trial"] is not None)


def test_wrong_words_and_nothing_to_rank(entries):
    with pytest.raises(UnknownName, match="Did you mean 'json'"):
        render(entries, "jsn")
    with pytest.raises(UnknownName, match="search"):
        boards(entries, by="searches")
    with pytest.raises(UsageError, match="no run has a complete trial"):
        render([Entry("empty", History([h.header()]), h.describe)])
    assert leaderboard.FORMATS == ("markdown", "html", "csv", "json")
