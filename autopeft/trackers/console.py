"""The terminal: a live display of a search, or a line for each trial if stderr is not a terminal.

All output goes to stderr; stdout stays free for data. Output of Ray or of a library appears above the display.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autopeft.history import History, Record
from autopeft.redact import Redactor, printable
from autopeft.trackers._progress import Progress
from autopeft.trial import Status

if TYPE_CHECKING:
    from rich.console import Console as Terminal
    from rich.live import Live

MOST_ROWS = 10  # of the front, while the search runs
DRAWS_A_SECOND = 4
WORDS = {
    Status.COMPLETE: ("done", "green"),
    Status.STOPPED: ("stopped", "yellow"),
    Status.OUT_OF_MEMORY: ("out of memory", "red"),
    Status.FAILED: ("failed", "red"),
}


class Console:
    """Shows counts, budget, hypervolume, best score, time left and the front.

    Args:
        folder: The run's folder.
        describe: Names a configuration for people; by default its params.
        quiet: Whether to show nothing.
        terminal: Output; stderr by default.
    """

    def __init__(
        self,
        folder: Path,
        describe: Callable[[Mapping[str, Any]], str] | None = None,
        quiet: bool = False,
        terminal: Terminal | None = None,
    ) -> None:
        self.folder, self.quiet, self.terminal = Path(folder), quiet, terminal
        self.describe = describe or (lambda params: ", ".join(f"{key} {value}" for key, value in params.items()))
        self.live: Live | None = None

    def start(self, history: History) -> None:
        """Begins the display, or prints the first line."""
        if self.quiet:
            return
        from rich.console import Console as Terminal
        from rich.live import Live

        terminal = self.terminal or Terminal(stderr=True)
        self.view = View(history, self.folder.name, self.describe)
        # FORCE_COLOR alone makes rich call a file a terminal.
        is_watched = terminal.is_terminal and (self.terminal is not None or sys.stderr.isatty())
        if not is_watched or terminal.is_dumb_terminal:
            self._print(self.view.opening())
            return
        # If stdout is a file, text printed to it is data, and is not shown in the display.
        self.live = Live(
            self.view,
            console=terminal,
            refresh_per_second=DRAWS_A_SECOND,
            transient=True,
            redirect_stdout=sys.stdout.isatty(),
        )
        self.live.start()

    def handle(self, event: Mapping[str, Any]) -> None:
        """Notes the event. The display's own thread draws it."""
        if self.quiet:
            return
        self.view.take(event)
        if self.live is None and event["event"] == "tell":
            self._print(self.view.line(event["number"]))

    def finish(self) -> None:
        """Ends the display and clears it. The caller prints the result."""
        if self.live is not None:
            self.live.stop()
            self.live = None

    def _print(self, line: str) -> None:
        if self.terminal is not None:
            self.terminal.print(printable(line), soft_wrap=True, markup=False, highlight=False)
        else:
            print(printable(line), file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Scene:
    """Content of the display, except the clock. The search's thread makes it, the display's thread draws it.

    Attributes:
        counts: (number, word, colour), zeros left out.
        told, most: Trials that ended, and their budget; None if only hours bound the search.
        seconds, most_seconds: Search time at the last event, and its budget.
        rate: Seconds between two tells in this session; None before the second.
        score: Name of the score.
        best: The best score, and its trial; None before the first complete trial.
        rows: The front: (number, name, score, parameters).
        more: Number of front members beyond the rows.
        hypervolume: Hypervolume of the front.
    """

    counts: tuple[tuple[int, str, str], ...] = ()
    told: int = 0
    most: int | None = None
    seconds: float = 0.0
    most_seconds: float | None = None
    rate: float | None = None
    score: str = ""
    best: tuple[float, int] | None = None
    rows: tuple[tuple[int, str, float, float | None], ...] = ()
    more: int = 0
    hypervolume: float = 0.0
    at: float = field(default_factory=time.monotonic)


class View:
    """Draws a search with rich. The cost of `take` does not grow with the search."""

    def __init__(self, history: History, name: str, describe: Callable[[Mapping[str, Any]], str]) -> None:
        self.history, self.name, self.describe = history, name, describe
        self.progress, self.redactor = Progress(), Redactor.of(history.config)
        self.refused = sum(1 for record in history.records if record.refusal)
        self.began, self.told_before = time.monotonic(), len(history.told)
        self._names: dict[int, str] = {}
        last = history.records[history.told[-1]].told_seconds if history.told else None
        self.scene = self._scene(last or 0.0)

    def take(self, event: Mapping[str, Any]) -> None:
        """Takes one event that the history has already folded."""
        if event["event"] == "refuse":
            self.refused += 1
        if event["event"] in ("ask", "refuse", "tell", "rerun", "resume"):
            self.scene = self._scene(event["seconds"])

    def opening(self) -> str:
        """Returns the first line of the output without a display."""
        told = f", {self.told_before} trials told before" if self.told_before else ""
        return f"searching in {self.name}{told}"

    def line(self, number: int) -> str:
        """Returns the line of one told trial."""
        record, scene = self.history.records[number], self.scene
        done = f"[{scene.told}/{scene.most}]" if scene.most is not None else f"[{scene.told}]"
        mark = " · on the front" if any(member is record for member in self.progress.front) else ""
        ended = f"{WORDS[self._status(record)][0]}: {self._outcome(record)}"
        return f"{done} trial {number} {ended} · {self.describe(record.params)}{mark}"

    def __rich_console__(self, console: Terminal, options: Any) -> Iterator[Any]:
        from rich.table import Table
        from rich.text import Text

        scene = self.scene
        head = Text(printable(f"{self.name}  "), style="bold", no_wrap=True, overflow="ellipsis")
        for index, (count, word, colour) in enumerate(scene.counts):
            head.append(" · " if index else "", style="dim").append(f"{count} {word}", style=colour)
        yield head if scene.counts else head.append("starting", style="dim")
        yield Text(self._budget(scene), style="dim", no_wrap=True, overflow="ellipsis")
        if not scene.rows:
            return
        table = Table(box=None, pad_edge=False, header_style="dim", expand=False)
        table.add_column("trial", justify="right", no_wrap=True)
        table.add_column("the front so far", overflow="ellipsis", no_wrap=True, ratio=1)
        table.add_column(scene.score, justify="right", no_wrap=True)
        table.add_column("parameters", justify="right", no_wrap=True)
        for number, name, score, size in scene.rows:
            table.add_row(str(number), Text(printable(name)), f"{score:.4f}", "" if size is None else f"{size:,.0f}")
        yield table
        more = f" ({scene.more} more)" if scene.more else ""
        foot = f"front of {len(scene.rows) + scene.more}{more} · hypervolume {scene.hypervolume:.4f}"
        yield Text(foot + (f" · best {scene.score} {scene.best[0]:.4f}, trial {scene.best[1]}" if scene.best else ""),
                   style="dim", no_wrap=True, overflow="ellipsis")  # fmt: skip

    def _budget(self, scene: Scene) -> str:
        seconds = scene.seconds + time.monotonic() - scene.at
        trials = f"{scene.told}/{scene.most} trials" if scene.most is not None else f"{scene.told} trials"
        hours = f" of {duration(scene.most_seconds)}" if scene.most_seconds is not None else ""
        left = time_left(scene, seconds)
        rest = f" · about {duration(left)} left" if left is not None else ""
        return f"{trials} · {duration(seconds)}{hours}{rest}"

    def _scene(self, seconds: float) -> Scene:
        self.progress.update(self.history)
        history, budget = self.history, self.history.config.get("budget", {})
        standing = self.progress.curve[-1] if self.progress.curve else None
        ended = standing.counts if standing else {}
        told, here = len(history.told), len(history.told) - self.told_before
        running = len(history.records) - self.refused - told
        counts = [(ended.get(status, 0), *words) for status, words in WORDS.items()]
        counts[1:1] = [(running, "running", "cyan")]
        counts.append((self.refused, "refused", "dim"))
        front = self.progress.front
        score = history.objectives[0].metric
        return Scene(
            counts=tuple(entry for entry in counts if entry[0]),
            told=told,
            most=budget.get("trials"),
            seconds=seconds,
            most_seconds=None if budget.get("hours") is None else budget["hours"] * 3600,
            rate=(time.monotonic() - self.began) / here if here else None,
            score=score,
            best=(front[0].metrics[score], front[0].number) if front else None,
            rows=tuple(self._row(record, score) for record in front[:MOST_ROWS]),
            more=max(len(front) - MOST_ROWS, 0),
            hypervolume=standing.hypervolume if standing else 0.0,
        )

    def _row(self, record: Record, score: str) -> tuple[int, str, float, float | None]:
        if record.number not in self._names:
            self._names[record.number] = self.describe(record.params)
        size = record.metrics.get("trainable_parameters")
        return record.number, self._names[record.number], record.metrics[score], size

    def _outcome(self, record: Record) -> str:
        score = self.history.objectives[0].metric
        if record.is_complete:
            size = record.metrics.get("trainable_parameters")
            return f"{score} {record.metrics[score]:.4f}" + ("" if size is None else f", {size:,.0f} parameters")
        if record.error:
            return self.redactor.message(record.error.strip().splitlines()[0])
        return f"at step {record.reports[-1].step}" if record.reports else "before its first report"

    @staticmethod
    def _status(record: Record) -> Status:
        assert record.status is not None, f"trial {record.number} is not told"
        return record.status


def time_left(scene: Scene, seconds: float) -> float | None:
    """Returns the seconds to the nearer bound of the budget. None while they cannot be estimated."""
    bounds = []
    if scene.most is not None and scene.rate is not None:
        bounds.append(max((scene.most - scene.told) * scene.rate - (time.monotonic() - scene.at), 0.0))
    if scene.most_seconds is not None:
        bounds.append(max(scene.most_seconds - seconds, 0.0))
    return min(bounds) if bounds else None


def duration(seconds: float) -> str:
    """`75` → `1:15`, `3700` → `1:01:40`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


plugin = Console
