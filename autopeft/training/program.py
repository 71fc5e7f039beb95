"""A trial's training in static shapes: each optimiser step is one function of tensors that stay where they are.

The rows of all steps, the learning rates and the losses lie on the device, with counters that each step moves on. So a
step takes nothing from the host and gives nothing back: a CUDA graph can hold it, and one launch is a step. The losses
are read now and then. A batch of several micro-batches is as many launches: gradients add up, and the last one updates.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice

import numpy as np
import torch
from torch import nn

from autopeft.training.batches import endless
from autopeft.training.compiled import Compiling
from autopeft.training.course import Course
from autopeft.training.launch import READ, Pause, launcher_of
from autopeft.training.network import Network
from autopeft.training.optimizer import learning_rate_factor, make_optimizer
from autopeft.training.recipe import Attached, load_trained, trained_state
from autopeft.training.scorer import scorer_of
from autopeft.training.tape import Pass, Tape
from autopeft.trial import Phase


def is_static(network: Network) -> bool:
    """Whether a trial can train in static shapes: nothing acts between its steps."""
    acts_between = any(during.after_step is not None for during in network.attached.during)
    return network.is_static and not acts_between


class Program:
    """Trains one trial after another of the same structure.

    Args:
        network: The first trial's network. Later trials' tensors are copied into it.
        total: Optimiser steps of a trial.

    Attributes:
        network: Holds the present trial's tensors.
        launcher: Takes the passes.
        passes: All passes of the present trial.
        done: Number of steps that were launched.
    """

    def __init__(self, network: Network, total: int) -> None:
        worker = network.worker
        setup, device = worker.setup, worker.device
        self.network, self.total = network, total
        self.optimizer = make_optimizer(network.attached, setup, is_static=True)
        groups = self.optimizer.param_groups
        self.parameters = [parameter for group in groups for parameter in group["params"]]
        self.penalties = [during.penalty for during in network.attached.during if during.penalty is not None]
        self.tape = Tape(setup, total, 1, network.micro_batch_size, device)
        factors = [learning_rate_factor(setup, total, step) for step in range(total)]
        self.factors = torch.tensor(factors, device=device)
        self.rates = torch.zeros(len(groups), device=device)
        for group, rate in zip(groups, torch.zeros(len(groups), device=device).unbind(), strict=True):
            group["lr"] = rate
        self.passes: Sequence[Pass] = ()
        self.done = 0
        self.launcher = launcher_of(self.step, device)
        self.compiling = Compiling(worker.compiler, network, self.launcher, self.gradients)
        network.scorer = scorer_of(network.static_logits, network.model, device)

    def begin(self, attached: Attached, seed: int, batches: Sequence[np.ndarray] | None = None) -> None:
        """Takes a trial: its tensors, rows and learning rates. The optimiser's state becomes zero.

        Args:
            batches: The rows of each step; None for those of the trial's seed.
        """
        setup, split = self.network.worker.setup, self.network.worker.data.splits["train"]
        if attached is not self.network.attached:
            load_trained(self.network.attached, trained_state(attached))
        for state in self.optimizer.state.values():
            for tensor in state.values():
                if isinstance(tensor, torch.Tensor):
                    tensor.zero_()
        own = endless(split.lengths, setup.train.batch_size, seed) if batches is None else batches
        chosen, weights = [[batch] for batch in islice(own, self.total)], self.network.worker.data.weights["train"]
        self.passes = self.tape.fill(chosen, weights, self.network.size_of)
        self.rates.copy_(torch.tensor([group.lr for group in attached.groups]))
        if self.tape.has_parts:  # what was captured adds to gradients where they lie
            for parameter in self.parameters:
                parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.zero_()
        self.done = 0
        self.launcher.seed(seed)
        self.network.train()

    def step(self, taken: Pass) -> None:
        """Takes the next pass: gradients, added to those of the batch's passes before. The last one updates.

        Notes its part of the batch's loss.
        """
        try:
            rows, weight = self.tape.read()
            losses = self.network.static_loss(rows, taken.size, "train", weight)
            whole = losses.sum()
            for penalty in self.penalties if taken.is_last else ():
                whole = whole + penalty()
            whole.backward()
            if taken.is_last:
                self._update()
        finally:
            if not self.tape.has_parts:
                self.optimizer.zero_grad(set_to_none=True)
        self.tape.note(losses, taken)

    def _update(self) -> None:
        """Clips the gradients, updates the tensors, and begins gradients anew."""
        setup, factor = self.network.worker.setup, self.factors.index_select(0, self.tape.at)
        for group, rate in zip(self.optimizer.param_groups, self.rates.unbind(), strict=True):
            torch.mul(rate, factor[0], out=group["lr"])
        if setup.train.clip is not None:
            nn.utils.clip_grad_norm_(self.parameters, setup.train.clip)
        self.optimizer.step()
        if self.tape.has_parts:
            self.optimizer.zero_grad(set_to_none=False)

    def gradients(self) -> list[torch.Tensor | None]:
        """Computes the gradients of the next pass, of whichever randomness. Changes nothing."""
        first, device = self.tape.first_of[self.done], self.network.worker.device
        rows, weight = self.tape.read()
        if not self.network.is_resident:
            self._send(first, 0)
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(0)
            losses = self.network.static_loss(rows, self.passes[first].size, "train", weight)
            return list(torch.autograd.grad(losses.sum(), self.parameters, allow_unused=True))

    def run(self, course: Course) -> Iterator[tuple[int, float] | Pause | Phase]:
        """Trains the trial. Yields (step, mean loss of its batch) for each step, and a pause after launching some.

        While blocks are compiled, its phase is another one.

        When a rung's step comes, no step after it has been launched.
        """
        rungs = sorted({*course.rungs, self.total})
        while self.done < self.total:
            first = self.done
            last = min(first + READ, next(rung for rung in rungs if rung > first))
            ahead = [taken.size for taken in self.passes[self.tape.first_of[first] :]]
            sizes = ahead[: self.tape.first_of[last] - self.tape.first_of[first]]
            self.compiling.decide(len(ahead), ahead)
            is_compiling = self.compiling.compiles(sizes)
            if is_compiling:  # for all trials of the structure: no watchdog ends it
                yield Phase.PREPARING
            with self.compiling.timed():
                self.compiling.check()
                self.launch(last - first)
            if self.network.is_resident:
                yield Pause(self.launcher.is_done)
            with self.compiling.timed():
                losses = self.launcher.read(self.tape.losses[first:last, 0])
            course.wait(self.compiling.note(sizes))
            if is_compiling:
                yield Phase.TRAINING
            yield from enumerate(losses, first + 1)

    def launch(self, n_steps: int) -> None:
        """Launches the next steps. May return before the device has done them.

        If batches are sent, they have to be read before another trial's are: they lie where all trials' batches lie.
        """
        first, last = self.tape.first_of[self.done], self.tape.first_of[self.done + n_steps]
        self.done += n_steps
        before = None if self.network.is_resident else partial(self._send, first)
        self.launcher.launch(self.passes[first:last], before)

    def _send(self, first: int, ahead: int) -> None:
        """Sends what a pass reads, and is not on the device."""
        self.network.send(self.tape.parts[first + ahead], self.passes[first + ahead].size)
