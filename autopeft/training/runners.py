"""Who takes turns in a pack: a trial alone, and the members of a stack. A turn is one step, or a scoring.

A trial alone has its own random state, so that its scores are those of `serial`, whoever has turns in between.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Protocol

import torch

from autopeft.training.answers import NOT_FINITE
from autopeft.training.course import Course
from autopeft.training.faults import is_trials_own
from autopeft.training.launch import READ, Pause
from autopeft.training.loop import Worker
from autopeft.training.stack import Member, Stack
from autopeft.training.stack_program import StackProgram, is_static
from autopeft.trial import Report, Result, Status, Trial

logger = logging.getLogger(__name__)

Events = list[tuple[Trial, Report | Result]]


class Runner(Protocol):
    """Takes turns with others.

    Attributes:
        seconds: Time of all its turns.
    """

    seconds: float

    @property
    def n_new(self) -> int:
        """Returns the number of its running trials that have not taken a whole step yet."""

    @property
    def is_ready(self) -> bool:
        """Whether the device has done what its last turn launched, so that a turn does not begin with waiting."""

    @property
    def trials(self) -> Sequence[Trial]:
        """Returns its running trials; none if it needs no turn."""

    @property
    def courses(self) -> Sequence[Course]:
        """Returns the courses of its running trials."""

    def turn(self) -> Events:
        """Takes one turn. Returns its trials' events; a trial with a Result runs no longer."""

    def leave(self, trial: Trial) -> None:
        """Ends one of its trials, without a result."""


class Alone:
    """Runs one trial as `serial` does, a step a turn.

    Args:
        worker: Owner of the base, the data and the caches.
        trial: The trial.
        split: Split of the final score.
        reported: The step of the trial's last report in an earlier attempt. Reports up to there are not repeated.

    Attributes:
        reported: The step of the trial's last report.
    """

    def __init__(self, worker: Worker, trial: Trial, split: str, reported: int = 0) -> None:
        self.trial, self.reported, self.seconds = trial, reported, 0.0
        self.course = worker.course(trial)
        self.random = RandomState(worker.device)
        self._events = worker.turns(trial, split, self.course)
        self._is_running = True
        self._pause: Pause | None = None  # the last one

    @property
    def n_new(self) -> int:
        return int(self._is_running and self._pause is None)

    @property
    def is_ready(self) -> bool:
        return self._pause is None or self._pause.is_over()

    @property
    def trials(self) -> Sequence[Trial]:
        return (self.trial,) if self._is_running else ()

    @property
    def courses(self) -> Sequence[Course]:
        return (self.course,) if self._is_running else ()

    def turn(self) -> Events:
        with self.random.installed():
            try:
                event = next(self._events)
            except StopIteration:  # it was told to end
                self._is_running = False
                return []
        self._is_running = not isinstance(event, Result)
        if isinstance(event, Pause):
            self._pause = event
        if isinstance(event, Report) and event.step > self.reported:
            self.reported = event.step
            return [(self.trial, event)]
        return [(self.trial, event)] if isinstance(event, Result) else []

    def leave(self, trial: Trial) -> None:
        self._events.close()
        self._is_running = False


class RandomState:
    """The global random state of one trial, installed during its turns only.

    Args:
        device: The worker's device.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._own = self._get()

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Installs the trial's state, and afterwards keeps it and puts back the state that was there before."""
        before = self._get()
        self._set(self._own)
        try:
            yield
        finally:
            self._own = self._get()
            self._set(before)

    def _get(self) -> tuple[torch.Tensor, ...]:
        of_device = (torch.cuda.get_rng_state(self.device),) if self.device.type == "cuda" else ()
        return torch.random.get_rng_state(), *of_device

    def _set(self, states: tuple[torch.Tensor, ...]) -> None:
        torch.random.set_rng_state(states[0])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(states[1], self.device)


