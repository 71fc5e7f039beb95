"""What MLflow costs a search: on a SQLite file, on a port where nobody listens, on a server that is silent.

    python benchmarks/tracker_cost/run.py [--trials 12] [--epochs 24] [--repeats 3]

The demo's search on digits with the serial executor and random configurations. Measured in the driver itself, as the
difference of two searches is noisier than what is looked for: the seconds that the search's thread waits in the tracker,
and the CPU seconds of the tracker's own thread, which the serial executor's training has to do without at worst. Both
are taken over the search's seconds, from the first ask to the last tell, and over the CPU seconds that the search's
thread spent meanwhile: other work on the machine lengthens the former, not the latter.

Prints one JSON line a way, means over `--repeats` with the least and the most in brackets:

start_seconds      `start`, before the first trial: MLflow is imported
handle_ms          `handle`, all events of a trial
thread_cpu_seconds of the tracker's thread up to the last tell
finish_seconds     `finish`, after the last tell
share_of_cpu       handle and the thread's CPU over the search's CPU: what a long search pays
share_with_start   the same with `start`: what this short one pays
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--epochs", type=int, default=24)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--store", help=argparse.SUPPRESS)  # one search, in this process
    options = parser.parse_args()
    if options.store:
        print(json.dumps(measure(options)))
        return
    with tempfile.TemporaryDirectory() as folder, socket.socket() as nobody, socket.socket() as silent:
        nobody.bind(("127.0.0.1", 0))
        silent.bind(("127.0.0.1", 0))
        silent.listen(64)
        stores = {
            "sqlite": "sqlite:///mlflow.db",
            "nobody": f"http://127.0.0.1:{nobody.getsockname()[1]}",
            "silent": f"http://127.0.0.1:{silent.getsockname()[1]}",
        }
        for way, store in stores.items():
            found = [apart(Path(folder) / f"{way}-{number}", store, options) for number in range(options.repeats)]
            out = {"tracker": way, "trials": options.trials, "repeats": options.repeats}
            for name in found[0]:
                values = [one[name] for one in found]
                out[name] = [round(sum(values) / len(values), 4), [round(min(values), 4), round(max(values), 4)]]
            print(json.dumps(out), flush=True)


def apart(folder, store, options):
    """One search in a process and a folder of its own."""
    folder.mkdir()
    words = ["--store", store, "--trials", str(options.trials), "--epochs", str(options.epochs)]
    done = subprocess.run(
        [sys.executable, __file__, *words], cwd=folder, stdout=subprocess.PIPE, check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    return json.loads(done.stdout.splitlines()[-1])


def measure(options):
    from autopeft import app
    from autopeft.executors.serial import Serial
    from autopeft.ledger import NAME, read
    from autopeft.trackers.mlflow import MLflow

    spent = {"start": 0.0, "handle": 0.0, "finish": 0.0, "thread": 0.0, "search": 0.0}

    def timed(owner, name, clock, key):
        call = getattr(owner, name)

        def wrapped(self, *args):
            begin = clock()
            try:
                return call(self, *args)
            finally:
                spent[key] += clock() - begin

        setattr(owner, name, wrapped)

    finish = MLflow.finish

    def finished(self):
        spent["thread"] = time.clock_gettime(time.pthread_getcpuclockid(self._thread.ident))
        begin = time.perf_counter()
        finish(self)
        spent["finish"] = time.perf_counter() - begin

    timed(MLflow, "start", time.perf_counter, "start")
    timed(MLflow, "handle", time.perf_counter, "handle")
    timed(Serial, "run", time.thread_time, "search")  # loading the model, too: a second or two
    MLflow.finish = finished
    run = app.demo(
        name="r",
        quiet=True,
        overrides=[
            f"trackers=[{{name: mlflow, uri: '{options.store}'}}]", "executor=serial", "sampler=random",
            "stopper=never", f"budget.trials={options.trials}", f"training.epochs={options.epochs}",
        ],
    )  # fmt: skip
    events = read(run.folder / NAME)
    asked = next(event["seconds"] for event in events if event["event"] == "ask")
    told = [event["seconds"] for event in events if event["event"] == "tell"][-1]
    return {
        "search_seconds": told - asked,
        "search_cpu_seconds": spent["search"],
        "start_seconds": spent["start"],
        "handle_ms": 1000 * spent["handle"] / options.trials,
        "thread_cpu_seconds": spent["thread"],
        "finish_seconds": spent["finish"],
        "share_of_cpu": (spent["handle"] + spent["thread"]) / spent["search"],
        "share_with_start": (spent["start"] + spent["handle"] + spent["thread"]) / spent["search"],
    }


if __name__ == "__main__":
    main()
