"""What a tracker costs a search: none, MLflow on a SQLite file, on a port where nobody listens, on one that is silent.

    python benchmarks/tracker_cost/run.py [--trials 40] [--epochs 24] [--repeats 3]

The demo's search on digits with the serial executor, a fixed number of trials of random configurations, all four ways
in turn, `--repeats` times. Prints one JSON line a way: seconds of search by the ledger, from the first ask to the last
tell, which is what a tracker could slow down; of the whole command; and of its CPU; each as a ratio to no tracker in
the same round, mean and half of a 95 % interval (t). The serial executor trains in the driver's own process, so the
tracker's thread takes from the training whatever it takes; with Ray it has a process of its own.
"""

import argparse
import json
import os
import resource
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
WAYS = ("none", "sqlite", "nobody", "silent")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--epochs", type=int, default=24)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    rounds = []
    with tempfile.TemporaryDirectory() as folder, socket.socket() as nobody, socket.socket() as silent:
        nobody.bind(("127.0.0.1", 0))
        silent.bind(("127.0.0.1", 0))
        silent.listen(64)
        stores = {
            "none": None,
            "sqlite": f"sqlite:///{folder}/mlflow.db",
            "nobody": f"http://127.0.0.1:{nobody.getsockname()[1]}",
            "silent": f"http://127.0.0.1:{silent.getsockname()[1]}",
        }
        for number in range(options.repeats):
            order = [*WAYS[number % 4 :], *WAYS[: number % 4]]  # what comes first pays for cold files
            rounds.append({way: measure(Path(folder), f"{way}-{number}", stores[way], options) for way in order})
    for way in WAYS:
        out = {"tracker": way, "trials": options.trials, "repeats": options.repeats}
        for name in ("search_seconds", "wall_seconds", "cpu_seconds"):
            out[name] = round(float(np.mean([one[way][name] for one in rounds])), 1)
            if way != "none":
                ratios = [one[way][name] / one["none"][name] for one in rounds]
                out[f"{name}_ratio"] = [round(float(np.mean(ratios)), 3), round(half_interval(ratios), 3)]
        print(json.dumps(out), flush=True)


def half_interval(values):
    """Of the mean, 95 %, by Student's t."""
    from scipy.stats import t

    return (
        float(t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5) if len(values) > 1 else 0.0
    )


def measure(folder, name, store, options):
    """One search in a process of its own."""
    trackers = "[]" if store is None else f"[{{name: mlflow, uri: '{store}'}}]"
    settings = {
        "trackers": trackers, "executor": "serial", "sampler": "random", "stopper": "never",
        "budget.trials": options.trials, "training.epochs": options.epochs,
    }  # fmt: skip
    words = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "autopeft", "demo", "--name", name, *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        check=True,
        capture_output=True,
    )
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    lines = (folder / "runs" / name / "ledger.jsonl").read_text().splitlines()
    seconds = {kind: [] for kind in ("ask", "tell")}
    for event in map(json.loads, lines):
        seconds.setdefault(event["event"], []).append(event["seconds"])
    return {
        "search_seconds": seconds["tell"][-1] - seconds["ask"][0],
        "wall_seconds": wall,
        "cpu_seconds": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
    }


if __name__ == "__main__":
    main()
