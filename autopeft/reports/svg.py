"""Inline SVG for HTML reports: the front with tooltips, and curves. Loads nothing, runs without a script.

Every text passes `_tag`, which escapes it. Colours are CSS variables, so that one picture serves light and dark. A
point's `<title>` is its tooltip where no script runs; the report's script shows it larger, and by touch.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

from autopeft.reports import labels, text
from autopeft.reports.facts import Facts
from autopeft.reports.labels import Box
from autopeft.reports.palette import look
from autopeft.reports.plot import Mark, Plot, log_ticks, tick_labels, ticks, tip, wrap

_LIGHT = {"bg": "#ffffff", "ink": "#25292f", "quiet": "#626b78", "grid": "#e6e8eb", "area": "#2a6fcf"}
_DARK = {"bg": "#16181d", "ink": "#e8eaee", "quiet": "#9aa4b2", "grid": "#2c313a", "area": "#5b9bf0"}

_RULES = """
.ap-fig{display:block;width:100%;height:auto;font-family:system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
.ap-fig text{fill:var(--ap-ink)}
.ap-name{paint-order:stroke;stroke:var(--ap-bg);stroke-width:3px;stroke-linejoin:round}
.ap-fig .ap-q{fill:var(--ap-quiet)}
.ap-ground{fill:var(--ap-bg)}
.ap-grid{stroke:var(--ap-grid);stroke-width:1}
.ap-axis{stroke:var(--ap-quiet);stroke-width:1}
.ap-steps{fill:none;stroke:var(--ap-ink);stroke-width:1.6;stroke-opacity:.85}
.ap-area{fill:var(--ap-area);fill-opacity:.08}
.ap-base{stroke:var(--ap-quiet);stroke-width:1.1}
.ap-lead{stroke:var(--ap-quiet);stroke-opacity:.6;stroke-width:.8}
.ap-ring{fill:none;stroke:var(--ap-quiet);stroke-width:1.1}
.ap-pt{outline:none;cursor:default}
.ap-pt .ap-s{fill:var(--c);stroke:var(--ap-bg);stroke-width:1.3}
.ap-pt.ap-other .ap-s{fill-opacity:.45;stroke-width:0}
.ap-pt:hover .ap-s,.ap-pt:focus .ap-s{fill-opacity:1;stroke:var(--ap-ink);stroke-width:1.6}
.ap-hit{fill:transparent}
.ap-crowd{fill:none;stroke:var(--c);stroke-opacity:.45;stroke-width:5;stroke-linecap:round}
.ap-test{fill:var(--ap-bg);stroke:var(--c);stroke-width:1.5}
.ap-whisker{stroke:var(--c);stroke-width:1.5}
.ap-line{fill:none;stroke:var(--c,var(--ap-quiet));stroke-width:2}
.ap-line.ap-other{stroke:var(--ap-quiet);stroke-opacity:.35;stroke-width:1}
.ap-end{fill:var(--c,var(--ap-quiet))}
.ap-fig .ap-stop{stroke:var(--ap-quiet);stroke-width:1.4;fill:none}
"""


def style(methods: Iterable[str], theme: str = "auto") -> str:
    """Returns the CSS of all figures of a page: the rules, the theme's colours, and a class for each method.

    Args:
        theme: "auto", "light" or "dark".
    """
    if theme not in ("auto", "light", "dark"):
        raise ValueError(f"a theme is auto, light or dark, not {theme!r}")
    methods = list(dict.fromkeys(methods))

    def colours(ground: dict[str, str], is_dark: bool) -> str:
        rules = ".ap{" + "".join(f"--ap-{name}:{value};" for name, value in ground.items()) + "}"
        for method in methods:
            own = look(method)
            rules += f".{method_class(method)}{{--c:{own.dark if is_dark else own.light}}}"
        return rules

    if theme == "auto":
        return _RULES + colours(_LIGHT, False) + "@media (prefers-color-scheme:dark){" + colours(_DARK, True) + "}"
    return _RULES + colours(_DARK if theme == "dark" else _LIGHT, theme == "dark")


def method_class(method: str) -> str:
    """Returns a CSS class for a method, whatever characters its name has."""
    return "ap-m-" + hashlib.sha256(method.encode()).hexdigest()[:8]


def _tag(name: str, content: str = "", **attributes: object) -> str:
    """Writes an element. Attribute values are escaped; `content` is markup that is already safe."""
    named = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(_number(value), quote=True)}"'
        for key, value in attributes.items()
        if value is not None
    )
    return f"<{name}{named}>{content}</{name}>" if content else f"<{name}{named}/>"


def _number(value: object) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


def _label(
    x: float, y: float, content: str, size: float, anchor: str = "start", quiet: bool = False, **more: object
) -> str:
    return _tag(
        "text", escape(content), x=x, y=y, font_size=size, text_anchor=anchor, class_="ap-q" if quiet else None, **more
    )


@dataclass(frozen=True, slots=True)
class _Frame:
    """The drawing area of a figure in pixels."""

    width: float
    height: float
    left: float
    right: float
    top: float
    bottom: float

    @property
    def inner_width(self) -> float:
        return self.width - self.left - self.right

    @property
    def inner_height(self) -> float:
        return self.height - self.top - self.bottom

    def x(self, across: float) -> float:
        return self.left + across * self.inner_width

    def y(self, up: float) -> float:
        return self.top + (1 - up) * self.inner_height


_WIDE = _Frame(880, 480, 62, 16, 16, 50)
_NARROW = _Frame(360, 340, 44, 10, 12, 44)
_CHART = _Frame(430, 260, 52, 14, 14, 42)


# ── the front ───────────────────────────────────────────────────────────────────────────────────────────────────────


def front(facts: Facts, plot: Plot, *, theme: str = "auto", narrow: bool = False, with_style: bool = True) -> str:
    """Draws the front figure.

    Args:
        narrow: For a phone: trial numbers in place of names.
        with_style: Whether the picture contains its CSS. A page with several pictures contains the CSS once.
    """
    frame = _NARROW if narrow else _WIDE
    size = 11.0 if narrow else 12.5
    parts = [_tag("style", style(plot.methods, theme))] if with_style else []
    summary = f"The front of {facts.metric} against {plot.x_title}: {facts.verdict}"
    parts.append(_tag("title", escape(f"{facts.name}: front of {text.metric_title(facts.metric)}")))
    parts.append(_tag("desc", escape(summary)))
    if theme != "auto":
        parts.append(_tag("rect", width=frame.width, height=frame.height, class_="ap-ground"))
    parts += _front_axes(plot, frame, size)
    parts += _front_line(plot, frame)
    parts += _front_baselines(plot, frame, size)
    names, places = _front_names(plot, frame, size, narrow)
    parts += places
    parts += _crowd(plot, frame)
    parts += [_point(facts, plot, frame, mark, narrow) for mark in plot.marks if mark.number not in plot.crowd]
    parts += names
    inner = _tag("g", "".join(parts), class_="ap")
    return _tag(
        "svg",
        inner,
        class_="ap-fig ap-front",
        viewBox=f"0 0 {frame.width:g} {frame.height:g}",
        role="group",
        aria_label=f"front of {text.metric_title(facts.metric)}",
        xmlns="http://www.w3.org/2000/svg",
    )


def _front_axes(plot: Plot, frame: _Frame, size: float) -> list[str]:
    parts = []
    values = ticks(plot.y_limits, 8)
    for value, label in zip(values, tick_labels(values), strict=True):
        y = frame.y((value - plot.y_limits[0]) / (plot.y_limits[1] - plot.y_limits[0]))
        parts.append(_tag("line", x1=frame.left, x2=frame.width - frame.right, y1=y, y2=y, class_="ap-grid"))
        parts.append(_label(frame.left - 7, y + size * 0.35, label, size - 1, "end", True))
    for value in log_ticks(plot.x_limits) if plot.is_log else ticks(plot.x_limits):
        x = frame.x(plot.across(value))
        parts.append(_tag("line", x1=x, x2=x, y1=frame.top, y2=frame.height - frame.bottom, class_="ap-grid"))
        below = frame.height - frame.bottom + size + 5
        parts.append(_label(x, below, text.short_count(value), size - 1, "middle", True))
    bottom = frame.height - frame.bottom
    parts.append(_tag("line", x1=frame.left, x2=frame.width - frame.right, y1=bottom, y2=bottom, class_="ap-axis"))
    parts.append(_label(frame.x(0.5), frame.height - 6, plot.x_title, size, "middle"))
    middle = frame.y(0.5)
    turned = f"rotate(-90 {size + 1:g} {middle:g})"
    parts.append(_label(size + 1, middle, plot.y_title, size, "middle", transform=turned))
    return parts


def _front_line(plot: Plot, frame: _Frame) -> list[str]:
    if not plot.steps:
        return []
    low, high = plot.y_limits
    corners = [(frame.x(plot.across(x)), frame.y((y - low) / (high - low))) for x, y in plot.steps]
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in corners)
    edge = corners[0][1]
    return [_tag("path", d=f"{path}V{edge:.1f}Z", class_="ap-area"), _tag("path", d=path, class_="ap-steps")]


def _front_baselines(plot: Plot, frame: _Frame, size: float) -> list[str]:
    parts = []
    right = frame.width - frame.right

    def line(value: float, dash: str) -> float:
        y = frame.y((value - plot.y_limits[0]) / (plot.y_limits[1] - plot.y_limits[0]))
        parts.append(_tag("line", x1=frame.left, x2=right, y1=y, y2=y, class_="ap-base", stroke_dasharray=dash))
        return y

    if plot.head is not None:
        line(plot.head, "1 3")
    if plot.trivial is not None:
        name = f"{plot.trivial_title} {text.score(plot.trivial, 3)}"
        if plot.trivial_is_shown:
            y = line(plot.trivial, "6 4") - 5
        else:
            name += " ↓" if plot.is_maximized else " ↑"
            edge = line(plot.y_limits[0] if plot.is_maximized else plot.y_limits[1], "6 4")
            y = edge - 6 if plot.is_maximized else edge + size
        parts.append(_label(right - 4, y, name, size - 1, "end", True))
    if plot.note:
        parts.append(_label(frame.left + 6, frame.top + size, plot.note, size - 1, "start", True))
    return parts


def _front_names(plot: Plot, frame: _Frame, size: float, narrow: bool) -> tuple[list[str], list[str]]:
    """Draws the names, and thin lines to the names that are far from their points."""
    low, high = plot.y_limits
    where = {mark.number: (frame.x(plot.across(mark.x)), frame.y(plot.up(mark.y))) for mark in plot.marks}
    texts = [[f"#{mark.number}"] if narrow and not mark.baseline else wrap(mark.label) for mark in plot.labelled]
    widths = [max(labels.text_width(line, size) for line in lines) + 6 for lines in texts]
    sizes = [(width, len(lines) * size * 1.15 + 4) for width, lines in zip(widths, texts, strict=True)]
    steps = [(frame.x(plot.across(x)), frame.y((y - low) / (high - low))) for x, y in plot.steps]
    soft = [Box.around(*where[mark.number], 4) for mark in plot.marks]
    soft += [
        Box(min(a[0], b[0]) - 3, min(a[1], b[1]) - 3, max(a[0], b[0]) + 3, max(a[1], b[1]) + 3)
        for a, b in pairwise(steps)
    ]
    hard = [Box.around(*where[mark.number], 8) for mark in plot.marks if mark.is_front or mark.baseline]
    if plot.trivial is not None:
        bottom = frame.height - frame.bottom
        hard.append(Box(frame.width - frame.right - 170, bottom - 22, frame.width - frame.right, bottom))
    bounds = Box(frame.left + 2, frame.top, frame.width - frame.right, frame.height - frame.bottom - 2)
    boxes = labels.place([where[mark.number] for mark in plot.labelled], sizes, bounds=bounds, hard=hard, soft=soft)
    names, leads = [], []
    for mark, lines, box in zip(plot.labelled, texts, boxes, strict=True):
        if box is None:
            continue
        x, y = where[mark.number]
        is_left = box.right < x  # aligned towards its point, whatever the reader's font
        spans = "".join(
            _tag(
                "tspan",
                escape(line),
                x=box.right - 3 if is_left else box.left + 3,
                y=box.top + 2 + size * (0.9 + 1.15 * index),
            )
            for index, line in enumerate(lines)
        )
        anchor = "end" if is_left else "start"
        names.append(_tag("text", spans, font_size=size, text_anchor=anchor, class_="ap-name"))
        near = (min(max(x, box.left), box.right), min(max(y, box.top), box.bottom))
        if math.dist(near, (x, y)) > 18:
            leads.append(_tag("line", x1=x, y1=y, x2=near[0], y2=near[1], class_="ap-lead"))
    return names, leads


def _crowd(plot: Plot, frame: _Frame) -> list[str]:
    """Draws the dots without a tooltip: one element a method, each place once."""
    places: dict[str, dict[tuple[int, int], None]] = {}
    for mark in plot.marks:
        if mark.number in plot.crowd:
            place = (round(frame.x(plot.across(mark.x))), round(frame.y(plot.up(mark.y))))
            places.setdefault(mark.method, {})[place] = None
    return [
        _tag("path", d="".join(f"M{x} {y}h0" for x, y in found), class_=f"ap-crowd {method_class(method)}")
        for method, found in places.items()
    ]


def _point(facts: Facts, plot: Plot, frame: _Frame, mark: Mark, narrow: bool) -> str:
    x, y = frame.x(plot.across(mark.x)), frame.y(plot.up(mark.y))
    lines = tip(mark, facts)
    parts = [_tag("title", escape("\n".join(lines)))]
    if mark.shows_test and mark.confirmed is not None:
        if mark.low is not None and mark.high is not None:
            parts.append(
                _tag(
                    "line",
                    x1=x,
                    x2=x,
                    y1=frame.y(plot.up(mark.low)),
                    y2=frame.y(plot.up(mark.high)),
                    class_="ap-whisker",
                )
            )
        parts.append(_tag("circle", cx=x, cy=frame.y(plot.up(mark.confirmed)), r=3.5, class_="ap-test"))
    if mark.baseline:
        parts.append(_tag("circle", cx=x, cy=y, r=11, class_="ap-ring"))
    if mark.is_knee:
        parts.append(_tag("path", d=_star(x, y, 11), class_="ap-s"))
    else:
        name = look(mark.method).shape
        if mark.is_beyond:
            name = "down" if plot.is_maximized else "up"
        parts.append(_tag("path", d=shape(name, x, y, 6.2 if mark.is_front else 4.2), class_="ap-s"))
    parts.append(_tag("circle", cx=x, cy=y, r=9 if mark.is_front else 6, class_="ap-hit"))
    classes = f"ap-pt {'ap-on' if mark.is_front else 'ap-other'} {method_class(mark.method)}"
    return _tag(
        "g",
        "".join(parts),
        class_=classes,
        tabindex="0" if mark.is_front and not narrow else None,
        role="img",
        aria_label="; ".join(lines),
        data_trial=mark.number,
    )


def shape(name: str, x: float, y: float, r: float) -> str:
    """Draws a marker as a path; all shapes have about the same area.

    Args:
        name: One of `palette.SHAPES`.
        r: Half of the circle's width.
    """
    if name == "circle":
        return f"M{x - r:.1f} {y:.1f}a{r:.1f} {r:.1f} 0 1 0 {2 * r:.1f} 0a{r:.1f} {r:.1f} 0 1 0 {-2 * r:.1f} 0Z"
    if name in ("plus", "cross"):
        t, turn = 0.36, 0.0 if name == "plus" else math.pi / 4
        arm = ((1, t), (t, t), (t, 1), (-t, 1))
        corner = [*arm, (-t, t), (-1, t), (-1, -t), (-t, -t), (-t, -1), (t, -1), (t, -t), (1, -t)]
        points = [(a * math.cos(turn) - b * math.sin(turn), a * math.sin(turn) + b * math.cos(turn)) for a, b in corner]
        return _polygon([(x + 1.12 * r * a, y + 1.12 * r * b) for a, b in points])
    sides, turn, grow = {
        "square": (4, math.pi / 4, 1.25),
        "diamond": (4, 0.0, 1.2),
        "up": (3, -math.pi / 2, 1.3),
        "down": (3, math.pi / 2, 1.3),
        "pentagon": (5, -math.pi / 2, 1.15),
    }[name]
    turns = [turn + 2 * math.pi * k / sides for k in range(sides)]
    return _polygon([(x + grow * r * math.cos(angle), y + grow * r * math.sin(angle)) for angle in turns])


def _star(x: float, y: float, r: float) -> str:
    turns = [(-math.pi / 2 + math.pi * k / 5, r if k % 2 == 0 else 0.42 * r) for k in range(10)]
    return _polygon([(x + radius * math.cos(angle), y + radius * math.sin(angle)) for angle, radius in turns])


def _polygon(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points) + "Z"


def key(method: str) -> str:
    """Draws a method's marker alone, for a legend."""
    parts = _tag("path", d=shape(look(method).shape, 8, 8, 5), class_="ap-s")
    group = _tag("g", parts, class_=f"ap-pt ap-on {method_class(method)}")
    return _tag("svg", group, class_="ap-key", viewBox="0 0 16 16", width=16, height=16, aria_hidden="true")


# ── curves ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Series:
    """One line of a chart.

    Attributes:
        name: Text of the tooltip.
        points: (x, y), x ascending, at least one.
        method: The method that gives the line its colour.
        is_quiet: Whether the line stays in the background.
        is_cut: Whether the trial ended early; then the last point gets a bar.
    """

    name: str
    points: tuple[tuple[float, float], ...]
    method: str = ""
    is_quiet: bool = False
    is_cut: bool = False


def curves(series: Sequence[Series], x_title: str, y_title: str, *, is_step: bool = False) -> str:
    """Draws a chart of lines over a linear axis, quiet lines below. Empty if there is nothing to draw."""
    points = [point for line in series for point in line.points]
    if not points:
        return ""
    frame, size = _CHART, 11.5
    x_limits = _widened([x for x, _ in points], 0.02)
    y_limits = _widened([y for _, y in points], 0.06)

    def at(x: float, y: float) -> tuple[float, float]:
        return (
            frame.x((x - x_limits[0]) / (x_limits[1] - x_limits[0])),
            frame.y((y - y_limits[0]) / (y_limits[1] - y_limits[0])),
        )

    parts = []
    values = ticks(y_limits, 7)
    for value, label in zip(values, tick_labels(values), strict=True):
        y = at(x_limits[0], value)[1]
        parts.append(_tag("line", x1=frame.left, x2=frame.width - frame.right, y1=y, y2=y, class_="ap-grid"))
        parts.append(_label(frame.left - 6, y + 4, label, size - 1, "end", True))
    for value in ticks(x_limits, 6):
        if value == int(value):
            below = frame.height - frame.bottom + size + 4
            parts.append(_label(at(value, 0)[0], below, text.short_count(value), size - 1, "middle", True))
    bottom = frame.height - frame.bottom
    parts.append(_tag("line", x1=frame.left, x2=frame.width - frame.right, y1=bottom, y2=bottom, class_="ap-axis"))
    parts.append(_label(frame.x(0.5), frame.height - 5, x_title, size, "middle"))
    for line in sorted(series, key=lambda line: not line.is_quiet):
        parts.append(_line(line, [at(x, y) for x, y in line.points], is_step))
    inner = _tag("g", "".join(parts), class_="ap")
    return _tag(
        "svg",
        inner,
        class_="ap-fig",
        viewBox=f"0 0 {frame.width:g} {frame.height:g}",
        role="img",
        aria_label=f"{y_title} over {x_title}",
        xmlns="http://www.w3.org/2000/svg",
    )


def _line(line: Series, places: Sequence[tuple[float, float]], is_step: bool) -> str:
    path = f"M{places[0][0]:.1f} {places[0][1]:.1f}"
    for x, y in places[1:]:
        path += f"H{x:.1f}V{y:.1f}" if is_step else f"L{x:.1f} {y:.1f}"
    quiet = " ap-other" if line.is_quiet else ""
    parts = _tag("title", escape(line.name)) + _tag("path", d=path, class_=f"ap-line{quiet}")
    x, y = places[-1]
    if line.is_cut:
        parts += _tag("path", d=f"M{x:.1f} {y - 4:.1f}V{y + 4:.1f}", class_="ap-stop")
    elif not line.is_quiet or len(places) == 1:
        parts += _tag("circle", cx=x, cy=y, r=3, class_="ap-end")
    return _tag("g", parts, class_=method_class(line.method) if line.method and not line.is_quiet else None)


def _widened(values: Sequence[float], share: float) -> tuple[float, float]:
    low, high = min(values), max(values)
    span = (high - low) or abs(high) * 0.1 or 1.0
    return low - share * span, high + share * span
