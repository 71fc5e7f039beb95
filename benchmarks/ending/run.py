"""How a search ends before its trials do: by Ctrl-C once, by Ctrl-C twice, by its budget of time.

    python benchmarks/ending/run.py [--executors serial,packed,ray_tune] [--ways once,twice,hours] [--repeats 3]

Real commands, as a user starts them: `autopeft search` on digits, 60 epochs a trial, MLflow on a SQLite file beside the
console. Ctrl-C comes after two told trials, a second one half a second later. Linux.

One JSON line for each executor and way, lists over --repeats:

seconds       from the first Ctrl-C to the process's end; for `hours` from the budget's end to the search's
codes         exit codes: 130, of an interrupt; 0 or 4 of a budget
left          processes that the command started, and that are alive 5 seconds after its end
trial_seconds train and evaluation seconds of the longest trial told
late_asks     of `hours`: trials that began after the budget's end
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
from autopeft import ledger  # noqa: E402
from tests.executors.driver import processes  # noqa: E402

EXECUTORS: dict[str, Any] = {
    "serial": "serial",
    "packed": {"name": "packed", "slots": 4},
    "ray_tune": {"name": "ray_tune", "slots": 2},
}
WAYS = ("once", "twice", "hours")
CONFIG = {
    "model": "digits", "task": "digits", "data": {}, "space": "digits", "sampler": "random", "stopper": "never",
    "training": {"epochs": 60, "precision": "fp32", "attention": "eager"}, "trackers": ["console", "mlflow"],
    "budget": {"trials": 1000},
}  # fmt: skip
BUDGET_SECONDS, BETWEEN_SECONDS, AFTER_SECONDS = 20.0, 0.5, 5.0


class Command:
    """`autopeft search`, and all processes that come from it."""

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        (folder / "job.yaml").write_text(json.dumps(config))
        name, value = "AUTOPEFT_BENCHMARK_MARK", uuid.uuid4().hex
        self.mark, self.ledger = f"{name}={value}", folder / "runs" / "r" / ledger.NAME
        words = [sys.executable, "-m", "autopeft", "search", "job.yaml", "--name", "r"]
        env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", name: value}
        self.process = subprocess.Popen(words, cwd=folder, env=env, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)

    def events(self, kind: str) -> list[dict[str, Any]]:
        return [e for e in ledger.read(self.ledger) if e["event"] == kind] if self.ledger.is_file() else []

    def until_told(self, count: int) -> None:
        while len(self.events("tell")) < count:
            assert self.process.poll() is None, "it ended before its time"
            time.sleep(0.05)

    def left(self) -> int:
        """Counts what is alive some seconds after the end, and ends it."""
        time.sleep(AFTER_SECONDS)
        found = processes(self.mark)
        for folder in found:
            os.kill(int(folder.name), signal.SIGKILL)
        return len(found)


def interrupted(folder: Path, executor: Any, *, is_twice: bool) -> dict[str, Any]:
    command = Command(folder, {**CONFIG, "executor": executor})
    command.until_told(2)
    start = time.monotonic()
    command.process.send_signal(signal.SIGINT)
    if is_twice:
        time.sleep(BETWEEN_SECONDS)
        command.process.send_signal(signal.SIGINT)
    command.process.communicate()
    return {"seconds": time.monotonic() - start, **about(command)}


def out_of_time(folder: Path, executor: Any) -> dict[str, Any]:
    """The search's clock begins with its ledger, and its end is what it says: `ended: …`."""
    hours = BUDGET_SECONDS / 3600
    command = Command(folder, {**CONFIG, "executor": executor, "budget": {"hours": hours}})
    began = ended = float("nan")
    assert command.process.stderr is not None
    for line in command.process.stderr:
        began = time.monotonic() if line.startswith(b"searching in") else began
        ended = time.monotonic() if line.startswith(b"ended:") else ended
    command.process.wait()
    late = [event for event in command.events("ask") if event["seconds"] > BUDGET_SECONDS]
    return {"seconds": ended - began - BUDGET_SECONDS, **about(command), "late_asks": len(late)}


def about(command: Command) -> dict[str, Any]:
    told = [event["metrics"] for event in command.events("tell")]
    longest = max(each.get("train_seconds", 0.0) + each.get("evaluate_seconds", 0.0) for each in told)
    return {"codes": command.process.returncode, "left": command.left(), "trial_seconds": longest}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--executors", default=",".join(EXECUTORS))
    parser.add_argument("--ways", default=",".join(WAYS))
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    for name in options.executors.split(","):
        for way in options.ways.split(","):
            found = []
            for _ in range(options.repeats):
                with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
                    folder, executor = Path(temporary), EXECUTORS[name]
                    if way == "hours":
                        found.append(out_of_time(folder, executor))
                    else:
                        found.append(interrupted(folder, executor, is_twice=way == "twice"))
            line = {key: [round(each[key], 2) for each in found] for key in found[0]}
            print(json.dumps({"executor": name, "way": way, **line}), flush=True)


if __name__ == "__main__":
    main()
