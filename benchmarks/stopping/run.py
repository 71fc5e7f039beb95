"""What early stopping costs and saves: recorded learning curves, replayed through the product's own stoppers.

63 PEFT runs of 5,000 steps on MetaMathQA, recorded by peft's `method_comparison` suite. Nothing is trained here. A
replay is one order of arrival: workers take the runs in that order, one worker a run, each step as long as recorded;
at each rung the stopper hears what the run had shown by then. A run that is not stopped ends with its test accuracy.

    python benchmarks/stopping/run.py [--orders 100] [--json out.json]
"""

from __future__ import annotations

import argparse
import csv
import heapq
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

PROJECT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(PROJECT), str(Path(__file__).parent)]

import others  # noqa: E402

from autopeft import plugins  # noqa: E402
from autopeft.history import Record  # noqa: E402
from autopeft.objectives import Objective, losses, reference_point, with_signal  # noqa: E402
from autopeft.pareto import hypervolume  # noqa: E402
from autopeft.stoppers import Stopper  # noqa: E402
from autopeft.trial import Report, Status, Trial  # noqa: E402

STEPS, WORKERS = 5000, 8
WORST_ACCURACY = 0.25  # where the hypervolume begins; the best run has .526
SIGNALS = ("accuracy", "train_loss")
RUNGS = {"250, 750, 2,000": (250, 750, 2000), "500": (500,), "every 250": tuple(range(250, STEPS, 250))}
Make = Callable[[Sequence[Objective]], Stopper]
STOPPERS: dict[str, Make] = {
    "halving on the score alone, eta 3": lambda objectives: plugins.load("stoppers", "halving")(objectives, eta=3),
    "MOASHA (non-dominated sort, epsilon-net), eta 3": lambda objectives: others.moasha(objectives, eta=3),
    "MOASHA, its net from the smallest": lambda objectives: others.moasha(objectives, eta=3, first=1),
    "MOASHA, its net from the smallest, rounded down": lambda objectives: others.moasha(
        objectives, eta=3, first=1, rounds_up=False
    ),
    "non-dominated sort, ties by hypervolume, eta 2": lambda objectives: others.by_hypervolume(objectives, eta=2),
    "dominated by 1": lambda objectives: plugins.load("stoppers", "dominated")(objectives, k=1),
    "dominated by 2": lambda objectives: plugins.load("stoppers", "dominated")(objectives, k=2),
    "dominated by 3": lambda objectives: plugins.load("stoppers", "dominated")(objectives, k=3),
}


@dataclass(frozen=True)
class Curve:
    """One recorded run: its size, what it shows at each step, how long it took, its final score."""

    name: str
    parameters: float
    accuracy: float
    shown: dict[int, dict[str, float]]
    seconds: dict[int, float]  # of the 250 steps that end here


@dataclass(frozen=True)
class Outcome:
    """Means over orders of arrival: share of the full hypervolume kept, and by what compute shrinks."""

    kept: float
    worst: float
    saving: float
    saving_seconds: float


def read_curves(folder: Path) -> list[Curve]:
    """All runs, in the file's order."""
    shown: dict[str, dict[int, dict[str, float]]] = {}
    seconds: dict[str, dict[int, float]] = {}
    for row in csv.DictReader((folder / "curves.csv").open()):
        name, step = row["experiment"], int(row["step"])
        shown.setdefault(name, {})[step] = {
            "accuracy": float(row["valid_accuracy"]),
            "train_loss": float(row["train_loss"]),
        }
        seconds.setdefault(name, {})[step] = float(row["train_time_s"])
    return [
        Curve(row["experiment"], float(row["trainable_params"]), float(row["test_accuracy"]), shown[row["experiment"]],
              seconds[row["experiment"]])
        for row in csv.DictReader((folder / "summary.csv").open())
    ]  # fmt: skip


def objectives_of(curves: Sequence[Curve]) -> tuple[Objective, Objective]:
    """Accuracy from about half of the best, parameters from those of full fine-tuning."""
    largest = max(curve.parameters for curve in curves)
    return (
        Objective("accuracy", "maximize", WORST_ACCURACY),
        Objective("trainable_parameters", "minimize", largest, "log10"),
    )


