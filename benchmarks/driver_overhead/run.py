"""What the driver of a search costs, and whether it keeps its slots busy.

    python benchmarks/driver_overhead/run.py [--executor serial|ray_tune|simulated] [--trials 1000] [--slots 1]
        [--sampler random|nsga2|tpe] [--stopper dominated|halving|never] [--trial-seconds 0]

A search over the real Search, ledger (fsynced), sampler and stopper, with what `autopeft search` hangs on it: the
console and the removal of tensors off the front. Trials train nothing and report twice. `ray_tune` sleeps for
--trial-seconds a trial in its workers, `simulated` counts them on a clock of its own: 10,000 trials on 1,000 slots.

Prints one JSON line. `ours_ms_a_trial` is the time inside `Search`'s verbs less the sampler's; over the last tenth of
the trials too, where what grows would show. `driver_ms_a_trial` is all CPU time of the driver's process outside of
them: of ray_tune, that is Tune's and Ray's. `busy` is the slots' share of time in which they trained, from the first
ask to the last; `results_a_second` over the same time. Memory is the driver's peak, when a tenth was told and at the end.
"""

import argparse
import contextlib
import io
import json
import resource
import sys
import tempfile
import time
from collections import defaultdict
from functools import partial
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from autopeft import plugins
from autopeft.ledger import NAME, Ledger
from autopeft.objectives import Objective
from autopeft.run_folder import keep_front
from autopeft.search import Search
from autopeft.space import Choice, Dimension, Float, Int, Space
from autopeft.testing import example_sizes
from autopeft.trackers.console import Console
from autopeft.trial import Report, Result, Status, derive_seed
from benchmarks.driver_overhead.simulated import Simulated

STEPS, RUNGS = 100, (10, 30)
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


class Timed:
    """Passes calls on, and adds up the seconds of those named, and the CPU seconds of this thread in them."""

    def __init__(self, inner, *names):
        self.inner, self.names, self.seconds, self.cpu_seconds = inner, names, 0.0, 0.0

    def __getattr__(self, name):
        attribute = getattr(self.inner, name)
        return partial(self._call, attribute) if name in self.names else attribute

    def _call(self, call, *arguments):
        start, cpu = time.perf_counter(), time.thread_time()
        try:
            return call(*arguments)
        finally:
            self.seconds += time.perf_counter() - start
            self.cpu_seconds += time.thread_time() - cpu


def seconds_of(trial, step, mean):
    """A trial's own duration, spread over about a factor of four, up to a step."""
    whole = mean * float(np.random.default_rng(trial.seed).lognormal(-0.06, 0.35))
    return whole * (STEPS if step is None else step) / STEPS


def make_evaluate(should_end, sleep=0.0):
    """Trials that sleep: scores grow with rank, and hang on the learning rate."""

    def evaluate(trial):
        noise = np.random.default_rng(derive_seed(trial.seed, "score")).normal() * 0.02
        rate = np.log10(trial.params["head.lr"] / 1e-3)
        score = 0.6 + 0.04 * np.log2(1 + trial.params.get("lora.rank", 0)) - 0.05 * rate**2 + noise
        spent = 0.0
        for step in (*RUNGS, None):
            if sleep:
                until = seconds_of(trial, step, sleep)
                time.sleep(until - spent)
                spent = until
            if step is None:
                yield Result(trial, Status.COMPLETE, {"accuracy": float(score)})
            else:
                yield Report(step, {"accuracy": float(score) * step / STEPS, "train_loss": 1 - float(score)})

    return evaluate


