"""A run of 10,000 trials: resumed, reported, opened in a browser, on a leaderboard of 20, and its driver's memory.

    python benchmarks/size/run.py [--trials 10000] [--runs 20] [--sampler tpe] [--trackers console] [--folder FOLDER]

The run is made by the real driver (ledger, space and counts of `autopeft demo`, trackers, reports) in about 15 minutes. Its
executor pretends: trials take no time, report twice, complete, and have the scores and details of a real one. Proposals are
drawn at random, as 10,000 asks of TPE take hours; a resume replays them into --sampler and asks it for one more trial.
--folder keeps the run, and uses it again where it is there already.

Prints each figure with its bar, then one JSON line. Each is measured in a process of its own, wall time and CPU seconds:

- resume: `autopeft resume` from its start to the first new trial, with imports, model and data; replay: what of that is
  the ledger, read and folded into history, stopper and sampler; ask: the sampler's next proposal.
- report: writing report.html, its size, its elements. browser: a headless Chromium, from its navigation to the load
  event and the first frame after it (`--browser` names the program; without one the line says so).
- leaderboard: of --runs copies of the run; with --runs-trials 100 of as many runs of 100 trials each.
- memory: the driver's resident set when a tenth of the trials was told, and at the end, before reports are written; with
  --trackers console,mlflow MLflow's pages are in it, with a client that answers at once, and the front was drawn once.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
from benchmarks.driver_overhead.simulated import Simulated  # noqa: E402

BARS = {"resume_seconds": 10.0, "browser_seconds": 2.0, "report_mb": 10.0, "leaderboard_seconds": 5.0}
MEMORY_MIB = 100.0
ROWS = (16, 17, 18, 19, 20)  # of each class in a pretended validation split
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


# ── the run ─────────────────────────────────────────────────────────────────────────────────────────────────────────


class Pretend:
    """An executor whose trials take no time. Notes the driver's memory."""

    processes = pack = 1

    def __init__(self, check, trials, slots=8):
        self.check_params, self.trials, self.slots = check, trials, slots
        self.is_drawn = threading.Event()  # whether the front was drawn, so that what draws is in memory
        self.memory = []  # MiB at a tenth of the trials, and at the end

    def check(self):
        pass

    def run(self, search, make_evaluate):
        del make_evaluate
        executor = Simulated(self.slots, lambda trial, step: float(step or 240), clock=lambda: 0.0)
        executor.run(Watched(search, self), lambda should_end: partial(evaluate, self.check_params))
        self.memory.append(resident())


class Watched:
    """A search that notes the memory when a tenth was told."""

    def __init__(self, search, executor):
        self.search, self.executor, self.told = search, executor, 0
        self.ask, self.report, self.prepare = search.ask, search.report, search.prepare

    def tell(self, result):
        self.search.tell(result)
        self.told += 1
        if self.told == self.executor.trials // 10:
            self.executor.is_drawn.wait()
            self.executor.memory.append(resident())


def evaluate(check, trial):
    """A trial that knows its scores: they grow with the size, and hang on the learning rate."""
    from autopeft.trial import Report, Result, Status

    size = check(trial.params)["trainable_parameters"]
    rate = next((value for key, value in trial.params.items() if key.endswith(".lr")), 1e-2)
    rng = np.random.default_rng(trial.seed)
    score = float(np.clip(0.6 + 0.08 * np.log10(size) - 0.03 * np.log10(rate / 1e-2) ** 2 + rng.normal(0, 0.02), 0, 1))
    for step in (48, 120):
        yield Report(step, {**scores(score * step / 240), "train_loss": 1.6 - score * step / 240})
    correct = rng.binomial(ROWS, score).tolist()
    wrong = [rows - right for rows, right in zip(ROWS, correct)]
    detail = {"rows": list(ROWS), "predicted": [right + 1 for right in correct], "correct": correct}
    detail["confused"] = [[label, (label + 1) % len(ROWS), count] for label, count in enumerate(wrong) if count]
    spent = {"attach_seconds": 0.01 + score, "train_seconds": 3 + score, "evaluate_seconds": 0.1 + score / 100}
    made = {"peak_memory_bytes": 8e8 + size, "micro_batch_size": 32.0, "train_loss": 1.6 - score}
    yield Result(trial, Status.COMPLETE, {**scores(score), **made, **spent}, detail=detail, ran="plain")


