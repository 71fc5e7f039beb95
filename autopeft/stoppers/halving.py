"""Asynchronous successive halving on the score alone (Li et al., 2020, arXiv:1810.05934): for comparison.

At a rung a trial goes on when its score is among the best 1/eta of those seen there so far. It does not know sizes, so
small trials go first: on the recorded curves of benchmarks/stopping it loses a fifth of the front.
"""

from __future__ import annotations

from collections.abc import Sequence

from autopeft.errors import UsageError
from autopeft.history import Record
from autopeft.objectives import Objective
from autopeft.trial import Report


class Halving:
    """Ranks each rung by the first objective.

    Args:
        objectives: The first one is the signal.
        eta: One of so many goes on.
    """

    def __init__(self, objectives: Sequence[Objective], eta: float = 3.0) -> None:
        if eta <= 1:
            raise UsageError(f"stopper.eta is above 1, not {eta}")
        self.signal, self.eta = objectives[0], eta
        self._rungs: dict[int, list[float]] = {}

    def report(self, record: Record, report: Report) -> bool:
        mine = self.signal.loss(report.metrics[self.signal.metric])
        seen = self._rungs.setdefault(report.step, [])
        seen.append(mine)
        if len(seen) < self.eta:
            return False  # too few to rank
        better = sum(other < mine for other in seen)
        return better >= len(seen) / self.eta

    def tell(self, record: Record) -> None:
        """A failed trial's rungs stay."""


plugin = Halving
