"""A search over a toy space with evaluate functions that train nothing: what executors are tested with."""

import math
import os
import signal
import time
from pathlib import Path

import numpy as np

from autopeft import ledger as ledgers
from autopeft.ledger import NAME, Ledger
from autopeft.objectives import Objective
from autopeft.samplers.random import RandomSampler
from autopeft.search import Search
from autopeft.space import Choice, Dimension, Float, Int, Space
from autopeft.trial import WEATHER, Report, Result, Status

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


def CHECK(params):
    return {"trainable_parameters": float(10 + 100 * params.get("lora.rank", 0))}


def curve(trial, step):
    """Deterministic in the trial: approaches a height that grows with rank, at a speed that grows with lr."""
    noise = np.random.default_rng(trial.seed).normal() * 0.02
    height = 0.5 + 0.07 * math.log2(1 + trial.params.get("lora.rank", 0)) + noise
    return height * (1 - math.exp(-step * (1 + math.log10(trial.params["head.lr"] / 1e-4)) / 6))


class Toy:
    """make_evaluate: what happens in a trial is said by the file `<folder>/<number>.<what>`, if there is one."""

    def __init__(self, folder, seconds=0.0, steps=10):
        self.folder, self.seconds, self.steps = str(folder), seconds, steps

    def __call__(self, should_end):
        self.should_end = should_end
        return self.evaluate

    def evaluate(self, trial):
        what = {path.suffix for path in Path(self.folder).glob(f"{trial.number}.*")}
        with open(Path(self.folder) / "started", "a") as file:
            file.write(f"{trial.number} {os.getpid()}\n")
        for step in range(1, self.steps + 1):
            time.sleep(self.seconds)
            if self.should_end():
                return
            if ".die" in what and step == 4:
                os.kill(os.getpid(), signal.SIGKILL)
            if ".hang" in what and step == 4:
                time.sleep(600)
            if ".fail" in what:
                yield Result(trial, Status.FAILED, error="ValueError: as asked")
                return
            if step in (3, 6):
                yield Report(step, {"accuracy": curve(trial, step), "train_loss": 1 - curve(trial, step)})
        yield Result(trial, Status.COMPLETE, {"accuracy": curve(trial, self.steps), "train_seconds": time.monotonic()})


class Rank3:
    """A stopper: low scores at step 3 end there."""

    def report(self, record, report):
        return report.step == 3 and report.metrics["accuracy"] < 0.33

    def tell(self, record):
        pass


def make_search(folder, trials=12, seed=0, stopper=None, sampler=None):
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    ledger = Ledger(folder / NAME)
    if not ledger.events:
        header = {"event": "search", "schema": 1, "objectives": [o.to_json() for o in OBJECTIVES], "config": {}}
        ledger.append(header)
        ledger.close()
        ledger = Ledger(folder / NAME)
    return Search(
        space=SPACE,
        sampler=sampler or RandomSampler(SPACE, OBJECTIVES),
        stopper=stopper or Rank3(),
        ledger=ledger,
        check=CHECK,
        seed=seed,
        first=SPACE.defaults(),
        most_trials=trials,
    )


def events(folder):
    """The ledger's events without what is weather."""
    out = []
    for event in ledgers.read(Path(folder) / NAME):
        event = {key: value for key, value in event.items() if key != "seconds"}
        if "metrics" in event:
            event["metrics"] = {name: value for name, value in event["metrics"].items() if name not in WEATHER}
        out.append(event)
    return out
