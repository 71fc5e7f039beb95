"""Confirming: retraining with fresh seeds, scored on the test split. A conversation like a search, without a sampler.

An executor runs it as it runs a search: it asks, reports and tells. Nothing is stopped early. What is to be done stands
in the ledger before it begins, so that one that was interrupted goes on where it ended.
"""

from __future__ import annotations

from collections import Counter, deque
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

    A round that was interrupted is finished first: its members get the seeds that it lacks, and no others. A retraining
    that the machine cost (its worker died) is one that it lacks; one that diverged has used its seed up.

    Args:
        ledger: Opened for writing; its confirmations so far say which seeds are used up.
        candidates: What to confirm.
        seeds: How many fresh seeds each.
        seed: The search's.
        listeners: Called with each event once it is on the disk.

    Attributes:
        notes: What the user should know of it: that a round goes on, that the test split was seen before.
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
        candidates = list({candidate.name: candidate for candidate in candidates}.values())
        used: dict[str, set[int]] = {}
        for entry in self.history.confirmations:
            if not entry.may_run_again:
                used.setdefault(entry.name, set()).add(entry.seed)
        done = Counter({name: len(found) for name, found in used.items()})
        last = self.history.rounds[-1] if self.history.rounds else {}
        unfinished = last if any(done[name] < target for name, target in last.items()) else {}
        targets = {c.name: unfinished.get(c.name, done[c.name] + seeds) for c in candidates}
        self._jobs: dict[int, Candidate] = {}
        self._waiting: deque[Trial] = deque()
        for index in range(max(targets.values(), default=0)):  # seed by seed: when interrupted, all are equally sure
            for candidate in candidates:
                fresh = derive_seed(seed, "confirm", candidate.name, index)
                if index < targets[candidate.name] and fresh not in used.get(candidate.name, ()):
                    trial = Trial(len(self._jobs), candidate.params, fresh)
                    self._jobs[trial.number] = candidate
                    self._waiting.append(trial)
        self.notes = []
        if any(name in unfinished for name in targets):
            self.notes.append(f"going on with the confirmation that was interrupted: {len(self)} retrainings are left")
        if seen := [name for name in targets if done[name] and name not in unfinished]:
            self.notes.append(
                f"the test split was seen before by {', '.join(seen)}; these seeds are added to the earlier ones"
            )
        if any(name not in unfinished for name in targets):
            ledger.append({"event": "confirming", "seeds": {**unfinished, **targets}})

    def __len__(self) -> int:
        """How many retrainings it has in all."""
        return len(self._jobs)

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
        optional = {"by_class": result.by_class, "fault": result.fault}
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
                **{key: value for key, value in optional.items() if value},
            }
        )
        self.history.apply(event)
        for listener in self.listeners:
            listener(event)
