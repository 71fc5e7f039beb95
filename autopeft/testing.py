"""Contract tests, a section a family: call them on your plugin, as our own tests do on every plugin of ours.

Each `check_…` raises an AssertionError that says which promise is broken. None needs pytest, a network or a GPU.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from autopeft.history import Record
from autopeft.objectives import Objective
from autopeft.samplers import Sampler
from autopeft.space import Choice, Dimension, Float, Int, Space, Subset
from autopeft.stoppers import Stopper
from autopeft.trial import Report, Status, Trial, derive_seed

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
