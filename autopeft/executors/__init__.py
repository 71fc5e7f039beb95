"""Executors run trials. One plugin a file: `plugin(**options).run(search, make_evaluate)`.

All executors agree with `serial`: with one slot, the same params, statuses, metrics and weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol, runtime_checkable

from autopeft.trial import Evaluate, Report, Result, Trial

# Builds `evaluate`, once a worker: loads the model and the data. Called as `make_evaluate(should_end)`.
# `should_end()` turns true when the user wants the search to end. `evaluate` calls it between steps, and if it is true
# returns without a Result. Picklable, so that it can be sent to workers.
MakeEvaluate = Callable[[Callable[[], bool]], Evaluate]


@runtime_checkable
class Portable(Protocol):
    """A `make_evaluate` that says which files it needs, so that it can work on a node without the driver's disk."""

    @property
    def reads(self) -> tuple[str, ...]:
        """Returns the absolute paths of the folders that trials read."""

    @property
    def folder(self) -> str:
        """Returns the folder into which trials write."""

    def kept(self, number: int) -> Path:
        """Returns the folder, below `folder`, with the files that an ended trial keeps. It may not exist."""

    def check(self) -> None:
        """Checks, within seconds, that trials can run on this node.

        Raises:
            EnvironmentFault: Trials cannot run here.
            ImportError: A package is missing.
        """

    def at(self, places: Mapping[str, str], folder: str | None) -> Portable:
        """Returns a copy that reads other folders (old path → new), and writes to another `folder` if one is given."""

    def __call__(self, should_end: Callable[[], bool]) -> Evaluate:
        """Builds `evaluate`, as every MakeEvaluate does."""


class Pack(Protocol):
    """Trials side by side in one worker."""

    def join(self, trial: Trial) -> None:
        """Adds a trial. It begins at the next `advance`."""

    def leave(self, trial: Trial) -> None:
        """Ends a trial that has reported, without a result."""

    def has_room(self) -> bool:
        """Whether memory holds one more trial, as far as the running ones show."""

    def advance(self, is_due: Callable[[], bool] = lambda: False) -> list[tuple[Trial, Report | Result]]:
        """Trains until some trials have an event, and returns these events. After its Result a trial has left.

        Returns nothing if the user wants the search to end, or if `is_due()`, which is called between two turns.
        """


@runtime_checkable
class Packing(Protocol):
    """A `make_evaluate` whose worker can train trials side by side."""

    def pack(self, should_end: Callable[[], bool]) -> Pack:
        """Builds the pack, once a worker, in place of a call of `make_evaluate` itself."""


class Conversation(Protocol):
    """What an executor runs: a `Search`, or a confirmation, which has the same verbs."""

    def ask(self) -> Trial | None:
        """Returns the next trial; None if there are no more."""

    def prepare(self, slots: int) -> None:
        """Computes proposals ahead. Called while all slots are busy, if there are several."""

    def is_out_of_time(self) -> bool:
        """Whether the running trials must end now, without a result."""

    def report(self, trial: Trial, report: Report) -> bool:
        """Takes a rung of a running trial. Returns whether the trial should stop here."""

    def tell(self, result: Result) -> None:
        """Takes the result of a trial."""


class Executor(Protocol):
    """Asks, evaluates, reports and tells until `search.ask()` returns None or the user interrupts.

    Attributes:
        processes: Number of processes that train side by side; None if only the run will show it, 0 if no trial fits.
        pack: Most trials that share a pass over the base.
    """

    processes: int | None
    pack: int

    def check(self) -> None:
        """Checks, within seconds, that the executor can run, before model and data are loaded.

        Raises:
            EnvironmentFault: The executor cannot run.
        """

    def run(self, search: Conversation, make_evaluate: MakeEvaluate) -> None:
        """Runs the search to its end.

        Raises:
            KeyboardInterrupt: The user interrupted. Running trials are not told, and will run again.
            Exception: Any exception of the conversation, of `make_evaluate` or of `evaluate`, unchanged.
        """
