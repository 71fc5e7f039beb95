"""A search as a process of its own, to be interrupted and killed: `python -m tests.executors.driver FOLDER JSON`.

JSON: `executor`, its `options`, and of the search `trials`, of a Toy `seconds` and `steps`.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent.parent

PATIENCE_SECONDS = 300.0  # a bound for machines that are short of time; no test is about it
# Ray's own agents hold no model, no data and no GPU. They wait for Ray's control store to come back before they end,
# a minute by its default, after everything that serves trials has gone.
AGENTS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")


def main() -> None:
    folder, spec = sys.argv[1], json.loads(sys.argv[2])
    from autopeft import plugins
    from tests.executors.conversations import Toy, make_search

    conversation = make_search(folder, trials=spec["trials"])
    executor = plugins.load("executors", spec["executor"])(**spec["options"])
    try:
        executor.run(conversation, Toy(folder, spec["seconds"], spec["steps"]))
    except KeyboardInterrupt:
        sys.exit(130)


class Driver:
    """Such a process, from outside.

    Attributes:
        folder: The run's.
        output: What it printed, once it has ended.
    """

    def __init__(self, folder, executor="serial", trials=12, seconds=0.0, steps=10, **options):
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        spec = {"executor": executor, "options": options, "trials": trials, "seconds": seconds, "steps": steps}
        self.mark = f"AUTOPEFT_TEST_MARK={uuid.uuid4().hex}"
        name, value = self.mark.split("=")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.executors.driver", str(folder), json.dumps(spec)],
            cwd=PROJECT,
            env={**os.environ, "PYTHONPATH": str(PROJECT), name: value},
            start_new_session=True,  # a process group of its own, as a shell gives to what runs in the foreground
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def ctrl_c(self) -> None:
        """As a terminal does it: to the whole process group."""
        os.killpg(self.process.pid, signal.SIGINT)

    def terminate(self, *, workers: bool) -> None:
        """SIGTERM to the driver, and to Ray's workers as well; not to its agents, without which a Ray node dies."""
        names = {folder: (folder / "cmdline").read_bytes().split(b"\0")[0] for folder in self._processes()}
        found = [folder for folder, name in names.items() if name.startswith(b"ray::") and b"Agent" not in name]
        for process in [self.process.pid, *(int(folder.name) for folder in found if workers)]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGTERM)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def wait(self, seconds=PATIENCE_SECONDS) -> int:
        self.output, _ = self.process.communicate(timeout=seconds)
        return self.process.returncode

    def until(self, condition, seconds=PATIENCE_SECONDS) -> None:
        """Waits until the condition holds."""
        end = time.monotonic() + seconds
        while not condition():
            assert self.process.poll() is None, f"the driver ended early: {self.process.communicate()[0]}"
            assert time.monotonic() < end, "waited in vain"
            time.sleep(0.005)

    def left(self) -> list[str]:
        """The command lines of all processes that this one started, itself included, and that are still there.

        Ray's agents are left out.
        """
        found = []
        for folder in self._processes():
            with contextlib.suppress(OSError):
                found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()[:100])
        return [line for line in found if not line.startswith(AGENTS)]

    def _processes(self) -> list[Path]:
        """The folders in /proc of all that are alive."""
        return processes(self.mark)

    def is_gone(self) -> bool:
        """Waits for the end of all processes. Returns whether none is left."""
        end = time.monotonic() + PATIENCE_SECONDS
        while left := self.left():
            if time.monotonic() > end:
                print("left over:", *left, sep="\n")
                return False
            time.sleep(0.1)
        return True


def processes(mark: str) -> list[Path]:
    """The folders in /proc of all processes that are alive and have a variable, `NAME=value`, in their environment."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
            if mark.encode() in (folder / "environ").read_bytes().split(b"\0") and state != "Z":
                found.append(folder)
    return found


if __name__ == "__main__":
    main()
