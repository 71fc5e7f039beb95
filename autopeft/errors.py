"""The tree of errors. Each says what was expected, what came and what to do; the CLI turns it into an exit code.

AutoPEFTError                1   something of ours is wrong
├── UsageError               2   what the user gave is wrong: one message, no traceback
│   ├── ConfigError          2   all faults of a config at once, each with its path
│   └── UnknownName          2   no plugin, metric or key of that name; did you mean …?
├── NothingCompleted         3   the search ended and no trial completed
├── BudgetSpent              4   the budget ended before any trial completed
├── EnvironmentFault         5   disk full, no such device, a cluster that cannot be reached
└── Refused                  –   a configuration that may not run: data for the search, never shown as an error
"""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass


class AutoPEFTError(Exception):
    """Something went wrong that autopeft knows how to explain."""

    exit_code = 1


class UsageError(AutoPEFTError):
    """What the user gave cannot be used."""

    exit_code = 2


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing wrong in a config.

    Attributes:
        path: Where, as keys joined by dots: `training.batch_size`.
        message: What was expected, what came, what to do.
        line: Line in the file, from 1; None if the value came from elsewhere (`--set`).
    """

    path: str
    message: str
    line: int | None = None

    def __str__(self) -> str:
        where = f"line {self.line}: " if self.line is not None else ""
        return f"{where}{self.path}: {self.message}" if self.path else f"{where}{self.message}"


class ConfigError(UsageError):
    """All faults of one config."""

    def __init__(self, faults: Sequence[Fault], source: str = "config") -> None:
        self.faults = tuple(faults)
        self.source = source
        count = "1 fault" if len(self.faults) == 1 else f"{len(self.faults)} faults"
        super().__init__("\n".join([f"{source}: {count}", *(f"  {fault}" for fault in self.faults)]))

    def __reduce__(self) -> tuple[type[ConfigError], tuple[tuple[Fault, ...], str]]:
        return ConfigError, (self.faults, self.source)  # args hold the text: rebuild from the faults


class UnknownName(UsageError):
    """An unknown name, with the nearest known one."""

    def __init__(self, kind: str, name: object, known: Iterable[str]) -> None:
        self.kind, self.name, self.known = kind, name, tuple(sorted(known))
        super().__init__(
            f"no {kind} called {name!r}.{did_you_mean(name, self.known)} There are: {', '.join(self.known)}"
        )

    def __reduce__(self) -> tuple[type[UnknownName], tuple[str, object, tuple[str, ...]]]:
        return UnknownName, (self.kind, self.name, self.known)


class NothingCompleted(AutoPEFTError):
    """The search ended and no trial completed."""

    exit_code = 3


class BudgetSpent(AutoPEFTError):
    """The budget ended before any trial completed."""

    exit_code = 4


class EnvironmentFault(AutoPEFTError):
    """The machine, the disk, the network or the cluster is not what the run needs."""

    exit_code = 5


class Refused(AutoPEFTError):
    """A configuration that may not run: over budget, empty, unsupported or a duplicate.

    Attributes:
        known: The configuration's counts, if they are the reason: with another budget it may run.
    """

    def __init__(self, reason: str, known: Mapping[str, float] | None = None) -> None:
        super().__init__(reason)
        self.known = dict(known or {})


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """Returns ` Did you mean 'tpe'?`, or nothing if no known name is near."""
    near = difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.6)
    return f" Did you mean {near[0]!r}?" if near else ""


def command(*words: object) -> str:
    """Quotes a command that a message suggests for pasting into a shell: `command("autopeft", "track", folder)`."""
    return f"`{shlex.join(map(str, words))}`"
