"""How a search stands after each tell, folded once: what the console and the curves of other trackers show.

The same numbers as `History.front` and `History.hypervolumes`, without working them out anew at every event.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from autopeft.history import History, Record
from autopeft.objectives import reference_point
from autopeft.pareto import hypervolume, non_dominated
from autopeft.trial import Status


@dataclass(frozen=True)
class Standing:
    """The search after one tell.

    Attributes:
        seconds: Search time of the tell.
        hypervolume: Of the front so far.
        front_size: Its members.
        best: The best final score so far, as the metric is; None before the first complete trial.
        counts: How many trials ended how.
        train_seconds: What training has cost, summed over trials.
    """

    seconds: float
    hypervolume: float
    front_size: int
    best: float | None
    counts: Mapping[Status, int]
    train_seconds: float


class Progress:
    """Folds a history's tells, each once.

    Attributes:
        curve: One Standing a tell.
        front: The records that none dominates, the best score first.
    """

    def __init__(self) -> None:
        self.curve: list[Standing] = []
        self.front: list[Record] = []
        self._losses = np.empty((0, 0))

    def update(self, history: History) -> None:
        """Takes the tells that came since the last call."""
        if len(self.curve) == len(history.told):
            return
        score, reference = history.objectives[0], reference_point(history.objectives)
        for number in history.told[len(self.curve) :]:
            record = history.records[number]
            before = self.curve[-1] if self.curve else Standing(0.0, 0.0, 0, None, {}, 0.0)
            if record.is_complete:
                self._join(record, history.losses([record]))
            assert record.told_seconds is not None, f"trial {number} is told"
            assert record.status is not None, f"trial {number} is told"
            self.curve.append(
                Standing(
                    record.told_seconds,
                    hypervolume(self._losses, reference) if self.front else 0.0,
                    len(self.front),
                    self.front[0].metrics[score.metric] if self.front else None,
                    Counter(before.counts) + Counter([record.status]),
                    before.train_seconds + record.metrics.get("train_seconds", 0.0),
                )
            )

    def _join(self, record: Record, losses: np.ndarray) -> None:
        points = np.vstack([self._losses, losses]) if self.front else losses
        members = [*self.front, record]
        kept = sorted(np.flatnonzero(non_dominated(points)), key=lambda i: (tuple(points[i]), members[i].number))
        self.front = [members[i] for i in kept]
        self._losses = points[kept]
