"""Trials side by side in one worker: trials that a stack can hold share a pass over the base, others run by themselves.

The stack of LoRA trials, the stack of trials of a head, and each other trial take turns: whose turns took the least time
so far has the next one. So no trial waits for the end of another.
This pays on a GPU, where the batch of one trial leaves most of the device idle (benchmarks/packed).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch

from autopeft.training.course import Course
from autopeft.training.faults import is_trials_own
from autopeft.training.loop import Worker
from autopeft.training.runners import Alone, Events, Runner, Together
from autopeft.training.stack import Member, Place
from autopeft.trial import Trial


class Pack:
    """Implements `autopeft.executors.Pack` on a worker.

    Args:
        worker: Owner of the base, the data and the caches.
        split: Split of the final score.
    """

    def __init__(self, worker: Worker, split: str = "validation") -> None:
        self.worker, self.split = worker, split
        self._together: dict[Place, Together] = {}
        self._alone: list[Alone] = []

    def join(self, trial: Trial) -> None:
        start, waiting = time.monotonic(), self._courses()
        try:
            # Attaching must not change the global random state.
            with torch.random.fork_rng(devices=self._devices()):
                member = Member.of(self.worker, trial)
        except Exception as fault:
            if not is_trials_own(fault):
                raise
            member = None  # the trial runs alone, fails in the same way, and reports why
        for course in waiting:  # only the new trial's clock counts the attaching
            course.wait(time.monotonic() - start)
        if member is None:
            self._enter(Alone(self.worker, trial, self.split))
            return
        together = self._together.setdefault(member.place, Together(self.worker, self.split, self._scatter))
        if not together.members:
            together.seconds = max(together.seconds, self._least())
        together.gather([*together.members, member])

    def leave(self, trial: Trial) -> None:
        for runner in self._running():
            if any(own.number == trial.number for own in runner.trials):
                runner.leave(trial)

    def advance(self, is_due: Callable[[], bool] = lambda: False) -> Events:
        while not self.worker.should_end():
            self._alone = [alone for alone in self._alone if alone.trials]
            running = self._running()
            if not running:
                return []
            runner, start = min(running, key=lambda runner: runner.seconds), time.monotonic()
            others = [course for other in running if other is not runner for course in other.courses]
            events = runner.turn()
            seconds = time.monotonic() - start
            runner.seconds += seconds
            for course in others:
                course.wait(seconds)
            if events or is_due():
                return events
        return []

    def _running(self) -> list[Runner]:
        """Returns who needs turns; trials of a head first, as they are fast."""
        places = sorted(self._together, key=lambda place: place.acts)
        runners: list[Runner] = [*(self._together[place] for place in places), *self._alone]
        return [runner for runner in runners if runner.trials]

    def _courses(self) -> list[Course]:
        """Returns the courses of all running trials."""
        return [course for runner in self._running() for course in runner.courses]

    def _enter(self, alone: Alone) -> None:
        """Adds a runner. It begins as if it had had as much time as who had the least, not with all that it missed."""
        alone.seconds = self._least()
        self._alone.append(alone)

    def _least(self) -> float:
        return min((runner.seconds for runner in self._running()), default=0.0)

    def _scatter(self, members: Sequence[Member]) -> None:
        """Lets each member of a stack begin again, alone."""
        for member in members:
            reported = self._together[member.place].reported
            self._enter(Alone(self.worker, member.trial, self.split, reported.get(member.trial.number, 0)))

    def _devices(self) -> list[torch.device]:
        return [self.worker.device] if self.worker.device.type == "cuda" else []
