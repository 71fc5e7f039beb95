"""What a config and the errors hold stands in no view for people: passwords in addresses, tokens, whose home it is."""

from __future__ import annotations

import json

import pytest

from autopeft.history import History
from autopeft.reports import card, figure, html, leaderboard, markdown, table
from autopeft.reports.facts import Facts
from autopeft.reports.leaderboard import Entry
from autopeft.runs import Run
from tests.reports import histories as h

SECRETS = ("s3cretpw", "alice", "hf_abcdefghijkl", "t0ps3cret")


@pytest.fixture
def history():
    config = {
        **h.header()["config"],
        "data": {"train": "https://alice:s3cretpw@host/train.csv"},
        "trackers": [{"name": "mlflow", "uri": "http://alice:s3cretpw@host", "token": "t0ps3cret"}],
    }
    dataset = {
        **h.header()["dataset"],
        "origin": {"source": "/home/alice/private/train.csv", "digest": "https://alice:s3cretpw@host/a_b*c"},
    }
    events = h.confirmed(h.search(20, config=config, dataset=dataset))
    error = "OSError: /home/alice/x: token=t0ps3cret, http://alice:s3cretpw@host, hf_abcdefghijkl"
    events.insert(-1, {**h.confirm("trial 1", 1, {}, 4321, 0.0), "status": "FAILED", "metrics": {}, "error": error})
    failed = next(e for e in events if e["event"] == "tell" and e["status"] == "FAILED")
    failed["error"] = error
    uri = "http://alice:s3cretpw@host"
    resumed = {"event": "resume", "config": config, "changes": [f"trackers: {uri} → {uri}/x"], "seconds": 99.0}
    return History([*events, resumed])


def views(history, folder):
    facts = Facts(history, h.describe, "a")
    about = {
        "form": "peft", "task": "digits", "data": {}, "trust_remote_code": False, "inputs": {}, "auto_class": "A",
        "about": {"label_names": [], "n_outputs": 0},
        "max_length": None,
    }  # fmt: skip
    yield "report.md", markdown.render(history, h.describe)
    yield "report.html", html.render(history, h.describe)
    yield "front.html", html.front(history, h.describe)
    yield "fragment", html.fragment(history, h.describe)
    yield "front.json", json.dumps(figure.front_data(facts))
    yield "front.csv", figure.front_csv_text(facts)
    yield "card", card.model_card(history, history.front()[0], h.describe, "autopeft export", about)
    yield "failures", table.failures(facts).markdown()
    yield "trials", table.trials(facts).markdown()
    yield "frame", Run(folder, history).trials.to_json()
    for format in leaderboard.FORMATS:
        yield f"board {format}", leaderboard.render([Entry("a", history, h.describe)], format)


def test_no_view_shows_a_secret(history, tmp_path):
    shown = dict(views(history, tmp_path))
    for name, text in shown.items():
        assert not [secret for secret in SECRETS if secret in text], name
    assert "~/private/train.csv" in shown["report.md"], "the folder is there, and nobody's name"
    assert r"\*\*\*@host" in shown["failures"], "masked before Markdown escapes it"
    assert "s3cretpw" in json.dumps(history.config), "the run itself needs it"