def replay(
    curves: Sequence[Curve], stopper: Stopper, rungs: Sequence[int], workers: int = WORKERS, timed: bool = True
) -> tuple[list[bool], int, float]:
    """One order of arrival.

    Args:
        curves: In order of arrival.
        timed: Whether a step lasts as long as recorded; else all steps of all runs last the same.

    Returns:
        Which runs ended by themselves, the steps trained in total, and the seconds trained in total.
    """
    records = [
        Record(Trial(number, {"method": curve.name}, 0), {"trainable_parameters": curve.parameters})
        for number, curve in enumerate(curves)
    ]
    ends = [*rungs, STEPS]
    waiting = iter(range(len(curves)))
    complete = [False] * len(curves)
    steps, seconds = 0, 0.0
    running: list[tuple[float, int, int]] = []  # time of the next event, number, which of `ends` it is

    def duration(number: int, index: int) -> float:
        start = ends[index - 1] if index else 0
        if not timed:
            return float(ends[index] - start)
        return sum(time for step, time in curves[number].seconds.items() if start < step <= ends[index])

    def start_next(now: float) -> None:
        number = next(waiting, None)
        if number is not None:
            heapq.heappush(running, (now + duration(number, 0), number, 0))

    for _ in range(workers):
        start_next(0.0)
    while running:
        now, number, index = heapq.heappop(running)
        record, step = records[number], ends[index]
        steps += step - (ends[index - 1] if index else 0)
        seconds += duration(number, index)
        if step < STEPS:
            record.reports.append(Report(step, curves[number].shown[step]))
            if stopper.report(record, record.reports[-1]):
                record.status = Status.STOPPED
            else:
                heapq.heappush(running, (now + duration(number, index + 1), number, index + 1))
                continue
        else:
            record.status, complete[number] = Status.COMPLETE, True
        stopper.tell(record)
        start_next(now)
    return complete, steps, seconds


def outcome(
    curves: Sequence[Curve], make: Make, rungs: Sequence[int], signal: str, orders: int, timed: bool = True
) -> Outcome:
    """A stopper over many orders of arrival."""
    objectives = objectives_of(curves)
    reference = reference_point(objectives)
    kept, steps, seconds = [], [], []
    for seed in range(orders):
        order = np.random.default_rng(seed).permutation(len(curves))
        arriving = [curves[index] for index in order]
        points = np.array(
            [losses(objectives, {"accuracy": c.accuracy, "trainable_parameters": c.parameters}) for c in arriving]
        )
        complete, trained, took = replay(arriving, make(with_signal(objectives, signal)), rungs, timed=timed)
        kept.append(hypervolume(points[complete], reference) / hypervolume(points, reference))
        steps.append(trained)
        seconds.append(took)
    all_seconds = sum(sum(curve.seconds.values()) for curve in curves)
    return Outcome(
        float(np.mean(kept)),
        float(np.min(kept)),
        len(curves) * STEPS / float(np.mean(steps)),
        all_seconds / float(np.mean(seconds)),
    )


def by_size(curves: Sequence[Curve], make: Make, sizes: Sequence[int], signal: str, orders: int) -> dict[int, float]:
    """The saving in searches of fewer trials: random draws from the runs."""
    rungs = RUNGS["250, 750, 2,000"]
    objectives = with_signal(objectives_of(curves), signal)
    savings = {}
    for size in sizes:
        steps = []
        for seed in range(orders):
            order = np.random.default_rng(seed).permutation(len(curves))[:size]
            steps.append(replay([curves[index] for index in order], make(objectives), rungs)[1])
        savings[size] = size * STEPS / float(np.mean(steps))
    return savings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--orders", type=int, default=100, help="orders of arrival")
    parser.add_argument("--json", type=Path, help="write the figures here, too")
    arguments = parser.parse_args()
    shared = Path(os.environ.get("AUTOPEFT_SHARED") or PROJECT.parent / "shared")
    curves = read_curves(shared / "data" / "peft_metamathqa_curves")
    figures: dict[str, Any] = {"runs": len(curves), "orders": arguments.orders, "workers": WORKERS, "rungs": {}}
    print(f"{len(curves)} runs, {WORKERS} workers, {arguments.orders} orders of arrival. Share of the full hypervolume")
    print("kept in the mean and in the worst order; compute (steps) saved.")
    for name, rungs in RUNGS.items():
        print(
            f"\n| rungs at steps {name} | validation accuracy: mean worst saving | training loss: mean worst saving |"
        )
        print("|---|---|---|")
        figures["rungs"][name] = {}
        for stopper, make in STOPPERS.items():
            outcomes = {signal: outcome(curves, make, rungs, signal, arguments.orders) for signal in SIGNALS}
            cells = [f"{o.kept:.3f} {o.worst:.3f} {o.saving:.1f}×" for o in outcomes.values()]
            print(f"| {stopper} | {' | '.join(cells)} |", flush=True)
            figures["rungs"][name][stopper] = {
                signal: {"kept": o.kept, "worst": o.worst, "saving_steps": o.saving, "saving_seconds": o.saving_seconds}
                for signal, o in outcomes.items()
            }
    sizes = by_size(curves, STOPPERS["dominated by 2"], (16, 32, len(curves)), "train_loss", arguments.orders)
    by_count = ", ".join(f"{saving:.1f}× in a search of {count}" for count, saving in sizes.items())
    print(f"\nDominated by 2, on the training loss, saves {by_count}.")
    figures["saving_by_size"] = sizes
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
