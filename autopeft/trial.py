"""What flows between the search and an executor: Trial out, Report and Result back."""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from typing import Any


class Status(enum.StrEnum):
    """How a trial ended. A stopped trial's metrics are partial: never final, never on a front."""

    COMPLETE = "COMPLETE"
    STOPPED = "STOPPED"
    OUT_OF_MEMORY = "OUT_OF_MEMORY"
    FAILED = "FAILED"


# `Result.fault` of a trial that ended by the machine's fault: its worker died, or its node is gone.
MACHINE = "machine"
LARGEST = 1e100  # of a metric: reports and samplers square them
COMPILED = "+compiled"  # behind `Result.ran`
MOST_LOST = 2  # a trial lost so often has failed for good, as its own memory use may kill workers


class Phase(enum.StrEnum):
    """What a trial does now. Its time limit is for training only.

    While the trial waits for shared caches, or is scored, no watchdog ends it.
    """

    PREPARING = "PREPARING"
    TRAINING = "TRAINING"
    SCORING = "SCORING"


# Metrics that depend on the load of the machine: never compared, never part of "the same results". `train_seconds`
# contains `attach_seconds`, not `evaluate_seconds`.
WEATHER = frozenset({
    "train_seconds", "evaluate_seconds", "attach_seconds", "peak_memory_bytes", "micro_batch_size",
    "gradient_checkpointing",
})  # fmt: skip


def strange(metrics: Mapping[str, float]) -> dict[str, float]:
    """Returns the metrics that are not finite, or too large to calculate with."""
    return {name: value for name, value in metrics.items() if not abs(value) <= LARGEST}


@dataclass(frozen=True, slots=True)
class Trial:
    """One configuration to train and evaluate.

    Attributes:
        number: 0, 1, 2, ... in order of asking; refused configurations take a number too.
        params: A member of the search's space, flat: `{"method": "lora", "lora.rank": 8, ...}`.
        seed: Seeds all of the trial's randomness; depends on the search's seed and `number` only.
    """

    number: int
    params: Mapping[str, Any]
    seed: int

    def to_json(self) -> dict[str, Any]:
        return {"number": self.number, "params": dict(self.params), "seed": self.seed}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Trial:
        return Trial(data["number"], dict(data["params"]), data["seed"])


@dataclass(frozen=True, slots=True)
class Report:
    """A rung of one trial.

    Attributes:
        step: Optimiser steps done, from 1.
        metrics: Finite numbers by name: always `train_loss` (smoothed), and validation metrics if they were scored.
        ran: See `Result`. A ledger has it with the result only.
    """

    step: int
    metrics: Mapping[str, float]
    ran: str = ""

    def __post_init__(self) -> None:
        if wrong := strange(self.metrics):
            raise ValueError(f"metrics of a report are finite, up to {LARGEST:g}; step {self.step} came with {wrong}")

    def to_json(self) -> dict[str, Any]:
        return {"step": self.step, "metrics": dict(self.metrics), "ran": self.ran}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Report:
        return Report(data["step"], dict(data["metrics"]), data.get("ran", ""))


@dataclass(frozen=True, slots=True)
class Result:
    """How one trial ended.

    Attributes:
        trial: The trial.
        status: Only COMPLETE carries final metrics.
        metrics: Finite numbers by name. For a STOPPED trial: those of its last report. For the others: those known.
        error: Reason if status is OUT_OF_MEMORY or FAILED; else empty.
        detail: JSON data of the task beside the metrics of a complete trial (`tasks.Scores`); else empty.
        fault: "machine" if a FAILED trial ended by the machine's fault, so that it may run again; else empty.
        ran: How its steps ran: "graph" (one launch of a CUDA graph each), "static" (the same, called), "stack" (in a pass
            that trials share), "plain"; with `COMPILED` behind it if blocks were compiled; empty if that is not known.
    """

    trial: Trial
    status: Status
    metrics: Mapping[str, float] = field(default_factory=dict)
    error: str = ""
    detail: Mapping[str, Any] = field(default_factory=dict)
    fault: str = ""
    ran: str = ""

    def __post_init__(self) -> None:
        if wrong := strange(self.metrics):
            raise ValueError(
                f"metrics of a result are finite, up to {LARGEST:g}; trial {self.trial.number} came with {wrong}"
            )
        if bool(self.error) != (self.status in (Status.FAILED, Status.OUT_OF_MEMORY)):
            raise ValueError(f"a {self.status} result {'has no' if self.error else 'needs an'} error text")
        if self.fault not in ("", MACHINE) or (self.fault and self.status is not Status.FAILED):
            raise ValueError(f"the fault of a {self.status} result is not {self.fault!r}")

    @staticmethod
    def stopped(trial: Trial, report: Report) -> Result:
        """Returns the result of a trial that was stopped at a report."""
        return Result(trial, Status.STOPPED, report.metrics, ran=report.ran)

    def to_json(self) -> dict[str, Any]:
        return {
            "trial": self.trial.to_json(),
            "status": str(self.status),
            "metrics": dict(self.metrics),
            "error": self.error,
            "detail": dict(self.detail),
            "fault": self.fault,
            "ran": self.ran,
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Result:
        trial, status = Trial.from_json(data["trial"]), Status(data["status"])
        return Result(
            trial, status, dict(data["metrics"]), data["error"], dict(data["detail"]), data["fault"], data["ran"]
        )


def counted(result: Result, known: Mapping[str, float]) -> Result:
    """Returns the result, FAILED if it is complete with other counts than were foretold.

    Args:
        known: Metrics that were known before training.
    """
    wrong = [
        f"{name} is {result.metrics[name]:,.0f}, foretold were {value:,.0f}"
        for name, value in known.items()
        if result.metrics.get(name, value) != value
    ]
    if not wrong or result.status is not Status.COMPLETE:
        return result
    why = f"counted wrongly before training: {'; '.join(wrong)}"
    return Result(result.trial, Status.FAILED, {}, why, ran=result.ran)


# Trains and scores one trial: yields a Report at each rung, then exactly one Result, and possibly a Phase in between.
# It is a generator, so that every executor writes its own loop: closing it between two reports ends the trial early.
# The trial's exceptions become Results inside. An exception that leaves `evaluate` is a bug or an interrupt.
Evaluate = Callable[[Trial], Generator[Report | Result | Phase, None, None]]


def derive_seed(*parts: object) -> int:
    """Derives a seed in [0, 2**31) from parts with a stable `repr`. It is the same on every machine and Python."""
    digest = hashlib.sha256("\x1f".join(map(repr, parts)).encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1
