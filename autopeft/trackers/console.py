"""The terminal: a live display of a search, or a line a trial where nobody watches."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from autopeft.history import History, Record
from autopeft.search import summary

MOST_ROWS = 10  # of the front that are shown while it runs


class Console:
    """Shows counts, budget, hypervolume and the front.

    Args:
        folder: The run's.
        describe: What a person calls a configuration.
        quiet: Whether to show nothing.
    """

    def __init__(
        self, folder: Path, describe: Callable[[Mapping[str, Any]], str] | None = None, quiet: bool = False
    ) -> None:
        self.folder, self.quiet = folder, quiet
        self.describe = describe or (lambda params: ", ".join(f"{key} {value}" for key, value in params.items()))
        self.live: Any = None

    def start(self, history: History) -> None:
        self.history, self.began, self.told_before = history, time.monotonic(), len(history.told)
        if self.quiet:
            return
        from rich.console import Console as Terminal
        from rich.live import Live

        self.terminal = Terminal(stderr=True)
        if self.terminal.is_terminal:
            self.live = Live(self._picture(), console=self.terminal, refresh_per_second=4, transient=True)
            self.live.start()
        else:
            print(f"searching in {self.folder}", file=sys.stderr)

    def handle(self, event: Mapping[str, Any]) -> None:
        if self.quiet:
            return
        if self.live is not None:
            self.live.update(self._picture())
        elif event["event"] == "tell":
            print(self._line(self.history.records[event["number"]]), file=sys.stderr, flush=True)

    def finish(self) -> None:
        if self.live is not None:
            self.live.stop()
            self.live = None

    def _line(self, record: Record) -> str:
        score = self.history.objectives[0].metric
        if record.is_complete:
            outcome = f"{score} {record.metrics[score]:.4f}, {record.metrics['trainable_parameters']:,.0f} parameters"
        else:
            outcome = record.error or f"at step {record.reports[-1].step}"
        done = f"[{len(self.history.told)}/{self._most_trials() or '?'}]"
        return f"{done} trial {record.number} {record.status}: {outcome} · {self.describe(record.params)}"

    def _most_trials(self) -> int | None:
        budget: Mapping[str, Any] = self.history.config.get("budget", {})
        return budget.get("trials")

    def _picture(self) -> Any:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        counts = summary(self.history)
        volumes = self.history.hypervolumes()
        parts = [f"{count} {name.lower().replace('_', ' ')}" for name, count in counts.items()]
        head = Text(f"{self.folder.name}  ", style="bold")
        head.append(" · ".join(parts) or "starting", style="default")
        head.append(f"  {self._progress()}", style="dim")
        objectives = self.history.objectives
        table = Table(box=None, pad_edge=False, header_style="dim")
        for name in ("trial", "", objectives[0].metric, "parameters"):
            table.add_column(name, justify="left" if name == "" else "right", no_wrap=name != "")
        front = self.history.front()
        for record in front[:MOST_ROWS]:
            metrics = record.metrics
            count = metrics.get("trainable_parameters", float("nan"))
            score = metrics[objectives[0].metric]
            table.add_row(str(record.number), self.describe(record.params), f"{score:.4f}", f"{count:,.0f}")
        foot = f"front of {len(front)}" + (f", {len(front) - MOST_ROWS} more" if len(front) > MOST_ROWS else "")
        volume = f", hypervolume {volumes[-1]:.4f}" if volumes else ""
        return Group(head, table, Text(foot + volume, style="dim"))

    def _progress(self) -> str:
        told, most = len(self.history.told), self._most_trials()
        elapsed = time.monotonic() - self.began
        here = told - self.told_before
        if most is None or here <= 0:
            return f"{told}/{most or '?'} told, {_duration(elapsed)}"
        rest = (most - told) * elapsed / here
        return f"{told}/{most} told, {_duration(elapsed)}, about {_duration(rest)} left"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"


plugin = Console
