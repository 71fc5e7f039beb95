"""Numbers and words as reports write them. One place, so that a score looks the same in every view."""

from __future__ import annotations

import math
import re
from datetime import datetime

ABSENT = "–"
# Characters that Markdown reads as markup: an underscore unless within a word; `http:` and `www.`, which become links.
_MARKDOWN = re.compile(r"([\\`*{}\[\]<>|#~!&$]|(?<!\w)_|_(?!\w)|(?<=http):|(?<=https):|(?<=www)\.)", re.IGNORECASE)
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_LEARNING_RATE = re.compile(r",\s*(?:[\w ]+ )?lr [\d.e+-]+$", re.IGNORECASE)


def score(value: float | None, digits: int = 4) -> str:
    """Writes a score: with fixed digits if it is a share, else with four significant ones."""
    if value is None:
        return ABSENT
    return f"{value:.{digits}f}" if abs(value) < 10 else f"{value:.4g}"


def signed(value: float | None, digits: int = 4) -> str:
    """Writes a difference, always with its sign."""
    if value is None:
        return ABSENT
    return ("+" if value >= 0 else "−") + score(abs(value), digits)


def mean_and_interval(mean: float, half_width: float | None, digits: int = 4) -> str:
    """Writes `0.9012 ± 0.0031`, or the mean alone if no interval is known."""
    return score(mean, digits) + ("" if half_width is None else f" ± {score(half_width, digits)}")


def count(value: float | None) -> str:
    """Writes a whole number in full: `24,578`."""
    return ABSENT if value is None else f"{value:,.0f}"


def short_count(value: float) -> str:
    """Writes a whole number for an axis: `24.6k`, `1.2M`."""
    for factor, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= factor * 0.9995:
            return f"{value / factor:.3g}{unit}"
    return f"{value:.3g}"


def share(part: float, whole: float) -> str:
    """Writes a part of a whole in percent, with as many digits as needed: `0.11 %`."""
    percent = 100 * part / whole
    if percent == 0 or percent >= 10:
        return f"{percent:.0f} %"
    digits = max(0, 1 - math.floor(math.log10(percent)))
    return f"{percent:.{digits}f} %"


def duration(seconds: float | None) -> str:
    """`48 s`, `12 min`, `3.4 h`."""
    if seconds is None:
        return ABSENT
    if seconds < 100:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def moment(iso: str) -> str:
    """Rewrites `2026-11-24T02:00:00+00:00` as `2026-11-24 02:00 UTC`. Any other text stays as it is."""
    try:
        then = datetime.fromisoformat(iso)
    except ValueError:
        return iso
    return f"{then:%Y-%m-%d %H:%M} {then.tzname() or ''}".rstrip()


def shortened(value: str, limit: int = 160) -> str:
    """Cuts a long text after its beginning."""
    line = " ".join(value.split())
    return line if len(line) <= limit else line[: limit - 1].rstrip() + "…"


def plural(number: int, noun: str, many: str | None = None) -> str:
    """`1 trial`, `12 trials`."""
    return f"{number:,} {noun if number == 1 else many or noun + 's'}"


def metric_title(metric: str) -> str:
    """Returns a metric's name for people: `trainable parameters`."""
    return metric.replace("_", " ")


def short_name(name: str, limit: int = 44) -> str:
    """Shortens a name for a figure: drops the learning rates at its end, and cuts at a word."""
    while (shorter := _LEARNING_RATE.sub("", name)) != name:
        name = shorter
    if len(name) <= limit:
        return name
    cut = name[: limit - 1].rsplit(" ", 1)[0] if " " in name[: limit - 1] else name[: limit - 1]
    return cut.rstrip(" ,") + "…"


def plain(value: object, limit: int = 60) -> str:
    """Prepares text for matplotlib: one line of limited length, in which `$` begins no formula."""
    return shortened(str(value), limit).replace("$", r"\$")


def markdown(value: object) -> str:
    """Escapes text for Markdown: nothing in it becomes a link, a tag, a column or a heading."""
    return _MARKDOWN.sub(r"\\\1", " ".join(str(value).split()))


def code(value: object) -> str:
    """Writes text as inline code, whatever backticks it has."""
    text = " ".join(str(value).split())
    fence = "`" * (max((len(run) for run in re.findall("`+", text)), default=0) + 1)
    return f"{fence} {text} {fence}" if "`" in text else f"`{text}`"


def cell(value: object) -> object:
    """Prepares a value for a CSV cell. Text that a spreadsheet would run as a formula gets an apostrophe before it.

    Numbers stay numbers: a negative one is no formula.
    """
    if isinstance(value, bool) or value is None or isinstance(value, (int, float)):
        return "" if value is None else value
    text = str(value)
    return "'" + text if text.startswith(_FORMULA) else text