class Together:
    """Runs the members of one stack, a step of all of them a turn. The stack is built anew if its members change.

    Args:
        worker: Owner of the base, the data and the caches.
        split: Split of the final score.
        scatter: Is given members whose pass failed: each begins again, alone.

    Attributes:
        members: Those that share the next pass.
        reported: The step of each trial's last report.
    """

    def __init__(self, worker: Worker, split: str, scatter: Callable[[Sequence[Member]], None]) -> None:
        self.worker, self.split, self.scatter = worker, split, scatter
        self.members: list[Member] = []
        self.reported: dict[int, int] = {}
        self.seconds = 0.0
        self._most_members = 1_000_000  # of one pass, until memory runs out
        self._stack: Stack | None = None
        self._program: StackProgram | None = None
        self._wide: Mapping[str, tuple[int, ...]] = {}  # the last stack's shapes: who comes next may have them again

    @property
    def is_ready(self) -> bool:
        return self._program is None or not self._program.is_launched or self._program.is_done()

    @property
    def trials(self) -> Sequence[Trial]:
        return [member.trial for member in self.members]

    @property
    def n_new(self) -> int:
        return sum(member.step == 0 for member in self.members)

    @property
    def courses(self) -> Sequence[Course]:
        return [member.course for member in self.members]

    def turn(self) -> Events:
        """Takes one step of all members, or a few if they are launched at once, and scores those that are due.

        If a step fails, one member may be the cause, but it is not known which. Or memory is too small even for one
        member, and only a trial that runs alone divides its batch. So each member starts again, alone.
        """
        try:
            events = self._steps()
        except Exception as fault:
            if not is_trials_own(fault):
                raise
            numbers = ", ".join(str(member.trial.number) for member in self.members)
            logger.warning("the pack of trials %s came apart, and each begins again alone: %s", numbers, fault)
            if self._program is not None:
                self._program.launcher.wait()  # its memory is free from now on
            apart, self.members, self._stack, self._program = self.members, [], None, None
            self.scatter(apart)
            return []
        ended = {trial.number for trial, event in events if isinstance(event, Result)}
        if ended:
            self.gather([member for member in self.members if member.trial.number not in ended])
        return events

    def leave(self, trial: Trial) -> None:
        self.gather([member for member in self.members if member.trial.number != trial.number])

    def gather(self, members: Sequence[Member]) -> None:
        """Changes the members: each gets its tensors back, and the next step builds a new stack.

        If steps are on the device, the stack stays as it is until they were read.
        """
        self.members = list(members)
        if self._program is None or not self._program.is_launched:
            self._change()

    def _change(self) -> None:
        """Brings the stack in line with the members: in the vacant places of a program, or by taking it apart."""
        if self._stack is None or (self._program is not None and self._program.change(self.members)):
            return
        self._stack.unload()
        self._wide = self._stack.shapes
        self._stack = self._program = None

    def _steps(self) -> Events:
        """Takes some steps, and returns the events; none if they were launched and the device is not done."""
        if self._stack is None:
            is_wide = self.worker.setup.machine.layout == "flat"
            self._stack = Stack(self.worker, self.members, self._most_members, self._wide if is_wide else {})
            self._program = StackProgram(self._stack) if is_static(self._stack) else None
        stack, program = self._stack, self._program
        if program is None:
            steps: Iterable[list[float]] = [stack.step()]
        else:
            if not program.is_launched:
                program.launch(self._until_due())
                if not program.is_done():
                    return []
            steps = program.read()
        events: Events = []
        for losses in steps:
            running = {trial.number for trial in self.trials} - {trial.number for trial, _ in events}
            events += self._events(stack, losses, running)
        self._most_members = stack.most_members
        if program is not None:
            if not is_static(stack):  # memory ran out, and a step is several passes from now on
                self._program = None
            self._change()
        return events

    def _until_due(self) -> int:
        """Returns how many steps all members can take before one of them is due, or losses have to be read.

        One, if some have just begun: it shows what they need of the memory, and whether others have room to join.
        """
        if self.n_new:
            return 1
        stops = [(member.step, {*member.course.rungs, member.course.total}) for member in self.members]
        return min(READ, *(min(stop - step for stop in own if stop > step) for step, own in stops))

    def _events(self, stack: Stack, losses: list[float], running: Collection[int]) -> Events:
        """Returns the events of those members that still run, after a step."""
        setup = self.worker.setup
        events: Events = []
        due, done = [], []
        for index, (member, loss) in enumerate(zip(stack.members, losses, strict=True)):
            if member.trial.number not in running:
                continue
            failure = member.course.failure(member.step, loss)
            if failure is not None:
                events.append((member.trial, failure))
            elif member.step in member.course.rungs:
                due.append(index)
            elif member.step == member.course.total:
                member.course.mark()
                done.append(index)
        events += [*self._rung(stack, due), *self._results(stack, done, setup.machine.micro_batch_size)]
        ran = "stack" if self._program is None else self._program.compiling.named("stack")
        return [(trial, replace(event, ran=ran)) for trial, event in events]

    def _rung(self, stack: Stack, due: Sequence[int]) -> Events:
        """Returns the reports of members at a rung; a member whose outputs are not finite has failed."""
        if not due:
            return []
        data, is_scored = self.worker.data, self.worker.setup.train.score_rungs
        events: Events = []
        for index, own in zip(due, stack.answers("validation", due) if is_scored else [None] * len(due), strict=True):
            member = stack.members[index]
            if own is not None and not own.are_finite:
                events.append((member.trial, Result(member.trial, Status.FAILED, error=NOT_FINITE)))
                continue
            metrics = {} if own is None else own.scores(data.weights["validation"], data.about).metrics
            events.append((member.trial, member.course.report(member.step, metrics)))
            self.reported[member.trial.number] = member.step
        return events

    def _results(self, stack: Stack, done: Sequence[int], micro_batch_size: int) -> Events:
        """Returns the results of members after their last step."""
        if not done:
            return []
        answers, used = stack.answers(self.split, done), {"micro_batch_size": float(micro_batch_size)}
        stack.unload()
        members = [stack.members[index] for index in done]
        return [
            (member.trial, self.worker.finish(member.course, member.attached, own, self.split, used))
            for member, own in zip(members, answers, strict=True)
        ]
