"""Nodes that join while a search runs: each one is checked and gets the files that it lacks, then its slots count.

If a node cannot run trials, this is said once. Then an actor of ours holds all its resources, so that Tune places
nothing there. A fault of a new node never ends the search.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from autopeft.errors import AutoPEFTError
from autopeft.executors import _nodes
from autopeft.executors._nodes import Luggage

LOOK_SECONDS = 5.0  # between two looks at the list of nodes


class Newcomers:
    """Knows which nodes can run trials, while nodes come and go.

    Args:
        nodes: Nodes at the start, as `ray.nodes()` returns them. New nodes are appended.
        room: Returns how many trials fit on a node.
        luggage: Files that trials need; None if `make_evaluate` needs nothing on a node.
        list_nodes: Returns all nodes, like `ray.nodes`.
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
        self._is_empty = False
        self._next_look = time.monotonic() + LOOK_SECONDS
        self._looker: threading.Thread | None = None
        self._looks: deque[int] = deque(maxlen=1)

    def slots(self) -> int | None:
        """Returns how many trials fit on the present nodes; None between two looks.

        A thread looks, as a call to a head that is gone, or cut off, does not come back.
        """
        if time.monotonic() >= self._next_look and (self._looker is None or not self._looker.is_alive()):
            self._next_look = time.monotonic() + LOOK_SECONDS
            self._looker = threading.Thread(target=self._look, daemon=True, name="autopeft-nodes")
            self._looker.start()
        return self._looks.pop() if self._looks else None

    def _look(self) -> None:
        with contextlib.suppress(Exception):  # the head does not answer: `_head` says so
            self._looks.append(self.look())

    def look(self) -> int:
        """Starts a thread that prepares new nodes, as this is slow. Returns the present slots."""
        alive = [node for node in self.list_nodes() if node["Alive"]]
        for node in alive:
            if node["NodeID"] not in self._known and self.room(node) > 0:
                self._known.add(node["NodeID"])
                threading.Thread(target=self.welcome, args=(node,), daemon=True, name="autopeft-newcomer").start()
        slots = sum(self.room(node) for node in alive if node["NodeID"] in self._usable)
        self._say_if_empty(slots)
        return slots

    def _say_if_empty(self, slots: int) -> None:
        """Says once that no node is left: otherwise the search would wait without a word."""
        if slots == 0 and not self._is_empty:
            print(
                "no node of the Ray cluster has room for a trial any more: waiting for one that joins. Ctrl-C ends the "
                "search, and `autopeft resume` goes on with it",
                file=sys.stderr,
                flush=True,
            )
        self._is_empty = slots == 0

    def welcome(self, node: Mapping[str, Any]) -> None:
        """Gives a node the files that it lacks. Afterwards its slots count."""
        try:
            if self.luggage is not None:
                self._supply(node, self.luggage)
        except Exception as fault:  # the search goes on without this node
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
    """Starts an actor that holds all CPUs and GPUs of a node as long as the returned handle lives."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    where = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
    has = node["Resources"]
    options = {"num_cpus": has.get("CPU", 0), "num_gpus": has.get("GPU", 0), "scheduling_strategy": where}
    return ray.remote(_Plug).options(**options).remote()


class _Plug:
    """Does nothing."""
