"""Common content of HTML and Markdown reports except tables: curves, provenance, and notes on the numbers."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from autopeft.reports import text
from autopeft.reports.facts import Facts
from autopeft.reports.importance import FEWEST, Importances
from autopeft.reports.svg import Series
from autopeft.reports.table import Column, Table
from autopeft.trial import COMPILED, Status

MOST_QUIET = 150  # curves in the background; more would be a grey wall, and a heavy page


# `Result.ran` in words
WAYS = {
    "graph": "as CUDA graphs, a launch a step",
    "static": "in static shapes",
    "stack": "in passes that trials share",
    "plain": "step by step",
}


def volume_series(facts: Facts) -> list[Series]:
    """Returns the hypervolume over told trials; nothing if it stays 0."""
    points = tuple((float(index + 1), volume) for index, volume in enumerate(facts.volumes))
    return [Series("hypervolume", points)] if any(facts.volumes) else []


def learning_series(facts: Facts, metric: str) -> list[Series]:
    """One metric over steps, by trial: the front in its methods' colours, the rest in the background."""
    out, quiet = [], 0
    for record in facts.history.trials:
        points = tuple((float(r.step), r.metrics[metric]) for r in record.reports if metric in r.metrics)
        if not points:
            continue
        is_front = record.number in facts.front_numbers
        quiet += not is_front
        if quiet > MOST_QUIET and not is_front:
            continue
        name = f"trial {record.number}: {facts.names[record.number]}, {record.status or 'running'}"
        out.append(Series(name, points, str(record.params["method"]), not is_front, record.status is Status.STOPPED))
    return out


def reported_metrics(facts: Facts) -> list[str]:
    """Returns the metrics with learning curves: the training loss and the score, if rungs reported them."""
    found = {name for record in facts.history.trials for report in record.reports for name in report.metrics}
    return [name for name in ("train_loss", facts.metric) if name in found]


def methods_table(found: Importances) -> Table:
    rows = tuple(
        {"method": m.method, "n": m.n, "best": m.best, "median": m.median, "worst": m.worst} for m in found.methods
    )
    columns = (
        Column("method", "method"),
        Column("n", "complete trials", str, True),
        Column("best", "best", text.score, True),
        Column("median", "median", text.score, True),
        Column("worst", "worst", text.score, True),
    )
    return Table("Scores by method", columns, rows)


def importance_table(found: Importances, most: int = 12) -> Table:
    shown = [p for p in found.parameters if p.share >= 0.005][:most]
    rows = tuple({"name": p.name, "share": p.share, "n": p.n} for p in shown)
    columns = (
        Column("name", "parameter"),
        Column("share", "share of variance", lambda value: f"{value:.0%}", True),
        Column("n", "trials", str, True),
    )
    return Table("Parameters", columns, rows)


def importance_notes(found: Importances) -> list[str]:
    """Explains how importances were computed, and their limits."""
    notes = []
    if found.between is not None:
        notes.append(f"{found.between:.0%} of the score's variance lies between methods, the rest within them.")
    if found.why_not:
        notes.append(f"Of single parameters nothing is said: {found.why_not}.")
    else:
        notes.append(
            "Share: how much of the score's variance, among the trials that have the parameter, a random forest fails "
            "to predict on held-out trials once the parameter is shuffled among them (five folds; held-out "
            f"R² {found.r2:.2f}). What is not listed has under 0.5 %, or fewer than {FEWEST} trials."
        )
    if found.sampled is not None:
        notes.append(f"The forest had {found.sampled:,} of the complete trials, drawn by seed.")
    notes.append(
        "Limits: complete trials only, one seed each; the search asks more often where it hopes, and parameters that "
        "changed together cannot be told apart. It says where the score came from in this search, not what causes it."
    )
    return notes


def score_notes(facts: Facts) -> list[str]:
    """Returns the remarks that a reader needs before trusting a number."""
    notes = [
        f"Search scores are of {facts.validation_label}"
        + (f", {facts.rows('validation'):,} rows" if facts.rows("validation") else "")
        + ": the best of many is flattered by chance."
    ]
    if facts.confirmed:
        seeds = sorted({entry.tried for entry in facts.confirmed.values() if not entry.sample.is_fixed})
        many = " to ".join(map(str, sorted({seeds[0], seeds[-1]}))) if seeds else "no"
        rows = f", {facts.rows('test'):,} rows" if facts.rows("test") else ""
        notes.append(
            f"Confirmed scores are of the test split{rows}, retrained with {many} fresh seeds: mean ± 95 % "
            "t interval over seeds. The choice of test rows adds to that; the leaderboard counts it in."
        )
        for entry in facts.incomplete:
            name = entry.name if entry.number is None else f"{facts.names[entry.number]} ({entry.name})"
            notes.append(
                f"{name}: {entry.seeds} seeds gave a number. Its mean is of these alone, so flattered; it is compared "
                "with nothing."
            )
        if facts.history.races:
            notes.append(
                "Seeds were added where the intervals of neighbours on the front overlapped (a race): how many a mean has "
                "depends on the scores, which makes its interval a little narrow."
            )
        if facts.seen_before:
            notes.append(
                f"Confirmed more than once: {', '.join(facts.seen_before)}. The later seeds were asked for with "
                "the test scores of the earlier ones known."
            )
    else:
        notes.append("Nothing was confirmed yet: autopeft confirm retrains the front and scores the test split.")
    of_data = facts.header.get("dataset", {}).get("origin", {}).get("notes", [])
    return notes + [f"Data: {facts.redactor.text(note)}." for note in of_data]


def provenance_rows(facts: Facts) -> list[tuple[str, str]]:
    """Where every number comes from: flat (name, value), in the header's order."""
    header = facts.header
    rows = [("search id", str(header.get("id", text.ABSENT))), ("begun", str(header.get("created", text.ABSENT)))]
    for section in ("model", "dataset", "chosen", "provenance"):
        rows += [(f"{section} {name}", value) for name, value in _flat(header.get(section, {}))]
    rows += [
        (
            "objectives",
            "; ".join(f"{o.goal} {o.metric} ({o.scale}, reference {o.reference:g})" for o in facts.objectives),
        )
    ]
    ran = Counter(record.ran for record in facts.history.records if record.ran)
    if ran:
        ways = {**WAYS, **{way + COMPILED: f"{text}, compiled" for way, text in WAYS.items()}}
        rows.append(("trials ran", ", ".join(f"{ran[way]} {text}" for way, text in ways.items() if ran[way])))
    # Redact before Markdown or HTML escapes the text: `http\\://alice:…` is not recognised as an address.
    return [(name, facts.redactor.text(value)) for name, value in rows]


def config_json(facts: Facts) -> str:
    """The resolved config as it is now."""
    return json.dumps(facts.redactor.data(facts.history.config), indent=1, ensure_ascii=False, default=str)


def _flat(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, inner in value.items():
        if isinstance(inner, Mapping):
            yield from _flat(inner, f"{prefix}{name} ")
        elif isinstance(inner, (list, tuple)):
            shown = json.dumps(list(inner), ensure_ascii=False, default=str)
            yield prefix + name, shown if len(shown) < 300 else f"{shown[:297]}…"
        elif inner is not None:
            yield prefix + name, str(inner)
