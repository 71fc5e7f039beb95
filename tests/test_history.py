"""The fold of a ledger: records by number, the front, the hypervolume over trials."""

from __future__ import annotations

import math
from typing import Any

import moocore
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autopeft import history as histories
from autopeft.errors import UsageError
from autopeft.history import Front, History, Record
from autopeft.ledger import Ledger
from autopeft.objectives import Objective
from autopeft.trial import Report, Status, Trial

OBJECTIVES = (
    Objective("accuracy", "maximize", 0.1),
    Objective("trainable_parameters", "minimize", 10_000, "log10"),
)
HEADER = {"event": "search", "schema": 1, "config": {"seed": 0}, "objectives": [o.to_json() for o in OBJECTIVES]}


def ask(number: int, parameters: float = 100.0, seconds: float = 0.0) -> dict[str, Any]:
    return {
        "event": "ask",
        "number": number,
        "params": {"method": "head"},
        "seed": number,
        "known": {"trainable_parameters": parameters},
        "seconds": seconds,
    }


def refuse(number: int) -> dict[str, Any]:
    return {**ask(number), "event": "refuse", "known": {}, "reason": "over budget"}


def report(number: int, step: int) -> dict[str, Any]:
    return {"event": "report", "number": number, "step": step, "metrics": {"train_loss": 1 / step}, "seconds": 0.0}


def tell(number: int, accuracy: float, parameters: float = 100.0, status: str = "COMPLETE") -> dict[str, Any]:
    metrics = {"accuracy": accuracy, "trainable_parameters": parameters}
    error = "why" if status in ("FAILED", "OUT_OF_MEMORY") else ""
    return {"event": "tell", "number": number, "status": status, "metrics": metrics, "error": error, "seconds": 9.0}


def test_each_event_changes_what_it_says():
    history = History([HEADER, ask(0, seconds=1.5), report(0, 5), refuse(1), ask(2)])
    zero, one, two = history.records
    assert (zero.is_running, zero.known, zero.asked_seconds) == (True, {"trainable_parameters": 100.0}, 1.5)
    assert zero.reports == [Report(5, {"train_loss": 0.2})]
    assert (one.refusal, one.is_running, one.is_complete) == ("over budget", False, False)
    assert history.trials == [zero, two]
    history.apply(tell(2, 0.5))
    history.apply(tell(0, 0.0, status="FAILED"))
    assert history.told == [2, 0]
    assert (two.status, two.is_complete, two.told_seconds) == (Status.COMPLETE, True, 9.0)
    assert (zero.status, zero.error, zero.is_running, zero.is_complete) == (Status.FAILED, "why", False, False)


def test_a_rerun_drops_what_the_dead_one_reported():
    history = History([HEADER, ask(0), report(0, 5), report(0, 10)])
    history.apply({"event": "rerun", "number": 0, "seconds": 2.0})
    assert history.records[0].is_running
    assert history.records[0].reports == []
    history.apply(report(0, 5))
    assert len(history.records[0].reports) == 1


def test_the_config_is_the_last_one():
    history = History([HEADER])
    assert history.config == {"seed": 0}
    history.apply({"event": "resume", "config": {"seed": 0, "budget": 60}, "changes": ["budget"], "seconds": 1.0})
    assert history.config == {"seed": 0, "budget": 60}
    assert len(history.resumes) == 1


def test_confirmations_are_kept_apart_from_trials():
    event = {
        "event": "confirm",
        "name": "trial 0",
        "number": 0,
        "params": {"method": "head"},
        "seed": 7,
        "status": "COMPLETE",
        "metrics": {"accuracy": 0.6},
        "error": "",
        "seconds": 3.0,
    }
    history = History([HEADER, ask(0), tell(0, 0.7), event])
    assert history.records[0].metrics["accuracy"] == 0.7
    assert [(c.name, c.seed, c.metrics["accuracy"]) for c in history.confirmations] == [("trial 0", 7, 0.6)]


def test_an_event_of_a_later_version_changes_nothing():
    history = History([HEADER, ask(0), {"event": "weather", "seconds": 1.0}])
    assert len(history.records) == 1


