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
from autopeft.training.tape import Pass, Tape


def is_static(stack: Stack) -> bool:
    """Whether a stack's steps have static shapes: all members share each pass."""
    return stack.network.is_static and len(stack.members) <= stack.most_members


class StackProgram:
    """Takes the steps of a stack.

    Args:
        stack: The stack, its steps in static shapes.
    """

    def __init__(self, stack: Stack) -> None:
        self.stack, device, n_members = stack, stack.worker.device, len(stack.members)
        setup = stack.worker.setup
        self.tape = Tape(setup, READ, n_members, setup.machine.micro_batch_size, device)
        self.coefficients = torch.zeros((READ, n_members, 6), device=device)
        if self.tape.has_parts:  # what was captured adds to gradients where they lie
            stack.values.grad = torch.zeros_like(stack.values)
        self.launcher = launcher_of(self.step, device, [member.randomness for member in stack.members])
        self.compiling = Compiling(stack.worker.compiler, stack.network, self.launcher, self.gradients)
        stack.scorer = scorer_of(stack.static_logits, stack.network.model, device)
        self._launched = 0  # steps that nobody has read
        self._sizes: Sequence[Size] = ()  # of their passes

    @property
    def is_launched(self) -> bool:
        """Whether steps were launched that nobody has read."""
        return self._launched > 0

    def launch(self, n_steps: int) -> None:
        """Launches so many steps of each member, at most READ. May return before the device has done them.

        If memory runs out, the steps that are left are taken in several passes.

        Raises:
            RuntimeError: Memory runs out with one member.
        """
        stack, network = self.stack, self.stack.network
        batches = [self._batches() for _ in range(n_steps)]
        coefficients = torch.stack([stack.coefficients(step) for step in range(n_steps)])
        passes = self.tape.fill(batches, stack.worker.data.weights["train"], network.size_of)
        self.coefficients[:n_steps].copy_(coefficients)
        parts = self.tape.parts
        self._sizes = [taken.size for taken in passes]
        left = max(member.course.total - member.step for member in stack.members)
        if all(member.step > 0 for member in stack.members):  # others may join at the first step, and change shapes
            self.compiling.decide(left * len(passes) // n_steps, self._sizes)
        before = None if network.is_resident else lambda index: network.send(parts[index], passes[index].size)
        try:
            with self.compiling.timed():
                self.compiling.check()
                self.launcher.launch(passes, before)
            if before is not None:  # what was sent lies where all trials' batches lie
                self.launcher.wait()
        except (RuntimeError, MemoryError) as fault:
            if not is_out_of_memory(fault) or stack.most_members == 1:
                raise
            self._rest(batches, coefficients)
        self._launched = n_steps

    def gradients(self) -> list[torch.Tensor | None]:
        """Computes the gradients of the first of the passes that are about to be launched. Changes nothing."""
        stack = self.stack
        generators = [member.randomness for member in stack.members]
        states = [generator.get_state() for generator in generators]
        if not stack.network.is_resident:
            stack.network.send(self.tape.parts[0], self._sizes[0])
        try:
            everyone = tuple(range(len(stack.members)))
            rows, weight = self.tape.read()
            losses = stack.static_loss(everyone, rows, self._sizes[0], weight)
            (found,) = torch.autograd.grad(losses.sum(), [stack.values])
        finally:
            stack.end()
            for generator, state in zip(generators, states, strict=True):
                generator.set_state(state)
        return list(found.split(stack.sizes, dim=1))

    def is_done(self) -> bool:
        """Whether the device has done what was launched."""
        return self.launcher.is_done()

    def read(self) -> Iterator[list[float]]:
        """Waits for the launched steps. Moves the members on step by step, and yields their losses of each."""
        with self.compiling.timed():
            losses: list[list[float]] = self.launcher.read(self.tape.losses[: self._launched])
        spent = self.compiling.note(self._sizes)
        for member in self.stack.members:
            member.course.wait(spent)
        self._launched = 0
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

    def step(self, taken: Pass) -> None:
        """Takes the next pass of each member: gradients, added to those of the step's passes before. The last one updates.

        Notes the members' losses.
        """
        stack = self.stack
        everyone = tuple(range(len(stack.members)))
        try:
            rows, weight = self.tape.read()
            losses = stack.static_loss(everyone, rows, taken.size, weight)
            losses.sum().backward()
            if taken.is_last:
                stack.update(self.coefficients.index_select(0, self.tape.at)[0])
            if taken.is_last and self.tape.has_parts and stack.values.grad is not None:
                stack.values.grad.zero_()
        finally:
            if self.tape.has_parts:
                stack.end()
            else:
                stack.clear()
        self.tape.note(losses, taken)

    def _rest(self, batches: Sequence[Sequence[np.ndarray]], coefficients: torch.Tensor) -> None:
        """Takes the steps that were not taken when memory ran out, with fewer members a pass."""
        stack, done = self.stack, int(self.launcher.read(self.tape.at)[0])
        stack.halve()
        for step in range(done, len(batches)):
            losses = stack.take(batches[step], coefficients[step])
            self.tape.losses[step].copy_(torch.tensor(losses))
