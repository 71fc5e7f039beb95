"""A search on a cluster whose trials train nothing: `python -m tests.cluster.toy FOLDER JSON`, and its tests' view of it.

Params and metrics of a number depend on the number alone, so that any executor and any number of drivers agree.
JSON: `options` of `ray_tune`, `trials`, and `seconds` of each of ten steps. What happens to a trial: see `Toy`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from autopeft import ledger
from autopeft.errors import AutoPEFTError
from autopeft.orders import Orders
from autopeft.search import Search
from autopeft.stoppers.never import NeverStopper
from tests.cluster.namespaces import PROJECT, Cluster, Machine, until
from tests.executors.conversations import OBJECTIVES, SPACE, Toy, lines, make_search, outcome

# Workers see the tests, as a user's nodes see their own packages; autopeft itself travels.
SEES_TESTS = {"PYTHONPATH": str(PROJECT)}


class Draws:
    """A sampler that hears nothing."""

    def ask(self, number: int, seed: int) -> Mapping[str, Any]:
        return SPACE.draw(np.random.default_rng(seed))

    def begin(self, record: object) -> None:
        pass

    def tell(self, record: object) -> None:
        pass


def search_in(folder: Path, trials: int) -> Search:
    orders = Orders(folder)
    orders.clear_stop()
    return make_search(folder, trials=trials, sampler=Draws(), stopper=NeverStopper(OBJECTIVES), orders=orders)


def main() -> None:
    folder, spec = Path(sys.argv[1]), json.loads(sys.argv[2])
    from autopeft.executors.ray_tune import RayTune

    try:
        RayTune(**spec["options"]).run(search_in(folder, spec["trials"]), Toy(folder, spec["seconds"]))
    except AutoPEFTError as fault:
        print(f"error: {fault}", file=sys.stderr)
        sys.exit(fault.exit_code)


class Toys:
    """Such a search, from outside.

    It ends by order, as the last trials of a budget are put in an order that depends on how long others took.

    Args:
        cluster: Where it runs; its folder is on the disk that all see.
    """

    def __init__(self, cluster: Cluster, name: str, seconds: float = 0.3, **options: Any) -> None:
        self.cluster, self.trials = cluster, 10_000
        self.folder = cluster.folder / name
        self.folder.mkdir()
        self.printed = cluster.folder / f"{name}.printed"
        self.spec = {"seconds": seconds, "options": {"address": cluster.address, **options}}
        self.driver: subprocess.Popen[bytes]

    def start(self) -> Toys:
        """Starts a driver, which begins or goes on."""
        words = [sys.executable, "-m", "tests.cluster.toy", str(self.folder)]
        spec = json.dumps({**self.spec, "trials": self.trials})
        environment = {**self.cluster.environment, "PYTHONPATH": str(PROJECT)}
        self.driver = self.cluster.spawn(
            [*words, spec], self.cluster.head, env=environment, output=self.printed, cwd=PROJECT
        )
        self.cluster.drivers.append(self.driver)
        return self

    def until(self, happens: Any) -> float:
        """Waits until something happens. Fails if the driver ends before it."""

        def happens_or_ends() -> Any:
            found = happens()
            assert found or self.driver.poll() is None, f"the driver ended early: {self.printed.read_text()}"
            return found

        return until(happens_or_ends)

    def end(self, code: int = 0) -> None:
        """Waits for the driver's end."""
        until(lambda: self.driver.poll() is not None)
        assert self.driver.poll() == code, self.printed.read_text()

    def stop(self, told: int = 0) -> None:
        """Orders an end, once so many were told, after the running trials. What was asked for is its budget then."""
        self.until(lambda: len(self.tells()) >= told)
        Orders(self.folder).give_stop(now=False)
        self.end()
        self.trials = sum(event["event"] == "ask" for event in self.events())

    def events(self) -> list[dict[str, Any]]:
        path = self.folder / ledger.NAME
        return ledger.read(path) if path.exists() else []

    def tells(self) -> list[dict[str, Any]]:
        return [event for event in self.events() if event["event"] == "tell"]

    def lost(self) -> list[int]:
        """Numbers that were told as lost by the machine's fault, once for each time."""
        return [event["number"] for event in self.tells() if event.get("fault") == "machine"]

    def on(self, machine: Machine) -> list[int]:
        """The trials that run on a machine."""
        told, begun = {event["number"] for event in self.tells()}, self.begun_in(set(machine.pids()))
        return sorted(begun - told)

    def begun_in(self, pids: set[int]) -> set[int]:
        """The trials that began in one of these processes."""
        return {number for number, pid in lines(self.folder, "started") if pid in pids}

    def assert_whole(self) -> None:
        """All trials are complete, each told once each time that it began, and as `serial` has them."""
        assert ends(self.events()) == dict.fromkeys(range(self.trials), "COMPLETE")
        found, expected = outcome(self.folder), outcome(self._serial())
        differing = {number: (found[number], expected[number]) for number in found if found[number] != expected[number]}
        assert not differing, differing

    def _serial(self) -> Path:
        from autopeft.executors.serial import Serial

        folder = self.folder / "serial"
        conversation = search_in(folder, self.trials)
        Serial().run(conversation, Toy(folder))
        conversation.ledger.close()
        return folder


def ends(events: Sequence[Mapping[str, Any]]) -> dict[int, str]:
    """Returns how each trial ended at last: its status, running or lost. Each was told once each time that it began."""
    state: dict[int, str] = {}
    for event in events:
        kind, number = event["event"], event.get("number", -1)
        if kind == "ask":
            assert number not in state
            state[number] = "running"
        elif kind == "rerun":
            assert state[number] in ("running", "lost"), "what was told well runs no second time"
            state[number] = "running"
        elif kind == "tell":
            assert state[number] == "running", "told twice"
            state[number] = "lost" if event.get("fault") == "machine" else event["status"]
    return state


if __name__ == "__main__":
    main()
