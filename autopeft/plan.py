"""A plan: what a search would be, before anything is spent."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from autopeft import wiring
from autopeft.config import Config
from autopeft.errors import Refused

if TYPE_CHECKING:
    from autopeft.training.measure import Cost

MEASURED_DRAWS = 2  # draws of each method that are measured, beside its stock default


@dataclass(frozen=True)
class Plan:
    """What a search would be, before anything is spent.

    Attributes:
        combinations, reals: Size of the space (`Space.size`).
        ranges: Method → (least, most) trainable parameters among the draws that may run.
        refused: Reason → share of the draws.
        draws: Number of seeded draws.
        costs: Method → (seconds a trial, peak memory in bytes), from a few measured steps: the mean of its stock default
            and some draws. Memory is None on a CPU, where it cannot be measured by method.
        cache_seconds: Time to build the frozen activations that trials share, once.
        slots: Trials at once, each in a process of its own; None if only the run will show it.
        pack: Trials that share a pass; `costs` are those of a trial alone.
        trials: Budget of trials; None if only hours bound the search.
        chosen: Precision and attention.
        unknown: Names of layers in a block whose kind is not known. No method acts on them.
    """

    combinations: int
    reals: int
    ranges: Mapping[str, tuple[int, int]]
    refused: Mapping[str, float]
    draws: int
    costs: Mapping[str, tuple[float, int | None]]
    cache_seconds: float
    slots: int | None
    pack: int
    trials: int | None
    chosen: Mapping[str, Any]
    unknown: Sequence[str]

    @property
    def work_seconds(self) -> float | None:
        """Seconds of all trials one after another, if all methods are equally frequent and no trial stops early."""
        if self.trials is None or not self.costs:
            return None
        return float(np.mean([seconds for seconds, _ in self.costs.values()])) * self.trials + self.cache_seconds

    @property
    def seconds(self) -> float | None:
        """Seconds of the whole search; None if the number of trials at once is not known."""
        return self.work_seconds / self.slots if self.work_seconds is not None and self.slots else None

    def to_json(self) -> dict[str, Any]:
        return {
            "schema": 1,
            "combinations": self.combinations,
            "real_dimensions": self.reals,
            "trainable_parameters": {method: list(ends) for method, ends in self.ranges.items()},
            "refused_shares": dict(self.refused),
            "draws": self.draws,
            "trial_seconds": {method: seconds for method, (seconds, _) in self.costs.items()},
            "peak_memory_bytes": {method: memory for method, (_, memory) in self.costs.items() if memory is not None},
            "cache_seconds": self.cache_seconds,
            "slots": self.slots,
            "pack": self.pack,
            "trials": self.trials,
            "search_seconds": self.seconds,
            "chosen": dict(self.chosen),
            "unknown_layers": list(self.unknown),
        }

    def lines(self) -> list[str]:
        """Returns the plan as lines for people."""
        reals = f" × {self.reals} real-valued dimensions" if self.reals else ""
        out = [f"space       {self.combinations:,} combinations{reals}"]
        for method, (least, most) in self.ranges.items():
            cost = self.costs.get(method)
            takes = f"   about {cost[0]:,.1f} s a trial" if cost else ""
            takes += f", {cost[1] / 2**20:,.0f} MiB" if cost and cost[1] is not None else ""
            out.append(f"  {method:<40} {least:>12,} to {most:>12,} trainable parameters{takes}")
        share = sum(self.refused.values())
        out.append(f"refused     {share:.1%} of {self.draws:,} seeded draws")
        out += [f"  {part:6.1%}  {reason}" for reason, part in sorted(self.refused.items(), key=lambda item: -item[1])]
        if self.unknown:
            out.append(
                f"unknown     {', '.join(self.unknown)}: no method acts on these layers; model.kinds names their kinds"
            )
        layout = ", rows end to end" if self.chosen.get("layout") == "flat" else ""
        out.append(f"training    {self.chosen['precision']}, {self.chosen['attention']} attention{layout}")
        if self.work_seconds is not None:
            pack = f"; a pack of {self.pack} takes less" if self.pack > 1 else ""
            minutes = (self.work_seconds if self.seconds is None else self.seconds) / 60
            at_once = f"{self.slots} at once" if self.seconds is not None else "divided by how many Ray runs at once"
            out.append(
                f"search      about {minutes:,.1f} minutes for {self.trials} trials, {at_once}, before early stopping{pack}"
            )
        return out


def plan(config: Config, draws: int = 1000) -> Plan:
    """Makes a plan: draws from the space, counts parameters, and measures a few steps. Trains no trial."""
    from autopeft.training.measure import costs

    with tempfile.TemporaryDirectory(prefix="autopeft-plan-") as folder:
        prepared = wiring.prepare(config, Path(folder), wiring.make_executor(config))
        check = prepared.counter.check
        rng = np.random.default_rng(config.seed)
        sizes: dict[str, list[int]] = {}
        measured: list[Mapping[str, Any]] = []
        for params in prepared.space.defaults():
            with contextlib.suppress(Refused):
                check(params)
                measured.append(params)
        refused: dict[str, float] = {}
        for _ in range(draws):
            params = prepared.space.draw(rng)
            try:
                counts = check(params)
            except Refused as refusal:
                refused[str(refusal)] = refused.get(str(refusal), 0.0) + 1 / draws
            else:
                found = sizes.setdefault(params["method"], [])
                found.append(int(counts["trainable_parameters"]))
                if len(found) <= MEASURED_DRAWS:  # the stock default alone is not typical: it acts on all layers
                    measured.append(params)
        found_costs = costs(prepared.setup, measured)
    executor, (combinations, reals) = prepared.executor, prepared.space.size()
    return Plan(
        combinations,
        reals,
        {method: (min(found), max(found)) for method, found in sorted(sizes.items())},
        refused,
        draws,
        {
            method: (
                float(np.mean([cost.seconds for cost in each])),
                max((cost.peak_memory_bytes for cost in each if cost.peak_memory_bytes is not None), default=None),
            )
            for method, each in _by_method(found_costs).items()
        },
        sum(cost.cache_seconds for cost in found_costs),
        executor.processes,
        executor.pack,
        config.budget.trials,
        prepared.header["chosen"],
        prepared.counter.view.unknown_inside,
    )


def _by_method(costs: Sequence[Cost]) -> dict[str, list[Cost]]:
    out: dict[str, list[Cost]] = {}
    for cost in costs:
        out.setdefault(cost.method, []).append(cost)
    return out
