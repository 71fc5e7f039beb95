"""What the order at the end of a budget is worth: the real search on simulated slots, with and without it.

    python benchmarks/driver_overhead/order.py [--trials 40] [--seeds 50]

Trials take what `benchmarks/engine` measured of their like: a head 1.7 CPU seconds, a last layer 5.9, LoRA 20 with its
rank, full fine-tuning 37; times a lognormal factor (sigma 0.1) that no forecast knows. The driver takes no time. Prints
one JSON line a number of slots: the makespan without over with, mean and 95 % interval over seeds.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from autopeft import plugins
from autopeft.ledger import NAME, Ledger
from autopeft.objectives import Objective
from autopeft.search import Search
from autopeft.space import Choice, Dimension, Int, Space
from autopeft.testing import example_sizes
from autopeft.trial import Result, Status
from benchmarks.driver_overhead.simulated import Simulated

OBJECTIVES = (Objective("accuracy", "maximize", 0.1),)
SPACE = Space(
    {
        "method": Dimension(Choice(("head", "last_layers", "lora", "full")), "head"),
        "lora.rank": Dimension(Int(1, 64, log=True), 8),
    }
)
SECONDS = {"head": 1.7, "last_layers": 5.9, "lora": 20.0, "full": 37.0}
SIZES = {"head": 1e3, "last_layers": 2e6, "full": 2e7}


def seconds_of(trial, step=None):
    """CPU seconds of a trial; they hang on its params, and a little on its seed."""
    del step
    noise = float(np.random.default_rng(trial.seed).lognormal(0.0, 0.1))
    return SECONDS[trial.params["method"]] * (1 + trial.params.get("lora.rank", 0) / 200) * noise


def check(params):
    return {"trainable_parameters": SIZES.get(params["method"], 4600.0 * params.get("lora.rank", 0))}


def make_evaluate(should_end):
    def evaluate(trial):
        yield Result(trial, Status.COMPLETE, {"accuracy": 0.5, "train_seconds": seconds_of(trial)})

    return evaluate


class Plain(Search):
    """Takes the proposals as they come."""

    def prepare(self, slots):
        pass


def makespan(kind, trials, slots, seed):
    """Simulated seconds to the last result."""
    with tempfile.TemporaryDirectory() as folder:
        book = Ledger(Path(folder) / NAME)
        objectives = [objective.to_json() for objective in OBJECTIVES]
        book.append({"event": "search", "schema": 1, "objectives": objectives, "config": {}})
        search = kind(
            space=SPACE,
            sampler=plugins.load("samplers", "random")(SPACE, OBJECTIVES, example_sizes),
            stopper=plugins.load("stoppers", "never")(OBJECTIVES),
            ledger=book,
            check=check,
            seed=seed,
            most_trials=trials,
        )
        search._known = lambda params: check(params)  # such a small space: the same ones are wanted again
        executor = Simulated(slots, seconds_of, clock=lambda: 0.0)
        executor.run(search, make_evaluate)
        book.close()
    return executor.now


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--seeds", type=int, default=50)
    options = parser.parse_args()
    for slots in (2, 4, 8):
        ratios = [
            makespan(Plain, options.trials, slots, seed) / makespan(Search, options.trials, slots, seed)
            for seed in range(options.seeds)
        ]
        half = 1.96 * float(np.std(ratios, ddof=1)) / len(ratios) ** 0.5
        out = {"slots": slots, "trials": options.trials, "seeds": options.seeds}
        print(json.dumps({**out, "without_over_with": round(float(np.mean(ratios)), 3), "interval": round(half, 3)}))


if __name__ == "__main__":
    main()
