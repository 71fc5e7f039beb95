"""Fronts: the points that no other dominates, their hypervolume, and the knee. All in losses (lower is better)."""

from __future__ import annotations

import numpy as np


def non_dominated(losses: np.ndarray) -> np.ndarray:
    """Which points no other point dominates. Duplicates of a front point are all on the front.

    Args:
        losses: (n_points, n_objectives), finite.

    Returns:
        (n_points,) bool.
    """
    losses = _points(losses)
    return ~dominated(losses, losses)


def dominated(losses: np.ndarray, by: np.ndarray) -> np.ndarray:
    """Which points at least one other point dominates: no worse in all objectives, and better in one.

    Args:
        losses: (n_points, n_objectives), finite.
        by: (n_others, n_objectives), finite.

    Returns:
        (n_points,) bool.
    """
    losses, by = _points(losses), _points(by)
    no_worse, better = np.ones((len(by), len(losses)), bool), np.zeros((len(by), len(losses)), bool)
    for theirs, ours in zip(by.T, losses.T, strict=True):  # an objective at a time: reducing a short last axis is slow
        no_worse &= theirs[:, None] <= ours
        better |= theirs[:, None] < ours
    return np.asarray((no_worse & better).any(axis=0))


def hypervolume(losses: np.ndarray, reference: np.ndarray) -> float:
    """The volume between the points and the reference that at least one point dominates.

    Slices along the last objective: exact, exponential in the number of objectives only (2 and 3 are what we use).

    Args:
        losses: (n_points, n_objectives), finite. Points not better than the reference everywhere add nothing.
        reference: (n_objectives,).
    """
    losses, reference = _points(losses), np.asarray(reference, dtype=float)
    losses = losses[(losses < reference).all(axis=1)]
    if len(losses) == 0:
        return 0.0
    if losses.shape[1] == 1:
        return float(reference[0] - losses.min())
    if losses.shape[1] == 2:
        order = np.lexsort((losses[:, 1], losses[:, 0]))
        first = losses[order, 0]
        best = np.minimum.accumulate(losses[order, 1])
        widths = np.append(first[1:], reference[0]) - first
        return float((widths * (reference[1] - best)).sum())
    losses = losses[np.argsort(losses[:, -1], kind="stable")]
    depths = np.append(losses[1:, -1], reference[-1]) - losses[:, -1]
    return float(
        sum(
            depth * hypervolume(losses[: index + 1, :-1], reference[:-1])
            for index, depth in enumerate(depths)
            if depth > 0
        )
    )


def knee(losses: np.ndarray) -> int:
    """The index of the front point furthest below the plane through the front's ends; any number of objectives.

    Each objective is first scaled to [0, 1] over the front. An end is best in one objective and worst in the others.
    All ends then lie on a plane of equal sums of scaled losses, so the point with the least sum is furthest below it.
    If all points are ends (no more different points than objectives), or with one objective, the point that is best in
    the first objective is the knee.

    Args:
        losses: (n_points, n_objectives), finite, at least one point. Of equal points the first is returned.
    """
    losses = _points(losses)
    if len(losses) == 0:
        raise ValueError("no points have no knee")
    front = np.flatnonzero(non_dominated(losses))
    points = losses[front]
    low, span = points.min(axis=0), np.ptp(points, axis=0)
    if len(np.unique(points, axis=0)) <= max(losses.shape[1], 2):
        return int(front[np.argmin(points[:, 0])])
    scaled = (points - low) / np.where(span > 0, span, 1.0)  # if all are equal in an objective, it has no effect
    return int(front[np.argmin(scaled.sum(axis=1))])


def _points(losses: np.ndarray) -> np.ndarray:
    losses = np.asarray(losses, dtype=float)
    if losses.ndim != 2 or not np.isfinite(losses).all():
        raise ValueError(f"losses are finite, (n_points, n_objectives); these have shape {losses.shape}")
    return losses
