"""How long a step takes in static shapes, launched as in training.

Kernel by kernel a small model waits for launches, and bf16, which has more of them, would look slow.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np

from autopeft.training.batches import order
from autopeft.training.launch import WARM, Launcher
from autopeft.training.loop import Worker
from autopeft.training.network import Network
from autopeft.training.program import Program, is_static
from autopeft.training.stack import Member, Stack
from autopeft.training.stack_program import StackProgram
from autopeft.training.stack_program import is_static as is_static_stack

AT_ONCE = 4  # steps of one measurement, so that waiting for the device at its end counts little


def middle_batch(worker: Worker) -> np.ndarray:
    """Returns the batch of middle length of an epoch."""
    lengths = worker.data.splits["train"].lengths
    batches = order(lengths, worker.setup.train.batch_size, worker.setup.seed, 0)
    return sorted(batches, key=lambda rows: int(lengths[rows].sum()))[len(batches) // 2]


def of_trial(network: Network, times: int, clock: Callable[[], float]) -> list[float] | None:
    """Measures a step of a trial on its middle batch, so many times; None if it does not train in static shapes."""
    if not is_static(network):
        return None
    n_steps = WARM + 1 + AT_ONCE * times
    program = Program(network, n_steps)
    program.begin(network.attached, network.worker.setup.seed, [middle_batch(network.worker)] * n_steps)
    return _measured(program.launch, program.launcher, times, clock)


def of_pack(worker: Worker, members: Sequence[Member], times: int, clock: Callable[[], float]) -> list[float] | None:
    """Measures a step of members that share a pass, as `of_trial` does."""
    stack = Stack(worker, members, len(members))
    if not is_static_stack(stack):
        return None
    for member in members:
        member.batches = itertools.repeat(middle_batch(worker))
    program = StackProgram(stack)

    def launch(n_steps: int) -> None:
        program.launch(n_steps)
        list(program.read())

    return _measured(launch, program.launcher, times, clock)


def _measured(launch: Callable[[int], None], launcher: Launcher, times: int, clock: Callable[[], float]) -> list[float]:
    launch(WARM + 1)  # the last one is captured
    seconds = []
    for _ in range(times):
        launcher.wait()
        start = clock()
        launch(AT_ONCE)
        launcher.wait()
        seconds.append((clock() - start) / AT_ONCE)
    return seconds
