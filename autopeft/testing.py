"""Contract tests, a section a family: call them on your plugin, as our own tests do on every plugin of ours.

Each `check_…` raises an AssertionError that says which promise is broken. None needs pytest, a network or a GPU.
"""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from autopeft import ledger
from autopeft.errors import EnvironmentFault
from autopeft.executors import Conversation, Executor
from autopeft.history import Record
from autopeft.ledger import Ledger
from autopeft.objectives import Objective
from autopeft.samplers import Sampler
from autopeft.samplers.random import RandomSampler
from autopeft.search import Search
from autopeft.space import Choice, Dimension, Float, Int, Space, Subset
from autopeft.stoppers import Stopper
from autopeft.trial import WEATHER, Report, Result, Status, Trial, derive_seed

OBJECTIVES = (
    Objective("accuracy", "maximize", reference=0.5),
    Objective("trainable_parameters", "minimize", reference=1e6, scale="log10"),
)


def example_space() -> Space:
    """A small conditional space with every kind of domain, constants and a composed recipe."""
    return Space(
        {
            "method": Dimension(Choice(("head", "lora", "lora+bias")), "head"),
            "head.lr": Dimension(Float(1e-4, 1e-1, log=True), 1e-3),
            "lora.rank": Dimension(Int(1, 64, log=True), 8),
            "lora.layers": Dimension(Subset((0, 1, 2, 3)), [0, 1, 2, 3]),
            "lora.modules": Dimension(Subset(("query", "key", "value"), min_size=2), ["query", "value"]),
            "lora.dora": Dimension(Choice((False, True)), False),
            "lora.magnitude": Dimension(Float(0.0, 1.0), 0.5, when={"lora.dora": (True,)}),
            "lora.dropout": Dimension(Choice((0.0, 0.1, 0.3)), 0.0),
            "lora.init": Dimension(Choice((None, 1, "gaussian")), None),
            "lora.alpha": Dimension(Choice((16,)), 16),
            "bias.lr": Dimension(Float(1e-4, 1e-2, log=True), 1e-3),
        }
    )


# ── samplers ────────────────────────────────────────────────────────────────────────────────────────────────────────


def check_sampler(make: Callable[[Space, Sequence[Objective]], Sampler], trials: int = 30) -> None:
    """Members of the space only; every kind of record heard; each ask a function of what was told and its seed.

    Args:
        make: A new sampler for the space and the objectives, as `plugin(space, objectives, **options)`.
        trials: How many numbers to ask for.
    """
    space = example_space()
    live = make(space, OBJECTIVES)
    records: list[Record] = []
    for number in range(trials):
        seed = derive_seed("contract", number)
        random_states = random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[index,union-attr]
        params = live.ask(number, seed)
        now = random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[index,union-attr]
        assert now == random_states, "an ask used a global random generator: seed your own by the ask's seed"
        assert live.ask(number, seed) == params, f"ask {number} came out otherwise when it was repeated"
        refilled = make(space, OBJECTIVES)
        for record in records:
            refilled.tell(record)
        assert refilled.ask(number, seed) == params, f"ask {number} of a refilled sampler differs from the live one's"
        if params is None:
            break
        why_not = space.why_not(params)
        assert not why_not, f"ask {number} is not in the space: {why_not}"
        assert json.loads(json.dumps(dict(params))) == dict(params), f"ask {number} does not survive JSON: {params}"
        records += _told(Trial(number, params, seed))
        live.tell(records[-1])
    outside = Record(Trial(len(records), {"method": "no such"}, 0), refusal="not in the space")
    live.tell(outside)
    live.ask(len(records) + 1, 0)


def _told(trial: Trial) -> list[Record]:
    """How a trial went: all the ways there are, in turn."""
    size = float(100 + 10 * len(json.dumps(dict(trial.params))))
    known = {"trainable_parameters": size}
    score = {"accuracy": 0.5 + (trial.seed % 1000) / 2000}
    ways = {
        0: Record(trial, refusal="over budget"),
        1: Record(trial, known, [Report(5, score)], Status.STOPPED, {**known, **score}),
        2: Record(trial, known, [], Status.OUT_OF_MEMORY, known, error="out of memory"),
        3: Record(trial, known, [], Status.FAILED, known, error="the training loss is nan"),
    }
    return [ways.get(trial.number % 8, Record(trial, known, [], Status.COMPLETE, {**known, **score}))]


