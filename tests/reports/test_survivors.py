"""A confirmed mean says of how many seeds it is, wherever it stands, and those of survivors are compared with nothing."""

from __future__ import annotations

import csv
import io
import json

import pytest

from autopeft.history import History
from autopeft.reports import card, figure, html, leaderboard, markdown, table
from autopeft.reports.facts import Facts
from autopeft.reports.leaderboard import Entry, boards, render
from tests.reports import histories as h

STABLE = {"method": "lora", "lora.rank": 4, "lora.lr": 1e-3}
SHAKY = {"method": "lora", "lora.rank": 8, "lora.lr": 1e-3}


def events(fault=""):
    """Trial 1 is better than trial 0 by validation and by the mean of the two of its five seeds that did not diverge."""
    out = [
        h.header(),
        h.ask(0, STABLE, 10_000),
        h.tell(0, {"accuracy": 0.85, "trainable_parameters": 10_000}),
        h.ask(1, SHAKY, 20_000),
        h.tell(1, {"accuracy": 0.90, "trainable_parameters": 20_000}),
    ]
    for seed in range(5):
        out.append(h.confirm("trial 0", 0, STABLE, seed, 0.84 + seed / 1000))
        told = h.confirm("trial 1", 1, SHAKY, seed, 0.90 + seed / 1000)
        if seed > 1:
            told |= {"status": "FAILED", "metrics": {}, "error": "the training loss is nan"}
            told |= {"fault": fault} if fault else {}
        out.append(told)
    return out


@pytest.fixture
def history():
    return History(events())


def views(history):
    """Each place where the mean stands, as text."""
    facts = Facts(history, h.describe, "a")
    about = {
        "form": "peft", "task": "digits", "data": {}, "trust_remote_code": False, "inputs": {}, "auto_class": "A",
        "about": {"label_names": [], "n_outputs": 0},
        "max_length": None,
    }  # fmt: skip
    best = history.records[1]
    entry = [Entry("a", history, h.describe)]
    yield "verdict", facts.verdict
    yield "front table", table.front(facts).markdown()
    yield "front.json", json.dumps(figure.front_data(facts), ensure_ascii=False)
    yield "card", card.model_card(history, best, h.describe, "autopeft export", about)
    yield "report.md", markdown.render(history, h.describe)
    yield "report.html", html.render(history, h.describe)
    yield "board.md", render(entry)
    yield "board.html", render(entry, "html")
    yield "board.json", render(entry, "json")


def test_two_of_five_seeds_stands_in_every_view(history):
    for name, shown in views(history):
        assert "2 of 5 seeds" in shown, name
    for text in (figure.front_csv_text(Facts(history, h.describe)), render([Entry("a", history, h.describe)], "csv")):
        row = next(row for row in csv.DictReader(io.StringIO(text)) if row["trial"] == "1")
        assert (row["test_seeds"], row["test_seeds_tried"]) == ("2", "5")


def test_survivors_stand_in_no_group_and_last(history):
    (board,) = boards([Entry("a", history, h.describe)], by="all")
    confirmed = [row for row in board.rows if row.confirmed is not None]
    assert [(row.trial, row.group) for row in confirmed] == [(0, 1), (1, 0)]
    assert [row["rank"] for row in leaderboard.data([board])["boards"][0]["rows"][:2]] == [1, None]
    assert any("survivors" in note for note in board.notes)


def test_one_that_no_seed_confirms_says_so():
    told = [event for event in events() if not (event["event"] == "confirm" and event["status"] == "COMPLETE")]
    history = History(told)
    facts = Facts(history, h.describe)
    assert facts.confirmed == {}
    assert "none of 3 seeds" in table.front(facts).markdown()
    assert "none of 3 seeds" in render([Entry("a", history, h.describe)])
    (row,) = [row for row in boards([Entry("a", history, h.describe)])[0].rows if row.trial == 1]
    assert row.standing == "unconfirmed: validation, one seed; none of 3 retrainings gave a number"


def test_a_gain_over_survivors_is_not_claimed_on_test(history):
    confirmed = History([*events(), h.confirm("majority", None, {}, 0, 0.255)])
    assert "0.640 over the majority class on validation" in Facts(confirmed, h.describe).verdict


def test_a_seed_that_the_machine_cost_and_that_was_tried_again_is_not_missing():
    lost = events(fault="machine")
    again = [h.confirm("trial 1", 1, SHAKY, seed, 0.90) for seed in (2, 3, 4)]
    facts = Facts(History([*lost, *again]), h.describe)
    assert facts.confirmed["trial 1"].seeds == "5"
    assert facts.confirm_failures == []
    assert len(facts.history.confirmations) == 10
    assert Facts(History(lost), h.describe).confirmed["trial 1"].seeds == "2 of 5"
