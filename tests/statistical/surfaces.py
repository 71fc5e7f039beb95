"""Two synthetic conditional surfaces with known scores, and a search over one: what samplers are compared on.

No noise and no ledger: only what a sampler proposes differs from one search to another. A search of 120 trials begins
with the search of 40, as no sampler knows its budget.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from autopeft.history import Record
from autopeft.objectives import Objective, losses, reference_point
from autopeft.pareto import hypervolume
from autopeft.samplers import Sampler
from autopeft.space import Choice, Dimension, Float, Int, Space, Subset
from autopeft.testing import example_sizes
from autopeft.trial import Status, Trial, derive_seed

OBJECTIVES = (
    Objective("accuracy", "maximize", 0.5),
    Objective("trainable_parameters", "minimize", 10_000_000, "log10"),
)


@dataclass(frozen=True)
class Surface:
    """A space, and the metrics of each of its members."""

    space: Space
    metrics: Callable[[Mapping[str, Any]], Mapping[str, float]]


def _rates(best: float, rate: float) -> float:
    """1 at the best learning rate; a third of a decade off costs a tenth, a decade two thirds."""
    return math.exp(-(math.log10(rate / best) ** 2))


def _many_methods(params: Mapping[str, Any]) -> dict[str, float]:
    """What a first search looks like: methods of very different sizes, each with a learning rate of its own."""
    method = params["method"]
    if method == "head":
        size, height, best = 800.0, 0.12, 3e-3
    elif method == "norm":
        size, height, best = 10_000.0, 0.24, 3e-3
    elif method == "lora":
        share = len(params["lora.layers"]) / 6
        size = 1500.0 * params["lora.rank"] * len(params["lora.layers"])
        late = np.mean(params["lora.layers"]) / 5
        height = 0.2 + 0.14 * share**0.5 + 0.02 * late + 0.012 * math.log2(params["lora.rank"])
        best = 5e-4
    elif method == "adapter":
        share = len(params["adapter.layers"]) / 6
        size = 800.0 * params["adapter.size"] * len(params["adapter.layers"])
        height = 0.16 + 0.14 * share**0.5 + 0.016 * math.log2(params["adapter.size"])
        best = 3e-4
    else:
        size, height, best = 8_000_000.0, 0.42, 3e-5
    rate = params.get(f"{method}.lr", params["head.lr"])
    score = 0.5 + height * _rates(best, rate) * (0.8 + 0.2 * _rates(3e-3, params["head.lr"]))
    return {"accuracy": score, "trainable_parameters": size}


def _many_methods_space() -> Space:
    layers = Subset(tuple(range(6)))
    return Space(
        {
            "method": Dimension(Choice(("head", "norm", "lora", "adapter", "full")), "head"),
            "head.lr": Dimension(Float(3e-4, 3e-2, log=True), 3e-3),
            "norm.lr": Dimension(Float(1e-4, 1e-2, log=True), 1e-3),
            "lora.rank": Dimension(Int(1, 64, log=True), 8),
            "lora.layers": Dimension(layers, list(range(6))),
            "lora.lr": Dimension(Float(5e-5, 5e-3, log=True), 5e-4),
            "adapter.size": Dimension(Int(1, 192, log=True), 48),
            "adapter.layers": Dimension(layers, list(range(6))),
            "adapter.lr": Dimension(Float(5e-5, 3e-3, log=True), 3e-4),
            "full.lr": Dimension(Float(5e-6, 3e-4, log=True), 5e-5),
        }
    )


KINDS = {"query": 0.06, "key": 0.02, "value": 0.1, "output": 0.05, "up": 0.08, "down": 0.07}


def _one_method(params: Mapping[str, Any]) -> dict[str, float]:
    """What comes after: LoRA alone, a rank for each module kind and a subset of layers. Ranks give less and less."""
    layers = params["lora.layers"]
    ranks = {kind: params[f"lora.rank.{kind}"] for kind in KINDS}
    size = 1000.0 + sum(ranks.values()) * 800.0 * len(layers)
    gain = sum(worth * (1 - 2.0 ** -(math.log2(1 + ranks[kind]))) for kind, worth in KINDS.items())
    where = np.mean([0.5 + 0.5 * layer / 11 for layer in layers]) * (len(layers) / 12) ** 0.3
    best = 4e-4 / (2.0 if params["lora.dora"] else 1.0)
    score = 0.6 + (gain + 0.01 * params["lora.dora"]) * where * _rates(best, params["lora.lr"])
    return {"accuracy": float(score), "trainable_parameters": size}


def _one_method_space() -> Space:
    rank = Choice((0, 1, 2, 4, 8, 16, 32, 64))
    return Space(
        {
            "method": Dimension(Choice(("lora",)), "lora"),
            **{f"lora.rank.{kind}": Dimension(rank, 8 if kind in ("query", "value") else 0) for kind in KINDS},
            "lora.dora": Dimension(Choice((False, True)), False),
            "lora.layers": Dimension(Subset(tuple(range(12))), list(range(12))),
            "lora.lr": Dimension(Float(1e-5, 1e-2, log=True), 2e-4),
        }
    )


SURFACES = {
    "many methods": Surface(_many_methods_space(), _many_methods),
    "one method": Surface(_one_method_space(), _one_method),
}


def volumes(make: Callable[..., Sampler], surface: Surface, at: Sequence[int], seed: int) -> list[float]:
    """The hypervolume of one search after each of these numbers of trials, the stock defaults first."""
    sampler, first = make(surface.space, OBJECTIVES, example_sizes), surface.space.defaults()
    points = []
    for number in range(max(at)):
        params = first[number] if number < len(first) else sampler.ask(number, derive_seed(seed, number, "ask"))
        assert params is not None
        metrics = surface.metrics(params)
        trial = Trial(number, params, derive_seed(seed, number))
        known = {"trainable_parameters": metrics["trainable_parameters"]}
        sampler.begin(Record(trial, known))
        sampler.tell(Record(trial, known, status=Status.COMPLETE, metrics=metrics))
        points.append(losses(OBJECTIVES, metrics))
    return [hypervolume(np.array(points[:count]), reference_point(OBJECTIVES)) for count in at]
