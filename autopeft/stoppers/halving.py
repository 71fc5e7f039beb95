"""Asynchronous successive halving on the score alone. For comparison: it stops small models for being small."""

from __future__ import annotations

import bisect
from collections import defaultdict
from collections.abc import Sequence

from autopeft.errors import UsageError
from autopeft.history import Record
from autopeft.objectives import Objective, losses
from autopeft.trial import Report


class HalvingStopper:
    """At a rung, a trial goes on when it is among the best 1 / eta of those that came there so far, itself included.

    The stopping form of ASHA (Li et al., 2020, arXiv:1810.05934): the first to arrive goes on, and nobody waits. Of
    n arrivals, the best ceil(n / eta) go on; ties go on together.

    Args:
        objectives: Only the first is used.
        eta: One of `eta` trials goes on.
    """

    def __init__(self, objectives: Sequence[Objective], *, eta: float = 3) -> None:
        if not isinstance(eta, (int, float)) or isinstance(eta, bool) or not eta > 1:
            raise UsageError(f"stopper 'halving': eta is a number above 1, not {eta!r}")
        self.score, self.eta = objectives[0], eta
        self._rungs: dict[int, list[float]] = defaultdict(list)  # step → losses, in rising order

    def report(self, record: Record, report: Report) -> bool:
        mine = float(losses([self.score], report.metrics)[0])
        rung = self._rungs[report.step]
        better = bisect.bisect_left(rung, mine)
        rung.insert(better, mine)
        return better >= len(rung) / self.eta

    def tell(self, record: Record) -> None:
        """Does nothing: only rungs count."""


plugin = HalvingStopper
