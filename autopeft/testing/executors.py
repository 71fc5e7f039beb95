"""What every executor promises: to agree with a plain loop."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from autopeft import ledger
from autopeft.errors import EnvironmentFault
from autopeft.executors import Conversation, Executor
from autopeft.history import Record
from autopeft.ledger import Ledger
from autopeft.samplers.random import RandomSampler
from autopeft.search import Search
from autopeft.testing._examples import OBJECTIVES, example_sizes, example_space
from autopeft.trial import WEATHER, Evaluate, Phase, Report, Result, Status, Trial


def check_executor(make: Callable[[], Executor]) -> None:
    """Checks that with one slot the ledger equals a plain loop's, and that an error outside of a trial ends the run.

    Args:
        make: Builds a new executor with one slot.
    """
    executor = make()
    executor.check()
    assert executor.processes == executor.pack == 1, "one slot is one process, and no trial shares a pass"
    expected = _ledger_of(_plain_loop, _Train())
    statuses = {event["status"] for event in expected if event["event"] == "tell"}
    assert statuses == {"COMPLETE", "STOPPED", "FAILED"}, "the contract itself is out of order"
    found = _ledger_of(lambda search, make_evaluate: make().run(search, make_evaluate), _Train())
    for index, (one, other) in enumerate(zip(found, expected, strict=False)):
        assert one == other, f"event {index} is {one}, where one trial after another gives {other}"
    assert len(found) == len(expected), f"{len(found)} events, where one trial after another gives {len(expected)}"
    for broken, where in (("make", "building evaluate"), ("evaluate", "evaluate"), ("tell", "the search")):
        try:
            _ledger_of(lambda search, make_evaluate: make().run(search, make_evaluate), _Train(broken), broken)
        except EnvironmentFault as fault:
            assert broken in str(fault), f"an error of {where} came out as another one: {fault}"
        else:
            raise AssertionError(f"an error of {where} was swallowed: it has to end the run")


class _Train:
    """make_evaluate: a curve for each trial. Every sixth trial fails. `broken` names the part that raises."""

    def __init__(self, broken: str = "") -> None:
        self.broken = broken

    def __call__(self, should_end: Callable[[], bool]) -> Evaluate:
        if self.broken == "make":
            raise EnvironmentFault("make: no model here")
        return self.evaluate

    def evaluate(self, trial: Trial) -> Generator[Report | Result | Phase, None, None]:
        score = 0.5 + (trial.seed % 1000) / 2000
        for phase, step in zip(Phase, (1, 2, 3), strict=True):
            yield phase
            yield Report(step, {"accuracy": score * step / 4, "train_loss": 1 / step})
            if trial.number == 3 and self.broken == "evaluate":
                raise EnvironmentFault("evaluate: the disk is full")
        if trial.number % 6 == 5:
            yield Result(trial, Status.FAILED, {"train_loss": 0.3}, error="the training loss is nan")
        else:
            yield Result(trial, Status.COMPLETE, {"accuracy": score, "train_seconds": float(np.random.random())})


class _StopThirds:
    """Stops every third trial at its second rung."""

    def report(self, record: Record, report: Report) -> bool:
        return report.step == 2 and record.number % 3 == 1

    def tell(self, record: Record) -> None:
        pass


def _ledger_of(
    run: Callable[[Conversation, _Train], None], make_evaluate: _Train, broken: str = ""
) -> list[Mapping[str, Any]]:
    """Returns the events of a search of 12 trials, without times."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / ledger.NAME
        book = Ledger(path)
        search = Search(
            space=example_space(),
            sampler=RandomSampler(example_space(), OBJECTIVES, example_sizes),
            stopper=_StopThirds(),
            ledger=book,
            check=lambda params: {"trainable_parameters": 100.0},
            seed=0,
            most_trials=12,
            listeners=[_fail_to_tell] if broken == "tell" else [],
        )
        try:
            run(search, make_evaluate)
        finally:
            book.close()
        events = ledger.read(path)
    told: list[Mapping[str, Any]] = []
    for event in events:
        del event["seconds"]
        if event["event"] == "tell":
            event["metrics"] = {name: value for name, value in event["metrics"].items() if name not in WEATHER}
        told.append(event)
    return told


def _fail_to_tell(event: Mapping[str, Any]) -> None:
    if event["event"] == "tell" and event["number"] == 2:
        raise EnvironmentFault("tell: the disk is full")


def _plain_loop(search: Conversation, make_evaluate: _Train) -> None:
    evaluate = make_evaluate(lambda: False)
    while (trial := search.ask()) is not None:
        for event in evaluate(trial):
            if isinstance(event, Result):
                search.tell(event)
            elif isinstance(event, Report) and search.report(trial, event):
                search.tell(Result.stopped(trial, event))
                break
