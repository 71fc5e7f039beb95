"""The front figure: trainable parameters against score, as PNG, and its numbers as JSON and CSV.

The figure shows all complete trials in their method's colour, the front as a staircase, the knee as a star, the
baselines, and at most eight names. A stopped trial's score is not final, so it is not drawn.

`plot` computes the content. Here matplotlib draws it, for trackers and documents. `svg` draws it for web pages, which
need tooltips and the reader's light or dark colours, and whose font is not known.
"""

from __future__ import annotations

import csv
import io
import json
import warnings
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autopeft.history import History, Record
from autopeft.objectives import reference_point
from autopeft.reports import labels, text
from autopeft.reports.facts import Confirmed, Describe, Facts
from autopeft.reports.labels import Box
from autopeft.reports.palette import look
from autopeft.reports.plot import Mark, Plot, front_plot, log_ticks, wrap

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SCHEMA = 1
MOST_METHODS = 18  # in the legend
PIXELS = (1760, 1080)  # drawn at 200 dots an inch: sharp at the 880 px that a web page gives it
_DPI = 200
_MARKERS = {
    "circle": "o",
    "square": "s",
    "diamond": "D",
    "up": "^",
    "down": "v",
    "cross": "X",
    "plus": "P",
    "pentagon": "p",
}
_INK, _QUIET, _GRID = "#25292f", "#6b7280", "#e6e8eb"


def front_png(history: History, path: Path | str, describe: Describe, name: str = "") -> Path:
    """Writes the figure as PNG, 1760 × 1080 pixels. The same history gives the same bytes."""
    facts = Facts(history, describe, name)
    figure = _draw(facts, front_plot(facts))
    path = Path(path)
    with warnings.catch_warnings():
        # A character that the font lacks is a box; the warning would have it as it is, escapes too
        warnings.filterwarnings("ignore", message="Glyph", category=UserWarning)
        figure.savefig(path, dpi=_DPI, format="png", metadata={"Software": "autopeft"})
    return path


def front_json(history: History, path: Path | str, describe: Describe, name: str = "") -> Path:
    """Writes the front, its knee, the baselines and the hypervolume as JSON."""
    path = Path(path)
    path.write_text(json.dumps(front_data(Facts(history, describe, name)), indent=1, ensure_ascii=False) + "\n")
    return path


def front_csv(history: History, path: Path | str, describe: Describe, name: str = "") -> Path:
    """Writes the front as CSV, the best score first. No cell can be read as a formula."""
    path = Path(path)
    path.write_text(front_csv_text(Facts(history, describe, name)))
    return path


def front_data(facts: Facts) -> dict[str, Any]:
    """Returns the front as plain data, with a schema version."""
    data: dict[str, Any] = facts.redactor.texts(_front_data(facts))
    return data


def _front_data(facts: Facts) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "kind": "autopeft.front",
        "id": facts.header.get("id"),
        "objectives": [objective.to_json() for objective in facts.objectives],
        "reference_losses": [float(value) for value in reference_point(facts.objectives)],
        "score": {"metric": facts.metric, "is": facts.validation_label},
        "hypervolume": facts.volumes[-1] if facts.volumes else 0.0,
        "counts": facts.counts,
        "verdict": facts.verdict,
        "knee": None if facts.knee is None else facts.knee.number,
        "front": [_member(facts, record) for record in facts.front],
        "baselines": [
            {
                "kind": baseline.kind,
                "title": baseline.title,
                "trial": None if baseline.record is None else baseline.record.number,
                facts.metric: baseline.score,
                "trainable_parameters": baseline.size,
                "confirmed": _confirmed(baseline.confirmed),
            }
            for baseline in facts.baselines
        ],
    }


def front_csv_text(facts: Facts) -> str:
    """Returns the front as CSV text."""
    keys = sorted({key for record in facts.front for key in record.params} - {"method"})
    metrics = sorted({key for record in facts.front for key in record.metrics})
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    test = [f"test_{facts.metric}_mean", f"test_{facts.metric}_half_width_95", "test_seeds", "test_seeds_tried"]
    writer.writerow([text.cell(key) for key in ("trial", "name", "is_knee", "method", *metrics, *test, *keys)])
    for record in facts.front:
        confirmed = facts.confirmation(record)
        found = (
            [None] * 4
            if confirmed is None
            else [confirmed.interval.mean, confirmed.interval.half_width, confirmed.interval.n, confirmed.tried]
        )
        row = [record.number, facts.names[record.number], facts.knee is record, record.params["method"]]
        row += [record.metrics.get(key) for key in metrics] + found
        row += [_flat(record.params.get(key)) for key in keys]
        writer.writerow([text.cell(value) for value in row])
    return facts.redactor.text(out.getvalue())


