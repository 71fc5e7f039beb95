"""Stops a trial when at least `k` trials at the same rung were no larger and better. Nothing else.

No fraction and no bracket: a larger trial never pushes out a smaller one, more rungs do no harm, and what it saves
grows with the search. Replayed on recorded curves in benchmarks/stopping.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from autopeft.errors import UsageError
from autopeft.history import Record
from autopeft.objectives import Objective, losses
from autopeft.trial import Report


class Dominated:
    """Compares a rung with the reports of the same step, of running trials too.

    Args:
        objectives: The first one is the signal, read from the report; the others are known before training.
        k: How many must dominate.
    """

    def __init__(self, objectives: Sequence[Objective], k: int = 2) -> None:
        if k < 1:
            raise UsageError(f"stopper.k is 1 or more, not {k}")
        self.objectives, self.k = tuple(objectives), k
        self._rungs: dict[int, list[np.ndarray]] = {}

    def report(self, record: Record, report: Report) -> bool:
        mine = losses(self.objectives, {**record.known, **report.metrics})
        others = self._rungs.setdefault(report.step, [])
        dominating = sum(bool((other[1:] <= mine[1:]).all() and other[0] < mine[0]) for other in others)
        others.append(mine)
        return dominating >= self.k

    def tell(self, record: Record) -> None:
        """A failed trial's rungs stay: what they were then, they were."""


plugin = Dominated
