"""What is told of a trial whose worker is gone: the machine's fault, unless we ended the worker for a step that hung."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from autopeft.errors import EnvironmentFault
from autopeft.executors import _tune
from autopeft.executors._tune import Bridge, Running
from autopeft.trial import Result, Status, Trial


class Told(list):
    def tell(self, result: Result) -> None:
        self.append(result)


@pytest.mark.parametrize(("why_killed", "fault"), [("", "machine"), ("over its time limit of 3 s", "")])
def test_a_worker_that_died_is_the_machine_s_fault_and_a_step_that_hung_the_trial_s(why_killed, fault):
    told = Told()
    bridge = Bridge(told, slots=1, trial_seconds=None, interrupts=[])
    bridge.running["a"] = Running(Trial(3, {"method": "head"}, 0), since=0.0, why_killed=why_killed)
    bridge.lose("a", RuntimeError("ActorDiedError"))
    (result,) = told
    assert (result.trial.number, result.status, result.fault) == (3, Status.FAILED, fault)
    assert Result.from_json(result.to_json()) == result


class Search(Told):
    """Three trials, and what is told of them."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting = [Trial(number, {"method": "head"}, 0) for number in (2, 1, 0)]

    def ask(self) -> Trial | None:
        return self.waiting.pop() if self.waiting else None


def begin(bridge: Bridge, tune_id: str) -> None:
    bridge.report(tune_id, '{"kind": "started"}')


def test_a_trial_whose_worker_never_began_gets_another_one():
    """Also the last one: Tune is not told that all is over before each has begun."""
    search = Search()
    bridge = Bridge(search, slots=4, trial_seconds=None, interrupts=[])
    for tune_id in "abc":
        bridge.ask(tune_id)
    begin(bridge, "a")
    begin(bridge, "b")
    assert bridge.ask("d") is None
    assert not bridge.is_over(), "trial 2 may still need another worker"
    bridge.lose("c", RuntimeError("ActorDiedError"))
    assert search == []
    assert bridge.ask("d") is not None
    assert bridge.running["d"].trial.number == 2
    begin(bridge, "d")
    assert bridge.ask("e") is None
    assert bridge.is_over()


def test_a_trial_gets_so_many_workers_and_then_has_failed():
    search = Search()
    bridge = Bridge(search, slots=1, trial_seconds=None, interrupts=[])
    for _ in range(_tune.MOST_TRIES):
        assert search == []
        assert bridge.ask("a").number == 0
        bridge.lose("a", RuntimeError("LateNode: it lacks a package"))
    (result,) = search
    assert (result.trial.number, result.status, result.fault) == (0, Status.FAILED, "machine")


def test_workers_that_die_before_they_begin_end_the_run_and_late_nodes_do_not():
    bridge = Bridge(Search(), slots=1, trial_seconds=None, interrupts=[])
    for fault in ("ActorDiedError", "LateNode: x", "ActorDiedError"):
        bridge.ask("a")
        bridge.lose("a", RuntimeError(fault))
    bridge.ask("a")
    with pytest.raises(EnvironmentFault, match=r"3 Ray workers in a row.*--set executor=serial"):
        bridge.lose("a", RuntimeError("ActorDiedError"))


def test_workers_that_are_slow_to_begin_are_said_once(capsys, monkeypatch):
    monkeypatch.setattr(_tune, "SILENT_SECONDS", 0.0)
    search = Search()
    search.is_out_of_time = lambda: False
    bridge = Bridge(search, slots=2, trial_seconds=None, interrupts=[])
    bridge.watch([])
    assert capsys.readouterr().err == "", "nothing was asked for"
    bridge.ask("a")
    bridge.watch([])
    bridge.watch([])
    assert capsys.readouterr().err == "Ray's workers are still starting, or load model and data\n"


def test_the_time_limit_counts_while_a_trial_trains(monkeypatch):
    """Scoring and waiting for shared caches may take longer, as in `serial`; one that says no phases counts whole."""
    now, killed = [0.0], []
    monkeypatch.setattr(_tune.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(_tune, "kill", lambda trial: killed.append(trial.trial_id))
    search = Search()
    search.is_out_of_time = lambda: False
    search.prepare = lambda slots: None
    bridge = Bridge(search, slots=2, trial_seconds=10.0, interrupts=[])
    trials = [SimpleNamespace(trial_id="a"), SimpleNamespace(trial_id="b")]

    def pass_time(seconds: float) -> list[str]:
        now[0] += seconds
        bridge.watch(trials)
        return killed

    for tune_id in "ab":
        bridge.ask(tune_id)
        begin(bridge, tune_id)
    bridge.report("a", '{"kind": "phase", "phase": "PREPARING"}')
    assert pass_time(14.0) == []
    bridge.report("a", '{"kind": "phase", "phase": "TRAINING"}')
    assert pass_time(2.0) == ["b"]
    bridge.report("a", '{"kind": "phase", "phase": "SCORING"}')
    assert pass_time(100.0) == ["b"]
    bridge.report("a", '{"kind": "phase", "phase": "TRAINING"}')
    assert pass_time(15.1) == ["b", "a"]


def test_slots_follow_the_nodes():
    search = Search()
    search.is_out_of_time = lambda: False
    found = iter([None, 5, 0, 2])

    class Nodes:
        def slots(self):
            return next(found)

    bridge = Bridge(search, 1, None, [], newcomers=Nodes(), most_slots=4)
    slots = []
    for _ in range(4):
        bridge.watch([])
        slots.append(bridge.slots)
    assert slots == [1, 4, 1, 2]


def test_only_a_failed_result_is_the_machine_s_fault():
    trial = Trial(0, {"method": "head"}, 0)
    with pytest.raises(ValueError, match="COMPLETE"):
        Result(trial, Status.COMPLETE, {"accuracy": 0.5}, fault="machine")
    with pytest.raises(ValueError, match="bad luck"):
        Result(trial, Status.FAILED, error="x", fault="bad luck")
