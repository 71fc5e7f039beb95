"""A machine on which everything takes twenty times as long: a search is late there, and ends as it does elsewhere.

Where this process may make a cgroup, the search gets a twentieth of its CPUs as the cgroup's quota. Elsewhere all its
processes are stopped and go on, again and again, so that they run for a twentieth of the time.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from autopeft.history import History
from autopeft.ledger import NAME, read
from tests.executors.conversations import outcome
from tests.executors.driver import PROJECT, processes

CONFIG = {
    "model": "digits",
    "task": "digits",
    "data": {},
    "space": {
        "method": ["head", "norm"],
        "head": {"lr": {"float": [3e-3, 3e-1], "log": True, "default": 3e-2}},
        "norm": {"lr": {"float": [1e-2, 1.0], "log": True, "default": 1e-1}},
    },
    "training": {"steps": 8, "precision": "fp32", "attention": "eager"},
    "sampler": "random",
    "stopper": "never",
    "trackers": [],
    "budget": {"trials": 5},
    "keep": "none",
}
SHARE = 1 / 20
CYCLE_SECONDS = 0.5
PERIOD_MICROSECONDS = 100_000
CGROUPS = Path("/sys/fs/cgroup")


class Search:
    """A search as a user starts it, and all processes that came from it. The context kills what is left of them.

    Args:
        folder: A new folder for config, run and output.
        executor: Of the config.
        group: A cgroup's list of processes, for them to join.
        params: What is tried; None for the methods' defaults and what is drawn at random.
    """

    def __init__(
        self,
        folder: Path,
        executor: object,
        group: Path | None = None,
        params: Sequence[Mapping[str, object]] | None = None,
    ) -> None:
        folder.mkdir(parents=True)
        config = {**CONFIG, "executor": executor, "runs": str(folder / "runs"), "name": "r"}
        if params is not None:
            config["sampler"] = {"name": "fixed", "params": list(params)}
        (folder / "job.yaml").write_text(json.dumps(config))
        self.run, self.printed = folder / "runs" / "r", folder / "printed"
        self.mark = f"AUTOPEFT_TEST_MARK={uuid.uuid4().hex}"
        name, value = self.mark.split("=")
        join = "" if group is None else f"echo $$ > {group}; "
        command = [sys.executable, "-c", "from autopeft.cli import main; main()", "search", "job.yaml"]
        with open(self.printed, "wb") as to:
            self.process = subprocess.Popen(
                ["sh", "-c", f'{join}exec "$@"', "sh", *command],
                cwd=folder,
                env={**os.environ, "PYTHONPATH": str(PROJECT), name: value},
                stdout=to,
                stderr=to,
            )
        self.start = time.monotonic()

    def __enter__(self) -> Search:
        return self

    def __exit__(self, *fault: object) -> None:
        self.signal(signal.SIGKILL)
        self.process.wait()

    def signal(self, number: int) -> None:
        for folder in processes(self.mark):
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(folder.name), number)

    def end(self) -> float:
        """Waits for its end, and asserts that it is a good one. Returns the seconds since its start."""
        assert self.process.wait() == 0, self.printed.read_text()
        return time.monotonic() - self.start


@contextlib.contextmanager
def quota(cpus: int) -> Iterator[Path | None]:
    """Makes a cgroup with a share of some CPUs. Yields its list of processes; None if none can be made here."""
    is_old = (CGROUPS / "cpu").is_dir()
    group = (CGROUPS / "cpu" if is_old else CGROUPS) / f"autopeft-{uuid.uuid4().hex[:8]}"
    share = int(PERIOD_MICROSECONDS * cpus * SHARE)
    limits = {"cpu.cfs_period_us": str(PERIOD_MICROSECONDS), "cpu.cfs_quota_us": str(share)}
    try:
        group.mkdir()
        for name, value in (limits if is_old else {"cpu.max": f"{share} {PERIOD_MICROSECONDS}"}).items():
            (group / name).write_text(value)
    except OSError:
        with contextlib.suppress(OSError):
            group.rmdir()
        yield None
        return
    try:
        yield group / "cgroup.procs"
    finally:
        end = time.monotonic() + 60
        while group.exists() and time.monotonic() < end:  # a cgroup goes once its last process has gone
            with contextlib.suppress(OSError):
                group.rmdir()
            time.sleep(0.1)


def stop_and_go(search: Search) -> None:
    """Lets the processes of a search run for a share of the time, to its end."""
    while search.process.poll() is None:
        search.signal(signal.SIGSTOP)
        time.sleep(CYCLE_SECONDS * (1 - SHARE))
        search.signal(signal.SIGCONT)
        time.sleep(CYCLE_SECONDS * SHARE)


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize(("executor", "cpus"), [("serial", 1), ({"name": "ray_tune", "slots": 2}, 2)])
def test_a_starved_machine_delays_a_search_and_ends_none(tmp_path, executor, cpus, capsys):
    with Search(tmp_path / "fed", executor) as fed:
        took = fed.end()
    with quota(cpus) as group, Search(tmp_path / "starved", executor, group) as starved:
        if group is None:
            threading.Thread(target=stop_and_go, args=(starved,), daemon=True).start()
        late = starved.end()
    how = "a CPU quota" if group is not None else "stop and go"
    with capsys.disabled():
        print(f"\n{executor}, starved by {how}: {late:.0f} s in place of {took:.0f}; {starved.printed.read_text()!r}")
    told = [event["number"] for event in read(starved.run / NAME) if event["event"] == "tell"]
    assert sorted(told) == list(range(5)), "each is told once"
    assert History.read(starved.run / NAME).counts() == {"COMPLETE": 5}
    found, expected = outcome(starved.run), outcome(fed.run)
    if cpus == 1:
        assert found == expected
        return
    # The last trials of two slots begin in the order of their forecast times, so these two may change places.
    tried = [[of_run[number][0] for number in range(5)] for of_run in (found, expected)]
    assert tried[0] in (tried[1], [*tried[1][:3], tried[1][4], tried[1][3]])
    assert [found[number] for number in range(3)] == [expected[number] for number in range(3)]
    with Search(tmp_path / "again", "serial", params=tried[0]) as again:
        again.end()
    assert found == outcome(again.run), "each number has what `serial` has of it"
