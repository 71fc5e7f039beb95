"""The fold of a ledger: one Record a number. Search, reports and trackers read the same fold."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from autopeft import ledger as ledgers
from autopeft.errors import UsageError
from autopeft.objectives import Objective, losses_of, reference_point
from autopeft.pareto import dominated, hypervolume, knee, non_dominated
from autopeft.trial import MACHINE, MOST_LOST, Report, Status, Trial

TRIVIAL = "majority"  # the ledger's name of every task's baseline without learning
SHOWN = "examples"  # … and of the unchanged base that is shown examples
UNTRAINED = (TRIVIAL, SHOWN)
AT_ONCE = 200  # records that a front compares with each other at once: their number squared is in memory


@dataclass(slots=True)
class Record:
    """All facts about one number: a trial, or a refused configuration.

    Attributes:
        trial: Number, params and seed.
        known: Metrics that are known before training: `trainable_parameters` and its parts.
        reports: The trial's rungs, in order.
        status: How the trial ended; None while it runs, and for a refused configuration.
        metrics: Metrics of the result.
        refusal: Reason why the configuration may not run; empty for a trial.
        error: Reason why the trial failed; empty if it did not.
        detail: The task's data beside the metrics of the result: counts by class, for example.
        asked_seconds, told_seconds: Search time of the two events; told is None before the result.
        report_seconds: Search time of each report.
        fault: "machine" if the trial failed by the machine's fault; else empty.
        lost: How often the trial was lost by the machine's fault.
        ran: How its steps ran (`Result.ran`); empty if that is not known.
    """

    trial: Trial
    known: Mapping[str, float] = field(default_factory=dict)
    reports: list[Report] = field(default_factory=list)
    status: Status | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    refusal: str = ""
    error: str = ""
    detail: Mapping[str, Any] = field(default_factory=dict)
    asked_seconds: float = 0.0
    told_seconds: float | None = None
    report_seconds: list[float] = field(default_factory=list)
    fault: str = ""
    lost: int = 0
    ran: str = ""

    @property
    def number(self) -> int:
        return self.trial.number

    @property
    def params(self) -> Mapping[str, Any]:
        return self.trial.params

    @property
    def standing(self) -> str:
        """Name of the status, or REFUSED or RUNNING."""
        return "REFUSED" if self.refusal else str(self.status or "RUNNING")

    @property
    def is_complete(self) -> bool:
        return self.status is Status.COMPLETE

    @property
    def is_running(self) -> bool:
        return self.status is None and not self.refusal

    @property
    def may_run_again(self) -> bool:
        """Whether a resume runs the trial again: it was lost by the machine's fault, not by its configuration's."""
        return self.fault == MACHINE and self.lost < MOST_LOST


@dataclass(frozen=True)
class Confirmation:
    """One retraining with a fresh seed, scored on the test split.

    Attributes:
        name: `trial 17`, or the name of a baseline; `majority` is the trivial baseline of any task.
        number: Number of the trial; None for a baseline that the search did not run.
        params: The trained configuration; empty for `majority`.
        seed: The fresh seed.
        status: COMPLETE, or another status if there is no score.
        metrics: Test metrics by name, and the parameter counts.
        seconds: Search time of the event.
        detail: As in a Record, on the test split.
        fault, lost: As in a Record. If a lost retraining is tried again, the new one replaces it.
    """

    name: str
    number: int | None
    params: Mapping[str, Any]
    seed: int
    status: Status
    metrics: Mapping[str, float]
    error: str = ""
    seconds: float = 0.0
    detail: Mapping[str, Any] = field(default_factory=dict)
    fault: str = ""
    lost: int = 0

    @property
    def may_run_again(self) -> bool:
        """Whether the next confirmation tries this seed again."""
        return self.fault == MACHINE and self.lost < MOST_LOST


class Front:
    """The complete records that no other dominates, the best score first. Records are added.

    The cost of adding a record depends on the size of the front only, not on the number of earlier records.

    Attributes:
        records: Members of the front.
        losses: Losses of the members, (n_records, n_objectives).
    """

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.losses = np.empty((0, 0))

    def take(self, records: Sequence[Record], losses: np.ndarray) -> None:
        """Adds complete records with their losses (n_records, n_objectives), and removes the members that they dominate."""
        for start in range(0, len(records), AT_ONCE):
            self._take(records[start : start + AT_ONCE], losses[start : start + AT_ONCE])

    def _take(self, records: Sequence[Record], losses: np.ndarray) -> None:
        if self.records:
            is_new = ~dominated(losses, self.losses)
            if not is_new.any():
                return
            records = [*self.records, *itertools.compress(records, is_new)]
            losses = np.vstack([self.losses, losses[is_new]])
        found: list[int] = np.flatnonzero(non_dominated(losses)).tolist()
        found.sort(key=lambda i: (tuple(losses[i]), records[i].number))
        self.records, self.losses = [records[i] for i in found], losses[found]


class History:
    """The fold of a ledger's events. `apply` takes them in order; nothing else changes it.

    Attributes:
        header: The first event: config, objectives, data, provenance, what was measured to choose.
        records: By number.
        told: The numbers in order of telling.
        confirmations: In order. If an earlier one of the same name and seed was lost, only the last one is here.
        rounds: The plan of each `confirm`: name → how many retrainings it then has in all.
        races: The plans of races, which add seeds while neighbours cannot be told apart: `seeds`, and as `race` the
            bound on all retrainings.
        resumes: The resume events: changes of the config, and the machine that went on.
        keeps_reports: Whether records have their reports. A leaderboard has no use for them.
    """

    def __init__(self, events: Iterable[Mapping[str, Any]] = (), *, keeps_reports: bool = True) -> None:
        self.keeps_reports = keeps_reports
        self.header: Mapping[str, Any] = {}
        self.records: list[Record] = []
        self.told: list[int] = []
        self.confirmations: list[Confirmation] = []
        self.rounds: list[Mapping[str, int]] = []
        self.races: list[Mapping[str, Any]] = []
        self.resumes: list[Mapping[str, Any]] = []
        self._front, self._in_front = Front(), 0  # number of told records already in the front
        for event in events:
            self.apply(event)

    @staticmethod
    def read(path: Any, *, keeps_reports: bool = True) -> History:
        """Reads the history of a ledger file.

        Raises:
            UsageError: There is no ledger, the ledger cannot be read, or its search died before the first event.
        """
        try:
            with ledgers.without_collection():
                history = History(ledgers.stream(path), keeps_reports=keeps_reports)
            if history.header:
                _ = history.front(), int(history.header["model"]["n_layers"])
        except (KeyError, ValueError, TypeError, AttributeError) as fault:  # a key is lacking, say
            raise UsageError(f"{path} is damaged: {type(fault).__name__}: {fault}; restore it from a copy") from fault
        if not history.header:
            raise UsageError(f"{path} is empty: its search died before it began; start it again")
        return history

    @property
    def objectives(self) -> tuple[Objective, ...]:
        return tuple(Objective.from_json(data) for data in self.header["objectives"])

    @property
    def config(self) -> Mapping[str, Any]:
        """The resolved config as it is now: the header's, with the changes of resumes."""
        config: Mapping[str, Any] = self.resumes[-1]["config"] if self.resumes else self.header["config"]
        return config

    @property
    def baseline_names(self) -> Mapping[str, str]:
        """Baseline → its title. Every key except those of `UNTRAINED` is a method. Ledgers of schema 1 have these three."""
        trivial = "majority class" if self.header.get("dataset", {}).get("label_names") else "trivial baseline"
        known = {TRIVIAL: trivial, "head": "frozen head", "full": "full fine-tuning"}
        names: Mapping[str, str] = {**known, **self.header.get("baseline_names", {})}
        return names

    @property
    def trials(self) -> list[Record]:
        """All records except refused configurations."""
        return [record for record in self.records if not record.refusal]

    def apply(self, event: Mapping[str, Any]) -> None:
        """Folds one event in."""
        kind = event["event"]
        if kind == "search":
            self.header = event
        elif kind in ("ask", "refuse"):
            record = Record(Trial.from_json(event), event.get("known", {}), asked_seconds=event["seconds"])
            if kind == "refuse":
                record.refusal = event["reason"]
            if record.number != len(self.records):
                raise UsageError(f"the ledger is damaged: number {record.number} follows {len(self.records) - 1}")
            self.records.append(record)
        elif kind == "report":
            record = self._record(event)
            step, metrics, seconds = event["step"], event["metrics"], event["seconds"]
            if self.keeps_reports:
                record.reports.append(Report(step, metrics))
                record.report_seconds.append(seconds)
        elif kind == "tell":
            record = self._record(event)
            record.status, record.metrics = Status(event["status"]), event["metrics"]
            record.error, record.told_seconds = event["error"], event["seconds"]
            record.detail = _detail(event)
            record.fault, record.ran = event.get("fault", ""), event.get("ran", "")
            record.lost += record.fault == MACHINE
            self.told.append(record.number)
        elif kind == "rerun":
            # The driver died before the result, or the trial was lost: its reports and result are dropped.
            record = self._record(event)
            if record.status is not None:
                self._untell(record)
            record.reports.clear()
            record.report_seconds.clear()
        elif kind == "confirming":
            self.rounds.append(event["seeds"])
            if "race" in event:
                self.races.append({"seeds": event["seeds"], "race": event["race"]})
        elif kind == "confirm":
            self._confirm(event)
        elif kind == "resume":
            self.resumes.append(event)
        # An unknown event of a later minor version changes nothing here.

    def _untell(self, record: Record) -> None:
        """Takes back the result of a lost trial, which runs again."""
        index = self.told.index(record.number)
        del self.told[index]
        self._in_front -= index < self._in_front  # the trial failed, so it is not on the front
        record.status, record.metrics, record.error, record.told_seconds, record.fault = None, {}, "", None, ""

    def _confirm(self, event: Mapping[str, Any]) -> None:
        fault = event.get("fault", "")
        found = Confirmation(
            event["name"],
            event["number"],
            event["params"],
            event["seed"],
            Status(event["status"]),
            event["metrics"],
            event["error"],
            event["seconds"],
            _detail(event),
            fault,
            int(fault == MACHINE),
        )
        for index, earlier in enumerate(self.confirmations):
            if (earlier.name, earlier.seed) == (found.name, found.seed) and earlier.fault == MACHINE:
                self.confirmations[index] = replace(found, lost=earlier.lost + found.lost)
                return
        self.confirmations.append(found)

    def _record(self, event: Mapping[str, Any]) -> Record:
        number: int = event["number"]
        if number >= len(self.records):
            raise UsageError(f"the ledger is damaged: a {event['event']} of number {number}, which was never asked for")
        return self.records[number]

    def counts(self) -> dict[str, int]:
        """Counts the records by `Record.standing`; zeros are left out."""
        counts = Counter(record.standing for record in self.records)
        return {name: counts[name] for name in (*map(str, Status), "REFUSED", "RUNNING") if name in counts}

    def losses(self, records: Sequence[Record]) -> np.ndarray:
        """Computes the losses of complete records: (n_records, n_objectives)."""
        return losses_of(self.objectives, (record.metrics for record in records))

    def front(self) -> list[Record]:
        """The complete records that none dominates, the best score first."""
        told = [self.records[number] for number in self.told[self._in_front :]]
        complete = [record for record in told if record.is_complete]
        self._front.take(complete, self.losses(complete))
        self._in_front = len(self.told)
        return list(self._front.records)

    def knee(self) -> Record | None:
        """Returns the front's knee, the same for export, reports and trackers; None without a front."""
        front = self.front()
        return front[knee(self.losses(front))] if front else None

    def hypervolumes(self) -> list[float]:
        """The hypervolume after each tell, in order of telling."""
        reference = reference_point(self.objectives)
        front = Front()
        volumes: list[float] = []
        for number in self.told:
            record = self.records[number]
            if record.is_complete:
                front.take([record], self.losses([record]))
                volumes.append(hypervolume(front.losses, reference))
            else:
                volumes.append(volumes[-1] if volumes else 0.0)
        return volumes


def _detail(event: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns the detail of a told or confirmed trial. In ledgers of schema 1 the key is `by_class`."""
    found: Mapping[str, Any] = event.get("detail") or event.get("by_class") or {}
    return found
