"""Facts about one search for reports, computed once: the front, its knee, the baselines, the confirmations.

Figures, tables, HTML and Markdown all read these facts, so that they never disagree.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from autopeft.errors import UsageError
from autopeft.history import TRIVIAL, UNTRAINED, Confirmation, History, Record
from autopeft.objectives import Objective
from autopeft.redact import Redactor
from autopeft.reports import text
from autopeft.reports.statistics import Interval, Sample, interval
from autopeft.trial import Status

SIZE = "trainable_parameters"
# Metrics that are a share of rows: the number of rows gives their sampling variance.
ROW_SHARES = frozenset({"accuracy"})

# Names a configuration for people; in a run `naming.describe` for its model.
Describe = Callable[[Mapping[str, Any]], str]


@dataclass(frozen=True)
class Confirmed:
    """One configuration retrained with fresh seeds and scored on the test split.

    Attributes:
        name: `trial 17`, or a baseline's name.
        number: Number of the trial; None if the search did not run it.
        params: The trained configuration; empty for the trivial baseline.
        sample: Seed → test score.
        interval: Mean and 95 % t interval over seeds.
        metrics: Mean of every metric over the seeds.
        failures: Reason for each seed without a score. The mean is then that of the other seeds, and its label says so.
        drop: The search's validation score minus the confirmed mean, as a loss of score: positive is worse on test.
            None if the search did not run it.
    """

    name: str
    number: int | None
    params: Mapping[str, Any]
    sample: Sample
    interval: Interval
    metrics: Mapping[str, float]
    failures: tuple[str, ...]
    drop: float | None

    @property
    def tried(self) -> int:
        """Number of tried seeds, with and without a score."""
        return self.interval.n + len(self.failures)

    @property
    def is_whole(self) -> bool:
        """Whether each seed has a score. If not, the mean is not compared with others."""
        return not self.failures

    @property
    def seeds(self) -> str:
        """`5`, or `2 of 5`."""
        return str(self.tried) if self.is_whole else f"{self.interval.n} of {self.tried}"

    @property
    def value(self) -> str:
        """The mean with its interval, and the number of missing seeds if there are any."""
        shown = text.mean_and_interval(self.interval.mean, self.interval.half_width)
        return shown if self.is_whole else f"{shown} ({self.seeds} seeds)"

    @property
    def label(self) -> str:
        """Description of this number for people."""
        if self.sample.is_fixed:
            return "test, no seed involved"
        if self.interval.n == 1:
            return "test, 1 seed" if self.is_whole else f"test, {self.seeds} seeds"
        return f"confirmed on test, {self.seeds} seeds, mean ± 95 % CI"


@dataclass(frozen=True)
class Baseline:
    """A score that a search must beat.

    Attributes:
        kind: "trivial", "examples" (the base, shown some), "head", "full" or "stock".
        title: For people.
        score: Score on validation.
        size: Trainable parameters; 0 for those that train nothing.
        record: The baseline's trial; None for those that train nothing.
        confirmed: Its test score, if there is one.
    """

    kind: str
    title: str
    score: float
    size: float | None
    record: Record | None
    confirmed: Confirmed | None


class Names(dict[int, str]):
    """Number → name for people. A name is made when it is first asked for: of 10,000 trials a leaderboard shows a few."""

    def __init__(self, history: History, describe: Describe) -> None:
        super().__init__()
        self._history, self._describe = history, describe

    def __missing__(self, number: int) -> str:
        self[number] = self._describe(self._history.records[number].params)
        return self[number]


class Facts:
    """Computes facts from a history. Cheap to build; each fact is computed when it is first read.

    Args:
        history: A history with at least its header.
        describe: Params → a name for people.
        name: Name of the run, for titles.

    Raises:
        UsageError: The history has no header.
    """

    def __init__(self, history: History, describe: Describe, name: str = "") -> None:
        if not history.header:
            raise UsageError("this ledger is empty: the search has not begun, so there is nothing to report")
        self.history, self.describe = history, describe
        self.header = history.header
        self.name = name or str(self.header.get("id", "search"))[:12]
        self.objectives: tuple[Objective, ...] = history.objectives
        self.score_objective = self.objectives[0]

    @cached_property
    def redactor(self) -> Redactor:
        """Hides secrets in every text that is made from these facts."""
        history = self.history
        return Redactor.of([self.header.get("config"), history.config, *(event["config"] for event in history.resumes)])

    # ── axes ──

    @property
    def metric(self) -> str:
        """The score's name."""
        return self.score_objective.metric

    @property
    def is_maximized(self) -> bool:
        return self.score_objective.goal == "maximize"

    @cached_property
    def size_metric(self) -> str | None:
        """The x axis of figures: trainable parameters, else the second objective; None if there is neither."""
        known = [objective.metric for objective in self.objectives[1:]]
        if SIZE in known or (self.complete and all(SIZE in record.metrics for record in self.complete)):
            return SIZE
        return known[0] if known else None

    @property
    def has_log_sizes(self) -> bool:
        scales = {objective.metric: objective.scale for objective in self.objectives}
        return self.size_metric is not None and scales.get(self.size_metric, "log10") == "log10"

    def score(self, record: Record) -> float:
        """Returns a complete trial's score: on validation, one seed."""
        return float(record.metrics[self.metric])

    def size(self, record: Record) -> float | None:
        """Returns a complete trial's x value."""
        return None if self.size_metric is None else float(record.metrics[self.size_metric])

    def better(self, first: float, second: float) -> float:
        """Returns by how much the first score is better than the second: positive is better, whatever the goal."""
        return first - second if self.is_maximized else second - first

    # ── trials ──

    @cached_property
    def complete(self) -> list[Record]:
        return [record for record in self.history.records if record.is_complete]

    @cached_property
    def by_method(self) -> Mapping[str, list[Record]]:
        """Method → its complete trials, methods in the order of their first one."""
        out: dict[str, list[Record]] = {}
        for record in self.complete:
            out.setdefault(str(record.params["method"]), []).append(record)
        return out

    @cached_property
    def front(self) -> list[Record]:
        """The best score first."""
        return self.history.front()

    @cached_property
    def front_numbers(self) -> frozenset[int]:
        return frozenset(record.number for record in self.front)

    @cached_property
    def knee(self) -> Record | None:
        """The front's knee; None without a front."""
        return self.history.knee()

    @cached_property
    def volumes(self) -> list[float]:
        return self.history.hypervolumes()

    @cached_property
    def names(self) -> Names:
        """Number → name for people, of everything that was asked for."""
        return Names(self.history, self.describe)

    @cached_property
    def counts(self) -> dict[str, int]:
        return self.history.counts()

    @cached_property
    def failures(self) -> list[Record]:
        return [record for record in self.history.records if record.status in (Status.FAILED, Status.OUT_OF_MEMORY)]

    @cached_property
    def refusals(self) -> list[tuple[str, int]]:
        """(reason, count), the most frequent first. `the same as trial 12` is one reason, whatever the number."""
        counts: dict[str, int] = {}
        for record in self.history.records:
            if record.refusal:
                reason = "the same as an earlier trial" if record.refusal.startswith("the same as") else record.refusal
                counts[reason] = counts.get(reason, 0) + 1
        return sorted(counts.items(), key=lambda item: (-item[1], item[0]))

    # ── model and data ──

    @property
    def model_name(self) -> str | None:
        name: str | None = self.header.get("model", {}).get("name")
        return name

    @property
    def model_parameters(self) -> float | None:
        parameters: float | None = self.header.get("model", {}).get("parameters")
        return parameters

    def rows(self, split: str) -> int | None:
        """Returns the number of rows of a split; None if there is no such split."""
        count: int | None = self.header.get("dataset", {}).get("sizes", {}).get(split)
        return count

    @property
    def validation_label(self) -> str:
        """Description of a search's score for people."""
        return "validation, one seed"

    # ── what was confirmed ──

    @cached_property
    def confirmed(self) -> Mapping[str, Confirmed]:
        """By name. A name with no complete retraining is left out; `confirm_failures` has its reasons."""
        values: dict[str, dict[int, Mapping[str, float]]] = {}
        failures: dict[str, dict[int, str]] = {}
        first: dict[str, Confirmation] = {}
        for entry in self.history.confirmations:
            first.setdefault(entry.name, entry)
            if entry.status is Status.COMPLETE:
                values.setdefault(entry.name, {})[entry.seed] = entry.metrics
            else:
                failures.setdefault(entry.name, {})[entry.seed] = self._why(entry)
        out = {}
        for name, by_seed in values.items():
            entry = first[name]
            rows = self._share_rows(entry)
            is_fixed = entry.number is None and not entry.params
            sample = Sample({seed: metrics[self.metric] for seed, metrics in by_seed.items()}, rows, is_fixed)
            record = self.history.records[entry.number] if entry.number is not None else None
            common = set.intersection(*(set(metrics) for metrics in by_seed.values()))
            means = {key: sum(metrics[key] for metrics in by_seed.values()) / len(by_seed) for key in sorted(common)}
            drop = self.better(self.score(record), sample.mean) if record is not None and record.is_complete else None
            out[name] = Confirmed(
                name,
                entry.number,
                entry.params,
                sample,
                interval(list(sample.values.values())),
                means,
                tuple(why for seed, why in failures.get(name, {}).items() if seed not in by_seed),
                drop,
            )
        return out

    def _share_rows(self, entry: Confirmation) -> int | None:
        """Returns the number of test rows that the score is a share of; None for other scores."""
        if self.metric in ROW_SHARES:
            return self.rows("test")
        found = entry.detail.get("row_scores", {}).get(self.metric, {})
        return int(found["rows"]) if found.get("interval") == "Wilson" else None

    @cached_property
    def seen_before(self) -> list[str]:
        """Names that were confirmed again after their test scores were known."""
        rounds = self.history.rounds
        return [
            name
            for name in self.confirmed
            if len({targets[name] for targets in rounds if name in targets}) > 1  # a resumed round has the same target
        ]

    @cached_property
    def confirm_failures(self) -> list[tuple[str, str]]:
        """(name, reason) of every retraining without a score."""
        return [
            (entry.name, self._why(entry))
            for entry in self.history.confirmations
            if entry.status is not Status.COMPLETE
        ]

    @cached_property
    def fruitless(self) -> Mapping[int, int]:
        """Trial → number of its tried seeds, for trials of which no seed has a score."""
        tried: dict[int, set[int]] = {}
        for entry in self.history.confirmations:
            if entry.number is not None and entry.name not in self.confirmed:
                tried.setdefault(entry.number, set()).add(entry.seed)
        return {number: len(seeds) for number, seeds in tried.items()}

    def _why(self, entry: Confirmation) -> str:
        """Returns the reason why a retraining has no score."""
        return f"{entry.status}, seed {entry.seed}: {self.redactor.message(entry.error)}"

    @cached_property
    def incomplete(self) -> list[Confirmed]:
        """Confirmed entries with a tried seed that has no score."""
        return [entry for entry in self.confirmed.values() if not entry.is_whole]

    def confirmation(self, record: Record) -> Confirmed | None:
        """Returns the confirmed numbers of a trial; None if it was not confirmed."""
        found = [entry for entry in self.confirmed.values() if entry.number == record.number]
        return found[0] if found else None

    # ── baselines ──

    @cached_property
    def trivial_title(self) -> str:
        """Title of the baseline without learning: "majority class"."""
        return self.history.baseline_names[TRIVIAL]

    @cached_property
    def baselines(self) -> list[Baseline]:
        """The trivial answer, frozen head, stock defaults, full fine-tuning: those that are known.

        The frozen head and full fine-tuning are the best complete trials of the methods `head` and `full`; the stock
        defaults are the trials that the header's `stock` lists.
        """
        out: list[Baseline] = []
        names = self.history.baseline_names
        for name, kind in zip(UNTRAINED, ("trivial", "examples"), strict=True):
            scores = self.header.get("baselines", {}).get(name, {})
            if self.metric in scores:
                test = self.confirmed.get(name)
                out.append(Baseline(kind, names[name], scores[self.metric], 0.0, None, test))
        stock = frozenset(self.header.get("stock", ()))
        tried = self._tried("stock", "best stock default", [r for r in self.complete if r.number in stock])
        for method, title in names.items():
            if method not in UNTRAINED:
                tried += self._tried(method, title, self.by_method.get(method, []))
        out += sorted(tried, key=lambda baseline: baseline.size or 0.0)
        return out

    def baseline(self, kind: str) -> Baseline | None:
        found = [baseline for baseline in self.baselines if baseline.kind == kind]
        return found[0] if found else None

    def _tried(self, kind: str, title: str, tried: Sequence[Record]) -> list[Baseline]:
        if not tried:
            return []
        best = best_by_score(self, tried)
        if kind == "stock":
            title = f"{title} ({text.short_name(self.names[best.number])})"
        return [Baseline(kind, title, self.score(best), self.size(best), best, self.confirmation(best))]

    # ── the verdict ──

    @cached_property
    def verdict(self) -> str:
        """The result in one sentence: the best adapter, its size, its score, and how certain the score is."""
        if not self.front:
            return self._nothing()
        best = self.front[0]
        sentence = f"{self._named(best)} reaches {self._reached(best)}{self._against(best)}"
        if self.knee is not None and self.knee.number != best.number:
            less = self._difference(best, self.knee)
            sentence += f"; the knee, {self._named(self.knee)}, has {text.score(abs(less), 3)} "
            sentence += ("less" if less >= 0 else "more") if self.is_maximized else ("more" if less >= 0 else "less")
            sentence += self._sized(self.knee, " with")
        return sentence[0].upper() + sentence[1:] + "."

    def _difference(self, first: Record, second: Record) -> float:
        """Returns by how much the first is better: on test if both have scores of all seeds, else on validation."""
        found = [self.confirmation(first), self.confirmation(second)]
        means = [entry.interval.mean for entry in found if entry is not None and entry.is_whole]
        if len(means) == 2:
            return self.better(means[0], means[1])
        return self.better(self.score(first), self.score(second))

    def _nothing(self) -> str:
        if not self.history.records:
            return "Nothing was asked for yet."
        counts = ", ".join(f"{number} {name}" for name, number in self.counts.items())
        return f"No trial completed ({counts}), so there is no front."

    def _named(self, record: Record) -> str:
        return f"{text.short_name(self.names[record.number], 70)} (trial {record.number})"

    def _reached(self, record: Record) -> str:
        confirmed = self.confirmation(record)
        metric = text.metric_title(self.metric)
        if confirmed is None:
            value = f"{metric} {text.score(self.score(record), 3)} ({self.validation_label})"
        else:
            mean = text.mean_and_interval(confirmed.interval.mean, confirmed.interval.half_width, 3)
            value = f"{metric} {mean} ({confirmed.label})"
        return value + self._sized(record, " with")

    def _sized(self, record: Record, joint: str) -> str:
        size = self.size(record)
        if size is None or self.size_metric != SIZE:
            return ""
        whole = self.model_parameters
        part = f", {text.share(size, whole)} of the model," if whole else ""
        return f"{joint} {text.count(size)} trainable parameters{part}".rstrip(",")

    def _against(self, record: Record) -> str:
        """Compares with the frozen head, or else with the trivial baseline, on a split that both have."""
        for kind in ("head", "trivial"):
            baseline = self.baseline(kind)
            if baseline is None or baseline.record is record:
                continue
            tested = [c for c in (self.confirmation(record), baseline.confirmed) if c is not None and c.is_whole]
            if len(tested) == 2:
                gain = self.better(tested[0].interval.mean, tested[1].interval.mean)
            else:
                gain = self.better(self.score(record), baseline.score)
            words = ("over", "below") if self.is_maximized else ("better than", "worse than")
            side = words[0] if gain >= 0 else words[1]
            where = " on validation" if self.confirmation(record) is not None and len(tested) < 2 else ""
            return f", {text.score(abs(gain), 3)} {side} the {baseline.title}{where}"
        return ""


def best_by_score(facts: Facts, records: Sequence[Record]) -> Record:
    """Returns the record with the best score; of equal ones the smallest, then the first."""
    sign = -1 if facts.is_maximized else 1
    return min(records, key=lambda record: (sign * facts.score(record), facts.size(record) or 0.0, record.number))
