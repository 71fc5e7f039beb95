"""Stoppers to compare with, in the product's protocol. They stay here: none of them beats `dominated`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence

import numpy as np

from autopeft.history import Record
from autopeft.objectives import Objective, losses, reference_point
from autopeft.pareto import hypervolume, non_dominated
from autopeft.trial import Report

Ties = Callable[[np.ndarray], list[int]]


class SortedStopper:
    """At a rung, a trial goes on when it is among the first 1 / eta of a non-dominated sort of all that came there.

    Fronts are peeled one after another; `ties` orders the members within each.
    """

    def __init__(self, objectives: Sequence[Objective], *, eta: float, ties: Ties) -> None:
        self.objectives, self.eta, self.ties = tuple(objectives), eta, ties
        self._rungs: dict[int, list[np.ndarray]] = defaultdict(list)

    def report(self, record: Record, report: Report) -> bool:
        rung = self._rungs[report.step]
        rung.append(losses(self.objectives, {**record.known, **report.metrics}))
        place = _sorted(np.array(rung), self.ties).index(len(rung) - 1)
        return place >= len(rung) / self.eta

    def tell(self, record: Record) -> None:
        pass


def moasha(objectives: Sequence[Objective], *, eta: float = 3) -> SortedStopper:
    """Ties by epsilon-net: each next point is the furthest from those before it (Schmucker et al., 2021,
    arXiv:2106.12639; Salinas et al., 2021, arXiv:2106.05680). The first point is the best in the first loss."""
    return SortedStopper(objectives, eta=eta, ties=_epsilon_net)


def by_hypervolume(objectives: Sequence[Objective], *, eta: float = 2) -> SortedStopper:
    """Ties by the hypervolume that each point adds to those chosen before it, the largest first."""
    reference = reference_point(objectives)

    def ties(points: np.ndarray) -> list[int]:
        # The training loss has no worst value of interest: a little beyond the worst seen.
        worst = np.maximum(reference, points.max(axis=0) + 0.1 * (np.ptp(points, axis=0) + 1e-9))
        chosen: list[int] = []
        while len(chosen) < len(points):
            left = [index for index in range(len(points)) if index not in chosen]
            chosen.append(max(left, key=lambda index: hypervolume(points[[*chosen, index]], worst)))
        return chosen

    return SortedStopper(objectives, eta=eta, ties=ties)


def _sorted(points: np.ndarray, ties: Ties) -> list[int]:
    """The points' indices, best first."""
    left, order = np.arange(len(points)), []
    while len(left):
        front = left[non_dominated(points[left])]
        order += [int(front[index]) for index in ties(points[front])]
        left = np.setdiff1d(left, front)
    return order


def _epsilon_net(points: np.ndarray) -> list[int]:
    span = np.ptp(points, axis=0)
    scaled = (points - points.min(axis=0)) / np.where(span > 0, span, 1)
    chosen = [int(np.argmin(scaled[:, 0]))]
    while len(chosen) < len(points):
        nearest = np.linalg.norm(scaled[:, None] - scaled[None, chosen], axis=2).min(axis=1)
        nearest[chosen] = -1
        chosen.append(int(np.argmax(nearest)))
    return chosen
