"""Searches of thousands of trials: memory and work grow with their number, and no faster. No clock is asked."""

from __future__ import annotations

import gc
import json
import os
import threading
import tracemalloc
import weakref
from collections import Counter

import mlflow
import pytest

from autopeft import ledger, plugins
from autopeft.errors import UsageError
from autopeft.history import Front, History
from autopeft.ledger import NAME
from autopeft.redact import Redactor
from autopeft.reports import importance, leaderboard
from autopeft.reports.leaderboard import Entry
from autopeft.run_folder import keep_front
from autopeft.runs import Run
from autopeft.stoppers.never import NeverStopper
from autopeft.testing import example_sizes
from autopeft.trackers._layout import Layout
from autopeft.trackers._store import Store
from autopeft.trackers.console import Console
from autopeft.trackers.mlflow import Sync
from autopeft.trial import Report, Result, Status
from tests.executors.conversations import OBJECTIVES, SPACE, curve, make_search
from tests.reports import histories as h
from tests.trackers.stores import AnswersAtOnce

MIB = 2**20
SCORES = ("macro_f1", "balanced_accuracy", "loss", "train_loss", "attach_seconds", "train_seconds", "peak_memory_bytes")


@pytest.fixture(autouse=True)
def no_disk(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda file: None)


def search(folder, trials, sampler="random", **options):
    made = plugins.make("samplers", sampler, options, SPACE, OBJECTIVES, example_sizes)
    return make_search(folder, trials=trials, sampler=made, stopper=NeverStopper(OBJECTIVES))


def told(conversation, until):
    """Goes on until so many trials are told: two reports and a result each, with the details of a classification."""
    while len(conversation.history.told) < until:
        trial = conversation.ask()
        score = curve(trial, 10)
        for step in (3, 6):
            conversation.report(trial, Report(step, {"accuracy": score * step / 10, "train_loss": 1 - score}))
        metrics = {"accuracy": score, **{name: score + index for index, name in enumerate(SCORES)}}
        detail = {"rows": [18] * 5, "predicted": [17] * 5, "correct": [16] * 5, "confused": [[0, 1, 2], [3, 4, 1]]}
        conversation.tell(Result(trial, Status.COMPLETE, metrics, detail=detail, ran="plain"))


def test_the_driver_grows_by_less_than_100_mib_over_10_000_trials(tmp_path, monkeypatch):
    """The history, TPE's study, the console, the keeper of the front and MLflow's pages, by tracemalloc, of 600 trials."""
    monkeypatch.setattr(mlflow, "MlflowClient", AnswersAtOnce)
    conversation = search(tmp_path, 10_000, "tpe", n_startup_trials=10_000)
    console = Console(tmp_path, str, quiet=True)
    console.start(conversation.history)
    own = History([h.header(objectives=conversation.history.header["objectives"])])  # of MLflow's thread
    layout = Layout(own, str, Redactor())
    sync = Sync(Store("http://127.0.0.1:1", layout, None, tmp_path), layout, None, None, threading.Event())
    conversation.listeners = (own.apply, console.handle, keep_front(tmp_path, conversation.history))
    tracemalloc.start()
    try:
        sizes = []
        for until in (200, 800):
            for step in range(len(own.told) + 100, until + 1, 100):
                told(conversation, step)
                sync.trials(range(step - 100, step))
            gc.collect()
            sizes.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
        conversation.ledger.close()
    assert sync.store.counts["runs"] == 801
    assert (sizes[1] - sizes[0]) / 600 * 10_000 < 100 * MIB


def test_a_resume_folds_each_event_twice_however_many_there_are(tmp_path, monkeypatch):
    calls = Counter()
    apply, take = History.apply, Front.take

    def applied(history, event):
        calls["apply"] += 1
        apply(history, event)

    def taken(front, records, losses):
        calls["take"] += len(records)
        take(front, records, losses)

    monkeypatch.setattr(History, "apply", applied)
    monkeypatch.setattr(Front, "take", taken)
    for trials in (100, 200):
        conversation = search(tmp_path / str(trials), trials)
        told(conversation, trials)
        conversation.ledger.close()
        calls.clear()
        again = search(tmp_path / str(trials), trials)
        assert again.history.front()
        again.ledger.close()
        events = len(ledger.read(tmp_path / str(trials) / NAME))
        assert calls["apply"] <= 2 * events and calls["take"] == trials


def test_many_lines_are_parsed_at_once_and_a_damaged_one_is_still_named(tmp_path, monkeypatch):
    conversation = search(tmp_path, 50)
    told(conversation, 50)
    conversation.ledger.close()
    path = tmp_path / NAME
    lines = path.read_bytes().splitlines(keepends=True)
    parsed = []
    inner = ledger._loads
    monkeypatch.setattr(ledger, "_loads", lambda line: parsed.append(line) or inner(line))
    events = ledger.read(path)
    assert not parsed, "not line by line"
    assert events == [json.loads(line) for line in lines]
    keys = [key for event in events for key in event if key == "metrics"]
    assert len({id(key) for key in keys}) == 1, "equal keys share one string"
    # Two damaged lines that would be one event if a comma stood between them.
    joined = [*lines[:9], b'{"event": "report", "seconds": 1\n', b'"number": 0}\n', *lines[9:]]
    path.write_bytes(b"".join(joined))
    with pytest.raises(UsageError, match="line 10 is damaged"):
        ledger.read(path)
    path.write_bytes(b"".join([*lines[:9], b"[1]\n", *lines[9:]]))
    with pytest.raises(UsageError, match="line 10 is damaged"):
        ledger.read(path)


def test_a_leaderboard_names_the_trials_that_it_shows_and_holds_one_history_at_a_time(tmp_path):
    conversation = search(tmp_path, 200)
    told(conversation, 200)
    conversation.ledger.close()
    header, named, alive = h.header(objectives=conversation.history.header["objectives"]), [], []

    def entries():
        for number in range(3):
            assert not any(ref() for ref in alive[:-1]), "the search before the last one is still held"
            history = History([header, *ledger.read(tmp_path / NAME)[1:]])
            alive.append(weakref.ref(history))
            yield Entry(f"run-{number}", history, lambda params: named.append(params) or "a name")
            del history

    board = leaderboard.render(entries(), "json")
    shown = sum(row["trial"] is not None for row in json.loads(board)["boards"][0]["rows"])
    assert 0 < len(named) <= 2 * shown < 60, "each once, and the best stock default a second time at most"


def test_a_report_grows_one_forest(tmp_path, monkeypatch):
    grown = []
    monkeypatch.setattr(importance, "_by_parameter", lambda *given: (grown.append(given), ((), 0.0))[1])
    Run(tmp_path, History(h.search(60))).report()
    assert len(grown) == 1
