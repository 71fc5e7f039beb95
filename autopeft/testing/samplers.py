"""What every sampler promises."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from autopeft.history import Record
from autopeft.objectives import Objective
from autopeft.samplers import Sampler, Sizes
from autopeft.space import Space
from autopeft.testing._examples import OBJECTIVES, example_sizes, example_space
from autopeft.trial import MACHINE, Report, Status, Trial, derive_seed

AT_ONCE = 3  # trials that run side by side


def check_sampler(make: Callable[[Space, Sequence[Objective], Sizes], Sampler], trials: int = 30) -> None:
    """Checks that asks are members of the space and depend on seed and records only, and that all records are heard.

    Args:
        make: Builds a new sampler, as `plugin(space, objectives, sizes, **options)`.
        trials: How many trials to ask for.
    """
    space = example_space()
    live = make(space, OBJECTIVES, example_sizes)
    heard: list[tuple[str, Record]] = []
    running: list[Record] = []
    for number in range(trials):
        seed = derive_seed("contract", number)
        random_states = random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[index]
        params = live.ask(number, seed)
        now = random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[index]
        assert now == random_states, "an ask used a global random generator: seed your own by the ask's seed"
        assert live.ask(number, seed) == params, f"ask {number} came out otherwise when it was repeated"
        refilled = make(space, OBJECTIVES, example_sizes)
        for verb, record in heard:
            getattr(refilled, verb)(record)
        assert refilled.ask(number, seed) == params, f"ask {number} of a refilled sampler differs from the live one's"
        if params is None:
            break
        _check_member(space, number, params)
        trial = Trial(number, params, seed)
        known = example_sizes(params)
        if known is None:
            _hear(live, heard, "tell", Record(trial, refusal="over budget"))
            continue
        running.append(Record(trial, known))
        _hear(live, heard, "begin", running[-1])
        if len(running) == AT_ONCE:
            ended = running.pop(number % AT_ONCE)
            for verb, record in _ends(ended):
                _hear(live, heard, verb, record)
    _hear(live, heard, "tell", Record(Trial(trials, {"method": "no such"}, 0), refusal="not in the space"))
    live.ask(trials + 1, 0)


def _hear(sampler: Sampler, heard: list[tuple[str, Record]], verb: str, record: Record) -> None:
    getattr(sampler, verb)(record)
    heard.append((verb, record))


def _check_member(space: Space, number: int, params: Mapping[str, Any]) -> None:
    why_not = space.why_not(params)
    assert not why_not, f"ask {number} is not in the space: {why_not}"
    assert json.loads(json.dumps(dict(params))) == dict(params), f"ask {number} does not survive JSON: {params}"


def _ends(begun: Record) -> list[tuple[str, Record]]:
    """Returns how a trial that began ends: each possible way in turn. A trial lost to the machine begins again."""
    trial, known = begun.trial, begun.known
    score = {"accuracy": 0.5 + (trial.seed % 1000) / 2000}
    complete = Record(trial, known, [], Status.COMPLETE, {**known, **score})
    lost = Record(trial, known, [], Status.FAILED, error="its worker died", fault=MACHINE, lost=1)
    ways = {
        1: [("tell", Record(trial, known, [Report(5, score)], Status.STOPPED, {**known, **score}))],
        2: [("tell", Record(trial, known, [], Status.OUT_OF_MEMORY, known, error="out of memory"))],
        3: [("tell", Record(trial, known, [], Status.FAILED, known, error="the training loss is nan"))],
        4: [("tell", lost), ("begin", Record(trial, known)), ("tell", complete)],
    }
    return ways.get(trial.number % 8, [("tell", complete)])
