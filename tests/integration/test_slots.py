"""No slot idles: many slots on a simulated clock, over the real search, ledger, sampler and stopper."""

import math

import pytest

from autopeft import plugins
from autopeft.testing import example_sizes
from benchmarks.driver_overhead.run import OBJECTIVES, SPACE, make_evaluate, make_search, seconds_of
from benchmarks.driver_overhead.simulated import Simulated


@pytest.mark.parametrize("stopper", ["dominated", "never"])
def test_every_slot_trains_until_the_budget_is_handed_out(tmp_path, monkeypatch, stopper):
    monkeypatch.setattr("os.fsync", lambda fd: None)
    sampler = plugins.load("samplers", "nsga2")(SPACE, OBJECTIVES, example_sizes)
    search = make_search(tmp_path, sampler, stopper, trials=600)
    running = []
    search.listeners = [lambda event: running.append(search.running) if event["event"] == "ask" else None]
    executor = Simulated(100, lambda trial, step: seconds_of(trial, step, 50.0), clock=lambda: 0.0)
    executor.run(search, make_evaluate)
    assert running == [*range(1, 101), *[100] * 500], "a slot that is free is given a trial at once"
    assert sorted(search.history.told) == sorted(record.number for record in search.history.trials)
    assert ("STOPPED" in search.history.counts()) == (stopper == "dominated")
    trained = [
        seconds_of(record.trial, None if record.is_complete else record.reports[-1].step, 50.0)
        for record in search.history.trials
    ]
    assert executor.waiting_seconds == 0.0
    assert math.isclose(executor.busy_seconds, sum(trained))
    assert executor.now <= sum(trained) / 100 + max(trained), "list scheduling's bound (Graham, 1966)"


def test_a_driver_that_is_too_slow_shows_as_waiting(tmp_path, monkeypatch):
    """Each look at the clock takes 20 ms: the driver serves 50 events a second at most."""
    monkeypatch.setattr("os.fsync", lambda fd: None)
    search = make_search(
        tmp_path, plugins.load("samplers", "random")(SPACE, OBJECTIVES, example_sizes), "never", trials=300
    )
    ticks = iter(range(10**9))
    executor = Simulated(100, lambda trial, step: seconds_of(trial, step, 1.0), clock=lambda: next(ticks) * 0.02)
    executor.run(search, make_evaluate)
    assert executor.waiting_seconds > executor.busy_seconds
    assert executor.now >= 0.02 * 3 * 300, "two reports and a result a trial"
