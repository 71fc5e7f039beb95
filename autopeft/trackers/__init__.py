"""Trackers show a search elsewhere: views of the ledger. One plugin a file: `plugin(folder, **options)`.

A tracker may be slow, down or dying: it never delays the search and never loses anything, for it can be filled from
the ledger later (`autopeft track RUN`), and a second time adds nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from autopeft.history import History


class Tracker(Protocol):
    """Follows the events of one run."""

    def start(self, history: History) -> None:
        """Begins with all that the ledger says so far; the same History then grows with each event."""

    def handle(self, event: Mapping[str, Any]) -> None:
        """Takes one event, just written and already folded into the history. Returns at once."""

    def finish(self) -> None:
        """The search is over, or interrupted: writes what is left, within a bounded time."""
