"""The content of the front figure, computed before drawing: points, limits, baselines, and which points get names."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from autopeft.history import Record
from autopeft.reports import text
from autopeft.reports.facts import SIZE, Facts

MOST_LABELS = 8
MOST_MARKS = 500  # with a tooltip each; the others are dots, as a page of 10,000 opens slowly


@dataclass(frozen=True, slots=True)
class Mark:
    """One complete trial in the figure.

    Attributes:
        number, method, name: The trial.
        x, y: Size and score; `y` is the true score, even if the mark is drawn at the edge.
        is_front, is_knee: Whether the trial is on the front, and whether it is the knee.
        baseline: "frozen head", "full fine-tuning", or empty.
        is_beyond: Whether the score lies off the axis, so that the mark is drawn at the edge.
        low, high: The 95 % interval of the confirmed mean; None if not confirmed.
        confirmed: The confirmed mean; None if not confirmed.
    """

    number: int
    method: str
    name: str
    x: float
    y: float
    is_front: bool
    is_knee: bool
    baseline: str
    is_beyond: bool
    confirmed: float | None = None
    low: float | None = None
    high: float | None = None

    @property
    def shows_test(self) -> bool:
        """Whether the confirmed mean is drawn, as it is for the front and the baselines only."""
        return self.confirmed is not None and (self.is_front or bool(self.baseline))

    @property
    def label(self) -> str:
        """The mark's name in the figure."""
        return self.baseline or text.short_name(self.name, 46)


@dataclass(frozen=True, slots=True)
class Plot:
    """The figure's content.

    Attributes:
        marks: All complete trials that are drawn, the front last, so that it is on top.
        steps: The front as a staircase: corner points, left to right; empty unless there are two objectives.
        x_limits, y_limits: Limits in data units; on a log axis of x, not of its logarithm.
        is_log: Whether x is logarithmic.
        x_title, y_title: Axis titles.
        trivial: The trivial baseline's score; None if not known.
        trivial_title: The trivial baseline's name.
        trivial_is_shown: Whether its line lies within the limits.
        head: The frozen head's score; None if none was trained.
        crowd: Numbers of the marks that are dots without a tooltip: those farthest below the front.
        labelled: The marks to name, the most important first, at most `MOST_LABELS`.
        methods: All methods drawn, in order of their first trial.
        beyond: How many marks lie off the axis.
        is_maximized: Whether up is better.
        note: A further remark for the reader, or empty.
    """

    marks: tuple[Mark, ...]
    steps: tuple[tuple[float, float], ...]
    x_limits: tuple[float, float]
    y_limits: tuple[float, float]
    is_log: bool
    x_title: str
    y_title: str
    trivial: float | None
    trivial_title: str
    trivial_is_shown: bool
    head: float | None
    crowd: frozenset[int]
    labelled: tuple[Mark, ...]
    methods: tuple[str, ...]
    beyond: int
    is_maximized: bool
    note: str

    def across(self, x: float) -> float:
        """Returns x as a share of the width, 0 left and 1 right."""
        low, high = self.x_limits
        if self.is_log:
            return (math.log10(max(x, 1.0)) - math.log10(low)) / (math.log10(high) - math.log10(low))
        return (x - low) / (high - low)

    def up(self, y: float) -> float:
        """Returns y as a share of the height, 0 bottom and 1 top; just inside the edge if y lies beyond the limits."""
        low, high = self.y_limits
        return min(max((y - low) / (high - low), 0.012), 0.988)


def front_plot(facts: Facts) -> Plot:
    """Works out the figure of a search."""
    baseline, head = facts.baseline("trivial"), facts.baseline("head")
    trivial = None if baseline is None else baseline.score
    y_limits, trivial_is_shown = _y_limits(facts, trivial)
    marks = [_mark(facts, record, y_limits) for record in facts.complete]
    marks.sort(key=lambda mark: (mark.is_front, mark.is_knee, mark.number))
    x_limits = _x_limits([mark.x for mark in marks], facts.has_log_sizes)
    front = [mark for mark in marks if mark.is_front]
    sizes = {objective.metric: objective for objective in facts.objectives[1:]}
    is_staircase = (
        len(facts.objectives) == 2 and facts.size_metric in sizes and (sizes[facts.size_metric].goal == "minimize")
    )
    if not marks:
        note = "no complete trial"
    elif len(facts.objectives) > 2:
        note = f"front of {len(facts.objectives)} objectives, seen in two: a filled point may lie below another"
    else:
        note = ""
    return Plot(
        marks=tuple(marks),
        steps=_steps(front, x_limits, y_limits, facts.is_maximized) if is_staircase else (),
        x_limits=x_limits,
        y_limits=y_limits,
        is_log=facts.has_log_sizes,
        x_title=text.metric_title(facts.size_metric or "trial") + (" (log)" if facts.has_log_sizes else ""),
        y_title=f"{text.metric_title(facts.metric)} ({facts.validation_label})",
        trivial=trivial,
        trivial_title=facts.trivial_title,
        trivial_is_shown=trivial_is_shown,
        head=None if head is None else head.score,
        crowd=_crowd(marks, facts.is_maximized),
        labelled=tuple(_labelled(marks)),
        methods=tuple(dict.fromkeys(str(record.params["method"]) for record in facts.complete)),
        beyond=sum(mark.is_beyond for mark in marks),
        is_maximized=facts.is_maximized,
        note=note,
    )


