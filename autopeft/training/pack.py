"""Trials side by side in one worker: trials that a stack can hold share a pass over the base, others run one at a time.

This pays on a GPU, where the batch of one trial leaves most of the device idle (benchmarks/packed).
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Generator

import torch

from autopeft.training.answers import NOT_FINITE
from autopeft.training.course import Course
from autopeft.training.faults import is_trials_own
from autopeft.training.loop import Worker
from autopeft.training.stack import Member, Stack
from autopeft.trial import Report, Result, Status, Trial

logger = logging.getLogger(__name__)


class Pack:
    """Implements `autopeft.executors.Pack` on a worker.

    Args:
        worker: Owner of the base, the data and the caches.
        split: Split of the final score.
    """

    def __init__(self, worker: Worker, split: str = "validation") -> None:
        self.worker, self.split = worker, split
        self.most_members = 1_000_000  # of one pass, until memory runs out
        # Key: whether the members act on the base. Members that train a head only share passes over cached activations.
        self._members: dict[bool, list[Member]] = {False: [], True: []}
        self._stacks: dict[bool, Stack] = {}
        self._alone: deque[Trial] = deque()
        self._solo: tuple[Trial, Generator[Report | Result, None, None]] | None = None
        self._solo_course: Course | None = None
        self._reported: dict[int, int] = {}  # the step of each trial's last report

    def join(self, trial: Trial) -> None:
        start, waiting = time.monotonic(), self._courses()
        try:
            # Attaching must not change the random state of a trial that runs alone.
            with torch.random.fork_rng(devices=self._devices()):
                member = Member.of(self.worker, trial)
        except Exception as fault:
            if not is_trials_own(fault):
                raise
            member = None  # the trial runs alone, fails in the same way, and reports why
        for course in waiting:  # only the new trial's clock counts the attaching
            course.wait(time.monotonic() - start)
        if member is None:
            self._alone.append(trial)
        else:
            self._gather(bool(member.updates), [*self._members[bool(member.updates)], member])

    def _courses(self) -> list[Course]:
        """Returns the courses of all running trials."""
        members = [member.course for members in self._members.values() for member in members]
        return members if self._solo_course is None else [*members, self._solo_course]

    def _devices(self) -> list[torch.device]:
        return [self.worker.device] if self.worker.device.type == "cuda" else []

    def leave(self, trial: Trial) -> None:
        if self._solo is not None and self._solo[0].number == trial.number:
            self._solo[1].close()
            self._solo = self._solo_course = None
        for acts, members in self._members.items():
            rest = [member for member in members if member.trial.number != trial.number]
            if len(rest) < len(members):
                self._gather(acts, rest)

    def advance(self) -> list[tuple[Trial, Report | Result]]:
        while not self.worker.should_end():
            start, acts = time.monotonic(), not self._members[False]  # trials of a head first: they are fast
            if self._solo is None and self._alone:
                trial = self._alone.popleft()
                self._solo_course = self.worker.course(trial)
                self._solo = (trial, self.worker.evaluate(trial, self.split, self._solo_course))
            if self._solo is not None:
                waiting = [*self._members[False], *self._members[True]]
                events = self._follow(*self._solo)
            elif self._members[acts]:
                waiting = self._members[not acts]
                events = self._step(acts)
            else:
                return []
            for member in waiting:
                member.course.wait(time.monotonic() - start)
            if events:
                return events
        return []

    def _follow(
        self, trial: Trial, events: Generator[Report | Result, None, None]
    ) -> list[tuple[Trial, Report | Result]]:
        """Returns the next event of a trial that runs alone; none if it was told to end or has reported it before."""
        event = next(events, None)
        if event is None or isinstance(event, Result):
            self._solo = self._solo_course = None
        if event is None or (isinstance(event, Report) and event.step <= self._reported.get(trial.number, 0)):
            return []
        return [(trial, event)]

    def _step(self, acts: bool) -> list[tuple[Trial, Report | Result]]:
        """Takes one step of all members of a stack. Returns their events.

        If the step fails, one member may be the cause, but it is not known which. Or memory is too small even for one
        member, and only a trial that runs alone divides its batch. So each member starts again, alone.
        """
        members = self._members[acts]
        try:
            if acts not in self._stacks:
                self._stacks[acts] = Stack(self.worker, members, self.most_members)
            stack = self._stacks[acts]
            losses = stack.step()
            events = self._events(stack, losses)
            self.most_members = stack.most_members
        except Exception as fault:
            if not is_trials_own(fault):
                raise
            numbers = ", ".join(str(member.trial.number) for member in members)
            logger.warning("the pack of trials %s came apart, and each begins again alone: %s", numbers, fault)
            self._stacks.pop(acts, None)
            self._alone.extend(member.trial for member in members)
            self._members[acts] = []
            return []
        ended = {trial.number for trial, event in events if isinstance(event, Result)}
        if ended:
            self._gather(acts, [member for member in members if member.trial.number not in ended])
        return events

    def _events(self, stack: Stack, losses: list[float]) -> list[tuple[Trial, Report | Result]]:
        """Returns the members' events after a step."""
        setup = self.worker.setup
        events: list[tuple[Trial, Report | Result]] = []
        due, done = [], []
        for index, (member, loss) in enumerate(zip(stack.members, losses, strict=True)):
            failure = member.course.failure(member.step, loss)
            if failure is not None:
                events.append((member.trial, failure))
            elif member.step in member.course.rungs:
                due.append(index)
            elif member.step == member.course.total:
                member.course.mark()
                done.append(index)
        data = self.worker.data
        found = stack.answers("validation", due) if due and setup.train.score_rungs else [None] * len(due)
        for index, own in zip(due, found, strict=True):
            member = stack.members[index]
            if own is not None and not own.are_finite:
                events.append((member.trial, Result(member.trial, Status.FAILED, error=NOT_FINITE)))
                continue
            metrics = {} if own is None else own.scores(data.weights["validation"], data.about).metrics
            events.append((member.trial, member.course.report(member.step, metrics)))
            self._reported[member.trial.number] = member.step
        if done:
            answers = stack.answers(self.split, done)
            stack.unload()
            used = {"micro_batch_size": float(setup.machine.micro_batch_size)}
            for index, own in zip(done, answers, strict=True):
                member = stack.members[index]
                events.append((member.trial, self.worker.finish(member.course, member.attached, own, self.split, used)))
        return events

    def _gather(self, acts: bool, members: list[Member]) -> None:
        """Changes the members of a stack: each gets its tensors back, and the next step builds a new stack."""
        if acts in self._stacks:
            self._stacks.pop(acts).unload()
        self._members[acts] = members
