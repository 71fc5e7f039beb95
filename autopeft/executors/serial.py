"""One trial after another, in this process. The reference that other executors must agree with."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import closing

from autopeft.errors import AutoPEFTError
from autopeft.executors import Conversation, MakeEvaluate
from autopeft.executors._interrupt import interruptible
from autopeft.trial import Phase, Report, Result, Trial


class Serial:
    """Runs trials here.

    Args:
        trial_seconds: Time limit of a trial, checked between steps. A step that hangs cannot be ended in this process.
    """

    processes = pack = 1

    def __init__(self, trial_seconds: float | None = None) -> None:
        pass

    def check(self) -> None:
        """Does nothing: this executor can always run."""

    def run(self, search: Conversation, make_evaluate: MakeEvaluate) -> None:
        with interruptible() as interrupts:
            evaluate = make_evaluate(lambda: bool(interrupts) or search.is_out_of_time())
            while not interrupts and (trial := search.ask()) is not None:
                with closing(evaluate(trial)) as events:
                    result = _follow(search, trial, events)
                if result is not None:
                    search.tell(result)
                elif not interrupts and not search.is_out_of_time():
                    raise AutoPEFTError(f"evaluate ended trial {trial.number} without a result: that is a bug in it")
            if interrupts:
                raise KeyboardInterrupt


def _follow(search: Conversation, trial: Trial, events: Iterable[Report | Result | Phase]) -> Result | None:
    """Returns how a trial ends: by its result, or stopped at a report; None if it was told to end between two steps."""
    for event in events:
        if isinstance(event, Result):
            return event
        if isinstance(event, Report) and search.report(trial, event):
            return Result.stopped(trial, event)
    return None


plugin = Serial