def tip(mark: Mark, facts: Facts) -> list[str]:
    """Returns the lines of a mark's tooltip."""
    lines = [mark.name, f"trial {mark.number} · {mark.method}"]
    metric = text.metric_title(facts.metric)
    lines.append(f"{metric} {text.score(mark.y)} ({facts.validation_label})")
    if facts.size_metric is not None:
        whole = facts.model_parameters
        part = f" ({text.share(mark.x, whole)} of the model)" if whole and facts.size_metric == SIZE else ""
        lines.append(f"{text.count(mark.x)} {text.metric_title(facts.size_metric)}{part}")
    record = facts.history.records[mark.number]
    confirmed = facts.confirmation(record)
    if confirmed is not None:
        mean = text.mean_and_interval(confirmed.interval.mean, confirmed.interval.half_width)
        lines.append(f"{metric} {mean} ({confirmed.label})")
    if mark.is_knee:
        lines.append("the front's knee")
    if mark.baseline:
        lines.append(f"baseline: {mark.baseline}")
    return lines


def wrap(label: str, width: int = 25) -> list[str]:
    """Splits a label into one line, or two lines of about the same length."""
    if len(label) > width:
        for narrower in range(len(label) // 2, width):
            lines = textwrap.wrap(label, narrower)
            if len(lines) <= 2:
                return lines
    return textwrap.wrap(label, width, max_lines=2, placeholder="…") or [""]


def ticks(limits: tuple[float, float], most: int = 6) -> list[float]:
    """Chooses round values on a linear axis."""
    low, high = limits
    raw = (high - low) / most
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(step * index, 12) for index in range(first, math.floor(high / step + 1e-9) + 1)]


def tick_labels(values: Sequence[float]) -> list[str]:
    """Writes all tick values with the same digits: as many as any of them needs."""
    digits = max((len(f"{value:.6f}".rstrip("0").split(".")[1]) for value in values), default=0)
    return [f"{value:,.{digits}f}" for value in values]


def log_ticks(limits: tuple[float, float]) -> list[float]:
    """Chooses powers of ten within the limits, with values between them if there are fewer than three."""
    low, high = math.floor(math.log10(limits[0])), math.ceil(math.log10(limits[1]))
    powers = [10.0**power for power in range(low, high + 1) if limits[0] <= 10.0**power <= limits[1]]
    if len(powers) >= 3:
        return powers
    finer = [factor * 10.0**power for power in range(low, high + 1) for factor in (1, 1.5, 2, 3, 5, 7)]
    return [value for value in finer if limits[0] <= value <= limits[1]]


def _mark(facts: Facts, record: Record, y_limits: tuple[float, float]) -> Mark:
    size, score = facts.size(record), facts.score(record)
    baselines = {b.record.number: b.title for b in facts.baselines if b.record is not None and b.kind != "stock"}
    confirmed = facts.confirmation(record)
    return Mark(
        number=record.number,
        method=str(record.params["method"]),
        name=facts.names[record.number],
        x=float(record.number) if size is None else size,
        y=score,
        is_front=record.number in facts.front_numbers,
        is_knee=facts.knee is not None and facts.knee.number == record.number,
        baseline=baselines.get(record.number, ""),
        is_beyond=not y_limits[0] <= score <= y_limits[1],
        confirmed=None if confirmed is None else confirmed.interval.mean,
        low=None if confirmed is None else confirmed.interval.low,
        high=None if confirmed is None else confirmed.interval.high,
    )


