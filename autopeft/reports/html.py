"""The HTML report: one self-contained file. Light and dark, readable on a phone; no request leaves the page.

jinja2 or `svg` escapes everything that came from outside (names, errors, configs). A content security policy lets only
the page's own script run, by its hash, and lets nothing be loaded.
"""

from __future__ import annotations

import base64
import hashlib
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autopeft.history import History
from autopeft.reports import classes, content, figure, mistakes, rows, svg, table, text
from autopeft.reports.facts import SIZE, Describe, Facts
from autopeft.reports.importance import Importances, importances
from autopeft.reports.mistakes import Worst
from autopeft.reports.plot import front_plot

if TYPE_CHECKING:
    from jinja2 import Environment

_TEMPLATES = Path(__file__).parent / "templates"


def write(
    history: History,
    path: Path | str,
    describe: Describe,
    *,
    name: str = "",
    worst: Worst | None = None,
    mattered: Importances | None = None,
) -> Path:
    """Writes the report of a search.

    Args:
        history: The search's history, at least its header.
        path: The file.
        describe: Params → a name for people.
        name: The run's name.
        worst: Rows that trials get most wrong.
        mattered: What mattered, if that is known already: of many trials a forest takes seconds.
    """
    path = Path(path)
    path.write_text(render(history, describe, name=name, worst=worst, mattered=mattered), encoding="utf-8")
    return path


def render(
    history: History,
    describe: Describe,
    *,
    name: str = "",
    worst: Worst | None = None,
    mattered: Importances | None = None,
) -> str:
    """Renders the report of a search as text."""
    facts = Facts(history, describe, name)
    found = mattered or importances(facts)
    shown = page(
        "report.html.j2",
        methods=[str(record.params["method"]) for record in history.records],
        values={
            **_front_values(facts),
            "subtitle": subtitle(facts),
            "tiles": _tiles(facts),
            "score_notes": content.score_notes(facts),
            "baselines": table.baselines(facts),
            "row_scores": rows.row_scores(facts),
            "classes": classes.class_tables(facts),
            "most_classes": classes.MOST_ROWS,
            "mistakes": mistakes.mistake_tables(facts, worst or {}),
            "charts": _charts(facts),
            "methods_table": content.methods_table(found),
            "importance_table": content.importance_table(found),
            "importance_notes": content.importance_notes(found),
            "counts": ", ".join(f"{number} {status}" for status, number in facts.counts.items()) or "none yet",
            "trials": table.trials(facts, table.MOST_TRIALS),
            "failures": table.failures(facts, table.MOST_REASONS),
            "refusals": table.refusals(facts, table.MOST_REASONS),
            "resumes": table.resumes(facts),
            "provenance": content.provenance_rows(facts),
            "config": content.config_json(facts),
        },
    )
    return facts.redactor.text(shown)


def front(history: History, describe: Describe, *, name: str = "") -> str:
    """Renders the front alone, to fit in a small frame: the verdict, the interactive figure and its table."""
    facts = Facts(history, describe, name)
    methods = [str(record.params["method"]) for record in history.records]
    return facts.redactor.text(page("front.html.j2", methods=methods, values=_front_values(facts)))


def _front_values(facts: Facts) -> dict[str, Any]:
    """Returns the values for the figure's template."""
    plot = front_plot(facts)
    return {
        "facts": facts,
        "front_wide": svg.front(facts, plot, with_style=False),
        "front_narrow": svg.front(facts, plot, narrow=True, with_style=False),
        "methods": [{"name": m, "css": svg.method_class(m), "key": svg.key(m)} for m in plot.methods],
        "caption": figure.caption(facts, plot) + (f" · {len(plot.crowd):,} trials as dots" if plot.crowd else ""),
        "front": table.front(facts),
    }


def fragment(history: History, describe: Describe) -> str:
    """Renders the front as a picture and a table, for a notebook: no script, no page around it."""
    facts = Facts(history, describe)
    picture = svg.front(facts, front_plot(facts), theme="light")
    return facts.redactor.text(f"<div>{picture}{table.front(facts).html()}</div>")