@pytest.mark.parametrize(
    ("events", "message"),
    [
        pytest.param([ask(1)], "number 1 follows -1", id="first number missing"),
        pytest.param([ask(0), ask(2)], "number 2 follows 0", id="hole"),
        pytest.param([ask(0), tell(3, 0.5)], "a tell of number 3, which was never asked for", id="tell"),
        pytest.param([report(0, 1)], "a report of number 0, which was never asked for", id="report"),
    ],
)
def test_a_ledger_that_lost_a_line_is_said_to_be_damaged(events, message):
    with pytest.raises(UsageError, match=f"the ledger is damaged: {message}"):
        History([HEADER, *events])


def test_an_empty_ledger_is_a_search_that_never_began(tmp_path):
    Ledger(tmp_path / "ledger.jsonl").close()
    with pytest.raises(UsageError, match="died before it began"):
        History.read(tmp_path / "ledger.jsonl")


# ── the front ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_front_has_complete_trials_only_the_best_score_first():
    history = History(
        [
            HEADER,
            *(ask(number) for number in range(5)),
            tell(0, 0.5, 10),
            tell(1, 0.9, 1000),
            tell(2, 0.4, 500),  # dominated by 0
            tell(3, 0.99, 1, status="STOPPED"),  # partial: never on a front
            tell(4, 0.99, 1, status="FAILED"),
        ]
    )
    assert [record.number for record in history.front()] == [1, 0]


def test_equal_points_are_all_on_the_front_and_the_earlier_number_is_first():
    history = History([HEADER, ask(0), ask(1), tell(1, 0.5), tell(0, 0.5)])
    assert [record.number for record in history.front()] == [0, 1]


def test_without_a_complete_trial_the_front_is_empty():
    assert History([HEADER, ask(0), refuse(1)]).front() == []
    assert History([HEADER]).hypervolumes() == []


points = st.lists(
    st.tuples(st.floats(0, 1, width=32), st.integers(1, 20_000), st.sampled_from(["COMPLETE", "STOPPED", "FAILED"])),
    max_size=12,
)


@given(points)
def test_front_and_hypervolume_agree_with_moocore(told):
    events = [event for n, (a, p, status) in enumerate(told) for event in (ask(n, p), tell(n, a, p, status))]
    history = History([HEADER, *events])
    losses = np.array([[-a, math.log10(p)] for a, p, status in told if status == "COMPLETE"]).reshape(-1, 2)
    expected = {tuple(loss) for loss in losses[moocore.is_nondominated(losses)]} if len(losses) else set()
    found = {tuple(loss) for loss in history.losses(history.front())}
    assert found == expected
    volumes = history.hypervolumes()
    assert len(volumes) == len(told)
    assert volumes == sorted(volumes), "a hypervolume never shrinks"
    if len(losses):
        inside = losses[(losses < [-0.1, 4.0]).all(axis=1)]
        last = moocore.hypervolume(inside, ref=[-0.1, 4.0]) if len(inside) else 0.0
        assert volumes[-1] == pytest.approx(last, abs=1e-9)


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=30), st.integers(1, 7))
def test_a_front_takes_many_records_as_it_takes_them_one_by_one(points, at_once):
    records = [Record(Trial(number, {}, 0)) for number in range(len(points))]
    losses = np.array(points, dtype=float)
    single, many = Front(), Front()
    for record, loss in zip(records, losses):
        single.take([record], loss[None])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(histories, "AT_ONCE", at_once)
        many.take(records[:3], losses[:3])
        many.take(records[3:], losses[3:])
    assert [record.number for record in many.records] == [record.number for record in single.records]
    assert (many.losses == single.losses).all()


def test_without_reports_all_else_is_there_and_a_damaged_one_is_still_refused():
    report = {"event": "report", "number": 0, "step": 3, "metrics": {"accuracy": 0.5}, "seconds": 1.0}
    tell = {
        "event": "tell",
        "number": 0,
        "status": "STOPPED",
        "metrics": {"accuracy": 0.5},
        "error": "",
        "seconds": 2.0,
    }
    whole, brief = (History([HEADER, ask(0), report, tell], keeps_reports=keeps) for keeps in (True, False))
    assert (len(whole.records[0].reports), len(brief.records[0].reports)) == (1, 0)
    assert brief.records[0].metrics == whole.records[0].metrics and brief.counts() == whole.counts()
    with pytest.raises(UsageError, match="never asked for"):
        brief.apply({**report, "number": 1})
    for key in ("step", "metrics", "seconds"):
        with pytest.raises(KeyError, match=key):
            brief.apply({name: value for name, value in report.items() if name != key})
