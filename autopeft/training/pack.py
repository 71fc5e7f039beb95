"""Trials side by side in one worker: trials that a stack can hold share a pass over the base, others run by themselves.

The stack of LoRA trials, the stack of trials of a head, and each other trial take turns: whose turns took the least time
so far has the next one, unless the device is still busy with its last one. So no trial waits for the end of another.
A trial that runs out of memory begins again with less company. This pays on a GPU, where the batch of one trial leaves
most of the device idle (benchmarks/packed).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from autopeft.training.course import Course
from autopeft.training.faults import is_trials_own
from autopeft.training.loop import Worker
from autopeft.training.memory import CudaMemory, Memory, Needs
from autopeft.training.runners import Alone, Events, Runner, Together
from autopeft.training.stack import Member, Place
from autopeft.trial import Result, Status, Trial

logger = logging.getLogger(__name__)

MOST_TRIALS = 32  # side by side: a sampler learns little from trials that all began together
MOST_UNMEASURED = 16  # where nobody measures memory: on a CPU


@dataclass(frozen=True)
class Waiting:
    """A trial that ran out of memory, and begins again once few enough others run; or one that came after such a one.

    Attributes:
        trial: The trial.
        company: Most other trials beside it.
        reported: The step of its last report, which is not repeated.
    """

    trial: Trial
    company: int
    reported: int


class Pack:
    """Implements `autopeft.executors.Pack` on a worker.

    Args:
        worker: Owner of the base, the data and the caches.
        split: Split of the final score.
        memory: Reads the memory of the worker's device; None for that of a GPU, and for nobody on a CPU.
    """

    def __init__(self, worker: Worker, split: str = "validation", memory: Memory | None = None) -> None:
        self.worker, self.split = worker, split
        if memory is None and worker.device.type == "cuda":
            memory = CudaMemory(worker.device)
        self._needs = None if memory is None else Needs(memory)
        self._together: dict[Place, Together] = {}
        self._alone: list[Alone] = []
        self._waiting: list[Waiting] = []
        self._most_company: dict[int, int] = {}  # of trials that have run out of memory
        worker.is_shared, worker.has_company = True, lambda: self._n_running > 1

    def join(self, trial: Trial) -> None:
        if self._waiting or not self._admits(self._n_running):
            self._waiting.append(Waiting(trial, MOST_TRIALS, 0))
        else:
            self._begin(trial)

    def _begin(self, trial: Trial) -> None:
        """Adds a trial to the stack that can hold it, or by itself."""
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
        self._waiting = [waiting for waiting in self._waiting if waiting.trial.number != trial.number]
        for runner in self._running():
            if any(own.number == trial.number for own in runner.trials):
                runner.leave(trial)

    def has_room(self) -> bool:
        running = self._n_running
        if not running or self._waiting:
            return not self._waiting
        if self._needs is None:
            return running < MOST_UNMEASURED
        n_new = sum(runner.n_new for runner in self._running())
        if running >= MOST_TRIALS or not self._admits(running) or not self._needs.largest:
            return False
        if 2 * n_new >= running:  # new ones are at most as many as those that were measured: they may need far more
            return False
        while not self._needs.has_room(n_new):
            if not self.worker.programs.drop(1):  # a trial is worth more than a program kept for another
                return False
            self._needs.memory.release()
        return True

    def advance(self, is_due: Callable[[], bool] = lambda: False) -> Events:
        while not self.worker.should_end():
            self._begin_waiting()
            running = self._running()
            if not running:
                return []
            ready = [runner for runner in running if runner.is_ready] or running
            runner = min(ready, key=lambda runner: runner.seconds)
            events = self._again(runner, self._turn(runner, [other for other in running if other is not runner]))
            if events or is_due():
                return events
        return []

    def _turn(self, runner: Runner, others: Sequence[Runner]) -> Events:
        """Lets a runner take a turn. Only its own trials' clocks go on meanwhile."""
        start, n_trials = time.monotonic(), len(runner.trials)
        courses = [course for other in others for course in other.courses]
        if self._needs is None:
            events = runner.turn()
        else:
            with self._needs.measured(id(runner)):
                events = runner.turn()
            if not runner.n_new:
                self._needs.note(id(runner), n_trials)
            if not runner.trials:
                self._needs.forget(id(runner))
        seconds = time.monotonic() - start
        runner.seconds += seconds
        for course in courses:
            course.wait(seconds)
        return events

    def _again(self, runner: Runner, events: Events) -> Events:
        """Returns a runner's events; one that ran out of memory in company waits instead, to begin again with less."""
        self._alone = [alone for alone in self._alone if alone.trials]
        out: Events = []
        for trial, event in events:
            company, status = self._n_running, event.status if isinstance(event, Result) else None
            if status is Status.OUT_OF_MEMORY and isinstance(runner, Alone) and company:
                logger.info(
                    "trial %d ran out of memory beside %d others, and begins again later", trial.number, company
                )
                self._wait(trial, min(company, self._most_company.get(trial.number, company)) // 2, runner.reported)
                continue
            if status is not None:
                self._most_company.pop(trial.number, None)
            out.append((trial, event))
        return out

    def _wait(self, trial: Trial, company: int, reported: int) -> None:
        self._most_company[trial.number] = company
        self._waiting.append(Waiting(trial, company, reported))
        self.worker.programs.drop()
        if self._needs is not None:
            self._needs.memory.release()

    def _begin_waiting(self) -> None:
        """Begins the trials that wait for less company, in order, as far as the others' company allows."""
        while self._waiting:
            first, running = self._waiting[0], self._n_running
            if running > first.company or not self._admits(running):
                return
            del self._waiting[0]
            if first.trial.number not in self._most_company:
                self._begin(first.trial)
                continue
            self._enter(Alone(self.worker, first.trial, self.split, first.reported))

    def _admits(self, n_others: int) -> bool:
        """Whether one more trial is not too much for a running one that has run out of memory."""
        numbers = [trial.number for runner in self._running() for trial in runner.trials]
        return all(n_others <= self._most_company.get(number, n_others) for number in numbers)

    @property
    def _n_running(self) -> int:
        return sum(len(runner.trials) for runner in self._running())

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
