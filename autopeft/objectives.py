"""Objectives: metrics outside, losses (lower is better) inside. The one place where signs flip."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

Goal = Literal["maximize", "minimize"]
Scale = Literal["linear", "log10"]


@dataclass(frozen=True, slots=True)
class Objective:
    """One metric to maximise or minimise.

    Attributes:
        metric: Its name in a result's metrics.
        goal: "maximize" or "minimize".
        reference: The worst value of interest, where the hypervolume begins: for accuracy the trivial baseline, for
            parameters full fine-tuning's count.
        scale: "log10" if ratios matter (parameters), else "linear".
    """

    metric: str
    goal: Goal
    reference: float
    scale: Scale = "linear"

    def __post_init__(self) -> None:
        if self.goal not in ("maximize", "minimize"):
            raise ValueError(f"an objective's goal is maximize or minimize, not {self.goal!r}")
        if self.scale not in ("linear", "log10"):
            raise ValueError(f"an objective's scale is linear or log10, not {self.scale!r}")
        if not math.isfinite(self.reference) or (self.scale == "log10" and self.reference <= 0):
            raise ValueError(f"{self.metric}: a reference is finite, and above 0 on log10; it is {self.reference}")

    def loss(self, value: float) -> float:
        """Returns the value as a loss. On log10, it is at least a billionth of the reference, as 0 has no logarithm."""
        scaled = math.log10(max(value, self.reference * 1e-9)) if self.scale == "log10" else value
        return -scaled if self.goal == "maximize" else scaled

    @property
    def reference_loss(self) -> float:
        return self.loss(self.reference)

    def to_json(self) -> dict[str, Any]:
        return {"metric": self.metric, "goal": self.goal, "reference": self.reference, "scale": self.scale}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Objective:
        return Objective(data["metric"], data["goal"], data["reference"], data["scale"])


def losses(objectives: Sequence[Objective], metrics: Mapping[str, float]) -> np.ndarray:
    """Returns the losses of one result: (n_objectives,). A missing metric is an error, never a default."""
    one: np.ndarray = losses_of(objectives, [metrics])[0]
    return one


def losses_of(objectives: Sequence[Objective], results: Iterable[Mapping[str, float]]) -> np.ndarray:
    """Returns the losses of many results: (n_results, n_objectives)."""
    rows = []
    for metrics in results:
        try:
            rows.append([objective.loss(metrics[objective.metric]) for objective in objectives])
        except KeyError:
            missing = [objective.metric for objective in objectives if objective.metric not in metrics]
            raise KeyError(f"no metric {', '.join(missing)} among {', '.join(sorted(metrics))}") from None
    return np.array(rows, dtype=float).reshape(-1, len(objectives))


def reference_point(objectives: Sequence[Objective]) -> np.ndarray:
    """The losses of the references: (n_objectives,)."""
    return np.array([objective.reference_loss for objective in objectives])


def with_signal(objectives: Sequence[Objective], signal: str) -> tuple[Objective, ...]:
    """The objectives as a stopper sees them at a rung: the first one, the score, is judged by `signal`.

    `signal` is the score's own name, or `train_loss`, which is minimised.
    """
    score = objectives[0]
    if signal == score.metric:
        return tuple(objectives)
    return (replace(score, metric=signal, goal="minimize", reference=0.0, scale="linear"), *objectives[1:])
