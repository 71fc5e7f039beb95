"""What a worker asks of a node: CPUs, GPUs and other resources, as Ray counts them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from autopeft.errors import UsageError

OWN_KEYS = {"CPU": "cpus_per_trial", "GPU": "gpus_per_trial"}
MOST_NAMED = 6  # nodes, and kinds of nodes, in a message
ROUNDING = 1e-9  # 0.3 of a CPU hold three times 0.1


@dataclass(frozen=True)
class Demand:
    """Resources of one worker.

    Attributes:
        cpus, gpus: CPUs and GPUs; a fraction of a GPU is never split over two GPUs.
        others: Name → amount of each other resource.
    """

    cpus: float
    gpus: float = 0
    others: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, amount in self.others.items():
            if name.upper() in OWN_KEYS:
                raise UsageError(f"executor.resources_per_trial: {name} is executor.{OWN_KEYS[name.upper()]}")
            if isinstance(amount, bool) or not isinstance(amount, int | float) or not 0 < amount < math.inf:
                raise UsageError(f"executor.resources_per_trial: {name} is a number above 0, not {amount!r}")

    def to_json(self) -> dict[str, float]:
        """Returns the resources as Tune takes them."""
        return {"cpu": self.cpus, "gpu": self.gpus, **self.others}

    def room(self, resources: Mapping[str, float]) -> int:
        """Returns how many workers fit on a node."""
        needed = {"CPU": self.cpus, **self.others}
        room = min(math.floor(resources.get(name, 0.0) / amount + ROUNDING) for name, amount in needed.items())
        if not self.gpus:
            return room
        have = resources.get("GPU", 0.0)
        if self.gpus >= 1:
            return min(room, math.floor(have / self.gpus + ROUNDING))
        return min(room, int(have) * math.floor(1 / self.gpus + ROUNDING))

    def why_no_room(self, nodes: Sequence[Mapping[str, Any]]) -> str:
        """Says what a trial asks for, what each node has of it, which nodes ended, and what to do.

        Args:
            nodes: All that Ray knows of, as `ray.nodes()` returns them.
        """
        have: dict[str, list[str]] = {}
        for node in nodes:
            if node["Alive"]:
                have.setdefault(self._describe(node["Resources"]), []).append(node["NodeManagerAddress"])
        said = [f"{_some(addresses)}: {text}" for text, addresses in list(have.items())[:MOST_NAMED]]
        here = {address for addresses in have.values() for address in addresses}
        if gone := sorted({node["NodeManagerAddress"] for node in nodes} - here):
            said.append(f"{_some(gone)}: ended")
        return (
            f"a trial asks for {self._describe(self._asked())}, but no node of Ray has room for it ({'; '.join(said)}). "
            f"Ask for less (executor.{', executor.'.join(self._keys())}), or start a node that has it: "
            f"`ray start {self._options()}`"
        )

    def _asked(self) -> dict[str, float]:
        every = {"CPU": self.cpus, "GPU": self.gpus, **self.others}
        return {name: amount for name, amount in every.items() if amount}

    def _describe(self, resources: Mapping[str, float]) -> str:
        """Says how much there is of each resource that a trial asks for."""
        return ", ".join(f"{resources.get(name, 0.0):.12g} {name}" for name in self._asked())

    def _keys(self) -> list[str]:
        """Returns the keys of `executor` that ask for something."""
        return ["cpus_per_trial", *["gpus_per_trial"] * (self.gpus > 0), *["resources_per_trial"] * bool(self.others)]

    def _options(self) -> str:
        """Returns the options of `ray start` for a node with room for one worker."""
        options = [f"--num-cpus={math.ceil(self.cpus)}", *[f"--num-gpus={math.ceil(self.gpus)}"] * (self.gpus > 0)]
        custom = {name: amount for name, amount in self.others.items() if name != "memory"}
        options += [f"--memory={self.others['memory']:.0f}"] if "memory" in self.others else []
        return " ".join([*options, *([f"--resources='{json.dumps(custom)}'"] if custom else [])])


def _some(addresses: Sequence[str]) -> str:
    """Names some nodes, and counts the others."""
    named = ", ".join(addresses[:MOST_NAMED])
    return named if len(addresses) <= MOST_NAMED else f"{named} and {len(addresses) - MOST_NAMED} more"
