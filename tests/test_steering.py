"""Looking at runs and steering them from another terminal: what the driver does on an order, and what is refused."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from autopeft import app, ledger, steering
from autopeft.config import load
from autopeft.errors import UsageError
from autopeft.executors.serial import Serial
from autopeft.history import History
from autopeft.ledger import NAME, Ledger
from autopeft.orders import LOOK_SECONDS, Orders
from autopeft.search import Ending
from autopeft.stoppers.never import NeverStopper
from tests.commands import autopeft
from tests.executors.conversations import OBJECTIVES, Toy, events, make_search

MINE = {"method": "lora", "lora.rank": 3, "head.lr": 0.02}


class Acting(Toy):
    """A Toy that does something at the first step of a trial."""

    def __init__(self, folder, number, act, **options):
        super().__init__(folder, **options)
        self.number, self.act = number, act

    def evaluate(self, trial):
        if trial.number == self.number:
            self.act()
            time.sleep(LOOK_SECONDS * 1.1)  # the driver looks again after this time
        yield from super().evaluate(trial)


def run(folder, toy, **options):
    conversation = make_search(folder, orders=Orders(folder), stopper=NeverStopper(OBJECTIVES), **options)
    try:
        Serial().run(conversation, toy)
    finally:
        conversation.ledger.close()
    return conversation


def test_stop_ends_after_the_running_trial_and_a_resume_goes_on(tmp_path):
    first = run(tmp_path, Acting(tmp_path, 3, lambda: Orders(tmp_path).give_stop(now=False)))
    assert first.ending is Ending.STOPPED and first.why_ended == "stopped by order"
    assert sorted(first.history.told) == [0, 1, 2, 3] and first.running == 0
    Orders(tmp_path).clear_stop()
    assert sorted(run(tmp_path, Toy(tmp_path)).history.told) == list(range(12))


def test_stop_now_leaves_the_running_trial_untold(tmp_path):
    first = run(tmp_path, Acting(tmp_path, 3, lambda: Orders(tmp_path).give_stop(now=True)))
    assert first.ending is Ending.STOPPED
    assert sorted(first.history.told) == [0, 1, 2] and first.running == 1
    Orders(tmp_path).clear_stop()
    assert sorted(run(tmp_path, Toy(tmp_path)).history.told) == list(range(12))


def test_an_added_trial_is_tried_next_and_told_like_any_other(tmp_path):
    found = run(tmp_path, Acting(tmp_path, 4, lambda: Orders(tmp_path).give_trial(MINE)))
    assert len(found.history.told) == 12
    assert found.history.records[5].params == MINE and found.history.records[5].is_complete
    assert [event["number"] for event in events(tmp_path) if event.get("added")] == [5]
    assert list((tmp_path / "orders").iterdir()) == []
    assert [record.params for record in History.read(tmp_path / NAME).records][5] == MINE, "replay has it, too"


def test_an_added_trial_waits_for_the_stock_defaults_and_the_same_one_is_refused(tmp_path):
    tmp_path.mkdir(exist_ok=True)
    for _ in range(2):
        Orders(tmp_path).give_trial(MINE)
    found = run(tmp_path, Toy(tmp_path), trials=6)
    n_stock = len(found.first)
    assert [record.params for record in found.history.records[:n_stock]] == list(found.first)
    assert found.history.records[n_stock].params == MINE
    assert found.history.records[n_stock + 1].refusal == f"the same as trial {n_stock}"
    assert len(found.history.told) == 6, "a refused one costs no budget"


# ── the ledger's writer ─────────────────────────────────────────────────────────────────────────────────────────────


def test_a_second_driver_is_told_who_the_first_one_is(tmp_path):
    first = Ledger(tmp_path / NAME)
    assert ledger.writer(tmp_path / NAME) == {"host": socket.gethostname(), "process": os.getpid(), "is_search": True}
    with pytest.raises(UsageError, match=rf"another process \(process {os.getpid()} on {socket.gethostname()}\)"):
        Ledger(tmp_path / NAME)
    first.close()
    assert ledger.writer(tmp_path / NAME) is None


DYING = """
import os, signal, sys
from pathlib import Path
from autopeft.ledger import Ledger
book = Ledger(Path(sys.argv[1]))
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_dead_driver_left_behind_is_no_writer(tmp_path):
    subprocess.run([sys.executable, "-c", DYING, str(tmp_path / NAME)], check=False)
    assert json.loads((tmp_path / ledger.DRIVER).read_text())["process"] != os.getpid()
    assert ledger.writer(tmp_path / NAME) is None
    Ledger(tmp_path / NAME).close()


