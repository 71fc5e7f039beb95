"""Every trial runs to its end."""

from __future__ import annotations

from collections.abc import Sequence

from autopeft.history import Record
from autopeft.objectives import Objective
from autopeft.trial import Report


class NeverStopper:
    """Never stops a trial. The baseline of all other stoppers."""

    def __init__(self, objectives: Sequence[Objective]) -> None:
        pass

    def report(self, record: Record, report: Report) -> bool:
        return False

    def tell(self, record: Record) -> None:
        pass


plugin = NeverStopper
