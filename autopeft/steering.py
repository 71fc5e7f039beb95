"""Looking at running searches and steering them from another terminal, through their folders only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from autopeft import ledger as ledgers
from autopeft import plugins
from autopeft.config import build_space
from autopeft.errors import UsageError, command, did_you_mean
from autopeft.files import refuse_links
from autopeft.history import History
from autopeft.orders import Orders
from autopeft.reports.table import Column, Table
from autopeft.runs import open_run
from autopeft.space import Float, Int, Space
from autopeft.trackers.console import Console
from autopeft.yaml_file import value as parsed


def overview(folder: Path) -> list[dict[str, Any]]:
    """Returns a row for each run in a folder, by name: its state, trials, front, best score, and last change.

    States: `searching`; `confirming`; `ended`, if its budget of trials is spent; `unreadable`, with the reason, if its
    ledger is damaged; `stopped`, by an order that no resume has dropped; else `interrupted`.

    Raises:
        UsageError: There is no such folder.
    """
    if not folder.is_dir():
        raise UsageError(f"no folder {folder}: where are the runs?")
    found = [path.parent for path in sorted(folder.glob(f"*/{ledgers.NAME}"))]
    return [_row(path) for path in found if (path / ledgers.NAME).stat().st_size]


def _row(folder: Path) -> dict[str, Any]:
    path = folder / ledgers.NAME
    writer = ledgers.writer(path)
    try:
        history = History.read(path)
    except UsageError as fault:
        nothing = dict.fromkeys(("host", "process", "told", "budget", "front", "score", "best"))
        return {
            "run": folder.name,
            "state": "unreadable",
            **nothing,
            "changed": path.stat().st_mtime,
            "why": str(fault),
        }
    budget = history.config.get("budget", {}).get("trials")
    if writer is not None:
        state = "searching" if writer.get("is_search", True) else "confirming"
    elif budget is not None and len(history.told) >= budget:
        state = "ended"
    else:
        state = "stopped" if Orders(folder).stop() else "interrupted"
    score = history.objectives[0].metric
    front = history.front()
    return {
        "run": folder.name,
        "state": state,
        "host": (writer or {}).get("host"),
        "process": (writer or {}).get("process"),
        "told": len(history.told),
        "budget": budget,
        "front": len(front),
        "score": score,
        "best": front[0].metrics[score] if front else None,
        "changed": path.stat().st_mtime,
    }


def runs_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Makes the table of runs for people."""
    shown = tuple(
        {
            **row,
            "trials": row["told"] if row["budget"] is None else f"{row['told']}/{row['budget']}",
            "best": None if row["best"] is None else f"{row['score']} {row['best']:.4f}",
            "by": f"process {row['process']} on {row['host']}" if row["process"] else None,
        }
        for row in rows
    )
    columns = (
        Column("run", "run"),
        Column("state", "state"),
        Column("trials", "trials", is_number=True),
        Column("front", "front", is_number=True),
        Column("best", "best"),
        Column("by", "by", is_detail=True),
    )
    return Table("Runs", columns, shown)


def stop(folder: Path, now: bool) -> dict[str, Any]:
    """Orders the search in a folder to end. Returns who runs it.

    Raises:
        UsageError: No search runs there.
    """
    writer = _searching(folder)
    Orders(folder).give_stop(now)
    return writer


def _searching(folder: Path) -> dict[str, Any]:
    path = folder / ledgers.NAME
    if not path.is_file():
        raise UsageError(f"{folder} is no run: it has no {ledgers.NAME}")
    refuse_links(folder.resolve())
    writer = ledgers.writer(path)
    if writer is None:
        raise UsageError(f"no search runs in {folder}: {command('autopeft', 'resume', folder)} goes on with it")
    if not writer.get("is_search", True):
        raise UsageError(f"{folder} is being confirmed, not searched: Ctrl-C ends that, and its command goes on later")
    return writer


def add(folder: Path, given: Sequence[str]) -> tuple[dict[str, Any], bool]:
    """Orders the search in a folder to try a configuration: the method's stock default, but for what is given.

    Args:
        folder: The run's folder. If no search runs there, the next resume tries the configuration.
        given: `key=value`, `method=lora` among them.

    Returns:
        The whole configuration, and whether a search runs that will try it.

    Raises:
        UsageError: The configuration is not in the run's space.
    """
    run = open_run(folder)
    history = run.history
    if getattr(plugins.load("samplers", run.config.sampler.name), "has_list", False):
        raise UsageError(f"{folder} searches a list of configurations: add to the list, and search again")
    model = history.header["model"]
    space = build_space(run.config, model["n_layers"], model.get("kinds", ()))
    values = dict(_pair(text) for text in given)
    method = values.get("method")
    stock = {str(default["method"]): default for default in space.defaults()}
    if method not in stock:
        hint = did_you_mean(str(method), list(stock)) if method is not None else ""
        raise UsageError(f"expected method=…, one of {', '.join(stock)}{hint}; got {method!r}")
    params = {**stock[str(method)], **{key: _typed(space, key, value) for key, value in values.items()}}
    params = {key: value for key, value in params.items() if key in values or space.exists(key, params)}
    why = space.why_not(params)
    if why:
        raise UsageError(f"the configuration is not in the run's space: {why}")
    Orders(folder).give_trial(params)
    return params, ledgers.writer(folder / ledgers.NAME) is not None


def _pair(text: str) -> tuple[str, Any]:
    key, separator, value = text.partition("=")
    if not separator or not key:
        raise UsageError(f"expected key=value, got {text!r}")
    return key, parsed(value)


def _typed(space: Space, key: str, value: Any) -> Any:
    """Returns a value with the type of its domain: `1` is a rate of 1.0, `8.0` a rank of 8."""
    domain = space.dimensions[key].domain if key in space.dimensions else None
    if isinstance(domain, Float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(domain, Int) and isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def watch(folder: Path) -> Mapping[str, int]:
    """Shows a search as its own terminal does, until nobody writes its ledger any more. Returns its counts by status."""
    run = open_run(folder)
    history = History()
    console: Console | None = None
    try:
        for events in ledgers.follow(folder / ledgers.NAME):
            for event in events:
                history.apply(event)
                if console is not None:
                    console.handle(event)
            if console is None:
                console = Console(folder, run.describe)
                console.start(history)
    finally:
        if console is not None:
            console.finish()
    return history.counts()
