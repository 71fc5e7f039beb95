"""A search over a toy space with evaluate functions that train nothing: what search and executors are tested with."""

from __future__ import annotations

import contextlib
import ctypes
import json
import math
import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np

from autopeft import ledger
from autopeft.history import History
from autopeft.ledger import NAME, Ledger
from autopeft.objectives import Objective
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
HEADER = {
    "event": "search", "schema": 1, "objectives": [o.to_json() for o in OBJECTIVES], "config": {},
    "model": {"n_layers": 2},
}  # fmt: skip


def check(params):
    return {"trainable_parameters": float(10 + 100 * params.get("lora.rank", 0))}


def curve(trial, step):
    """Deterministic in the trial: approaches a height that grows with rank, at a speed that grows with lr."""
    noise = np.random.default_rng(trial.seed).normal() * 0.02
    height = 0.5 + 0.07 * math.log2(1 + trial.params.get("lora.rank", 0)) + noise
    return height * (1 - math.exp(-step * (1 + math.log10(trial.params["head.lr"] / 1e-4)) / 6))


class Climber:
    """A sampler that depends on all that it heard: a draw, or the best score's neighbour. No state but that."""

    def __init__(self, space=SPACE):
        self.space, self.told, self.running = space, [], set()

    def ask(self, number, seed):
        rng = np.random.default_rng((seed, len(self.told), len(self.running)))
        complete = [record for record in self.told if record.is_complete]
        if not complete or rng.random() < 0.5:
            return self.space.draw(rng)
        best = max(complete, key=lambda record: record.metrics["accuracy"])
        return {**best.params, "head.lr": float(np.clip(best.params["head.lr"] * rng.uniform(0.5, 2), 1e-4, 1e-1))}

    def begin(self, record):
        self.running.add(record.number)

    def tell(self, record):
        self.running.discard(record.number)
        self.told.append(record)


class Rung3:
    """A stopper: ends at step 3 what is worse there than most that were seen there."""

    def __init__(self):
        self.seen = []

    def report(self, record, report):
        if report.step != 3:
            return False
        self.seen.append(report.metrics["accuracy"])
        return len(self.seen) > 3 and report.metrics["accuracy"] < float(np.median(self.seen))

    def tell(self, record):
        pass


class Toy:
    """make_evaluate. What happens in trial 4 is said by files `<folder>/4.<what>`: fail, die, crash, hang, fault, loop,
    short, eat (memory, in the cgroup whose folder the file names).

    Args:
        folder: Of those files; `started` there gets a line a trial: number and process.
        seconds: A step takes.
        steps: Of a trial; it reports at 3 and 6.
        meet: A trial waits until so many workers have begun with one, a minute at most.
    """

    def __init__(self, folder, seconds=0.0, steps=10, meet=0):
        self.folder, self.seconds, self.steps, self.meet = Path(folder), seconds, steps, meet

    def __call__(self, should_end):
        with open(self.folder / "made", "a") as file:
            file.write(f"{os.getpid()}\n")
        for fault in self.folder.glob("make.*"):
            happen(fault)
        self.should_end = should_end
        return self.evaluate

    def evaluate(self, trial):
        what = {path.suffix: path for path in self.folder.glob(f"{trial.number}.*")}
        with open(self.folder / "started", "a") as file:
            file.write(f"{trial.number} {os.getpid()}\n")
        end = time.monotonic() + 60
        while len({process for _, process in lines(self.folder, "started")}) < self.meet and time.monotonic() < end:
            time.sleep(0.01)
        try:
            for step in range(1, self.steps + 1):
                if self.seconds:
                    time.sleep(self.seconds)
                if self.should_end():
                    return
                if step == 4:
                    for path in what.values():
                        happen(path)
                if ".fail" in what:
                    yield Result(trial, Status.FAILED, error="ValueError: as asked")
                    return
                if ".short" in what:
                    return
                if step in (3, 6):
                    yield Report(step, {"accuracy": curve(trial, step), "train_loss": 1 - curve(trial, step)})
            metrics = {"accuracy": curve(trial, self.steps), "train_seconds": time.monotonic()}
            yield Result(trial, Status.COMPLETE, metrics)
        finally:
            with contextlib.suppress(FileNotFoundError), open(self.folder / "ended", "a") as file:
                file.write(f"{trial.number} {os.getpid()}\n")


class Turns(Toy):
    """A Toy that can be packed: each trial's next event in turn. Its memory holds `most` trials."""

    most = 3

    def pack(self, should_end):
        self(should_end)
        self.running = {}
        return self

    def join(self, trial):
        self.running[trial.number] = (trial, self.evaluate(trial))

    def leave(self, trial):
        self.running.pop(trial.number)[1].close()

    def has_room(self):
        return len(self.running) < self.most

    def advance(self, is_due=lambda: False):
        found = []
        for trial, given in list(self.running.values()):
            event = next(given, None)
            if event is None or isinstance(event, Result):
                del self.running[trial.number]
            if event is not None:
                found.append((trial, event))
        return found


def happen(path):
    """What goes wrong in a worker."""
    suffix = path.suffix
    if suffix == ".die":
        os.kill(os.getpid(), signal.SIGKILL)
    if suffix == ".crash":
        ctypes.string_at(0)  # a segmentation fault
    if suffix == ".exit":
        os._exit(3)
    if suffix == ".eat":
        Path(path.read_text(), "cgroup.procs").write_text(str(os.getpid()))
        eaten = [b"x" * 2**20 for _ in range(2**12)]
        raise MemoryError(f"{len(eaten)} MiB are not too much here")
    if suffix == ".hang":
        time.sleep(600)
    if suffix == ".loop":
        sum(range(10**12))  # in C, and never lets another thread of the interpreter run
    if suffix == ".fault":
        raise OSError(28, "as asked")
    if suffix == ".environment":
        from autopeft.errors import EnvironmentFault

        raise EnvironmentFault("this node lacks the model")


def make_search(folder, trials=12, seed=0, stopper=None, sampler=None, **options):
    """A search in a folder: new, or from where its ledger stands."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    book = Ledger(folder / NAME)
    if not book.events:
        book.append(HEADER)
        book.close()
        book = Ledger(folder / NAME)
    defaults = {"space": SPACE, "check": check, "first": SPACE.defaults()}
    return Search(
        sampler=sampler or Climber(),
        stopper=stopper or Rung3(),
        ledger=book,
        seed=seed,
        most_trials=trials,
        **{**defaults, **options},
    )


def lines(folder, name):
    """The lines of a file that a Toy wrote, as tuples of whole numbers."""
    path = Path(folder) / name
    return [tuple(map(int, line.split())) for line in path.read_text().splitlines()] if path.exists() else []


def events(folder):
    """A ledger's events without what depends on the machine: times and memory."""
    found = json.loads(json.dumps(ledger.read(Path(folder) / NAME)))
    for event in found:
        del event["seconds"]
        if "metrics" in event:
            event["metrics"] = {name: value for name, value in event["metrics"].items() if name not in WEATHER}
    return found


def outcome(folder) -> dict[int, Any]:
    """What became of each number: params, seed, status, metrics, reports, refusal. Weather left out."""
    history = History([{**event, "seconds": 0.0} for event in events(folder)])
    return {
        record.number: (
            dict(record.params),
            record.trial.seed,
            record.status,
            dict(record.metrics),
            [report.to_json() for report in record.reports],
            record.refusal,
        )
        for record in history.records
    }


def front(folder):
    """The numbers on the front."""
    return [record.number for record in History.read(Path(folder) / NAME).front()]
