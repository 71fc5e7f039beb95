"""Executors run trials. One plugin a file: `plugin(**options).run(search, make_evaluate)`.

All executors agree with `serial`: with one slot, the same params, statuses, metrics and weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol, runtime_checkable

from autopeft.trial import Evaluate, Report, Result, Trial

# Builds what trains trials, once a worker: loads the model and the data. Called as
# `make_evaluate(should_end)`; `should_end()` turns true when the user wants the search to end: `evaluate` looks at it
# between steps and then returns without a Result. Picklable, so that it travels to workers.
MakeEvaluate = Callable[[Callable[[], bool]], Evaluate]


@runtime_checkable
class Portable(Protocol):
    """A `make_evaluate` that says which files it needs, so that it can work on a node without the driver's disk."""

    @property
    def reads(self) -> tuple[str, ...]:
        """Folders, by absolute path."""

    @property
    def folder(self) -> str:
        """What it writes goes there."""

    def kept(self, number: int) -> Path:
        """The folder, below `folder`, of what it keeps of a trial that has ended; it need not be there."""

    def check(self) -> None:
        """Looks, in seconds, whether trials can run on this node.

        Raises:
            EnvironmentFault: They cannot.
            ImportError: A package is not there.
        """

    def at(self, places: Mapping[str, str], folder: str | None) -> Portable:
        """The same where folders that it reads lie elsewhere (old path → new), and `folder` too, if given."""

    def __call__(self, should_end: Callable[[], bool]) -> Evaluate:
        """As every MakeEvaluate."""


class Pack(Protocol):
    """Trials side by side in one worker."""

    def join(self, trial: Trial) -> None:
        """Takes a trial, which begins at the next `advance`."""

    def leave(self, trial: Trial) -> None:
        """Ends a trial that has reported, without a result."""

    def advance(self) -> list[tuple[Trial, Report | Result]]:
        """Trains until some of the trials have something to say; after its Result a trial is gone.

        Empty where the user wants the search to end.
        """


@runtime_checkable
class Packing(Protocol):
    """A `make_evaluate` whose worker can train trials side by side."""

    def pack(self, should_end: Callable[[], bool]) -> Pack:
        """Once a worker, as `make_evaluate` itself is called."""


class Conversation(Protocol):
    """What an executor runs: a `Search`, or a confirmation, which asks for trials in the same three verbs."""

    def ask(self) -> Trial | None:
        """The next trial; None when there are no more."""

    def prepare(self, slots: int) -> None:
        """Thinks ahead; called while all slots are busy, where there are several."""

    def is_out_of_time(self) -> bool:
        """Whether the running trials are to end now, untold."""

    def report(self, trial: Trial, report: Report) -> bool:
        """Takes a rung of a running trial. Returns whether the trial should stop here."""

    def tell(self, result: Result) -> None:
        """Takes how a trial ended."""


class Executor(Protocol):
    """Asks, evaluates, reports and tells until `search.ask()` returns None or the user interrupts.

    Attributes:
        processes: That train side by side; None where only the run will tell, 0 where no trial fits.
        pack: Trials that share a pass over the base, at most.
    """

    processes: int | None
    pack: int

    def check(self) -> None:
        """Looks, in seconds, whether it can run, before model and data are loaded.

        Raises:
            EnvironmentFault: It cannot.
        """

    def run(self, search: Conversation, make_evaluate: MakeEvaluate) -> None:
        """Runs the search to its end.

        Raises:
            KeyboardInterrupt: The user interrupted; the trials that were running are not told, and will run again.
            Exception: Whatever flies out of the conversation, of `make_evaluate` or of `evaluate`, as it is.
        """
