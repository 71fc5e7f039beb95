"""The Markdown report: the same facts as the HTML one, for a repository or a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from autopeft.history import History
from autopeft.reports import classes, content, mistakes, rows, table, text
from autopeft.reports.facts import Describe, Facts
from autopeft.reports.html import subtitle
from autopeft.reports.importance import Importances, importances
from autopeft.reports.mistakes import Worst
from autopeft.reports.table import Column, Table

MOST_ROWS = 12  # of a curve: enough to see its course


def write(
    history: History,
    path: Path | str,
    describe: Describe,
    *,
    name: str = "",
    picture: str = "front.png",
    worst: Worst | None = None,
    mattered: Importances | None = None,
) -> Path:
    """Writes the report of a search.

    Args:
        picture: Path of the front's PNG, relative to the report; shown if the PNG exists.
        worst: Rows that trials get most wrong.
        mattered: What mattered, if that is known already: of many trials a forest takes seconds.
    """
    path = Path(path)
    shown = picture if (path.parent / picture).is_file() else ""
    source = render(history, describe, name=name, picture=shown, worst=worst, mattered=mattered)
    path.write_text(source, encoding="utf-8")
    return path


def render(
    history: History,
    describe: Describe,
    *,
    name: str = "",
    picture: str = "",
    worst: Worst | None = None,
    mattered: Importances | None = None,
) -> str:
    """Renders the report of a search as text."""
    facts = Facts(history, describe, name)
    lines = _lines(facts, picture, worst or {}, mattered or importances(facts))
    return facts.redactor.text("\n".join(lines).rstrip() + "\n")


def _lines(facts: Facts, picture: str, worst: Worst, mattered: Importances) -> Iterator[str]:
    yield f"# {text.markdown(facts.name)}\n"
    yield f"{text.markdown(subtitle(facts))}\n"
    yield f"**{text.markdown(facts.verdict)}**\n"
    if picture:
        yield f"![The front of {text.markdown(facts.metric)} against trainable parameters]({picture})\n"
    yield from _table(table.front(facts), "There is no front yet.")
    for note in content.score_notes(facts):
        yield f"{text.markdown(note)}\n"
    yield from _table(table.baselines(facts))
    yield from _table(rows.row_scores(facts))
    for shown in classes.class_tables(facts, classes.MOST_ROWS):
        yield from _table(shown)
    for shown in mistakes.mistake_tables(facts, worst):
        yield from _table(shown)
    yield from _table(_volumes(facts))
    yield from _table(_curves(facts))
    yield from _importance(mattered)
    counts = ", ".join(f"{number} {status}" for status, number in facts.counts.items()) or "none yet"
    yield from _table(table.trials(facts, table.MOST_TRIALS), "None was asked for yet.", before=counts)
    reasons = (table.failures(facts, table.MOST_REASONS), table.refusals(facts, table.MOST_REASONS))
    for part in (*reasons, table.resumes(facts)):
        yield from _table(part)
    yield "## Provenance\n"
    yield from (f"- {text.markdown(name)}: {text.code(value)}" for name, value in content.provenance_rows(facts))
    yield "\n### Resolved config\n"
    yield from (f"    {line}" for line in content.config_json(facts).splitlines())


def _table(shown: Table, instead: str = "", before: str = "") -> Iterator[str]:
    """Yields the lines of a section with a table, or with `instead` if the table is empty; nothing without either."""
    if not shown.rows and not instead:
        return
    yield f"## {shown.title}\n"
    if before:
        yield f"{text.markdown(before)}\n"
    yield f"{shown.markdown()}\n" if shown.rows else f"{instead}\n"
    if shown.rows and shown.note:
        yield f"{text.markdown(shown.note)}\n"


def _importance(found: Importances) -> Iterator[str]:
    if not found.methods:
        return
    yield "## What mattered\n"
    yield f"{content.methods_table(found).markdown()}\n"
    if found.parameters:
        yield f"{content.importance_table(found).markdown()}\n"
    for note in content.importance_notes(found):
        yield f"{text.markdown(note)}\n"


def _volumes(facts: Facts) -> Table:
    """Makes a table of the hypervolume at some trials, the last one among them."""
    total = len(facts.volumes)
    shown = sorted({round((index + 1) * total / MOST_ROWS) for index in range(MOST_ROWS)} - {0})
    rows = tuple({"trials": count, "volume": facts.volumes[count - 1]} for count in shown)
    columns = (Column("trials", "trials told", str, True), Column("volume", "hypervolume", text.score, True))
    return Table("Hypervolume over trials", columns, rows)


def _curves(facts: Facts) -> Table:
    """Makes a table of the front's learning curves: the report at each rung."""
    metrics = content.reported_metrics(facts)
    rows = tuple(
        {"trial": record.number, "step": report.step, **{metric: report.metrics.get(metric) for metric in metrics}}
        for record in facts.front
        for report in record.reports
    )
    columns = (
        Column("trial", "trial", str, True),
        Column("step", "step", str, True),
        *(Column(metric, text.metric_title(metric), text.score, True) for metric in metrics),
    )
    return Table("Learning curves of the front", columns, rows if metrics else ())
