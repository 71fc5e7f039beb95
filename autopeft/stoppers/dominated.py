"""Stops a trial that others dominate: no larger, and better at the same rung. The default."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from autopeft.errors import UsageError
from autopeft.history import Record
from autopeft.objectives import Objective, losses
from autopeft.trial import Report


class DominatedStopper:
    """At a rung, a trial is stopped when at least k trials at that rung were no larger and better.

    Nothing else: no fraction, no bracket. A larger trial never pushes out a smaller one, however good it is, and each
    rung judges alone, so more rungs do no harm. No larger means: no worse in every objective that is known before
    training. Better means strictly, so that twins never stop each other. Trials that were stopped at a rung still
    count there: what they showed is as true.

    With the score as only objective all trials are the same size, and those that are not among the k best so far
    stop; `halving` is milder then.

    Args:
        objectives: The first is judged by the rung's report, the others are read from what is known before training.
        k: How many must dominate. 2 forgives one lucky trial.
    """

    def __init__(self, objectives: Sequence[Objective], *, k: int = 2) -> None:
        if not isinstance(k, int) or isinstance(k, bool) or k < 1:
            raise UsageError(f"stopper 'dominated': k is a whole number from 1, not {k!r}")
        self.objectives, self.k = tuple(objectives), k
        self._rungs: dict[int, list[tuple[float, ...]]] = defaultdict(list)  # step → losses

    def report(self, record: Record, report: Report) -> bool:
        score, *others = self.objectives
        (signal,) = losses([score], report.metrics)
        mine = (float(signal), *map(float, losses(others, record.known)))
        rung = self._rungs[report.step]
        if sum(_dominates(theirs, mine) for theirs in rung) >= self.k:
            return True  # not kept: what this one dominates, those that dominate it do too
        rung.append(mine)
        return False

    def tell(self, record: Record) -> None:
        """How a trial ended says nothing of the rungs of the others."""


def _dominates(one: Sequence[float], other: Sequence[float]) -> bool:
    """Better in the first loss, and no worse in the others."""
    return one[0] < other[0] and all(a <= b for a, b in zip(one[1:], other[1:]))


plugin = DominatedStopper