def _flat(value: Any) -> Any:
    return " ".join(map(str, value)) if isinstance(value, (list, tuple)) else value


def _member(facts: Facts, record: Record) -> dict[str, Any]:
    return {
        "trial": record.number,
        "name": facts.names[record.number],
        "params": dict(record.params),
        "seed": record.trial.seed,
        "metrics": dict(record.metrics),
        "confirmed": _confirmed(facts.confirmation(record)),
    }


def _confirmed(found: Confirmed | None) -> Mapping[str, Any] | None:
    if found is None:
        return None
    return {
        "split": "test",
        "mean": found.interval.mean,
        "half_width_95": found.interval.half_width,
        "seeds": found.interval.n,
        "seeds_tried": found.tried,
        "values": {str(seed): value for seed, value in found.sample.values.items()},
        "drop": found.drop,
        "label": found.label,
    }


# ── drawing ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _draw(facts: Facts, plot: Plot) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(PIXELS[0] / _DPI, PIXELS[1] / _DPI), dpi=_DPI, facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0.085, 0.185, 0.895, 0.69))
    _axes(axes, plot)
    if plot.steps:
        xs, ys = zip(*plot.steps, strict=True)
        worst = plot.y_limits[0] if plot.is_maximized else plot.y_limits[1]
        axes.fill_between(xs, ys, worst, color="#2a6fcf", alpha=0.06, linewidth=0, zorder=1)
        axes.plot(xs, ys, color=_INK, linewidth=1.3, alpha=0.8, zorder=3, solid_joinstyle="miter")
    _behind(axes, plot)
    for mark in plot.marks:
        _point(axes, plot, mark)
        _interval(axes, mark)
    texts = _baselines(axes, plot)
    _names(figure, axes, plot, texts)
    _frame(figure, facts, plot)
    return figure


