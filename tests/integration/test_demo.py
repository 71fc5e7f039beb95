"""The main path, as a user types it: the demo on two workers, killed, resumed, confirmed, exported, used."""

import json
import os
import signal
import time

import numpy as np
import pandas as pd
import pytest

from autopeft import ledger as ledgers
from tests.commands import autopeft, start_autopeft

DEMO = ["demo", "--set", "trackers=[console]", "--set", "training.epochs=2", "--set", "budget.trials=12"]


def told(folder):
    return [event["number"] for event in ledgers.read(folder / "ledger.jsonl") if event["event"] == "tell"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A demo whose driver was killed in the middle, then resumed."""
    cwd = tmp_path_factory.mktemp("demo")
    words = [*DEMO, "--name", "d", "--set", "executor.slots=2"]
    driver = start_autopeft(*words, cwd=cwd, output=cwd / "printed")
    folder = cwd / "runs" / "d"
    until = time.monotonic() + 200
    while time.monotonic() < until and not (folder / "ledger.jsonl").exists():
        time.sleep(0.2)
    while time.monotonic() < until and len(told(folder)) < 4:
        time.sleep(0.05)
    os.killpg(driver.pid, signal.SIGKILL)
    driver.join()
    before = told(folder)
    assert 4 <= len(before) < 12
    autopeft("resume", str(folder), "--set", "executor=serial", cwd=cwd)
    assert told(folder)[: len(before)] == before
    return folder


def test_every_told_trial_is_there_once(run):
    assert sorted(told(run)) == list(range(12))


def test_the_run_folder_holds_what_the_readme_says(run):
    names = {path.name for path in run.iterdir()}
    assert {"config.yaml", "ledger.jsonl", "front.json", "front.csv", "front.png", "report.html", "report.md"} <= names
    page = (run / "report.html").read_text()
    assert 'src="http' not in page


def test_only_front_members_keep_their_tensors(run):
    front = {entry["trial"] for entry in json.loads(autopeft("front", str(run), "--json", cwd=run).stdout)["front"]}
    assert {int(path.name) for path in (run / "trials").iterdir() if path.name.isdigit()} == front


def test_more_trials_by_resuming_and_nothing_else_may_change(run):
    refused = autopeft("resume", str(run), "--set", "seed=7", cwd=run, check=False)
    assert refused.returncode == 2
    assert "seed: 0 → 7" in refused.stderr
    autopeft("resume", str(run), "--set", "executor=serial", "--set", "budget.trials=13", cwd=run)
    assert sorted(told(run)) == list(range(13))


def test_confirm_export_predict(run, tmp_path):
    autopeft("confirm", str(run), "--seeds", "2", "--pick", "best", cwd=run)
    confirmations = [event for event in ledgers.read(run / "ledger.jsonl") if event["event"] == "confirm"]
    assert [event["name"].split()[0] for event in confirmations] == ["majority", "trial", "trial"]
    assert len({event["seed"] for event in confirmations}) == 3
    autopeft("export", str(run), "--pick", "best", "--to", str(tmp_path / "out"), cwd=run)
    images = np.asarray(__import__("sklearn.datasets").datasets.load_digits().data[5:15])
    pd.DataFrame(images).to_csv(tmp_path / "rows.csv", index=False)
    done = autopeft("predict", str(tmp_path / "out"), str(tmp_path / "rows.csv"), "--json", cwd=run)
    assert len(json.loads(done.stdout)["predictions"]) == 10
    board = autopeft("leaderboard", str(run), cwd=run).stdout
    assert "majority" in board


def test_a_trial_that_was_not_kept_is_trained_again_and_says_so(run, tmp_path):
    front = {entry["trial"] for entry in json.loads(autopeft("front", str(run), "--json", cwd=run).stdout)["front"]}
    trials = json.loads(autopeft("trials", str(run), "--json", cwd=run).stdout)["trials"]
    other = next(row["number"] for row in trials if row["status"] == "COMPLETE" and row["number"] not in front)
    done = autopeft("export", str(run), "--pick", f"trial={other}", "--to", str(tmp_path / "out"), cwd=run)
    assert "training it again" in done.stderr
    assert (tmp_path / "out" / "autopeft.json").exists()
