"""A trial's training in static shapes: each optimiser step is one function of tensors that stay where they are.

The rows of all steps, the learning rates and the losses lie on the device, with a counter that each step moves on. So a
step takes nothing from the host and gives nothing back: a CUDA graph can hold it, and one launch is a step. The losses
are read now and then.
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
from autopeft.training.sizes import Size
from autopeft.training.static import filled
from autopeft.trial import Phase


def is_static(network: Network) -> bool:
    """Whether a trial can train in static shapes: nothing acts between its steps, and a batch is one pass, kept whole."""
    setup = network.worker.setup
    acts_between = any(during.after_step is not None for during in network.attached.during)
    is_one_pass = network.micro_batch_size >= setup.train.batch_size
    return network.is_static and is_one_pass and not acts_between and not network.is_checkpointed


class Program:
    """Trains one trial after another of the same structure.

    Args:
        network: The first trial's network. Later trials' tensors are copied into it.
        total: Optimiser steps of a trial.

    Attributes:
        network: Holds the present trial's tensors.
        launcher: Takes the steps.
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
        self.rows = torch.full((total, setup.train.batch_size), -1, device=device)
        factors = [learning_rate_factor(setup, total, step) for step in range(total)]
        self.factors = torch.tensor(factors, device=device)
        self.losses = torch.zeros(total, device=device)
        self.at = torch.zeros(1, dtype=torch.int64, device=device)  # steps done
        self.rates = torch.zeros(len(groups), device=device)
        for group, rate in zip(groups, torch.zeros(len(groups), device=device).unbind(), strict=True):
            group["lr"] = rate
        self.batches: Sequence[np.ndarray] = ()  # rows of each step
        self.sizes: Sequence[Size] = ()
        self.done = 0
        self.launcher = launcher_of(self.step, device)
        self.compiling = Compiling(worker.compiler, network, self.launcher)
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
        self.batches, self.done = list(islice(own, self.total)), 0
        self.rows.copy_(torch.from_numpy(filled(self.batches, setup.train.batch_size)))
        self.rates.copy_(torch.tensor([group.lr for group in attached.groups]))
        self.at.zero_()
        self.sizes = [self.network.size_of([batch]) for batch in self.batches]
        self.launcher.seed(seed)
        self.network.train()

    def step(self, size: Size) -> None:
        """Takes the next optimiser step, of a batch of this size: gradients, clipping, update. Notes its loss."""
        setup = self.network.worker.setup
        factor = self.factors.index_select(0, self.at)
        for group, rate in zip(self.optimizer.param_groups, self.rates.unbind(), strict=True):
            torch.mul(rate, factor[0], out=group["lr"])
        try:
            loss = self.network.static_loss(self.rows.index_select(0, self.at), size)[0]
            whole = loss
            for penalty in self.penalties:
                whole = whole + penalty()
            whole.backward()
            self.network.untrained = {name: p for name, p in self.network.untrained.items() if p.grad is None}
            if setup.train.clip is not None:
                nn.utils.clip_grad_norm_(self.parameters, setup.train.clip)
            self.optimizer.step()
        finally:
            self.optimizer.zero_grad(set_to_none=True)
        self.losses.index_copy_(0, self.at, loss.detach().view(1))
        self.at += 1

    def run(self, course: Course) -> Iterator[tuple[int, float] | Pause | Phase]:
        """Trains the trial. Yields (step, mean loss of its batch) for each step, and a pause after launching some.

        While blocks are compiled, its phase is another one.

        When a rung's step comes, no step after it has been launched.
        """
        rungs = sorted({*course.rungs, self.total})
        while self.done < self.total:
            first = self.done
            last = min(first + READ, next(rung for rung in rungs if rung > first))
            self.compiling.decide(self.total - first, self.sizes[first:])
            is_compiling = self.compiling.compiles(self.sizes[first:last])
            if is_compiling:  # for all trials of the structure: no watchdog ends it
                yield Phase.PREPARING
            with self.compiling.timed():
                self.launch(last - first)
            if self.network.is_resident:
                yield Pause(self.launcher.is_done)
            with self.compiling.timed():
                losses = self.launcher.read(self.losses[first:last])
            course.wait(self.compiling.note(self.sizes[first:last]))
            if is_compiling:
                yield Phase.TRAINING
            yield from enumerate(losses, first + 1)

    def launch(self, n_steps: int) -> None:
        """Launches the next steps. May return before the device has done them.

        If batches are sent, they have to be read before another trial's are: they lie where all trials' batches lie.
        """
        first, self.done = self.done, self.done + n_steps
        before = None if self.network.is_resident else partial(self._send, first)
        self.launcher.launch(self.sizes[first : self.done], before)

    def _send(self, first: int, ahead: int) -> None:
        """Sends what a step reads, and is not on the device."""
        self.network.send([self.batches[first + ahead]], self.sizes[first + ahead])