def _axes(axes: Axes, plot: Plot) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    if plot.is_log:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(FixedLocator(log_ticks(plot.x_limits)))
        axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: text.short_count(value)))
    axes.set_xlim(plot.x_limits)
    axes.set_ylim(plot.y_limits)
    axes.set_xlabel(plot.x_title, fontsize=8.5, color=_INK)
    axes.set_ylabel(plot.y_title, fontsize=8.5, color=_INK)
    axes.tick_params(labelsize=8, colors=_QUIET, length=0)
    axes.grid(True, color=_GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color("#9aa1ab")


def _behind(axes: Axes, plot: Plot) -> None:
    """Draws the marks off the front: one call a look, as 10,000 calls take half a minute."""
    low, high = plot.y_limits
    places: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for mark in plot.marks:
        if not mark.is_knee and not mark.is_front:
            style = look(mark.method)
            marker = ("v" if plot.is_maximized else "^") if mark.is_beyond else _MARKERS[style.shape]
            places.setdefault((marker, style.light), []).append((mark.x, low + plot.up(mark.y) * (high - low)))
    for (marker, colour), found in places.items():
        xs, ys = zip(*found, strict=True)
        axes.plot(xs, ys, marker, color=colour, markersize=4.6, markeredgewidth=0, alpha=0.42, zorder=4)


def _point(axes: Axes, plot: Plot, mark: Mark) -> None:
    """Draws a mark of the front, or the ring of a baseline."""
    style = look(mark.method)
    low, high = plot.y_limits
    y = low + plot.up(mark.y) * (high - low)
    if mark.is_knee:
        axes.plot(
            mark.x, y, "*", color=style.light, markersize=16, markeredgecolor="white", markeredgewidth=0.9, zorder=7
        )
    elif mark.is_front:
        size = 9.5 if style.shape in ("plus", "cross") else 7.5
        axes.plot(
            mark.x,
            y,
            _MARKERS[style.shape],
            color=style.light,
            markersize=size,
            markeredgecolor="white",
            markeredgewidth=0.9,
            zorder=6,
        )
    if mark.baseline:
        axes.plot(
            mark.x, y, "o", markersize=14, markerfacecolor="none", markeredgecolor=_QUIET, markeredgewidth=0.9, zorder=5
        )


def _interval(axes: Axes, mark: Mark) -> None:
    """Draws a confirmed test mean as a hollow circle, and its 95 % interval as a whisker."""
    if not mark.shows_test or mark.confirmed is None:
        return
    color = look(mark.method).light
    if mark.low is not None and mark.high is not None:
        axes.plot([mark.x, mark.x], [mark.low, mark.high], color=color, linewidth=1.1, zorder=4.5)
    axes.plot(
        mark.x,
        mark.confirmed,
        "o",
        markersize=4.6,
        markerfacecolor="white",
        markeredgecolor=color,
        markeredgewidth=1.1,
        zorder=5.5,
    )


def _baselines(axes: Axes, plot: Plot) -> list[Any]:
    """Draws the baselines' lines and texts. Returns the texts, which the names must not cover."""
    texts = []
    if plot.head is not None:
        axes.axhline(plot.head, color=_QUIET, linewidth=0.8, linestyle=(0, (1, 2)), zorder=2)
    if plot.trivial is not None and plot.trivial_is_shown:
        axes.axhline(plot.trivial, color=_QUIET, linewidth=0.9, linestyle=(0, (5, 3)), zorder=2)
        texts.append(
            axes.annotate(
                f"{plot.trivial_title} {text.score(plot.trivial, 3)}",
                (1, plot.trivial),
                xycoords=("axes fraction", "data"),
                xytext=(-3, 3),
                textcoords="offset points",
                ha="right",
                fontsize=7.5,
                color=_QUIET,
            )
        )
    elif plot.trivial is not None:
        arrow = "↓" if plot.is_maximized else "↑"
        edge = 0.004 if plot.is_maximized else 0.996  # at the edge: the line itself lies beyond
        axes.axhline(
            plot.y_limits[0] + edge * (plot.y_limits[1] - plot.y_limits[0]),
            color=_QUIET,
            linewidth=0.9,
            linestyle=(0, (5, 3)),
            zorder=2,
        )
        texts.append(
            axes.annotate(
                f"{plot.trivial_title} {text.score(plot.trivial, 3)} {arrow}",
                (1, 0 if plot.is_maximized else 1),
                xycoords="axes fraction",
                xytext=(-3, 4 if plot.is_maximized else -10),
                textcoords="offset points",
                ha="right",
                fontsize=7.5,
                color=_QUIET,
            )
        )
    if plot.note:
        texts.append(
            axes.annotate(plot.note, (0.01, 0.97), xycoords="axes fraction", va="top", fontsize=7.5, color=_QUIET)
        )
    return texts


def _names(figure: Figure, axes: Axes, plot: Plot, texts: list[Any]) -> None:
    """Writes names beside their points, measured with the real font, so that they cover nothing."""
    if not plot.labelled:
        return
    from matplotlib.patheffects import withStroke

    halo = withStroke(linewidth=2, foreground="white")  # a name that crosses a line stays readable
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    height = figure.bbox.height
    scale = figure.dpi / 72

    def pixel(x: float, y: float) -> tuple[float, float]:
        across, up = axes.transData.transform((x, y))
        return float(across), float(height - up)

    def box_of(artist: Any) -> Box:
        extent = artist.get_window_extent(renderer)
        return Box(extent.x0 - 3, height - extent.y1 - 2, extent.x1 + 3, height - extent.y0 + 2)

    low, high = plot.y_limits
    where = {mark.number: pixel(mark.x, low + plot.up(mark.y) * (high - low)) for mark in plot.marks}
    drawn = [
        figure.text(
            0,
            0,
            "\n".join(map(text.plain, wrap(mark.label))),
            fontsize=7.5,
            color=_INK,
            va="bottom",
            linespacing=1.05,
            path_effects=[halo],
        )
        for mark in plot.labelled
    ]
    sizes = [(box.right - box.left, box.bottom - box.top) for box in map(box_of, drawn)]
    bounds = box_of(axes.patch)
    hard = [Box.around(*where[mark.number], 6 * scale) for mark in plot.marks if mark.is_front or mark.baseline]
    soft = [Box.around(*where[mark.number], 3 * scale) for mark in plot.marks]
    soft += segments([pixel(*corner) for corner in plot.steps], 2 * scale)
    places = labels.place(
        [where[mark.number] for mark in plot.labelled],
        sizes,
        bounds=bounds,
        hard=hard + [box_of(artist) for artist in texts],
        soft=soft,
        unit=scale,
    )
    for mark, artist, box in zip(plot.labelled, drawn, places, strict=True):
        if box is None:
            artist.remove()
            continue
        artist.set_position(((box.left + 3) / figure.bbox.width, 1 - (box.bottom - 2) / height))
        x, y = where[mark.number]
        nearest = (min(max(x, box.left), box.right), min(max(y, box.top), box.bottom))
        if (nearest[0] - x) ** 2 + (nearest[1] - y) ** 2 > (14 * scale) ** 2:
            axes.annotate(
                "",
                (nearest[0], height - nearest[1]),
                xytext=(x, height - y),
                xycoords="figure pixels",
                textcoords="figure pixels",
                arrowprops={"arrowstyle": "-", "color": "#b3b9c2", "lw": 0.6},
                zorder=2.5,
            )


def segments(corners: list[tuple[float, float]], half: float) -> list[Box]:
    """Returns thin boxes along a line of horizontal and vertical pieces."""
    return [
        Box(min(a[0], b[0]) - half, min(a[1], b[1]) - half, max(a[0], b[0]) + half, max(a[1], b[1]) + half)
        for a, b in pairwise(corners)
    ]


def _frame(figure: Figure, facts: Facts, plot: Plot) -> None:
    """Draws the title, the caption, and the legend below."""
    model = f" · {facts.model_name}" if facts.model_name else ""
    figure.text(0.085, 0.945, text.plain(f"{facts.name}{model}"), fontsize=10.5, color=_INK, weight="bold")
    figure.text(0.085, 0.9, caption(facts, plot), fontsize=8, color=_QUIET)
    items: list[tuple[str, dict[str, Any]]] = [
        (method, {"marker": _MARKERS[look(method).shape], "color": look(method).light, "markersize": 5.5})
        for method in plot.methods[:MOST_METHODS]
    ]
    if len(plot.methods) > MOST_METHODS:
        items.append((f"and {len(plot.methods) - MOST_METHODS} more", {}))
    if any(mark.is_knee for mark in plot.marks):
        items.append(("knee", {"marker": "*", "color": _INK, "markersize": 9}))
    if plot.steps:
        items.append(("front", {"color": _INK, "linestyle": "-", "linewidth": 1.3}))
    if any(mark.shows_test for mark in plot.marks):
        items.append(
            (
                "test, mean ± 95 % CI",
                {
                    "marker": "o",
                    "color": _QUIET,
                    "markerfacecolor": "white",
                    "linestyle": "-",
                    "linewidth": 1.1,
                    "markersize": 4.6,
                },
            )
        )
    if plot.head is not None:
        items.append(("frozen head", {"color": _QUIET, "linestyle": (0, (1, 2)), "linewidth": 1.1}))
    _legend(figure, items)


def _legend(figure: Figure, items: list[tuple[str, dict[str, Any]]]) -> None:
    """Draws the keys in rows, each as wide as its name. In matplotlib's legend all are as wide as the widest."""
    from matplotlib.lines import Line2D

    width, size = float(figure.bbox.width), 7 * _DPI / 72
    x, y, left, right = 0.085, 0.078, 0.085, 0.985
    for name, look_of_line in items:
        name = text.plain(name, 48)
        needed = (labels.text_width(name, size) + 2.6 * size) / width
        if x + needed > right and x > left:
            x, y = left, y - 0.029
        key = 0.5 * size / width
        ends = [x - key, x + key] if "marker" not in look_of_line else [x - key, x, x + key]
        line = Line2D(
            ends,
            [y] * len(ends),
            transform=figure.transFigure,
            **{"linestyle": "none", "markevery": [1] if len(ends) == 3 else None, **look_of_line},
        )
        figure.add_artist(line)
        figure.text(x + 1.0 * size / width, y, name, fontsize=7, color=_INK, va="center_baseline")
        x += needed


def caption(facts: Facts, plot: Plot) -> str:
    """Describes what the figure draws, and what it leaves out."""
    parts = [text.plural(len(plot.marks), "complete trial")]
    stopped = facts.counts.get("STOPPED", 0)
    if stopped:
        parts.append(f"{text.plural(stopped, 'stopped trial')} not drawn, their scores are not final")
    if plot.beyond:
        parts.append(f"{plot.beyond} off the axis, at its edge")
    if facts.volumes:
        parts.append(f"hypervolume {facts.volumes[-1]:.3f}")
    return " · ".join(parts)