def make_search(folder, sampler, stopper, trials):
    """A search over the toy space, in a folder."""
    with contextlib.closing(Ledger(folder / NAME)) as ledger:
        ledger.append(
            {
                "event": "search",
                "schema": 1,
                "objectives": [objective.to_json() for objective in OBJECTIVES],
                "config": {"budget": {"trials": trials}},
            }
        )
    return Search(
        space=SPACE,
        sampler=sampler,
        stopper=plugins.load("stoppers", stopper)(OBJECTIVES),
        ledger=Ledger(folder / NAME),
        check=lambda params: {"trainable_parameters": float(10 + 100 * params.get("lora.rank", 0))},
        seed=0,
        first=SPACE.defaults(),
        most_trials=trials,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--executor", choices=("serial", "ray_tune", "simulated"), default="serial")
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--slots", type=int, default=1)
    parser.add_argument("--sampler", choices=("random", "nsga2", "tpe"), default="random")
    parser.add_argument("--stopper", choices=("dominated", "halving", "never"), default="dominated")
    parser.add_argument("--trial-seconds", type=float, default=0.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        print(json.dumps(measure(Path(folder), options)))


def measure(folder, options):
    sampler = Timed(plugins.load("samplers", options.sampler)(SPACE, OBJECTIVES, example_sizes), "ask", "begin", "tell")
    search = make_search(folder, sampler, options.stopper, options.trials)
    verbs = Timed(search, "ask", "report", "tell", "prepare")
    console = Console(folder)
    console.start(search.history)
    times, ours, memory = defaultdict(list), [], []

    def note(event):
        times[event["event"]].append(time.perf_counter())
        if event["event"] == "tell":
            ours.append(verbs.seconds - sampler.seconds)
            memory.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)

    search.listeners = (console.handle, keep_front(folder, search.history), note)
    executor = make_executor(options)
    start, cpu = time.perf_counter(), time.process_time()
    executor.run(verbs, partial(make_evaluate, sleep=options.trial_seconds * (options.executor == "ray_tune")))
    wall, cpu = time.perf_counter() - start, time.process_time() - cpu
    trials, tenth = len(ours), max(len(ours) // 10, 1)
    out = {
        **{name: getattr(options, name) for name in ("executor", "slots", "sampler", "stopper", "trial_seconds")},
        "ended": search.history.counts(),
        "ours_ms_a_trial": round(1000 * ours[-1] / trials, 2),
        "ours_ms_a_trial_last_tenth": round(1000 * (ours[-1] - ours[-1 - tenth]) / tenth, 2),
        "sampler_ms_a_trial": round(1000 * sampler.seconds / trials, 2),
        "driver_ms_a_trial": round(1000 * (cpu - verbs.cpu_seconds) / trials, 2),
        "memory_mib": [round(memory[tenth - 1]), round(memory[-1])],
        "wall_seconds": round(wall, 1),
    }
    if options.executor == "simulated":
        total = executor.busy_seconds + executor.waiting_seconds
        out |= {
            "busy": round(executor.busy_seconds / total, 4),
            "results_a_second": round(trials / executor.now, 1),
            "simulated_seconds": round(executor.now, 1),
        }
    elif options.trial_seconds:
        out |= slots_in_use(search.history, options, times)
    return out


def slots_in_use(history, options, times):
    """How busy real slots were, from when as many trials had reported as there are slots to the last ask."""
    since, until = times["report"][0], times["ask"][-1]
    first_reports = sorted(record.report_seconds[0] for record in history.records if record.reports)
    since += first_reports[options.slots - 1] - first_reports[0]
    trained, ended = 0.0, 0
    for number, told in zip(history.told, times["tell"]):
        record = history.records[number]
        step = None if record.is_complete else record.reports[-1].step
        begun = told - seconds_of(record.trial, step, options.trial_seconds)
        trained += max(min(told, until) - max(begun, since), 0.0)
        ended += since <= told <= until
    return {
        "busy": round(trained / options.slots / (until - since), 4),
        "results_a_second": round(ended / (until - since), 1),
    }


def make_executor(options):
    if options.executor == "simulated":
        return Simulated(options.slots, partial(seconds_of, mean=options.trial_seconds))
    slots = {"slots": options.slots} if options.executor == "ray_tune" else {}
    return plugins.load("executors", options.executor)(**slots)


if __name__ == "__main__":
    main()