def scores(score):
    names = ("accuracy", "macro_f1", "balanced_accuracy", "matthews_correlation")
    return {**{name: score - 0.001 * index for index, name in enumerate(names)}, "loss": 1.6 - score}


def make_run(folder, trials, sampler, trackers):
    """Makes a run in a folder, by the real driver. Returns its memory (`Pretend.memory`) and the CPU seconds of it."""
    from autopeft import app, wiring
    from autopeft.config import load
    from autopeft.run_folder import opened, write_config
    from autopeft.runs import go

    overrides = ["executor=serial", "stopper=never", f"trackers=[{trackers}]", f"budget.trials={trials}"]
    config = load(app.DEMO, [*overrides, f"sampler={sampler}", f"runs={folder.parent}"])
    folder.mkdir(parents=True)
    prepared = wiring.prepare(config, folder, wiring.ready_executor(config), measure=False)
    executor = Pretend(prepared.counter.check, trials)
    if "mlflow" in trackers:
        import mlflow

        from autopeft.trackers import mlflow as tracker
        from tests.trackers.stores import AnswersAtOnce

        # Trials that take no time leave none for a store, nor for pauses: only what the tracker holds is looked at
        mlflow.MlflowClient, tracker.WRITE_SHARE = AnswersAtOnce, 1e9
        # A search draws its front in its first minute: here before a tenth of its trials is told
        tracker.FIRST_SHOW_SECONDS, show = 0.0, tracker.Sync.show
        tracker.Sync.show = lambda sync: (show(sync), executor.is_drawn.set())
    else:
        executor.is_drawn.set()
    # TPE's study takes each trial, as in any search, and is never asked; NSGA-II's would breed
    drawing = f"sampler={{name: tpe, n_startup_trials: {trials + 1}}}" if sampler == "tpe" else "sampler=random"
    drawn = load(app.DEMO, [*overrides, drawing, f"runs={folder.parent}"])
    with opened(folder) as ledger:
        ledger.append(prepared.header)
    write_config(folder, prepared.header["config"])
    start = time.process_time()
    go(replace(prepared, executor=executor, config=drawn), folder, quiet=True)
    return {"memory_mib": executor.memory, "driver_cpu_seconds": time.process_time() - start}


