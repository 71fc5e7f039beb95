"""Nodes that join while a search runs: each is asked and given what it lacks, then its slots count.

A node that cannot take trials is said once, and plugged: an actor of ours holds its resources, so that Tune puts
nothing there. Whatever a newcomer lacks, the search goes on.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from autopeft.errors import AutoPEFTError
from autopeft.executors import _nodes
from autopeft.executors._nodes import Luggage

LOOK_SECONDS = 5.0  # between two looks at who is there


class Newcomers:
    """Who may take trials, while nodes come and go.

    Args:
        nodes: That are in it from the start, as `ray.nodes()` gives them; grows.
        room: How many trials a node holds.
        luggage: What trials need; None where `make_evaluate` asks nothing of a node.
        list_nodes: As `ray.nodes`.
    """

    def __init__(
        self,
        nodes: list[Mapping[str, Any]],
        room: Callable[[Mapping[str, Any]], int],
        luggage: Luggage | None,
        list_nodes: Callable[[], Sequence[Mapping[str, Any]]],
    ) -> None:
        self.nodes, self.room, self.luggage, self.list_nodes = nodes, room, luggage, list_nodes
        self._known = {str(node["NodeID"]) for node in nodes}
        self._usable = set(self._known)
        self._plugs: list[Any] = []
        self._next_look = time.monotonic() + LOOK_SECONDS

    def slots(self) -> int | None:
        """Trials that the nodes of now hold; None between two looks."""
        if time.monotonic() < self._next_look:
            return None
        self._next_look = time.monotonic() + LOOK_SECONDS
        return self.look()

    def look(self) -> int:
        """Welcomes who is new, in a thread of its own: that takes its time. Returns what `slots` does."""
        alive = [node for node in self.list_nodes() if node["Alive"]]
        for node in alive:
            if node["NodeID"] not in self._known and self.room(node) > 0:
                self._known.add(node["NodeID"])
                threading.Thread(target=self.welcome, args=(node,), daemon=True, name="autopeft-newcomer").start()
        return sum(self.room(node) for node in alive if node["NodeID"] in self._usable)

    def welcome(self, node: Mapping[str, Any]) -> None:
        """Gives a node what it lacks; from then on its slots count."""
        try:
            if self.luggage is not None:
                self._supply(node, self.luggage)
        except Exception as fault:  # of a node that nobody needs: the search goes on without it
            text = str(fault) if isinstance(fault, AutoPEFTError) else f"{type(fault).__name__}: {fault}"
            print(f"a node joined that takes no trials: {text.splitlines()[0]}", file=sys.stderr, flush=True)
            with contextlib.suppress(Exception):
                self._plugs.append(plug(node))
            return
        self.nodes.append(node)
        self._usable.add(str(node["NodeID"]))

    def _supply(self, node: Mapping[str, Any], luggage: Luggage) -> None:
        (lacking,) = _nodes.ask([node], Luggage.lacks, luggage)
        parcels = {path: luggage.parcels.get(path) or _nodes.parcel(path) for path in lacking}
        self.luggage = luggage = replace(luggage, parcels={**luggage.parcels, **parcels})
        _nodes.ask([node], _nodes.settle, luggage)


def plug(node: Mapping[str, Any]) -> Any:
    """An actor that holds all CPUs and GPUs of a node while it is referred to."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    where = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
    has = node["Resources"]
    options = {"num_cpus": has.get("CPU", 0), "num_gpus": has.get("GPU", 0), "scheduling_strategy": where}
    return ray.remote(_Plug).options(**options).remote()


class _Plug:
    """Does nothing."""
