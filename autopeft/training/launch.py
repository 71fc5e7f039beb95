"""How a step in static shapes is launched: called, or captured once for each size as a CUDA graph and replayed.

A step is a function of a `size`, which can be hashed. It reads and writes tensors that stay where they are, and never
waits for the device.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from autopeft.training.faults import is_out_of_memory

logger = logging.getLogger(__name__)

READ = 25  # most steps between two looks at the losses: a loss that is not finite is found within so many
# Passes before a size is captured, each a real step: libraries choose their kernels and allocate in them. The first size
# of a step needs more of them, as autograd and the optimiser make their own state then.
WARM, WARM_LATER = 3, 1
Step = Callable[[Any], None]


@dataclass(frozen=True)
class Pause:
    """A point between steps at which other trials can have their turn.

    Attributes:
        is_over: Returns whether the device has done what was launched before it.
    """

    is_over: Callable[[], bool] = field(default=lambda: True)


class Launcher(Protocol):
    """Takes steps.

    Attributes:
        name: The ledger's word for trials whose steps it takes.
    """

    name: str

    def seed(self, seed: int) -> None:
        """Seeds the randomness of the steps that follow."""

    def launch(self, sizes: Sequence[Any], before: Callable[[int], object] | None = None) -> None:
        """Takes a step of each size, one after the other. May return before the device has done them.

        Args:
            before: Is called with the index of each step, to send what the step reads; None if all is there.
        """

    def is_done(self) -> bool:
        """Whether the device has done all that was launched."""

    def read(self, values: torch.Tensor) -> list[Any]:
        """Waits until the device has done all that was launched, and returns the numbers of a tensor."""

    def wait(self) -> None:
        """Waits until the device has done all that was launched: tensors that it reads may go, or change, afterwards."""

    def forget(self) -> None:
        """Lets go of what was captured, as the step computes in another way from now on."""


class Eager:
    """Calls the step.

    Args:
        step: The step.
    """

    name = "static"

    def __init__(self, step: Step) -> None:
        self.step = step

    def seed(self, seed: int) -> None:
        torch.manual_seed(seed)

    def launch(self, sizes: Sequence[Any], before: Callable[[int], object] | None = None) -> None:
        for index, size in enumerate(sizes):
            if before is not None:
                before(index)
            self.step(size)

    def is_done(self) -> bool:
        return True

    def read(self, values: torch.Tensor) -> list[Any]:
        out: list[Any] = values.tolist()
        return out

    def wait(self) -> None:
        pass

    def forget(self) -> None:
        pass


class Graphs:
    """Captures the step once for each size, after a few real passes, and replays it from then on.

    All graphs share one pool of memory: they run one after the other, on a stream of their own. Random numbers come
    from a generator of their own, as graphs on other streams would otherwise move it on meanwhile.

    Args:
        step: The step.
        device: A GPU.
        generators: Further generators that the step draws from.
    """

    def __init__(self, step: Step, device: torch.device, generators: Sequence[torch.Generator] = ()) -> None:
        self.step, self.device, self.generators = step, device, generators
        self.name = "graph"
        self.stream = torch.cuda.Stream(device)
        self.generator = torch.Generator(device)
        self._pool = torch.cuda.graph_pool_handle()
        self._graphs: dict[Any, torch.cuda.CUDAGraph] = {}
        self._passes: Counter[Any] = Counter()
        self._last = torch.cuda.Event()

    def seed(self, seed: int) -> None:
        self.generator.manual_seed(seed)

    def launch(self, sizes: Sequence[Any], before: Callable[[int], object] | None = None) -> None:
        self.stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.stream), _drawing_from(self.generator, self.device):
            for index, size in enumerate(sizes):
                if before is not None:
                    before(index)
                self._one(size)
            self._last.record(self.stream)

    def is_done(self) -> bool:
        return bool(self._last.query())

    def read(self, values: torch.Tensor) -> list[Any]:
        with torch.cuda.stream(self.stream):
            out: list[Any] = values.tolist()
        return out

    def wait(self) -> None:
        self.stream.synchronize()

    def forget(self) -> None:
        self._graphs.clear()
        self._passes.clear()

    def _one(self, size: Any) -> None:
        if size not in self._graphs and self.name == "graph" and self._is_warm(size):
            self._capture(size)
        if size in self._graphs:
            self._graphs[size].replay()
            return
        self._passes[size] += 1
        before = torch.random.get_rng_state()
        self.step(size)
        if not torch.equal(before, torch.random.get_rng_state()):
            self.name = "static"  # the host draws, to decide something: a graph would repeat the draws of its capture
        self.stream.synchronize()  # what a first pass makes for all trials is there before another stream reads it

    def _is_warm(self, size: Any) -> bool:
        return self._passes[size] >= (WARM_LATER if self._graphs else WARM)

    def _capture(self, size: Any) -> None:
        """Captures the step, beside what other streams do; if that fails, once more with the device to itself.

        A step that cannot be captured is called instead, for all sizes.
        """
        for is_alone in (False, True):
            graph = torch.cuda.CUDAGraph()
            for generator in self.generators:
                graph.register_generator_state(generator)
            try:
                with torch.cuda.graph(graph, self._pool, self.stream) if is_alone else _captured(graph, self._pool):
                    self.step(size)
            except RuntimeError as fault:
                self._pool = torch.cuda.graph_pool_handle()  # what a failed capture has left in the other is nobody's
                if not is_alone:
                    continue
                if is_out_of_memory(fault):
                    raise
                logger.warning("a step is no CUDA graph, and is launched kernel by kernel: %s", fault)
                self.name = "static"
                self._graphs.clear()
                return
            self._graphs[size] = graph
            return


@contextmanager
def _captured(graph: torch.cuda.CUDAGraph, pool: Any) -> Iterator[None]:
    """Captures what the present stream is given.

    As `torch.cuda.graph` does, but that waits for all streams first, and gives back all memory that is not in use.
    """
    graph.capture_begin(pool=pool, capture_error_mode="thread_local")
    try:
        yield
    except BaseException:
        with suppress(RuntimeError):  # it tells of the same fault
            graph.capture_end()
        raise
    graph.capture_end()


def launcher_of(step: Step, device: torch.device, generators: Sequence[torch.Generator] = ()) -> Launcher:
    """Returns what launches a step on a device: graphs on a GPU."""
    return Graphs(step, device, generators) if device.type == "cuda" else Eager(step)


@contextmanager
def _drawing_from(generator: torch.Generator, device: torch.device) -> Iterator[None]:
    """Lets all random numbers of a GPU come from a generator: its state itself, which captured graphs hold on to."""
    index = torch.cuda.current_device() if device.index is None else device.index
    default = torch.cuda.default_generators[index]
    before = default.graphsafe_get_state()
    default.graphsafe_set_state(generator)
    try:
        yield
    finally:
        default.graphsafe_set_state(before)
