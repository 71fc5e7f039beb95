"""Trackers show a search elsewhere: views of the ledger. One plugin a file: `plugin(folder, **options)`.

A tracker may be slow or fail: this never delays the search, and no event is lost. A tracker that can be filled from the
ledger later (`autopeft track RUN`) adds nothing the second time.

A constructor gets `folder`, the options of the config, and those of the following that it names as parameters:

describe   (params) → the name of a configuration for people
quiet      whether the user wants to see nothing while the search runs
artifacts  (history, folder) → {artifact path: file}: writes the pictures and tables to show into that folder
adapters   (record) → the adapter folder of a trial, or None if none was kept
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from autopeft.history import History


class Tracker(Protocol):
    """Follows the events of one run. A tracker may also be `Fillable` or `Opened`; callers check this."""

    def start(self, history: History) -> None:
        """Begins with the history so far. The same History object then grows with each event."""

    def handle(self, event: Mapping[str, Any]) -> None:
        """Takes one event. The event is already written and folded into the history. Returns at once."""

    def finish(self) -> None:
        """Writes what is left, within a bounded time. The search is over, or interrupted."""


@runtime_checkable
class Fillable(Protocol):
    """A tracker with a store, which `autopeft track` and `confirm` can bring up to date with the ledger."""

    def fill(self, history: History) -> Mapping[str, int]:
        """Adds everything in the history that the store lacks, without `start`. Returns kind → number of added items.

        Raises:
            EnvironmentFault: The store fails.
            UsageError: Another process is writing this search.
        """


@runtime_checkable
class Opened(Protocol):
    """A tracker that can be opened in another program."""

    def open_command(self, history: History) -> str:
        """Returns the one line that opens this search there: a command, or an address."""
