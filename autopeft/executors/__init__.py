"""Executors run trials. One plugin a file: `plugin(**options).run(search, make_evaluate)`.

All executors agree with `serial`: with one slot, the same params, statuses, metrics and weights.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from autopeft.trial import Evaluate, Report, Result, Trial

# Builds what trains trials, once a worker: loads the model and the data. Called as
# `make_evaluate(should_end)`; `should_end()` turns true when the user wants the search to end: `evaluate` looks at it
# between steps and then returns without a Result. Picklable, so that it travels to workers.
MakeEvaluate = Callable[[Callable[[], bool]], Evaluate]


class Conversation(Protocol):
    """What an executor runs: a `Search`, or a confirmation, which asks for trials in the same three verbs."""

    def ask(self) -> Trial | None:
        """The next trial; None when there are no more."""

    def is_out_of_time(self) -> bool:
        """Whether the running trials are to end now, untold."""

    def report(self, trial: Trial, report: Report) -> bool:
        """Takes a rung of a running trial. Returns whether the trial should stop here."""

    def tell(self, result: Result) -> None:
        """Takes how a trial ended."""


class Executor(Protocol):
    """Asks, evaluates, reports and tells until `search.ask()` returns None or the user interrupts."""

    def run(self, search: Conversation, make_evaluate: MakeEvaluate) -> None:
        """Runs the search to its end.

        Raises:
            KeyboardInterrupt: The user interrupted; the trials that were running are not told, and will run again.
            Exception: Whatever flies out of the conversation, of `make_evaluate` or of `evaluate`, as it is.
        """
