"""Confirming: retraining with fresh seeds, scored on the test split. A conversation like a search, without a sampler.

An executor runs it as it runs a search: it asks, reports and tells. Nothing is stopped early. Who is retrained next is a
chooser's (`choosers`), by what the ledger says so far: so one that was interrupted goes on where it ended.

The seeds are the search's, by index: the first retraining of each configuration has the same seed, the second one too.
Two configurations are then compared seed by seed, and what a seed does to both (the order of the data, the start of the
head) is no part of their difference: its interval is smaller for the same retrainings.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from autopeft.history import History, Record
from autopeft.ledger import Ledger
from autopeft.trial import Report, Result, Trial, derive_seed


@dataclass(frozen=True, slots=True)
class Candidate:
    """What is to be confirmed.

    Attributes:
        name: `trial 17`, or a baseline's name.
        number: The trial; None where the search did not run it.
        params: What is trained.
    """

    name: str
    number: int | None
    params: Mapping[str, Any]

    @staticmethod
    def of(record: Record) -> Candidate:
        return Candidate(f"trial {record.number}", record.number, record.params)


class Chooser(Protocol):
    """Says who is retrained next."""

    def begin(self, history: History) -> Mapping[str, int] | None:
        """What the event `confirming` has beside its name; None where it stands in the ledger and goes on."""

    def notes(self, history: History) -> list[str]:
        """What the user should know before it begins: that it goes on, that the test split was seen before."""

    def left(self, history: History) -> int:
        """How many retrainings are left, at most."""

    def choose(self, history: History, out: Mapping[str, int]) -> Candidate | None:
        """Who gets the next seed; None when it is over.

        Args:
            history: With what was told so far.
            out: Name → its retrainings that run, or that this session has lost to the machine.
        """


def spent(history: History) -> dict[str, set[int]]:
    """Name → the seeds that are used up. One that the machine cost is not, for it is tried again with its seed."""
    out: dict[str, set[int]] = {}
    for entry in history.confirmations:
        if not entry.may_run_again:
            out.setdefault(entry.name, set()).add(entry.seed)
    return out


class Confirm:
    """Hands out retrainings, and writes what comes back to the ledger.

    A retraining that the machine cost (its worker died) is tried again by the next confirmation, with its seed; one that
    diverged has used its seed up.

    Args:
        ledger: Opened for writing; its confirmations so far say which seeds are used up.
        chooser: Says who is next.
        seed: The search's.
        listeners: Called with each event once it is on the disk.

    Attributes:
        notes: What the user should know of it.
    """

    def __init__(
        self,
        ledger: Ledger,
        chooser: Chooser,
        seed: int,
        listeners: Sequence[Callable[[Mapping[str, Any]], None]] = (),
    ) -> None:
        self.ledger, self.chooser, self.seed, self.listeners = ledger, chooser, seed, tuple(listeners)
        self.history = History(ledger.events)
        self.notes = chooser.notes(self.history)
        self._most = chooser.left(self.history)
        self._jobs: list[Candidate] = []
        self._out: dict[str, set[int]] = {}
        begins = chooser.begin(self.history)
        if begins is not None:
            self.history.apply(ledger.append({"event": "confirming", **begins}))

    def __len__(self) -> int:
        """How many retrainings it has, at most."""
        return self._most

    def ask(self) -> Trial | None:
        """The next retraining; None when it is over."""
        out = {name: len(seeds) for name, seeds in self._out.items()}
        candidate = self.chooser.choose(self.history, out)
        if candidate is None:
            return None
        used = spent(self.history).get(candidate.name, set()) | self._out.get(candidate.name, set())
        fresh = (derive_seed(self.seed, "confirm", index) for index in itertools.count())
        trial = Trial(len(self._jobs), candidate.params, next(seed for seed in fresh if seed not in used))
        self._jobs.append(candidate)
        self._out.setdefault(candidate.name, set()).add(trial.seed)
        return trial

    def prepare(self, slots: int) -> None:
        """Nothing: who is next is known at once."""

    def is_out_of_time(self) -> bool:
        """Never: a confirmation has no budget of time."""
        return False

    def report(self, trial: Trial, report: Report) -> bool:
        """Rungs change nothing here: never stops."""
        return False

    def tell(self, result: Result) -> None:
        """Writes a retraining's outcome to the ledger."""
        candidate = self._jobs[result.trial.number]
        optional = {"detail": dict(result.detail), "fault": result.fault}
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
        if result.trial.seed in spent(self.history).get(candidate.name, ()):
            # Else the machine cost it, and it stays out: the next confirmation tries it again, not this one.
            self._out[candidate.name].discard(result.trial.seed)
        for listener in self.listeners:
            listener(event)


def counts(history: History, out: Mapping[str, int]) -> Counter[str]:
    """Name → how many of its seeds are used up or out."""
    found = Counter({name: len(seeds) for name, seeds in spent(history).items()})
    found.update(out)
    return found
