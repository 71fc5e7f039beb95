"""Proposals that are made ahead, before a slot is free, and the choice of the next one.

This pays if the sampler is slow. It also pays for the last trials of a budget: the longest goes first, or one that
still ends in time. The price: a proposal made ahead does not use the results of trials that end before it begins.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from autopeft.forecast import Forecast
from autopeft.samplers import Sampler, Sizes
from autopeft.space import canonical
from autopeft.trial import derive_seed

SLOW_SECONDS = 0.01  # a sampler that takes longer proposes ahead
CHOICES = 4  # most proposals to look for one that ends within a budget of time

Params = Mapping[str, Any]


class Ahead:
    """The queue of proposals that have not begun. It does not know the ledger: `add` and `drop` follow its events.

    Args:
        sampler: Makes the proposals.
        forecast: Forecasts how long a trial takes.
        seed: The search's seed.
        sizes: Returns exact counts of a configuration; None if it will be refused.

    Attributes:
        ready: The queue, in order of proposing.
    """

    def __init__(self, sampler: Sampler, forecast: Forecast, seed: int, sizes: Sizes) -> None:
        self.sampler, self.forecast, self.seed, self.sizes = sampler, forecast, seed, sizes
        self.ready: list[Params] = []
        self._propose_seconds = 0.0

    def propose(self, number: int) -> Params | None:
        """Returns the sampler's proposal for a number; None if it has no more."""
        start = time.perf_counter()
        params = self.sampler.ask(number, derive_seed(self.seed, number, "ask"))
        self._propose_seconds = time.perf_counter() - start
        return params

    def add(self, params: Params) -> None:
        """Appends a proposal that is in the ledger."""
        self.ready.append(params)

    def drop(self, params: Params) -> None:
        """Removes a configuration that was asked for or refused, if it is here. 1, 1.0 and True are three values."""
        key = canonical(params)
        same = (index for index, other in enumerate(self.ready) if other == params and canonical(other) == key)
        if (index := next(same, None)) is not None:
            del self.ready[index]

    def pays(self, slots: int, trials_left: float) -> bool:
        """Whether to propose one more while `slots` trials run."""
        is_slow = self._propose_seconds > SLOW_SECONDS
        return len(self.ready) < min(slots, trials_left) and (trials_left <= slots or is_slow)

    def lacks_choice(self, seconds_left: float) -> bool:
        """Whether, near the end of a time budget, no queued proposal ends in time for sure, but another one might."""
        is_near = seconds_left < self.forecast.longest and len(self.ready) < CHOICES
        return is_near and all(self.takes(params) > seconds_left for params in self.ready)

    def pick(self, seconds_left: float, trials_left: float) -> Params | None:
        """Returns the next proposal: the first one; at the end of a budget the longest that still ends in time."""
        if not self.ready:
            return None
        if seconds_left < self.forecast.longest:
            in_time = [params for params in self.ready if self.takes(params) <= seconds_left]
            return self._longest(in_time) if in_time else min(self.ready, key=self.takes)
        return self._longest(self.ready) if trials_left <= len(self.ready) else self.ready[0]

    def takes(self, params: Params) -> float:
        """Forecasts the seconds of a configuration; 0 if it will be refused."""
        known = self.sizes(params)
        return 0.0 if known is None else self.forecast.seconds(params, known)

    def _longest(self, choices: Sequence[Params]) -> Params:
        return max(choices, key=self.takes)
