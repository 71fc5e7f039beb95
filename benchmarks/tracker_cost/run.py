"""What MLflow costs a search: on a SQLite file, on a server, and on a server that fails in each way that servers do.

    python benchmarks/tracker_cost/run.py [--trials 12] [--epochs 24] [--repeats 3] [--ways sqlite,nobody,silent]
    python benchmarks/tracker_cost/run.py --ways server,slow,away_5,away_60,gone,full

The demo's search on digits with the serial executor and random configurations. Measured in the driver itself, as the
difference of two searches is noisier than what is looked for: the seconds that the search's thread waits in the tracker,
and the CPU seconds of the tracker's own thread, which the serial executor's training has to do without at worst. Both
are taken over the search's seconds, from the first ask to the last tell, and over the CPU seconds that the search's
thread spent meanwhile: other work on the machine lengthens the former, not the latter.

sqlite      a fresh SQLite file
nobody      a port where nobody listens
silent      a server that takes connections and never answers
server      a real server
slow        the same, each call a second later
away_5, _60 the same; nobody listens for 5, or 60, seconds from the third trial on
gone        the same; nobody listens from the third trial on
full        the same; each call is answered with 507 (no space left) from the third trial on

Prints one JSON line a way, means over `--repeats` with the least and the most in brackets:

start_seconds      `start`, before the first trial: MLflow is imported
handle_ms          `handle`, all events of a trial: a wall time, which other work lengthens, too
thread_cpu_seconds of the tracker's thread up to the last tell
finish_seconds     `finish`, after the last tell
share_of_cpu       the CPU of handle and of the thread over the search's: what a long search pays
share_with_start   the same with `start`: what this short one pays
trial_cpu_seconds  CPU seconds of a trial: the search's over `--trials`
cpu_ms_a_trial     of handle and of the thread, connecting to the store included, over `--trials`
under_2_from       CPU seconds of a trial from which that is under 2 %

and, of a real server, `requests` that reached it. That `autopeft track` then brings what is missing, each trial once, is
tested in tests/integration/test_mlflow_server.py.
"""

import argparse
import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ALONE = ("sqlite", "nobody", "silent")
OF_A_SERVER = ("server", "slow", "away_5", "away_60", "gone", "full")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--epochs", type=int, default=24)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--ways", default=",".join(ALONE), help=f"of {', '.join([*ALONE, *OF_A_SERVER])}")
    parser.add_argument("--store", help=argparse.SUPPRESS)  # one search, in this process
    options = parser.parse_args()
    if options.store:
        print(json.dumps(measure(options)))
        return
    ways = options.ways.split(",")
    if unknown := set(ways) - {*ALONE, *OF_A_SERVER}:
        parser.error(f"--ways: there is no {', '.join(sorted(unknown))}")
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder, server = Path(name), None
        if set(ways) & set(OF_A_SERVER):
            server = running_server(stack, folder)
        for way in ways:
            found = []
            for number in range(options.repeats):
                own = folder / f"{way}-{number}"
                found.append(failing(own, way, server, options) if way in OF_A_SERVER else alone(own, way, options))
            out = {"tracker": way, "trials": options.trials, "repeats": options.repeats}
            for name in found[0]:
                values = [one[name] for one in found]
                out[name] = [round(sum(values) / len(values), 4), [round(min(values), 4), round(max(values), 4)]]
            print(json.dumps(out), flush=True)


def alone(folder, way, options):
    """A search without a server."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        if way == "silent":
            listener.listen(64)
        store = "sqlite:///mlflow.db" if way == "sqlite" else f"http://127.0.0.1:{listener.getsockname()[1]}"
        return apart(folder, store, options)


def running_server(stack, folder):
    sys.path.insert(0, str(ROOT))
    from tests.trackers.servers import Server

    server = Server(folder / "server")
    stack.callback(server.kill)
    return server


def failing(folder, way, server, options):
    """A search beside a server that something happens to."""
    from tests.trackers.servers import Proxy

    proxy = Proxy(server.port)
    proxy.delay = 1.0 if way == "slow" else 0.0
    done = threading.Event()
    happening = threading.Thread(target=happen, args=(way, proxy, done))
    happening.start()
    try:
        return {**apart(folder, proxy.address, options), "requests": proxy.seen.total()}
    finally:
        done.set()
        happening.join()
        proxy.close()


def happen(way, proxy, done):
    """Waits for the third trial, and does it to the server."""
    while proxy.seen["POST runs/create"] < 4 and not done.wait(0.1):
        pass
    if way == "full":
        proxy.refusal = 507
    elif way in ("away_5", "away_60", "gone"):
        proxy.go_down()
        if way != "gone":
            done.wait(float(way.removeprefix("away_")))
            proxy.come_up()


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

    spent = {"start": 0.0, "handle": 0.0, "handle_cpu": 0.0, "finish": 0.0, "thread": 0.0, "search": 0.0}

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
    timed(MLflow, "handle", time.thread_time, "handle_cpu")
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
        "trial_cpu_seconds": spent["search"] / options.trials,
        "cpu_ms_a_trial": 1000 * (spent["handle_cpu"] + spent["thread"]) / options.trials,
        "under_2_from": (spent["handle_cpu"] + spent["thread"]) / options.trials / 0.02,
        "share_of_cpu": (spent["handle_cpu"] + spent["thread"]) / spent["search"],
        "share_with_start": (spent["start"] + spent["handle_cpu"] + spent["thread"]) / spent["search"],
    }


if __name__ == "__main__":
    main()
