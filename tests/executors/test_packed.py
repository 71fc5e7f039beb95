"""Trials side by side in this process: slots, stopping, Ctrl-C, faults, resuming; and the product's own trials packed."""

from __future__ import annotations

import os
import signal

import pytest

from autopeft import app
from autopeft.config import load
from autopeft.errors import AutoPEFTError, UsageError
from autopeft.executors.packed import Packed
from autopeft.history import History
from autopeft.ledger import NAME
from autopeft.stoppers.never import NeverStopper
from autopeft.trial import Report, Status
from tests.executors.conversations import OBJECTIVES, Toy, Turns, events, lines, make_search
from tests.integration.test_executors_agree import config

NEVER = NeverStopper(OBJECTIVES)


def run(folder, toy=None, slots=4, **options):
    conversation = make_search(folder, **options)
    try:
        Packed(slots).run(conversation, toy or Turns(folder))
    finally:
        conversation.ledger.close()
    return conversation


def most_running(folder):
    running = most = 0
    for event in events(folder):
        running += {"ask": 1, "tell": -1}.get(event["event"], 0)
        most = max(most, running)
    return most


def test_as_many_as_there_are_slots_and_each_is_told_once(tmp_path):
    history = run(tmp_path, trials=20).history
    assert sorted(history.told) == [record.number for record in history.trials]
    assert len(history.told) == 20 and {"COMPLETE", "STOPPED"} <= set(history.counts())
    assert most_running(tmp_path) == 4
    assert len(lines(tmp_path, "ended")) == 20, "a stopped trial is closed"
    for record in history.records:
        if record.status is Status.STOPPED:
            assert record.metrics == {**record.known, **record.reports[-1].metrics}


def test_as_many_as_memory_holds(tmp_path):
    history = run(tmp_path, trials=20, slots="auto").history
    assert sorted(history.told) == list(range(20))
    assert most_running(tmp_path) == Turns.most


def test_fewer_trials_than_slots(tmp_path):
    assert sorted(run(tmp_path, trials=3, slots=16).history.told) == [0, 1, 2]


def test_a_failed_trial_is_data_and_a_fault_ends_the_run(tmp_path):
    (tmp_path / "0.fail").touch()
    (tmp_path / "7.fault").touch()
    with pytest.raises(OSError, match="as asked"):
        run(tmp_path, stopper=NEVER)
    history = History.read(tmp_path / NAME)
    assert history.records[0].status is Status.FAILED
    assert 7 not in history.told
    (tmp_path / "7.fault").unlink()
    assert sorted(run(tmp_path, stopper=NEVER).history.told) == list(range(12))
    reruns = [event["number"] for event in events(tmp_path) if event["event"] == "rerun"]
    assert 7 in reruns and not set(reruns) & set(history.told)


def test_a_budget_of_time_ends_running_trials_untold(tmp_path):
    conversation = run(tmp_path, Turns(tmp_path, seconds=0.01, steps=100_000), most_seconds=1.0, stopper=NEVER)
    assert conversation.why_ended.startswith("the budget of")
    assert conversation.history.told == [] and conversation.running == 4


def test_ctrl_c_ends_the_run_and_tells_nothing_of_what_was_running(tmp_path):
    class Interrupted(Turns):
        def advance(self, is_due=lambda: False):
            found = super().advance(is_due)
            if any(isinstance(event, Report) and event.step == 6 for _, event in found):
                os.kill(os.getpid(), signal.SIGINT)
            return found

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, Interrupted(tmp_path))
    told = History.read(tmp_path / NAME).told
    assert len(told) < 12
    assert sorted(run(tmp_path).history.told) == list(range(12))


def test_a_pack_that_says_nothing_is_a_bug_and_no_endless_loop(tmp_path):
    (tmp_path / "0.short").touch()
    with pytest.raises(AutoPEFTError, match="1 trials ended without results: that is a bug"):
        run(tmp_path, trials=1, slots=2)


def test_what_cannot_be_packed_is_said(tmp_path):
    with pytest.raises(UsageError, match="one trial at a time: use the executor serial"):
        run(tmp_path, Toy(tmp_path))
    with pytest.raises(UsageError, match=r"executor\.slots is 1 or more, or auto, not 0"):
        Packed(0)


# ── the product ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_packed_search_finds_what_a_serial_one_finds(tmp_path, caplog):
    """Of all methods on digits: LoRA as one pass, the others between. Same params, statuses, counts; scores nearly."""
    given = config(tmp_path, "digits", sampler="random", stopper="never", budget={"trials": 18})
    found = {}
    for name, options in (("serial", {}), ("packed", {"slots": 6})):
        loaded = load({**given, "executor": {"name": name, **options}})
        found[name] = app.search(loaded, tmp_path / name, quiet=True).history.records
    methods = {record.params["method"] for record in found["serial"]}
    assert "lora" in methods and len(methods) > 3
    for one, other in zip(found["serial"][:12], found["packed"][:12], strict=True):  # the last go longest first
        assert (one.params, one.trial.seed, one.status) == (other.params, other.trial.seed, other.status)
        for name in ("accuracy", "train_loss", "trainable_parameters"):
            assert other.metrics[name] == pytest.approx(one.metrics[name], abs=5e-3), name
    assert "came apart" not in caplog.text


def test_a_packed_search_stops_and_confirms(tmp_path):
    given = config(tmp_path, "digits", sampler={"name": "tpe", "n_startup_trials": 4}, budget={"trials": 16},
                   stopper={"name": "dominated", "rungs": [0.3, 0.6]}, executor={"name": "packed", "slots": 5})  # fmt: skip
    given["space"] = "lora"
    run = app.search(load(given), tmp_path / "run", quiet=True)
    assert {"COMPLETE", "STOPPED"} == set(run.history.counts())
    run.confirm(seeds=2, quiet=True)
    confirmed = [c for c in run.history.confirmations if c.params]
    assert {(c.params["method"], c.status) for c in confirmed} == {("lora", Status.COMPLETE)}
    assert len({(c.name, c.seed) for c in confirmed}) == len(confirmed) >= 2 * len(run.history.front())