# ── stoppers ────────────────────────────────────────────────────────────────────────────────────────────────────────


def check_stopper(make: Callable[[Sequence[Objective]], Stopper]) -> None:
    """A verdict is a bool and a function of what was heard; what nothing beats runs on; a missing signal is an error.

    Args:
        make: A new stopper for the objectives, as `plugin(objectives, **options)`.
    """
    heard = list(_rungs())
    verdicts = _verdicts(make(OBJECTIVES), heard)
    assert all(isinstance(verdict, bool) for verdict in verdicts), "whether to stop is True or False"
    assert verdicts == _verdicts(make(OBJECTIVES), heard), "the same rungs, heard again, were judged otherwise"
    stopper = make(OBJECTIVES)
    for number in range(10):  # each smaller and better than all before it
        record = Record(Trial(number, {"method": "head"}, 0), {"trainable_parameters": 1000.0 - number})
        record.reports.append(Report(10, {"accuracy": 0.5 + number / 100}))
        assert not stopper.report(record, record.reports[-1]), "stopped a trial that was smaller and better than all"
    if any(verdicts):  # it looks at the score
        record = Record(Trial(10, {"method": "head"}, 0), {"trainable_parameters": 1000.0}, [Report(10, {"other": 1.0})])
        try:
            stopper.report(record, record.reports[-1])
        except KeyError as fault:
            assert "accuracy" in str(fault), f"the error does not say what is missing: {fault}"  # noqa: PT017
        else:
            raise AssertionError("a report without the score was judged: a missing signal is an error")


def _rungs() -> Iterator[Record]:
    """Forty trials of two rungs each, as they come in; a record's last report is the one to judge."""
    rng = np.random.default_rng(0)
    for number in range(40):
        record = Record(Trial(number, {"method": "head"}, 0), {"trainable_parameters": float(rng.integers(10, 10_000))})
        for step in (10, 30):
            record.reports.append(Report(step, {"accuracy": float(rng.random())}))
            yield record


def _verdicts(stopper: Stopper, records: Sequence[Record]) -> list[bool]:
    verdicts = []
    for index, record in enumerate(records):
        verdicts.append(stopper.report(record, record.reports[index % 2]))
        if index % 2:
            record.status = Status.COMPLETE
            stopper.tell(record)
    return verdicts


# ── executors ───────────────────────────────────────────────────────────────────────────────────────────────────────


def check_executor(make: Callable[[], Executor]) -> None:
    """With one slot it writes the ledger that a plain loop writes; what goes wrong outside of a trial ends the run.

    Args:
        make: A new executor with one slot.
    """
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
            assert broken in str(fault), f"an error of {where} came out as another one: {fault}"  # noqa: PT017
        else:
            raise AssertionError(f"an error of {where} was swallowed: it has to end the run")


class _Train:
    """make_evaluate: a curve for each trial. Every sixth one fails; `broken` says what is."""

    def __init__(self, broken: str = "") -> None:
        self.broken = broken

    def __call__(self, should_end: Callable[[], bool]) -> Callable[[Trial], Iterator[Report | Result]]:
        if self.broken == "make":
            raise EnvironmentFault("make: no model here")
        return self.evaluate

    def evaluate(self, trial: Trial) -> Iterator[Report | Result]:
        score = 0.5 + (trial.seed % 1000) / 2000
        for step in (1, 2, 3):
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
    """The events of a search of 12 trials, without times."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / ledger.NAME
        book = Ledger(path)
        search = Search(
            space=example_space(),
            sampler=RandomSampler(example_space(), OBJECTIVES),
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
    for event in events:
        del event["seconds"]
        if event["event"] == "tell":
            event["metrics"] = {name: value for name, value in event["metrics"].items() if name not in WEATHER}
    return events


def _fail_to_tell(event: Mapping[str, Any]) -> None:
    if event["event"] == "tell" and event["number"] == 2:
        raise EnvironmentFault("tell: the disk is full")


def _plain_loop(search: Conversation, make_evaluate: _Train) -> None:
    evaluate = make_evaluate(lambda: False)
    while (trial := search.ask()) is not None:
        for event in evaluate(trial):
            if isinstance(event, Result):
                search.tell(event)
            elif search.report(trial, event):
                search.tell(Result(trial, Status.STOPPED, event.metrics))
                break
