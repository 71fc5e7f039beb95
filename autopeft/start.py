"""The config of a first search: guessed from data, and fitted to what this machine does in half an hour."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from autopeft import wiring
from autopeft.config import load
from autopeft.errors import EnvironmentFault
from autopeft.guess import Guess, Guessed, guess, require_yaml
from autopeft.guess.text import written
from autopeft.plan import Plan, plan

# About so long, with so many trials, over so many rows at least.
FIRST_MINUTES, FEWEST_TRIALS, MOST_TRIALS, FEWEST_ROWS = 30, 12, 40, 500
PLANNED_DRAWS = 200


def init(source: str | Path, model: str | None = None, to: str | Path | None = None) -> Started:
    """Looks at data, and writes the config of a first search that this machine can do in about half an hour.

    Args:
        source: A file, a folder, or a data set's name on the hub.
        model: A folder or hub name; None to guess one.
        to: The YAML file; None for one of the data's name in the working folder.

    Raises:
        UsageError: The data shows no task, or the file exists.
        EnvironmentFault: The hub, where the data set is, is not reached.
    """
    path = require_yaml(Path(to) if to is not None else Path(f"{Path(source).resolve().name.split('.')[0]}.yaml"))
    guessed = guess(str(source), model)
    if wiring.choose_device("auto") == "cuda":
        guessed = guessed.with_(Guess("executor", "packed", "one GPU: trials share their passes"))
    elif os.cpu_count() == 1:
        guessed = guessed.with_(Guess("executor", "serial", "one core"))
    guessed = guessed.with_(
        Guess("budget.trials", MOST_TRIALS, ""), Guess("budget.hours", 1, "it ends then in any case")
    )
    found, why = None, ""
    try:
        found = plan(load(guessed.config), PLANNED_DRAWS)
        guessed = guessed.with_(*_affordable(found, guessed.rows))
    except EnvironmentFault as fault:
        why = str(fault)
    with open(path, "x", encoding="utf-8") as file:
        file.write(written(guessed.guesses, path.resolve().parent))
    return Started(path, guessed, found, why)


@dataclass(frozen=True)
class Started:
    """What `init` wrote.

    Attributes:
        path: The config.
        guessed: Its values, and why.
        plan: What a search of 40 trials over all rows would cost; None if that is not known.
        why_no_plan: The reason then.
    """

    path: Path
    guessed: Guessed
    plan: Plan | None
    why_no_plan: str

    @property
    def minutes(self) -> float | None:
        """Minutes that the search will take at most, with the trials and rows that were written."""
        seconds = None if self.plan is None else _trial_seconds(self.plan)
        if seconds is None:
            return None
        data, budget = self.guessed.config["data"], self.guessed.config["budget"]
        share = data.get("train_rows", self.guessed.rows) / self.guessed.rows
        return float(seconds * share * budget["trials"] / 60)


def _trial_seconds(found: Plan) -> float | None:
    """Returns the mean seconds that a trial adds to a search, as several run at once."""
    if found.work_seconds is None or not found.trials:
        return None
    return found.work_seconds / found.trials / (found.slots or os.cpu_count() or 1)


def _about(seconds: float) -> str:
    return f"about {seconds:,.0f} seconds" if seconds < 90 else f"about {seconds / 60:,.0f} minutes"


def _affordable(found: Plan, rows: int) -> list[Guess]:
    """Fits trials, then rows, to the time of a first search."""
    seconds = _trial_seconds(found)
    if seconds is None:
        return []
    fitting = int(FIRST_MINUTES * 60 / seconds)
    trials = min(MOST_TRIALS, max(FEWEST_TRIALS, fitting))
    out = [Guess("budget.trials", trials, f"{_about(trials * seconds)} on this machine, or fewer")]
    if fitting < FEWEST_TRIALS and rows > FEWEST_ROWS:
        fewer = max(FEWEST_ROWS, rows * fitting // FEWEST_TRIALS)
        out = [
            Guess(
                "data.train_rows",
                fewer,
                f"of {rows:,}, with which {trials} trials would take {_about(trials * seconds)}",
            ),
            Guess("budget.trials", trials, f"{_about(trials * seconds * fewer / rows)} on this machine, or fewer"),
        ]
    return out