def subtitle(facts: Facts) -> str:
    """Writes model, task and sizes in one line."""
    config = facts.history.config
    task = config.get("task", "")
    parts = [facts.model_name or "", str(task.get("name", "") if isinstance(task, dict) else task)]
    if facts.model_parameters:
        parts.append(f"{text.short_count(facts.model_parameters)} parameters")
    sizes = facts.header.get("dataset", {}).get("sizes", {})
    parts.append(", ".join(f"{count:,} {split}" for split, count in sizes.items()) + " rows" if sizes else "")
    parts.append(text.moment(str(facts.header.get("created", ""))))
    return " · ".join(part for part in parts if part)


def page(template: str, methods: list[str], values: dict[str, Any]) -> str:
    """Renders a template to a page with its style and script inside."""
    script = _read("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    style = svg.style(methods) + _read("page.css")
    return (
        _environment()
        .get_template(template)
        .render(**values, style=style, script=script, script_hash=f"sha256-{digest}")
    )


@lru_cache
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader = FileSystemLoader(_TEMPLATES)
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)


def _read(name: str) -> str:
    return (_TEMPLATES / name).read_text(encoding="utf-8")


def _tiles(facts: Facts) -> list[dict[str, str]]:
    """Returns the numbers that a reader looks for first."""
    tiles = []
    for record, title in ((facts.front[0] if facts.front else None, "best"), (facts.knee, "knee")):
        if record is None or (title == "knee" and record is facts.front[0]):
            continue
        confirmed = facts.confirmation(record)
        if confirmed is None:
            value, label = text.score(facts.score(record), 3), facts.validation_label
        else:
            value = text.mean_and_interval(confirmed.interval.mean, confirmed.interval.half_width, 3)
            label = f"test, {confirmed.seeds} {'seed' if confirmed.tried == 1 else 'seeds'}, 95 % CI"
        what = f"{text.metric_title(facts.metric)} of the {title}, trial {record.number}"
        tiles.append({"value": value, "title": what, "detail": label})
        size = facts.size(record)
        if title == "knee" and size is not None and facts.size_metric == SIZE:
            whole = facts.model_parameters
            tiles.append(
                {
                    "value": text.short_count(size),
                    "title": "trainable parameters of the knee",
                    "detail": f"{text.share(size, whole)} of the model" if whole else "",
                }
            )
    if facts.volumes:
        tiles.append({"value": f"{facts.volumes[-1]:.3f}", "title": "hypervolume", "detail": _volume_unit(facts)})
    total = len(facts.history.trials)
    tiles.append(
        {
            "value": f"{total:,}",
            "title": "trials",
            "detail": f"{facts.counts.get('COMPLETE', 0)} complete, {len(facts.front)} on the front",
        }
    )
    return tiles


def _volume_unit(facts: Facts) -> str:
    units = [text.metric_title(o.metric) + (" (decades)" if o.scale == "log10" else "") for o in facts.objectives]
    return " × ".join(units)


def _charts(facts: Facts) -> list[dict[str, str]]:
    charts = []
    volume = svg.curves(content.volume_series(facts), "trials told", "hypervolume", is_step=True)
    if volume:
        caption = f"What the front dominates, in {_volume_unit(facts)}. A trial that adds nothing is flat."
        charts.append({"title": "Hypervolume over trials", "svg": volume, "caption": caption})
    for metric in content.reported_metrics(facts):
        drawn = svg.curves(content.learning_series(facts, metric), "optimiser steps", text.metric_title(metric))
        if drawn:
            what = "training loss, smoothed" if metric == "train_loss" else f"{text.metric_title(metric)} on validation"
            charts.append(
                {
                    "title": f"Learning curves: {text.metric_title(metric)}",
                    "svg": drawn,
                    "caption": f"{what[0].upper()}{what[1:]}, at each rung. Coloured: the front. A bar ends a "
                    "stopped trial.",
                }
            )
    return charts
