"""State of a search after each tell, for the console and the curves of other trackers.

The numbers are those of `History.front` and `History.hypervolumes`, but are not computed again at every event.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from autopeft.history import Front, History, Record
from autopeft.objectives import reference_point
from autopeft.pareto import hypervolume
from autopeft.trial import Status


@dataclass(frozen=True)
class Standing:
    """The search after one tell.

    Attributes:
        seconds: Search time of the tell.
        hypervolume: Hypervolume of the front so far.
        front_size: Number of front members.
        best: Best final score so far, in the metric's unit; None before the first complete trial.
        counts: Number of trials by how they ended.
        train_seconds: Training time, summed over trials.
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
        front: The records that no other dominates, the best score first.
    """

    def __init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        self.curve: list[Standing] = []
        self._told: list[int] = []
        self._front = Front()

    @property
    def front(self) -> list[Record]:
        return self._front.records

    def update(self, history: History) -> None:
        """Takes the tells that came since the last call."""
        if self._told != history.told[: len(self._told)]:
            self._begin()  # a lost trial runs again: its result is taken back
        if len(self.curve) == len(history.told):
            return
        score, reference = history.objectives[0], reference_point(history.objectives)
        for number in history.told[len(self.curve) :]:
            record = history.records[number]
            self._told.append(number)
            before = self.curve[-1] if self.curve else Standing(0.0, 0.0, 0, None, {}, 0.0)
            if record.is_complete:
                self._front.take([record], history.losses([record]))
            assert record.told_seconds is not None, f"trial {number} is told"
            assert record.status is not None, f"trial {number} is told"
            self.curve.append(
                Standing(
                    record.told_seconds,
                    hypervolume(self._front.losses, reference) if self.front else 0.0,
                    len(self.front),
                    self.front[0].metrics[score.metric] if self.front else None,
                    Counter(before.counts) + Counter([record.status]),
                    before.train_seconds + record.metrics.get("train_seconds", 0.0),
                )
            )
