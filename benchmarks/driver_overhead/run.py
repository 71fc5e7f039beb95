"""Our share of the driver's time, a trial: `python benchmarks/driver_overhead/run.py [--trials 1000]`.

A search over the real Search, ledger (fsynced) and stopper, with trials that train nothing and report twice, run by
the serial executor: all the time that passes is the driver's. The sampler's own time is measured and taken out.
Prints one JSON line: milliseconds a trial, in the mean and over the last tenth, and the growth of memory.
"""

import argparse
import json
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from autopeft.executors.serial import Serial
from autopeft.ledger import NAME, Ledger
from autopeft.objectives import Objective
from autopeft.samplers.random import RandomSampler
from autopeft.search import Search
from autopeft.space import Choice, Dimension, Float, Int, Space
from autopeft.stoppers.dominated import plugin as Dominated
from autopeft.trial import Report, Result, Status

OBJECTIVES = (
    Objective("accuracy", "maximize", 0.1),
    Objective("trainable_parameters", "minimize", 10_000, "log10"),
)
SPACE = Space(
    {
        "method": Dimension(Choice(("head", "lora")), "head"),
        "lora.rank": Dimension(Int(1, 64, log=True), 8),
        "head.lr": Dimension(Float(1e-4, 1e-1, log=True), 1e-3),
    }
)


class Timed(RandomSampler):
    """Counts its own seconds."""

    seconds = 0.0

    def ask(self, number, seed):
        start = time.perf_counter()
        params = super().ask(number, seed)
        Timed.seconds += time.perf_counter() - start
        return params


def make_evaluate(should_end):
    def evaluate(trial):
        score = float(np.random.default_rng(trial.seed).uniform())
        for step in (10, 30):
            yield Report(step, {"accuracy": score * step / 40, "train_loss": 1 - score})
        yield Result(trial, Status.COMPLETE, {"accuracy": score})

    return evaluate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=1000)
    trials = parser.parse_args().trials
    with tempfile.TemporaryDirectory() as folder:
        ledger = Ledger(Path(folder) / NAME)
        header = {"event": "search", "schema": 1, "objectives": [o.to_json() for o in OBJECTIVES], "config": {}}
        ledger.append(header)
        ledger.close()
        told: list[float] = []
        search = Search(
            space=SPACE,
            sampler=Timed(SPACE, OBJECTIVES),
            stopper=Dominated(OBJECTIVES),
            ledger=Ledger(Path(folder) / NAME),
            check=lambda params: {"trainable_parameters": float(10 + 100 * params.get("lora.rank", 0))},
            seed=0,
            first=SPACE.defaults(),
            most_trials=trials,
            listeners=[lambda event: told.append(time.perf_counter()) if event["event"] == "tell" else None],
        )
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        start = time.perf_counter()
        Serial().run(search, make_evaluate)
        seconds = time.perf_counter() - start
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    tail = told[-max(2, trials // 10) :]
    print(
        json.dumps(
            {
                "trials": trials,
                "ms_a_trial": round(1000 * (seconds - Timed.seconds) / trials, 2),
                "ms_a_trial_last_tenth": round(1000 * (tail[-1] - tail[0]) / (len(tail) - 1), 2),
                "sampler_ms_a_trial": round(1000 * Timed.seconds / trials, 3),
                "memory_grown_mib": round(grown, 1),
            }
        )
    )


if __name__ == "__main__":
    main()
