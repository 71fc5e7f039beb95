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

    There is no fraction and no bracket. A larger trial never stops a smaller one, however good it is. Each rung judges
    alone, so more rungs do no harm. "No larger" means: no worse in every objective that is known before training.
    "Better" means strictly better, so that equal trials never stop each other. A trial that was stopped at a rung still
    counts there, as its report is valid.

    If the score is the only objective, all trials have the same size. Then every trial stops that is not among the k
    best so far; `halving` is milder.

    Args:
        objectives: The first is judged by the rung's report, the others by the metrics known before training.
        k: Number of trials that must dominate. With 2, a single lucky trial stops nobody.
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
            return True  # not kept: its dominators also dominate all that it dominates
        rung.append(mine)
        return False

    def tell(self, record: Record) -> None:
        """Does nothing: only rungs count."""


def _dominates(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether `one` is better in the first loss, and no worse in the others."""
    return one[0] < other[0] and all(a <= b for a, b in zip(one[1:], other[1:]))


plugin = DominatedStopper
