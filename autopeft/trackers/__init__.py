"""Trackers show a search elsewhere: views of the ledger. One plugin a file: `plugin(folder, **options)`.

A tracker may be slow, down or dying: it never delays the search and never loses anything. One that can be filled from
the ledger later (`autopeft track RUN`) adds nothing the second time.

A constructor is given what it names among its parameters, beside `folder` and the options of the config:

describe   (params) → what a person calls a configuration
quiet      whether the user wants to see nothing while the search runs
artifacts  (history, folder) → {artifact path: file}: writes the pictures and tables to show into that folder
adapters   (record) → the adapter folder of a trial, or None where none was kept
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from autopeft.history import History


class Tracker(Protocol):
    """Follows the events of one run. All that every tracker has; `Fillable` and `Opened` are asked for, never assumed."""

    def start(self, history: History) -> None:
        """Begins with all that the ledger says so far; the same History then grows with each event."""

    def handle(self, event: Mapping[str, Any]) -> None:
        """Takes one event, just written and already folded into the history. Returns at once."""

    def finish(self) -> None:
        """The search is over, or interrupted: writes what is left, within a bounded time."""


@runtime_checkable
class Fillable(Protocol):
    """A tracker that keeps what it is told, so that `autopeft track` and `confirm` bring it up to the ledger."""

    def fill(self, history: History) -> Mapping[str, int]:
        """Brings it to all that the history says, without `start`. Returns what was added, by kind: 0, the second time.

        Raises:
            EnvironmentFault: What it writes to fails.
            UsageError: Another process is writing this search.
        """


@runtime_checkable
class Opened(Protocol):
    """A tracker that can be looked at elsewhere."""

    def open_command(self, history: History) -> str:
        """The one line that opens it at this search: a command, or an address."""