def resident():
    """MiB of this process in memory now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


# ── what is measured, each in a process of its own ──────────────────────────────────────────────────────────────────


def resumed(folder, trials):
    """Goes on with a run by one trial, which ends as soon as it is asked for. Works on a copy of the run."""
    from autopeft import runs, wiring
    from autopeft.search import Search

    found = {}

    class Asks(Pretend):
        def run(self, search, make_evaluate):
            start, cpu = time.perf_counter(), time.process_time()
            search.ask()
            found.update(ask_seconds=time.perf_counter() - start, ask_cpu_seconds=time.process_time() - cpu)
            # From the command's own start: what the interpreter took is CPU time of this process, too.
            found.update(resume_seconds=time.time() - began(), resume_cpu_seconds=time.process_time())
            raise KeyboardInterrupt

    replay = Search._replay

    def timed(self):
        start, cpu = time.perf_counter(), time.process_time()
        replay(self)
        found.update(replay_seconds=time.perf_counter() - start, replay_cpu_seconds=time.process_time() - cpu)

    Search._replay = timed
    wiring.ready_executor = lambda config: Asks(None, 0)
    with contextlib.suppress(KeyboardInterrupt):
        runs.open_run(folder).resume([f"budget.trials={trials + 1}"], quiet=True)
    return found


def began():
    """When this process began, by the clock of `time.time`."""
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    up = float(Path("/proc/uptime").read_text().split()[0])
    return time.time() - up + ticks / os.sysconf("SC_CLK_TCK")


def reported(folder):
    from autopeft.runs import open_run

    start, cpu = time.perf_counter(), time.process_time()
    run = open_run(folder)
    opened = time.process_time() - cpu
    paths = run.report()
    page = paths[0].read_text(encoding="utf-8")
    return {
        "open_cpu_seconds": opened,
        "report_seconds": time.perf_counter() - start,
        "report_cpu_seconds": time.process_time() - cpu,
        "report_mb": len(page.encode()) / 1e6,
        "report_md_mb": paths[1].stat().st_size / 1e6,
        "report_elements": len(re.findall(r"<[a-z]", page)),
    }


def ranked(folders):
    from autopeft import app

    start, cpu = time.perf_counter(), time.process_time()
    app.leaderboard(folders)
    return {
        "leaderboard_seconds": time.time() - began(),
        "leaderboard_cpu_seconds": time.process_time(),
        "leaderboard_own_seconds": time.perf_counter() - start,
        "leaderboard_own_cpu_seconds": time.process_time() - cpu,
    }


def apart(name, *arguments):
    """Calls a function of this file in a process of its own; its answer is the last line that it prints."""
    words = [sys.executable, __file__, "--apart", name, json.dumps(arguments)]
    done = subprocess.run(
        words, stdout=subprocess.PIPE, text=True, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    return json.loads(done.stdout.splitlines()[-1])


APART = {
    "make_run": lambda folder, *rest: make_run(Path(folder), *rest),
    "resumed": lambda folder, trials: resumed(Path(folder), trials),
    "reported": lambda folder: reported(Path(folder)),
    "ranked": ranked,
}


# ── the browser ─────────────────────────────────────────────────────────────────────────────────────────────────────


class Browser:
    """A headless Chromium, spoken to through its debugging pipe."""

    def __init__(self, program, folder):
        read_in, self.to = os.pipe()
        self.back, write_out = os.pipe()
        words = [
            program,
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--remote-debugging-pipe",
            "--no-first-run",
        ]
        words += [f"--user-data-dir={folder}", "--window-size=1280,900", "--disable-dev-shm-usage", "about:blank"]
        shell = ["bash", "-c", f'exec "$@" 3<&{read_in} 4>&{write_out}', "browser", *words]
        with open(Path(folder) / "log", "w") as log:
            self.process = subprocess.Popen(shell, pass_fds=(read_in, write_out), stdout=log, stderr=log)
        os.close(read_in)
        os.close(write_out)
        self.buffer, self.number, self.session = b"", 0, None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.call("Page.enable")

    def call(self, method, **params):
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.to, json.dumps(message).encode() + b"\0")
        while (answer := self.next()).get("id") != self.number:
            pass
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        return answer["result"]

    def next(self):
        while b"\0" not in self.buffer:
            data = os.read(self.back, 2**16)
            if not data:
                raise RuntimeError("the browser ended")
            self.buffer += data
        line, _, self.buffer = self.buffer.partition(b"\0")
        return json.loads(line)

    def seconds(self, script):
        """Runs a script; returns its seconds up to the end of the next frame."""
        frame = "new Promise(r => requestAnimationFrame(() => setTimeout(r)))"
        text = f"const start = performance.now(); {script}; await {frame}; return performance.now() - start"
        return self.evaluate(f"(async () => {{ {text} }})()") / 1000

    def evaluate(self, text):
        result = self.call("Runtime.evaluate", expression=text, awaitPromise=True, returnByValue=True)
        return result["result"].get("value")

    def open(self, page):
        """Opens a file. Returns the seconds from its navigation to the first frame after its load event."""
        self.call("Page.navigate", url=page.resolve().as_uri())
        while self.next().get("method") != "Page.loadEventFired":
            pass
        frame = "new Promise(r => requestAnimationFrame(() => setTimeout(() => r(performance.now()))))"
        return self.evaluate(frame) / 1000

    def cpu_seconds(self):
        import psutil

        family = psutil.Process(self.process.pid)
        times = [process.cpu_times() for process in (family, *family.children(recursive=True))]
        return sum(each.user + each.system for each in times)

    def close(self):
        import psutil

        family = psutil.Process(self.process.pid).children(recursive=True)
        self.process.kill()
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait()


def browsed(page, program):
    """How long the report takes to open, and its table of trials to unfold; the median of three."""
    found = {"browser_seconds": [], "browser_cpu_seconds": [], "unfold_seconds": []}
    for _ in range(3):
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            browser = Browser(program, folder)
            try:
                before = browser.cpu_seconds()
                found["browser_seconds"].append(browser.open(page))
                found["browser_cpu_seconds"].append(browser.cpu_seconds() - before)
                unfold = "document.querySelectorAll('#trials details').forEach(d => { d.open = true })"
                found["unfold_seconds"].append(browser.seconds(unfold))
                elements = browser.evaluate("document.getElementsByTagName('*').length")
            finally:
                browser.close()
    return {**{name: float(np.median(values)) for name, values in found.items()}, "browser_elements": elements}


# ── all of it ───────────────────────────────────────────────────────────────────────────────────────────────────────


def measure(folder, options):
    """Returns all figures. The run is `folder`/size, the runs of the leaderboard are beside it."""
    run, out = folder / "size", {}
    if not (run / "ledger.jsonl").is_file():
        out |= apart("make_run", str(run), options.trials, options.sampler, options.trackers)
    with tempfile.TemporaryDirectory(dir=folder) as name:
        copied = shutil.copytree(run, Path(name) / "resumed", ignore=shutil.ignore_patterns("report.*"))
        out |= apart("resumed", str(copied), options.trials)
    out |= apart("reported", str(run))
    program = options.browser or next(filter(None, map(shutil.which, BROWSERS)), None)
    if program:
        out |= browsed(run / "report.html", program)
    many = [folder / f"board-{options.runs_trials or 'copy'}-{number}" for number in range(options.runs)]
    for each in many:
        if (each / "ledger.jsonl").is_file():
            continue
        if options.runs_trials:
            apart("make_run", str(each), options.runs_trials, options.sampler, "")
        else:
            each.mkdir()
            shutil.copyfile(run / "ledger.jsonl", each / "ledger.jsonl")
    out |= apart("ranked", [str(each) for each in many])
    return out


def show(found):
    """Prints the figures that have a bar."""
    for name, bar in BARS.items():
        if name not in found:
            print(f"{name:<22} not measured here: no browser ({', '.join(BROWSERS)})")
            continue
        cpu = found.get(name.replace("seconds", "cpu_seconds"))
        beside = f", {cpu:.2f} CPU seconds" if cpu is not None and name.endswith("seconds") else ""
        print(f"{name:<22} {found[name]:8.2f}  under {bar:g}{beside}  {'yes' if found[name] < bar else 'NO'}")
    if "memory_mib" in found:
        first, last = found["memory_mib"]
        grown = last - first
        verdict = "yes" if grown < MEMORY_MIB else "NO"
        print(f"{'memory_growth_mib':<22} {grown:8.1f}  under {MEMORY_MIB:g}, from a tenth  {verdict}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--runs-trials", type=int)
    parser.add_argument("--sampler", choices=("tpe", "nsga2", "random"), default="tpe")
    parser.add_argument("--trackers", default="console")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--browser")
    parser.add_argument("--apart", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.apart:
        name, arguments = options.apart
        print(json.dumps(APART[name](*json.loads(arguments))))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        found = measure(folder.resolve(), options)
    show(found)
    settings = {name: getattr(options, name) for name in ("trials", "runs", "runs_trials", "sampler", "trackers")}
    rounded = {name: round(value, 3) if isinstance(value, float) else value for name, value in found.items()}
    print(json.dumps({**settings, **rounded}))


if __name__ == "__main__":
    main()
