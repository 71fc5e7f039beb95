"""The search: ask, report, tell. A conversation that is written to a ledger, and rebuilt from it.

The search knows no Ray, Optuna, MLflow or PyTorch. Its whole state is a fold of the ledger: the history, and the states
of sampler and stopper, which are told the events in the ledger's order. So resuming is replaying.
"""

from __future__ import annotations

import enum
import functools
import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from autopeft.ahead import Ahead
from autopeft.errors import Refused, UsageError
from autopeft.forecast import Forecast
from autopeft.history import History, Record
from autopeft.ledger import Ledger
from autopeft.orders import Orders
from autopeft.redact import shareable
from autopeft.samplers import Sampler, Sizes
from autopeft.space import Space, canonical
from autopeft.stoppers import Stopper
from autopeft.trial import Report, Result, Trial, counted, derive_seed

MOST_REFUSALS_IN_A_ROW = 1000


class Ending(enum.Enum):
    """Reason for which a search ended. `Search.why_ended` is its text for people."""

    TRIALS = "the budget of trials is spent"
    TIME = "the budget of time is spent"
    SAMPLER = "the sampler has no more"
    SPACE = "the space was tried whole"
    REFUSALS = "too many refusals in a row"
    STOPPED = "somebody ordered it to stop"


class Check(Protocol):
    """Counts the parameters of a configuration before it is trained, or refuses it."""

    def __call__(self, params: Mapping[str, Any]) -> Mapping[str, float]:
        """Returns the exact counts: `trainable_parameters`, `adapter_parameters`, `head_parameters`.

        Raises:
            Refused: The configuration may not run: over budget, empty, or unsupported by the model.
        """


