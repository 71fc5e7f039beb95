"""What every sampler promises."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence

import numpy as np

from autopeft.history import Record
from autopeft.objectives import Objective
from autopeft.samplers import Sampler
from autopeft.space import Space
from autopeft.testing._examples import OBJECTIVES, example_space
from autopeft.trial import Report, Status, Trial, derive_seed


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