def test_events_are_followed_until_nobody_writes(tmp_path):
    path, seen = tmp_path / NAME, []
    book = Ledger(path)
    book.append({"event": "search", "schema": 2})

    def write():
        for number in range(3):
            time.sleep(0.05)
            book.append({"event": "ask", "number": number})
        book.close()

    writer = threading.Thread(target=write)
    writer.start()
    for found in ledger.follow(path, seconds=0.01):
        seen += [event.get("number") for event in found]
    writer.join()
    assert seen == [None, 0, 1, 2]


# ── commands ────────────────────────────────────────────────────────────────────────────────────────────────────────


def call(*words, check=True):
    return autopeft(*map(str, words), cwd=Path.cwd(), check=check)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    runs = tmp_path_factory.mktemp("runs")
    config = load(
        app.DEMO, ["budget.trials=2", "executor=serial", "trackers=[]", "training.epochs=0.2", f"runs={runs}"]
    )
    return app.search(config, runs / "demo", quiet=True).folder


def test_runs_lists_all_with_their_states(folder):
    (row,) = json.loads(call("runs", folder.parent, "--json").stdout)["runs"]
    assert (row["run"], row["state"], row["told"], row["budget"], row["process"]) == ("demo", "ended", 2, 2, None)
    shown = call("runs", folder.parent).stdout
    assert "demo" in shown and "ended" in shown and "2/2" in shown
    book = Ledger(folder / NAME)
    try:
        (row,) = steering.overview(folder.parent)
        assert (row["state"], row["process"]) == ("searching", os.getpid())
    finally:
        book.close()


def test_a_run_is_stopped_by_order_until_it_goes_on_and_interrupted_without_one(folder, tmp_path):
    header, *events = (folder / NAME).read_text().splitlines(keepends=True)
    header = json.loads(header)
    header["config"]["budget"]["trials"] = 9
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / NAME).write_text(json.dumps(header) + "\n" + "".join(events))
    Orders(tmp_path / "a").give_stop(now=False)
    assert [row["state"] for row in steering.overview(tmp_path)] == ["stopped"]
    Orders(tmp_path / "a").clear_stop()  # as a resume does
    assert [row["state"] for row in steering.overview(tmp_path)] == ["interrupted"]


def test_a_trial_is_added_with_the_stock_values_of_its_method(folder):
    done = call("add", folder, "--params", "method=lora", "--params", "lora.rank=2", "--json")
    params = json.loads(done.stdout)["params"]
    assert params["method"] == "lora" and params["lora.rank"] == 2 and "lora.lr" in params
    (order,) = (folder / "orders").glob("add-*.json")
    assert json.loads(order.read_text()) == params
    order.unlink()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["stop"], "no search runs in"),
        (["add", "--params", "method=lore"], "expected method=…, one of"),
        (["add", "--params", "method=lora", "--params", "lora.rank=100000"], "not in the run's space: lora.rank"),
        (["add", "--params", "method=lora", "--params", "lora.size=1"], "not in the run's space"),
        (["add", "--params", "lora"], "expected key=value"),
    ],
)
def test_what_cannot_be_ordered_is_said(folder, words, says):
    done = call(words[0], folder, *words[1:], check=False)
    assert done.returncode == 2 and says in done.stderr, done.stderr
    assert "Traceback" not in done.stderr


def test_watch_shows_a_search_to_its_end(folder):
    done = call("watch", folder)
    assert done.returncode == 0 and "COMPLETE" in done.stderr


def test_a_search_is_stopped_by_the_command(tmp_path):
    (tmp_path / "run").mkdir()
    book = Ledger(tmp_path / "run" / NAME)
    try:
        done = call("stop", tmp_path / "run", "--now")
    finally:
        book.close()
    assert done.returncode == 0 and f"process {os.getpid()}" in done.stderr
    assert Orders(tmp_path / "run").stop() == "now"
