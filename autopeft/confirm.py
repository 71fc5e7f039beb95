"""Confirming: retraining with fresh seeds, scored on the test split. A conversation like a search, without a sampler.

An executor runs a confirmation as it runs a search: it asks, reports and tells. Nothing is stopped early. A chooser
(`choosers`) decides from the ledger which configuration is next, so an interrupted confirmation goes on where it ended.

Seeds are derived from the search's seed and an index: the first retrainings of all configurations have the same seed,
the second ones, too. Two configurations can then be compared seed by seed. Effects of a seed on both (the order of the
data, the start of the head) cancel in the difference, so its interval is smaller.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from autopeft.history import History, Record
from autopeft.ledger import Ledger
from autopeft.redact import shareable
from autopeft.trial import Report, Result, Trial, counted, derive_seed


@dataclass(frozen=True, slots=True)
class Candidate:
    """A configuration to confirm.

    Attributes:
        name: `trial 17`, or a baseline's name.
        number: Number of the trial; None if the search did not run it.
        params: The configuration.
        known: Its counts, which a retraining must have too.
    """

    name: str
    number: int | None
    params: Mapping[str, Any]
    known: Mapping[str, float] = field(default_factory=dict, compare=False)

    @staticmethod
    def of(record: Record) -> Candidate:
        return Candidate(f"trial {record.number}", record.number, record.params, record.known)


class Chooser(Protocol):
    """Decides which candidate is retrained next."""

    def begin(self, history: History) -> Mapping[str, int] | None:
        """Returns the content of the event `confirming`; None if the ledger has it, and the confirmation goes on."""

    def notes(self, history: History) -> list[str]:
        """Returns notes for the user: that an interrupted one goes on, that the test split was seen before."""

    def left(self, history: History) -> int:
        """Returns the largest number of retrainings that may be left."""

    def choose(self, history: History, out: Mapping[str, int]) -> Candidate | None:
        """Returns the candidate that gets the next seed; None if the confirmation is over.

        Args:
            history: The results so far.
            out: Name → its retrainings that are running, or that this session lost by the machine's fault.
        """


def spent(history: History) -> dict[str, set[int]]:
    """Returns name → used seeds. The seed of a lost retraining is not used up: it is tried again."""
    out: dict[str, set[int]] = {}
    for entry in history.confirmations:
        if not entry.may_run_again:
            out.setdefault(entry.name, set()).add(entry.seed)
    return out


class Confirm:
    """Hands out retrainings, and writes their results to the ledger.

    If a retraining is lost by the machine's fault (its worker died), the next confirmation tries its seed again. A
    retraining that diverged has used its seed.

    Args:
        ledger: Opened for writing; its confirmations so far show which seeds are used.
        chooser: Decides which candidate is next.
        seed: The search's seed.
        listeners: Called with each event after it is on the disk.

    Attributes:
        notes: Notes for the user.
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
        """Largest number of retrainings."""
        return self._most

    def ask(self) -> Trial | None:
        """Returns the next retraining; None if the confirmation is over."""
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
        """Does nothing: choosing is fast."""

    def is_out_of_time(self) -> bool:
        """Never: a confirmation has no budget of time."""
        return False

    def report(self, trial: Trial, report: Report) -> bool:
        """Ignores the rung: a retraining is never stopped."""
        return False

    def tell(self, result: Result) -> None:
        """Writes a retraining's outcome to the ledger. It fails if its counts are not those of its trial."""
        candidate = self._jobs[result.trial.number]
        result = counted(result, candidate.known)
        optional = {"detail": dict(result.detail), "fault": result.fault, "ran": result.ran}
        event = self.ledger.append(
            {
                "event": "confirm",
                "name": candidate.name,
                "number": candidate.number,
                "params": dict(candidate.params),
                "seed": result.trial.seed,
                "status": str(result.status),
                "metrics": dict(result.metrics),
                "error": shareable(result.error),
                **{key: value for key, value in optional.items() if value},
            }
        )
        self.history.apply(event)
        if result.trial.seed in spent(self.history).get(candidate.name, ()):
            # A lost retraining stays in `out`: the next confirmation tries it again, not this one.
            self._out[candidate.name].discard(result.trial.seed)
        for listener in self.listeners:
            listener(event)


def counts(history: History, out: Mapping[str, int]) -> Counter[str]:
    """Returns name → the number of its seeds that are used or out."""
    found = Counter({name: len(seeds) for name, seeds in spent(history).items()})
    found.update(out)
    return found
