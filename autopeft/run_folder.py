"""The files of a run's folder beside its reports: the ledger, open for writing; the config, for people; tensors."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from autopeft import ledger as ledgers
from autopeft.errors import UsageError
from autopeft.files import WORST, trial_folder
from autopeft.history import History
from autopeft.ledger import Ledger


def keep_front(folder: Path, history: History) -> Callable[[Mapping[str, Any]], None]:
    """Makes a listener that drops, after each tell, the trained tensors of trials that are not on the front."""
    kept: set[int] = set()

    def drop(told: set[int]) -> None:
        nonlocal kept
        members = {record.number for record in history.front()}
        for number in (kept | told) - members:
            shutil.rmtree(trial_folder(folder, number), ignore_errors=True)
        kept = members

    drop(set(history.told))  # a driver that died may have left some
    return lambda event: drop({event["number"]}) if event["event"] == "tell" else None


def worst_rows(folder: Path) -> list[dict[str, Any]]:
    """Reads the rows that a trial gets most wrong from its folder; none if they were not kept."""
    path = folder / WORST
    if not path.is_file():
        return []
    try:
        found: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
        for row in found:
            _ = int(row["row"]), float(row["loss"]), row["input"], row["expected"], row["predicted"]
    except (ValueError, KeyError, TypeError) as fault:
        raise UsageError(f"{path} is damaged ({type(fault).__name__}: {fault}): remove it") from fault
    return found


def write_config(folder: Path, resolved: Mapping[str, Any]) -> None:
    """Writes the resolved config for people to read. autopeft itself reads the ledger's first line."""
    from ruamel.yaml import YAML

    with open(folder / "config.yaml", "w") as file:
        YAML(typ="safe", pure=True).dump(json.loads(json.dumps(resolved)), file)


@contextlib.contextmanager
def opened(folder: Path, *, is_search: bool = True) -> Iterator[Ledger]:
    """Opens the ledger of a folder for writing."""
    ledger = Ledger(folder / ledgers.NAME, is_search=is_search)
    try:
        yield ledger
    finally:
        ledger.close()
