"""A trial that crashes its process, as a fault in a library's C code does: it gets its status and reason, others go on."""

from __future__ import annotations

import pytest

from autopeft import crash, ledger
from autopeft.history import History
from autopeft.ledger import NAME
from tests import commands
from tests.security.stranger import call, write_rows, write_search

# A metric that reads address 0 while trial 1 is scored: a real segmentation fault.
METRIC = """
import ctypes, json
from pathlib import Path

def score(predicted, expected):
    ledger = Path(__file__).parent / "runs" / "r" / "ledger.jsonl"
    events = [json.loads(line) for line in ledger.read_text().splitlines()] if ledger.exists() else []
    begun = [event["number"] for event in events if event["event"] in ("ask", "rerun")]
    if begun and begun[-1] == 1 and (Path(__file__).parent / "armed").exists():
        ctypes.string_at(0)
    return 0.5
"""


@pytest.fixture
def folder(tmp_path):
    write_rows(tmp_path / "rows.csv")
    write_search(
        tmp_path, metrics={"mine": "mine.py:score"}, budget={"trials": 4}, executor="serial",
        space={"method": "head", "head": {"lr": {"float": [1e-3, 1e-1], "default": 1e-2}}},
    )  # fmt: skip
    (tmp_path / "mine.py").write_text(METRIC)
    (tmp_path / "armed").touch()
    return tmp_path


def read(folder):
    return History.read(folder / "runs" / "r" / NAME)


def test_a_trial_that_crashes_its_driver_runs_again_once_and_the_others_go_on(folder):
    """In `serial` the driver itself trains: each crash ends it, and what was told stays."""
    done = commands.autopeft("search", "my.yaml", "--name", "r", cwd=folder, check=False)
    assert done.returncode == -11, done.stderr
    assert {r.number: r.standing for r in read(folder).records} == {0: "COMPLETE", 1: "RUNNING"}
    done = commands.autopeft("resume", "runs/r", cwd=folder, check=False)
    assert done.returncode == -11, "it ran again"
    done = commands.autopeft("resume", "runs/r", cwd=folder)
    history = read(folder)
    assert history.counts() == {"COMPLETE": 3, "FAILED": 1}
    assert history.records[1].error.startswith(
        "its driver crashed: Segmentation fault, in string_at (__init__.py, line "
    )
    assert not (folder / "runs" / "r" / crash.NAME).exists()
    events = [e for e in ledger.read(folder / "runs" / "r" / NAME) if e.get("number") == 1]
    assert [e["event"] for e in events if e["event"] != "report"] == ["ask", "tell", "rerun", "tell"]


def test_a_crash_that_does_not_come_again_costs_nothing(folder):
    commands.autopeft("search", "my.yaml", "--name", "r", cwd=folder, check=False)
    (folder / "armed").unlink()
    code, said = call("resume", "runs/r", cwd=folder)
    assert code == 0, said
    assert read(folder).counts() == {"COMPLETE": 4}


# ── the note alone ──────────────────────────────────────────────────────────────────────────────────────────────────

TEXT = """Fatal Python error: Bus error

Current thread 0x00007f5d (most recent call first):
  File "/home/me/lib/torch/nn/linear.py", line 12 in forward
  File "/home/me/lib/torch/nn/module.py", line 3 in __call__
"""


def events(*running):
    asked = [{"event": "ask", "number": number, "params": {}, "seed": 1, "seconds": 0.0} for number in running]
    return [{"event": "search", "seconds": 0.0}, *asked]


def test_a_note_says_which_signal_and_where(tmp_path):
    assert crash.why(tmp_path) == ""
    (tmp_path / crash.NAME).write_text("")  # of a driver that was killed
    assert crash.why(tmp_path) == ""
    assert crash.lost(tmp_path, events(0)) == []
    (tmp_path / crash.NAME).write_text(TEXT)
    assert crash.why(tmp_path) == "Bus error, in forward (linear.py, line 12)"
    (tmp_path / crash.NAME).write_text("Fatal Python error: Aborted\n\n<no Python frame>\n")
    assert crash.why(tmp_path) == "Aborted"


def test_of_several_trials_in_one_driver_none_is_blamed(tmp_path, capsys):
    (tmp_path / crash.NAME).write_text(TEXT)
    assert [event["number"] for event in crash.lost(tmp_path, events(0))] == [0]
    assert crash.lost(tmp_path, events()) == []
    assert capsys.readouterr().err == ""
    assert crash.lost(tmp_path, events(0, 1)) == []
    assert "while the trials 0, 1 ran. They run again." in capsys.readouterr().err


def test_a_search_in_order_leaves_no_note_and_no_handler(tmp_path):
    import faulthandler

    was = faulthandler.is_enabled()
    with crash.noted(tmp_path):
        assert (tmp_path / crash.NAME).read_text() == ""
        assert faulthandler.is_enabled()
    assert not (tmp_path / crash.NAME).exists()
    assert faulthandler.is_enabled() == was
