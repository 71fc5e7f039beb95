"""Trials side by side in one worker: those that a stack can hold as one pass over the base, others one at a time.

Kept for what it wins on a GPU, where the batch of one trial leaves most of the device idle (benchmarks/packed).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator

from autopeft.training.loop import FAULTS, Worker
from autopeft.training.stack import Member, Stack
from autopeft.trial import Report, Result, Trial


class Pack:
    """`autopeft.executors.Pack` on a worker.

    Args:
        worker: Whose base, data and caches the trials use.
        split: Which split their final score is of.
    """

    def __init__(self, worker: Worker, split: str = "validation") -> None:
        self.worker, self.split = worker, split
        self.most_members = 1_000_000  # of one pass, until memory runs out
        self._members: list[Member] = []
        self._stack: Stack | None = None
        self._alone: deque[Trial] = deque()
        self._solo: tuple[Trial, Generator[Report | Result]] | None = None
        self._reported: dict[int, int] = {}  # the step of each trial's last report

    def join(self, trial: Trial) -> None:
        try:
            member = Member.of(self.worker, trial)
        except FAULTS:
            member = None  # alone, it fails in the same way, and says why
        if member is None:
            self._alone.append(trial)
            return
        self._unstack()
        self._members.append(member)

    def leave(self, trial: Trial) -> None:
        if self._solo is not None and self._solo[0].number == trial.number:
            self._solo[1].close()
            self._solo = None
            return
        self._unstack()
        self._members = [member for member in self._members if member.trial.number != trial.number]

    def advance(self) -> list[tuple[Trial, Report | Result]]:
        while not self.worker.should_end():
            if self._solo is None and self._alone:
                trial = self._alone.popleft()
                self._solo = (trial, self.worker.evaluate(trial, self.split))
            if self._solo is not None:
                events = self._follow(*self._solo)
            elif self._members:
                events = self._step()
            else:
                return []
            if events:
                return events
        return []

    def _follow(self, trial: Trial, events: Generator[Report | Result]) -> list[tuple[Trial, Report | Result]]:
        """The next event of a trial that runs alone; none where it was told to end, or has reported that before."""
        event = next(events, None)
        if event is None or isinstance(event, Result):
            self._solo = None
        if event is None or (isinstance(event, Report) and event.step <= self._reported.get(trial.number, 0)):
            return []
        return [(trial, event)]

    def _step(self) -> list[tuple[Trial, Report | Result]]:
        """One step of all members; what they have to say after it.

        What goes wrong in it is the fault of one of them, and nobody knows whose; or memory does not hold even one,
        and only a trial alone divides its batch. So each begins again, alone.
        """
        try:
            if self._stack is None:
                self._stack = Stack(self.worker, self._members, self.most_members)
            losses = self._stack.step()
            self.most_members = self._stack.most_members
            return self._events(self._stack, losses)
        except FAULTS:
            self._stack = None
            self._alone.extend(member.trial for member in self._members)
            self._members = []
            return []

    def _events(self, stack: Stack, losses: list[float]) -> list[tuple[Trial, Report | Result]]:
        setup, events = self.worker.setup, []
        failures = {
            index: failure
            for index, (member, loss) in enumerate(zip(stack.members, losses, strict=True))
            if (failure := member.course.failure(member.step, loss)) is not None
        }
        well = {index: member for index, member in enumerate(stack.members) if index not in failures}
        due = {index: member for index, member in well.items() if member.step in member.course.rungs}
        done = {index: member for index, member in well.items() if member.step == member.course.total}
        scored = list(due) if setup.score_rungs else []
        scores = dict(zip(scored, stack.logits("validation", scored) if scored else (), strict=True))
        labels = self.worker.data.splits["validation"].labels
        for index, member in due.items():
            metrics = self.worker.task.score(scores[index], labels) if index in scores else {}
            events.append((member.trial, member.course.report(member.step, metrics)))
            self._reported[member.trial.number] = member.step
        if done:
            for member in done.values():
                member.course.mark()
            logits = stack.logits(self.split, list(done))
            stack.unload()
            for member, own in zip(done.values(), logits, strict=True):
                used = {"micro_batch_size": float(setup.micro_batch_size)}
                events.append((member.trial, self.worker.finish(member.course, member.attached, own, self.split, used)))
        events += [(stack.members[index].trial, failure) for index, failure in failures.items()]
        if done or failures:
            self._unstack()
            self._members = [member for index, member in well.items() if index not in done]
        return events

    def _unstack(self) -> None:
        """Members get back what is theirs; the next step stacks them anew."""
        if self._stack is not None:
            self._stack.unload()
            self._stack = None