class Search:
    """Hands out trials, takes their reports and results, and decides when the search ends.

    Args:
        space: The space of configurations.
        sampler: Proposes configurations. It is told when a trial begins and ends, and if a configuration is refused. It
            is not told of a refused configuration that equals a trial's.
        stopper: Ends trials early.
        ledger: Opened for writing, its first event the header. Its further events are replayed.
        check: Counts or refuses a configuration before training.
        seed: The search's seed.
        first: Configurations to ask for first: the methods' stock defaults.
        most_trials: Budget of trials, without refused configurations; None for no such bound.
        most_seconds: Budget of search time; None for no such bound.
        listeners: Called with each new event after it is on the disk. Replayed events are not passed.
        orders: Orders from another terminal; None if nobody can give some.
    """

    def __init__(
        self,
        *,
        space: Space,
        sampler: Sampler,
        stopper: Stopper,
        ledger: Ledger,
        check: Check,
        seed: int,
        first: Sequence[Mapping[str, Any]] = (),
        most_trials: int | None = None,
        most_seconds: float | None = None,
        listeners: Sequence[Callable[[Mapping[str, Any]], None]] = (),
        orders: Orders | None = None,
    ) -> None:
        self.space, self.sampler, self.stopper, self.ledger, self.check = space, sampler, stopper, ledger, check
        self.seed, self.first = seed, tuple(first)
        self.most_trials, self.most_seconds = most_trials, most_seconds
        self.listeners, self.orders = tuple(listeners), orders
        self.history, self.forecast = History(), Forecast()
        self.ahead = Ahead(sampler, self.forecast, seed, sizes_by(self._known))
        self.ending: Ending | None = None
        self.why_ended = ""
        self._seen: dict[str, int] = {}  # canonical params → number of the trial
        self._refused: dict[str, Mapping[str, Any]] = {}  # refused, by canonical params; never a trial's
        self._count = self._refusals = 0
        self._orphans: deque[Trial] = deque()
        self._replay()

    @property
    def running(self) -> int:
        """Number of trials that were asked for and have no result yet."""
        return self._count - len(self.history.told)

    def _end(self, ending: Ending, why: str) -> None:
        self.ending, self.why_ended = ending, why

    def ask(self) -> Trial | None:
        """Returns the next trial: one that a dead driver or worker left unfinished, or a new one. None ends the search.

        Raises:
            UsageError: 1,000 proposals in a row were refused, and no earlier one ran.
        """
        if self.ending or self.is_out_of_time() or self._is_stopped():
            return None
        if self._orphans:
            trial = self._orphans.popleft()
            self._write({"event": "rerun", "number": trial.number})
            return trial
        while self._trials_left > 0:
            number = len(self.history.records)
            order = self.orders.next_trial() if self.orders is not None and number >= len(self.first) else None
            params = self._next(number) if order is None else order[1]
            if params is None:
                self._end(Ending.SAMPLER, "the sampler has no more configurations")
                return None
            trial = Trial(number, params, derive_seed(self.seed, number))
            try:
                known = self._known(params)
            except Refused as refusal:
                reason = shareable(str(refusal))
                self._write({"event": "refuse", **trial.to_json(), "reason": reason, "known": refusal.known})
                self._done(order)
                self._end_if_in_vain(refusal)
                if self.ending:
                    return None
                continue
            added = {"added": True} if order is not None else {}
            self._write({"event": "ask", **trial.to_json(), "known": dict(known), **added})
            self._done(order)
            return self.history.records[number].trial  # from the ledger, so that a rerun has the same params
        self._end(Ending.TRIALS, f"the budget of {self.most_trials} trials is spent")
        return None

    @staticmethod
    def _done(order: tuple[Path, Mapping[str, Any]] | None) -> None:
        """Drops an order that the ledger has. After a crash in between, its second trial is refused as the same."""
        if order is not None:
            order[0].unlink(missing_ok=True)

    def _is_stopped(self) -> bool:
        if self.orders is None or not self.orders.stop():
            return False
        self._end(Ending.STOPPED, "stopped by order")
        return True

    def _end_if_in_vain(self, refusal: Refused) -> None:
        """Ends a search if its proposals are refused again and again, or if it has tried the whole space.

        This is an error only if no trial has run or is running.
        """
        if len(self._seen) + len(self._refused) >= self._members:
            for key, params in list(self._refused.items()):
                if self._may_run(params):
                    del self._refused[key]
            if len(self._seen) + len(self._refused) >= self._members:
                self._end(Ending.SPACE, f"all {self._members:,} configurations of the space were tried")
        if self._refusals >= MOST_REFUSALS_IN_A_ROW and not self.ending:
            why = f"{self._refusals:,} configurations in a row were refused, the last one because: {refusal}"
            self._end(Ending.REFUSALS, why)
        if self.ending and not self._count:
            why = f"all {self._members:,} configurations of the space" if self.ending is Ending.SPACE else ""
            why = f"{why} were refused, the last one because: {refusal}" if why else self.why_ended
            raise UsageError(f"{why}. `autopeft plan` shows the shares: widen the space or the budget") from refusal

    @functools.cached_property
    def _members(self) -> float:
        """Returns the number of configurations in the space."""
        combinations, reals = self.space.size()
        return math.inf if reals else combinations

    def prepare(self, slots: int) -> None:
        """Makes proposals ahead, if that pays. Executors with several slots call it while all slots are busy.

        It pays if the sampler is slow, and for the order of the last trials of a budget (`ahead`).
        """
        if self.ending or self._orphans or len(self.history.records) < len(self.first):
            return
        while self.ahead.pays(slots, self._trials_left):
            if not self._suggest() or self._trials_left > slots:
                return

    def is_out_of_time(self) -> bool:
        """Whether the search time is spent, or an order says so. Executors then end running trials, untold.

        A resume runs them again.
        """
        if self.orders is not None and self.orders.stop() == "now":
            return self._is_stopped()
        if self._seconds_left() > 0:
            return False
        assert self.most_seconds is not None
        self._end(Ending.TIME, f"the budget of {self.most_seconds / 3600:g} hours is spent")
        return True

    def report(self, trial: Trial, report: Report) -> bool:
        """Takes a rung of a running trial. Returns whether the trial should stop here.

        Trials of `first` always run to their end, as reports need complete baselines.

        Raises:
            ValueError: The trial is not running.
        """
        self._running_record(trial.number)
        self._write({"event": "report", "number": trial.number, "step": report.step, "metrics": dict(report.metrics)})
        return self._should_stop and trial.number >= len(self.first)

    def tell(self, result: Result) -> None:
        """Takes the result of a trial. Before this returns, the result is on the disk and the sampler is told.

        A complete trial fails if its counts differ from those of `check`: its place on the front would be wrong.

        Raises:
            ValueError: The trial is not running.
        """
        number = result.trial.number
        known = self._running_record(number).known
        result = counted(result, known)
        metrics = {**known, **result.metrics}
        event = {"event": "tell", "number": number, "status": str(result.status), "metrics": metrics}
        optional = {"detail": dict(result.detail), "fault": result.fault, "ran": result.ran}
        self._write(
            event | {"error": shareable(result.error)} | {key: value for key, value in optional.items() if value}
        )

    def _running_record(self, number: int) -> Record:
        if number >= len(self.history.records) or not self.history.records[number].is_running:
            raise ValueError(f"trial {number} is not running: a trial is told once, and reports before")
        return self.history.records[number]

    @property
    def _trials_left(self) -> float:
        return math.inf if self.most_trials is None else self.most_trials - self._count

    def _seconds_left(self) -> float:
        return math.inf if self.most_seconds is None else self.most_seconds - self.ledger.seconds

    def _next(self, number: int) -> Mapping[str, Any] | None:
        """Returns the next configuration: a stock default, a proposal made ahead, or a new proposal."""
        if number < len(self.first):
            return self.first[number]
        left = self._seconds_left()
        while self.ahead.lacks_choice(left) and self._suggest():
            pass
        return self.ahead.pick(left, self._trials_left) or self.ahead.propose(number)

    def _suggest(self) -> bool:
        """Makes one proposal ahead. Returns whether the sampler had one."""
        params = self.ahead.propose(len(self.history.records) + len(self.ahead.ready))
        if params is not None:
            self._write({"event": "suggest", "params": dict(params)})
        return params is not None

    def _key(self, params: Mapping[str, Any]) -> str:
        """Returns the canonical text of a configuration."""
        return canonical(self.space.typed(params))

    def _known(self, params: Mapping[str, Any]) -> Mapping[str, float]:
        why_not = self.space.why_not(params)
        if why_not:
            raise Refused(f"not in the space: {why_not}")
        twin = self._seen.get(self._key(params))
        if twin is not None:
            raise Refused(f"the same as trial {twin}")
        return self.check(params)

    def _may_run(self, params: Mapping[str, Any]) -> bool:
        """Whether a refused configuration may run now, as a resume may have a larger budget."""
        return sizes_by(self._known)(params) is not None

    def _write(self, event: Mapping[str, Any]) -> None:
        event = self.ledger.append(event)
        self._apply(event)
        for listener in self.listeners:
            listener(event)

    def _apply(self, event: Mapping[str, Any]) -> None:
        """Folds one event into the state of the search. Live and replayed events both come here."""
        self.history.apply(event)
        kind = event["event"]
        if kind in ("ask", "refuse"):
            self.ahead.drop(event["params"])
        if kind == "suggest":
            self.ahead.add(event["params"])
        elif kind == "ask":
            key = self._key(event["params"])
            self._seen[key] = event["number"]
            self._refused.pop(key, None)
            self._count, self._refusals = self._count + 1, 0
            self.sampler.begin(self.history.records[event["number"]])
        elif kind == "rerun":
            self.sampler.begin(self.history.records[event["number"]])
        elif kind == "refuse":
            self._refuse(event)
        elif kind == "report":
            record = self.history.records[event["number"]]
            self._should_stop = self.stopper.report(record, record.reports[-1])
        elif kind == "tell":
            record = self.history.records[event["number"]]
            self.stopper.tell(record)
            self.forecast.tell(record)
            self.sampler.tell(record)

    def _refuse(self, event: Mapping[str, Any]) -> None:
        """Notes a refused configuration. If it equals a trial's, the sampler is not told: it learns from the trial."""
        key = self._key(event["params"])
        self._refusals += 1
        if key in self._seen:
            return
        if self.space.contains(event["params"]):
            self._refused[key] = event["params"]
        if not (event.get("known") and self._may_run(event["params"])):
            self.sampler.tell(self.history.records[event["number"]])

    def _replay(self) -> None:
        """Replays the ledger's events, without the reports of trials that run again: their rerun reports again.

        Trials that a dead driver left unfinished run again. A trial lost by the machine's fault runs again once.
        """
        events = self.ledger.events
        self._should_stop = False
        outcome = History(event for event in events if event["event"] != "report")
        again = {record.number for record in outcome.records if record.is_running or record.may_run_again}
        last_rerun = {event["number"]: index for index, event in enumerate(events) if event["event"] == "rerun"}
        for index, event in enumerate(events):
            if event["event"] == "report":
                number = event["number"]
                if number in again or index < last_rerun.get(number, -1):
                    continue
            self._apply(event)
        self._orphans.extend(self.history.records[number].trial for number in sorted(again))


def sizes_by(check: Check) -> Sizes:
    """Turns a check into the `Sizes` of samplers: the counts, or None if the check refuses."""

    def sizes(params: Mapping[str, Any]) -> Mapping[str, float] | None:
        try:
            return check(params)
        except Refused:
            return None

    return sizes


__all__ = ["Check", "Ending", "Record", "Search", "sizes_by"]
