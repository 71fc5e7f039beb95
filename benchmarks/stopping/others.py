"""Stoppers to compare with, in the product's protocol. They stay here: none of them beats `dominated`."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from itertools import islice

import numpy as np

from autopeft.history import Record
from autopeft.objectives import Objective, losses, reference_point
from autopeft.pareto import hypervolume, non_dominated
from autopeft.trial import Report

Ties = Callable[[np.ndarray], Iterator[int]]


class SortedStopper:
    """At a rung, a trial goes on when it is among the first 1 / eta of a non-dominated sort of all that came there.

    Itself included; of n arrivals the first ceil(n / eta), so that the first to arrive goes on and nobody waits, as in
    ASHA. Those that were stopped at the rung still count there.

    Args:
        objectives: As of every stopper.
        eta: One in how many goes on.
        ties: Orders the members of one front, the best first; fronts are peeled one after another.
        rounds_up: Else the first floor(n / eta), and one at least.
    """

    def __init__(self, objectives: Sequence[Objective], *, eta: float, ties: Ties, rounds_up: bool = True) -> None:
        self.objectives, self.eta, self.ties, self.rounds_up = tuple(objectives), eta, ties, rounds_up
        self._rungs: dict[int, list[np.ndarray]] = defaultdict(list)

    def report(self, record: Record, report: Report) -> bool:
        rung = self._rungs[report.step]
        rung.append(losses(self.objectives, {**record.known, **report.metrics}))
        share = len(rung) / self.eta
        go_on = math.ceil(share) if self.rounds_up else max(1, math.floor(share))
        return len(rung) - 1 not in islice(_sorted(np.array(rung), self.ties), go_on)

    def tell(self, record: Record) -> None:
        pass


def moasha(objectives: Sequence[Objective], *, eta: float = 3, first: int = 0, rounds_up: bool = True) -> SortedStopper:
    """Ties by epsilon-net: each next point is the furthest from those before it (Schmucker et al., 2021,
    arXiv:2106.12639; Salinas et al., 2021, arXiv:2106.05680).

    Args:
        first: The net begins with the best in this loss.
    """
    return SortedStopper(objectives, eta=eta, ties=lambda points: _epsilon_net(points, first), rounds_up=rounds_up)


def by_hypervolume(objectives: Sequence[Objective], *, eta: float = 2) -> SortedStopper:
    """Ties by the hypervolume that each point adds to those chosen before it, the largest first."""
    reference = reference_point(objectives)

    def ties(points: np.ndarray) -> Iterator[int]:
        # The training loss has no worst value of interest: a little beyond the worst seen.
        worst = np.maximum(reference, points.max(axis=0) + 0.1 * (np.ptp(points, axis=0) + 1e-9))
        chosen: list[int] = []
        while len(chosen) < len(points):
            left = [index for index in range(len(points)) if index not in chosen]
            chosen.append(max(left, key=lambda index: hypervolume(points[[*chosen, index]], worst)))
            yield chosen[-1]

    return SortedStopper(objectives, eta=eta, ties=ties)


def _sorted(points: np.ndarray, ties: Ties) -> Iterator[int]:
    """The points' indices, best first."""
    left = np.arange(len(points))
    while len(left):
        front = left[non_dominated(points[left])]
        yield from (int(front[index]) for index in ties(points[front]))
        left = np.setdiff1d(left, front)


def _epsilon_net(points: np.ndarray, first: int) -> Iterator[int]:
    span = np.ptp(points, axis=0)
    scaled = (points - points.min(axis=0)) / np.where(span > 0, span, 1)
    chosen = [int(np.argmin(scaled[:, first]))]
    yield chosen[0]
    while len(chosen) < len(points):
        nearest = np.linalg.norm(scaled[:, None] - scaled[None, chosen], axis=2).min(axis=1)
        nearest[chosen] = -1
        chosen.append(int(np.argmax(nearest)))
        yield chosen[-1]
