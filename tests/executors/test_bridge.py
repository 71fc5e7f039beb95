"""What is told of a trial whose worker is gone: the machine's fault, unless we ended the worker for a step that hung."""

from __future__ import annotations

import pytest

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


def test_only_a_failed_result_is_the_machine_s_fault():
    trial = Trial(0, {"method": "head"}, 0)
    with pytest.raises(ValueError, match="COMPLETE"):
        Result(trial, Status.COMPLETE, {"accuracy": 0.5}, fault="machine")
    with pytest.raises(ValueError, match="bad luck"):
        Result(trial, Status.FAILED, error="x", fault="bad luck")