def _y_limits(facts: Facts, trivial: float | None) -> tuple[tuple[float, float], bool]:
    """Chooses limits that show the front, the baselines and most trials, and the trivial baseline if it is not far off.

    Returns:
        (low, high), and whether the trivial baseline lies within.
    """
    sign = 1.0 if facts.is_maximized else -1.0  # work with "up is better", then turn back
    scores = sign * np.array([facts.score(record) for record in facts.complete])
    if len(scores) == 0:
        low, high = (0.0, 1.0) if trivial is None else (trivial - 0.5 * abs(trivial) - 0.01, trivial + 0.5)
        return (low, high), trivial is not None
    shown = [sign * facts.score(record) for record in facts.front]
    shown += [sign * baseline.score for baseline in facts.baselines if baseline.record is not None]
    found = [entry for record in facts.front if (entry := facts.confirmation(record)) is not None]
    ends = [entry.interval.low if facts.is_maximized else entry.interval.high for entry in found]
    shown += [sign * end for end in ends if end is not None]
    low, high = min(min(shown), float(np.quantile(scores, 0.1))), float(scores.max())
    span = max(high - low, 0.05 * abs(high), 1e-9)
    middle = (low + high) / 2
    low, high = min(low, middle - span / 2), max(high, middle + span / 2)
    trivial_is_shown = False
    if trivial is not None and sign * trivial >= low - 0.75 * span:
        low, trivial_is_shown = min(low, sign * trivial), True
        span = max(high - low, span)
    low, high = low - 0.09 * span, high + 0.16 * span
    return ((low, high) if facts.is_maximized else (-high, -low)), trivial_is_shown


def _x_limits(xs: Sequence[float], is_log: bool) -> tuple[float, float]:
    if not xs:
        return (100.0, 1e6) if is_log else (0.0, 1.0)
    low, high = min(xs), max(xs)
    if is_log:
        low, high = math.log10(max(low, 1.0)), math.log10(max(high, 1.0))
        span, middle = max(high - low, 1.0), (low + high) / 2
        low, high = min(low, middle - span / 2), max(high, middle + span / 2)
        return 10 ** (low - 0.1 * span), 10 ** (high + 0.1 * span)
    span = max(high - low, 1.0)
    return low - 0.06 * span, high + 0.06 * span


def _steps(
    front: Sequence[Mark], x_limits: tuple[float, float], y_limits: tuple[float, float], is_maximized: bool
) -> tuple[tuple[float, float], ...]:
    """Returns the corners of the best score with at most x parameters, from the bad edge to the right edge."""
    ordered = sorted(front, key=lambda mark: (mark.x, mark.y))
    if not ordered:
        return ()
    corners = [(ordered[0].x, y_limits[0] if is_maximized else y_limits[1])]
    for index, mark in enumerate(ordered):
        corners.append((mark.x, mark.y))
        end = ordered[index + 1].x if index + 1 < len(ordered) else x_limits[1]
        corners.append((end, mark.y))
    return tuple(corners)


def _crowd(marks: Sequence[Mark], is_maximized: bool) -> frozenset[int]:
    """Chooses the marks beyond `MOST_MARKS` that are farthest below the best score with at most their size."""
    sign = 1 if is_maximized else -1
    best, behind = -math.inf, []
    for mark in sorted(marks, key=lambda mark: (mark.x, -sign * mark.y)):
        best = max(best, sign * mark.y)
        is_kept = mark.is_front or bool(mark.baseline) or mark.confirmed is not None
        behind.append((not is_kept, best - sign * mark.y, mark.number, is_kept))
    return frozenset(number for _, _, number, is_kept in sorted(behind)[MOST_MARKS:] if not is_kept)


def _labelled(marks: Sequence[Mark]) -> list[Mark]:
    """Chooses the marks to name: knee, best, smallest, baselines, then front members far from the named ones."""
    front = sorted((mark for mark in marks if mark.is_front), key=lambda mark: mark.x)
    first = [mark for mark in front if mark.is_knee]
    first += [front[-1], front[0]] if front else []
    first += [mark for mark in marks if mark.baseline]
    places: dict[tuple[float, float], Mark] = {}  # one name a place; among equal points the baseline gets it
    for mark in first:
        if (mark.x, mark.y) not in places or mark.baseline:
            places[mark.x, mark.y] = mark
    chosen = list(places.values())
    rest = list({(mark.x, mark.y): mark for mark in front if (mark.x, mark.y) not in places}.values())
    while rest and len(chosen) < MOST_LABELS:
        far = max(rest, key=lambda mark: min(abs(math.log10(max(mark.x, 1) / max(other.x, 1))) for other in chosen))
        chosen.append(far)
        rest.remove(far)
    return chosen[:MOST_LABELS]
