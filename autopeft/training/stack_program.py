"""A stack's steps in static shapes: some steps of all members at once, each one function of tensors that stay.

What `Program` is for one trial. Members begin at different times, so the rows, learning rates and bias corrections of the
next steps are sent when they are launched. A member that goes leaves its place vacant, and one that fits takes it. So what
was captured serves on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from autopeft.training.compiled import Compiling
from autopeft.training.faults import is_out_of_memory
from autopeft.training.launch import READ, launcher_of
from autopeft.training.scorer import scorer_of
from autopeft.training.sizes import Size
from autopeft.training.stack import Member, Stack
from autopeft.training.static import filled


def is_static(stack: Stack) -> bool:
    """Whether a stack's step is one pass in static shapes."""
    worker = stack.worker
    is_one_pass = worker.setup.machine.micro_batch_size >= worker.setup.train.batch_size
    return stack.network.is_static and is_one_pass and len(stack.members) <= stack.most_members


class StackProgram:
    """Takes the steps of a stack.

    Args:
        stack: The stack, its step one pass in static shapes.
    """

    def __init__(self, stack: Stack) -> None:
        self.stack, device, n_members = stack, stack.worker.device, len(stack.members)
        n_rows = stack.worker.setup.train.batch_size
        self.rows = torch.full((READ, n_members, n_rows), -1, device=device)
        self.coefficients = torch.zeros((READ, n_members, 6), device=device)
        self.losses = torch.zeros((READ, n_members), device=device)
        self.at = torch.zeros(1, dtype=torch.int64, device=device)  # steps done of those that were launched
        self.launcher = launcher_of(self.step, device, [member.randomness for member in stack.members])
        self.compiling = Compiling(stack.worker.compiler, stack.network, self.launcher)
        stack.scorer = scorer_of(stack.static_logits, stack.network.model, device)
        self._launched: Sequence[Size] = ()  # sizes of the steps that nobody has read

    @property
    def is_launched(self) -> bool:
        """Whether steps were launched that nobody has read."""
        return bool(self._launched)

    def launch(self, n_steps: int) -> None:
        """Launches so many steps of each member, at most READ. May return before the device has done them.

        If memory runs out, the steps that are left are taken in several passes.

        Raises:
            RuntimeError: Memory runs out with one member.
        """
        stack, network = self.stack, self.stack.network
        batches = [self._batches() for _ in range(n_steps)]
        coefficients = torch.stack([stack.coefficients(step) for step in range(n_steps)])
        rows = np.stack([filled(parts, self.rows.shape[-1]) for parts in batches])
        self.rows[:n_steps].copy_(torch.from_numpy(rows))
        self.coefficients[:n_steps].copy_(coefficients)
        self.at.zero_()
        sizes = [network.size_of(parts) for parts in batches]
        left = max(member.course.total - member.step for member in stack.members)
        self.compiling.decide(left, sizes)
        before = None if network.is_resident else lambda step: network.send(batches[step], sizes[step])
        try:
            with self.compiling.timed():
                self.launcher.launch(sizes, before)
            if before is not None:  # what was sent lies where all trials' batches lie
                self.launcher.wait()
        except (RuntimeError, MemoryError) as fault:
            if not is_out_of_memory(fault) or stack.most_members == 1:
                raise
            self._rest(batches, coefficients)
        self._launched = sizes

    def is_done(self) -> bool:
        """Whether the device has done what was launched."""
        return self.launcher.is_done()

    def read(self) -> Iterator[list[float]]:
        """Waits for the launched steps. Moves the members on step by step, and yields their losses of each."""
        with self.compiling.timed():
            losses: list[list[float]] = self.launcher.read(self.losses[: len(self._launched)])
        spent = self.compiling.note(self._launched)
        for member in self.stack.members:
            member.course.wait(spent)
        self._launched = ()
        for of_step in losses:
            for index, member in enumerate(self.stack.members):
                member.step += index not in self.stack.vacant
            yield of_step

    def change(self, members: Sequence[Member]) -> bool:
        """Lets members go and others take their places. Returns False if another stack has to be built instead.

        That is so if one does not fit, or if more than half of the places would be vacant.
        """
        stack, wanted = self.stack, {member.trial.number: member for member in members}
        for index, member in enumerate(stack.members):
            if index not in stack.vacant and wanted.pop(member.trial.number, None) is None:
                stack.vacate(index)
        if len(wanted) > len(stack.vacant) or not all(map(stack.fits, wanted.values())):
            return False
        for index, member in zip(sorted(stack.vacant), wanted.values(), strict=False):
            stack.occupy(index, member)
        return 2 * len(stack.vacant) <= len(stack.members)

    def _batches(self) -> list[np.ndarray]:
        """Returns the next rows of each member; those of another one in vacant places."""
        stack = self.stack
        own = {i: next(member.batches) for i, member in enumerate(stack.members) if i not in stack.vacant}
        some = next(iter(own.values()))
        return [own.get(index, some) for index in range(len(stack.members))]

    def step(self, size: Size) -> None:
        """Takes the next step of each member. Notes their losses."""
        stack = self.stack
        everyone = tuple(range(len(stack.members)))
        try:
            losses = stack.static_loss(everyone, self.rows.index_select(0, self.at)[0], size)
            losses.sum().backward()
            stack.update(self.coefficients.index_select(0, self.at)[0])
        finally:
            stack.clear()
        self.losses.index_copy_(0, self.at, losses.detach()[None])
        self.at += 1

    def _rest(self, batches: Sequence[Sequence[np.ndarray]], coefficients: torch.Tensor) -> None:
        """Takes the steps that were not taken when memory ran out, with fewer members a pass."""
        stack, done = self.stack, int(self.launcher.read(self.at)[0])
        stack.halve()
        for step in range(done, len(batches)):
            losses = stack.take(batches[step], coefficients[step])
            self.losses[step].copy_(torch.tensor(losses))
