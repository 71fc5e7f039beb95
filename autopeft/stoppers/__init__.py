"""Stoppers end trials early. One plugin a file: `plugin(objectives, **options)`.

The objectives are those of a rung. The first one, the score, may be judged by the running training loss instead of the
validation metric (`objectives.with_signal`). The others must be known before training, and are read from
`record.known`.
"""

from __future__ import annotations

from typing import Protocol

from autopeft.history import Record
from autopeft.trial import Report


class Stopper(Protocol):
    """Judges rungs. Rebuilt at every start from the ledger's reports, in their order."""

    def report(self, record: Record, report: Report) -> bool:
        """Takes a rung of a running trial; `report` is the last of `record.reports`. Returns whether to stop it."""

    def tell(self, record: Record) -> None:
        """Takes the record of a trial that has ended."""
