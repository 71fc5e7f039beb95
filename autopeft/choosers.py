"""Choosers decide which candidate is retrained next: equal seeds for all, or more seeds for close neighbours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from autopeft.confirm import Candidate, counts
from autopeft.errors import UsageError
from autopeft.history import History
from autopeft.reports.statistics import Interval, interval
from autopeft.trial import Status


class Round:
    """Gives each candidate the same number of fresh seeds, seed by seed, so that an interrupted round is fair to all.

    An interrupted round is finished first: its members get the seeds that they lack, and no others.

    Args:
        history: The confirmations so far.
        candidates: Configurations to confirm.
        seeds: Number of fresh seeds for each.
    """

    def __init__(self, history: History, candidates: Sequence[Candidate], seeds: int) -> None:
        self.candidates = _once(candidates)
        self.done = counts(history, {})
        last = history.rounds[-1] if history.rounds else {}
        self.unfinished = last if any(self.done[name] < target for name, target in last.items()) else {}
        self.targets = {c.name: self.unfinished.get(c.name, self.done[c.name] + seeds) for c in self.candidates}

    def begin(self, history: History) -> Mapping[str, Any] | None:
        is_new = any(name not in self.unfinished for name in self.targets)
        return {"seeds": {**self.unfinished, **self.targets}} if is_new else None

    def notes(self, history: History) -> list[str]:
        notes = []
        if any(name in self.unfinished for name in self.targets):
            left = self.left(history)
            notes.append(f"going on with the confirmation that was interrupted: {left} retrainings are left")
        if seen := [name for name in self.targets if self.done[name] and name not in self.unfinished]:
            notes.append(
                f"the test split was seen before by {', '.join(seen)}; these seeds are added to the earlier ones"
            )
        return notes

    def left(self, history: History) -> int:
        now = counts(history, {})
        return sum(max(target - now[name], 0) for name, target in self.targets.items())

    def choose(self, history: History, out: Mapping[str, int]) -> Candidate | None:
        now = counts(history, out)
        waiting = [candidate for candidate in self.candidates if now[candidate.name] < self.targets[candidate.name]]
        return min(waiting, key=lambda candidate: now[candidate.name], default=None)


class Race:
    """Adds seeds while the 95 % intervals of two neighbours on the front overlap, up to a number of retrainings.

    Each candidate first gets `seeds` retrainings. Then the overlapping candidate with the widest interval gets one
    more, again and again, until no neighbours overlap or `most` retrainings are done. Earlier retrainings count. The
    race depends on the ledger only, so an interrupted race goes on if it is started again.

    The number of seeds then depends on the test scores. So an interval is a little narrower than one with a fixed
    number of seeds. Use a race to find out which of two is better, and a round to find out by how much.

    Args:
        history: The confirmations so far.
        candidates: Configurations to confirm.
        seeds: Seeds of each candidate before the race.
        most: Most retrainings of all candidates together.

    Raises:
        UsageError: `most` is too small for the first seeds of all.
    """

    def __init__(self, history: History, candidates: Sequence[Candidate], seeds: int, most: int) -> None:
        self.candidates, self.seeds, self.most = _once(candidates), max(seeds, 2), most
        now = counts(history, {})
        first = sum(max(now[candidate.name], self.seeds) for candidate in self.candidates)
        if first > most:
            raise UsageError(
                f"a race of {most} retrainings is too short: {len(self.candidates)} configurations need {first} for "
                f"{self.seeds} seeds each; give more, or name what to confirm with --pick"
            )

    def begin(self, history: History) -> Mapping[str, Any] | None:
        begins = {"seeds": {candidate.name: self.seeds for candidate in self.candidates}, "race": self.most}
        last = history.races[-1] if history.races else None
        return None if last == begins else begins

    def notes(self, history: History) -> list[str]:
        done = self._done(history, {})
        if not done:
            return []
        return [f"going on from {done} retrainings; the race ends at {self.most}, or where no neighbours overlap"]

    def left(self, history: History) -> int:
        return max(self.most - self._done(history, {}), 0)

    def choose(self, history: History, out: Mapping[str, int]) -> Candidate | None:
        if self._done(history, out) >= self.most:
            return None
        now = counts(history, out)
        first = min(self.candidates, key=lambda candidate: now[candidate.name])
        if now[first.name] < self.seeds:
            return first
        found = intervals(history)
        by_number = {candidate.number: candidate for candidate in self.candidates if candidate.name in found}
        known = [by_number[record.number] for record in history.front() if record.number in by_number]
        close = {c.name: c for a, b in pairwise(known) if overlap(found[a.name], found[b.name]) for c in (a, b)}
        return max(close.values(), key=lambda c: (_width(found[c.name]), -now[c.name]), default=None)

    def _done(self, history: History, out: Mapping[str, int]) -> int:
        now = counts(history, out)
        return sum(now[candidate.name] for candidate in self.candidates)


def intervals(history: History) -> dict[str, Interval]:
    """Returns name → the interval of its test score, for names with two seeds or more."""
    metric = history.objectives[0].metric
    values: dict[str, dict[int, float]] = {}
    for entry in history.confirmations:
        if entry.status is Status.COMPLETE and entry.number is not None:
            values.setdefault(entry.name, {})[entry.seed] = entry.metrics[metric]
    return {name: interval(list(scores.values())) for name, scores in values.items() if len(scores) > 1}


def overlap(first: Interval, second: Interval) -> bool:
    """Whether two intervals have a point in common."""
    return abs(first.mean - second.mean) <= _width(first) + _width(second)


def _width(found: Interval) -> float:
    assert found.half_width is not None, "an interval of two seeds or more"
    return found.half_width


def _once(candidates: Sequence[Candidate]) -> list[Candidate]:
    return list({candidate.name: candidate for candidate in candidates}.values())
