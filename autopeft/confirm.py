"""Confirming: retraining with fresh seeds, scored on the test split. A conversation like a search, without a sampler.

An executor runs it as it runs a search: it asks, reports and tells. Nothing is stopped early.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from autopeft.history import History, Record
from autopeft.ledger import Ledger
from autopeft.trial import Report, Result, Trial, derive_seed


@dataclass(frozen=True, slots=True)
class Candidate:
    """What is to be confirmed.

    Attributes:
        name: `trial 17`, or a baseline's name: `frozen head`, `full fine-tuning`.
        number: The trial; None where the search did not run it.
        params: What is trained.
    """

    name: str
    number: int | None
    params: Mapping[str, Any]

    @staticmethod
    def of(record: Record) -> Candidate:
        return Candidate(f"trial {record.number}", record.number, record.params)


class Confirm:
    """Hands out each candidate once a seed, and writes what comes back to the ledger.

    Args:
        ledger: Opened for writing; its confirmations so far say which seeds are used up.
        candidates: What to confirm.
        seeds: How many fresh seeds each.
        seed: The search's.
        listeners: Called with each event once it is on the disk.
    """

    def __init__(
        self,
        ledger: Ledger,
        candidates: Sequence[Candidate],
        seeds: int,
        seed: int,
        listeners: Sequence[Callable[[Mapping[str, Any]], None]] = (),
    ) -> None:
        self.ledger, self.listeners = ledger, tuple(listeners)
        self.history = History(ledger.events)
        used = [confirmation.name for confirmation in self.history.confirmations]
        self._jobs: dict[int, Candidate] = {}
        self._waiting: deque[Trial] = deque()
        for index in range(seeds):  # seed by seed: an interrupted confirm leaves all candidates equally sure
            for candidate in candidates:
                fresh = derive_seed(seed, "confirm", candidate.name, used.count(candidate.name) + index)
                trial = Trial(len(self._jobs), candidate.params, fresh)
                self._jobs[trial.number] = candidate
                self._waiting.append(trial)

    def ask(self) -> Trial | None:
        """The next retraining; None when all are handed out."""
        return self._waiting.popleft() if self._waiting else None

    def prepare(self, slots: int) -> None:
        """Nothing: all that will be asked for is known."""

    def is_out_of_time(self) -> bool:
        """Never: a confirmation has no budget of time."""
        return False

    def report(self, trial: Trial, report: Report) -> bool:
        """Rungs change nothing here: never stops."""
        return False

    def tell(self, result: Result) -> None:
        """Writes a retraining's outcome to the ledger."""
        candidate = self._jobs[result.trial.number]
        event = self.ledger.append(
            {
                "event": "confirm",
                "name": candidate.name,
                "number": candidate.number,
                "params": dict(candidate.params),
                "seed": result.trial.seed,
                "status": str(result.status),
                "metrics": dict(result.metrics),
                "error": result.error,
                **({"by_class": result.by_class} if result.by_class else {}),
            }
        )
        self.history.apply(event)
        for listener in self.listeners:
            listener(event)
