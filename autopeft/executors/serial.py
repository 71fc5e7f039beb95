"""One trial after another, in this process. The reference that other executors must agree with."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from autopeft.executors import MakeEvaluate
from autopeft.search import Search
from autopeft.trial import Report, Result, Status


class Serial:
    """Runs trials here.

    Args:
        trial_seconds: Kept by `evaluate` itself, between steps: nothing in this process could end a step that hangs.
    """

    def __init__(self, trial_seconds: float | None = None) -> None:
        pass

    def run(self, search: Search, make_evaluate: MakeEvaluate) -> None:
        with interruptible() as interrupts:
            evaluate = make_evaluate(lambda: bool(interrupts))
            while not interrupts and (trial := search.ask()) is not None:
                for event in evaluate(trial):
                    if isinstance(event, Report):
                        if search.report(trial, event):
                            search.tell(Result(trial, Status.STOPPED, event.metrics))
                            break
                    else:
                        search.tell(event)
            if interrupts:
                raise KeyboardInterrupt


@contextmanager
def interruptible() -> Iterator[list[int]]:
    """The first Ctrl-C is noted in the list that this yields; the second one interrupts at once."""
    interrupts: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if interrupts:
            raise KeyboardInterrupt
        interrupts.append(number)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield interrupts
    finally:
        signal.signal(signal.SIGINT, before)


plugin = Serial
