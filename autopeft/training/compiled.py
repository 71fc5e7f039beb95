"""A model's blocks compiled by torch, where the steps ahead win back what that costs.

Norms, activations and rotary positions become few kernels (Ansel et al., 2024, "PyTorch 2"). Torch keeps what it compiled
for the class of a block, by shapes: it serves all blocks that are alike, and all trials of the same structure. Random
numbers stay those of plain torch. Passes without gradient are not compiled.

Whether it pays is measured: the seconds of a step before and after, and those that a size of the batch costs once. For what
was not measured yet, `SECONDS` and `GAIN` stand.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from autopeft.errors import EnvironmentFault
from autopeft.training.faults import is_out_of_memory
from autopeft.training.launch import WARM, Launcher
from autopeft.training.network import Network
from autopeft.trial import COMPILED

logger = logging.getLogger(__name__)

# Before any was measured here; so it was for a language model of 135 million parameters on an H100.
SECONDS = 12.0  # to compile for one more size of a batch
GAIN = 0.45  # share of a step that is saved
FEWEST = 10  # steps that show how long one takes
COMPILER = ("torch._dynamo", "torch._inductor")  # modules whose faults are the compiler's own
# Most that a tensor's compiled gradient may differ from the plain one, as a share of it; nobody looks at tensors whose
# gradient is a smaller share of the largest one: it may be rounding alone.
SAME, ROUNDING = 0.2, 1e-3
MOST_FORMS = 4096  # of one class of blocks: sizes, ranks, precisions; torch's own bound is 8


class Compiler:
    """Compiles blocks for the trials of a worker, and knows what that costs and wins.

    Args:
        mode: "auto": where it pays, on a GPU; "on": from the first step on, a stack from the second; "off".
        device: The worker's device.

    Attributes:
        spent: Seconds of compiling so far.
        is_paused: Whether blocks that are compiled run as they were meanwhile.
        seconds: What a size costs, the mean of those that were compiled.
        gain: Share of a step that was saved, the mean over programs.
    """

    def __init__(self, mode: str, device: torch.device) -> None:
        self.mode = mode if mode != "auto" or device.type == "cuda" else "off"
        self.is_paused = False
        self.spent = 0.0
        self._costs: list[float] = []
        self._gains: list[float] = []
        self._compiled: dict[type[nn.Module], Callable[..., Any]] = {}

    @property
    def seconds(self) -> float:
        return sum(self._costs) / len(self._costs) if self._costs else SECONDS

    @property
    def gain(self) -> float:
        return sum(self._gains) / len(self._gains) if self._gains else GAIN

    def pays(self, steps: int, seconds: float | None, sizes: int) -> bool:
        """Whether so many steps, each of so many seconds, of so many sizes, win back what compiling costs.

        Args:
            seconds: None if that was not measured yet.
        """
        if self.mode != "auto":
            return self.mode == "on"
        return seconds is not None and steps * seconds * self.gain > sizes * self.seconds

    def note_cost(self, seconds: float, sizes: int) -> None:
        """Notes what compiling for so many more sizes took."""
        self._costs += [seconds / sizes] * sizes

    def note_gain(self, before: float, after: float) -> None:
        """Notes the seconds of a step before and after."""
        self._gains.append(1.0 - after / before)

    def compile(self, network: Network) -> None:
        """Compiles the blocks of a network."""
        torch._dynamo.config.recompile_limit = MOST_FORMS
        torch._dynamo.config.accumulated_recompile_limit = MOST_FORMS
        # The backward pass is compiled with the forward one: `_call` sees its faults, and its time
        torch._functorch.config.force_non_lazy_backward_lowering = True
        for name in network.blocks:
            block = network.model.get_submodule(name)
            if "forward" not in vars(block):  # it runs as its class says
                block.forward = partial(self._call, block, block.forward)

    def _call(self, block: nn.Module, plain: Callable[..., Any], *args: Any, **options: Any) -> Any:
        if self.mode == "off" or self.is_paused or not torch.is_grad_enabled():
            return plain(*args, **options)
        kind = type(block)
        if kind not in self._compiled:
            of_torch: dict[str, Any] = {"fallback_random": True}
            self._compiled[kind] = torch.compile(kind.forward, dynamic=False, options=of_torch)
        start, traced = time.monotonic(), _traced()
        try:
            out = self._compiled[kind](block, *args, **options)
            if _traced() != traced:
                self.spent += time.monotonic() - start
            return out
        except Exception as fault:
            if is_out_of_memory(fault):
                raise
            text = (str(fault).strip().splitlines() or [type(fault).__name__])[0]
            if self.mode == "auto":  # a fault that is not the compiler's, the plain block has as well
                logger.warning("blocks are not compiled, as torch cannot: %s", text)
                self.mode = "off"
                return plain(*args, **options)
            if not type(fault).__module__.startswith(COMPILER):
                raise
            raise EnvironmentFault(
                f"blocks of the model cannot be compiled here: {text}. Leave training.compile out, or turn it off"
            ) from fault

    def check(self, gradients: Callable[[], Sequence[torch.Tensor | None]]) -> None:
        """Compares the gradients of compiled blocks with those of plain ones, as torch has had versions that lose some.

        If they differ, blocks are left as they are.

        Args:
            gradients: Computes those of one pass, the same each time.

        Raises:
            EnvironmentFault: They differ, and the config asks for compiled blocks.
        """
        if self.mode == "off":
            return
        self.is_paused = True
        try:
            expected = gradients()
        finally:
            self.is_paused = False
        difference = largest_difference(gradients(), expected)
        if difference <= SAME:
            return
        what = f"blocks compiled by torch {torch.__version__} have other gradients than plain ones"
        if self.mode == "on":
            raise EnvironmentFault(
                f"{what}: a tensor's differ by {difference:.0%}. Leave training.compile out, or turn it off"
            )
        logger.warning("blocks are not compiled: %s, by %.0f %% of a tensor's", what, 100 * difference)
        self.mode = "off"


def largest_difference(found: Sequence[torch.Tensor | None], expected: Sequence[torch.Tensor | None]) -> float:
    """Returns the largest difference of a tensor's gradients, as a share of the expected ones. None is no gradient."""
    zero = torch.zeros(1)
    norms = torch.tensor([float((zero if e is None else e).norm()) for e in expected])
    apart = torch.tensor([
        float(((zero if f is None else f.cpu()) - (zero if e is None else e.cpu())).norm())
        for f, e in zip(found, expected, strict=True)
    ])  # fmt: skip
    counts = norms > ROUNDING * norms.max()
    return float((apart / norms)[counts].max()) if bool(counts.any()) else 0.0


def _traced() -> int:
    """Returns how many pieces of code torch has compiled in this process."""
    return int(torch._dynamo.utils.counters["frames"]["total"])


class Compiling:
    """Decides for the steps of one program when its blocks are compiled.

    Args:
        compiler: The worker's.
        network: The network of the program.
        launcher: What takes its steps.
        gradients: Computes the gradients of the next pass, and changes nothing.

    Attributes:
        is_on: Whether the blocks are compiled.
    """

    def __init__(
        self,
        compiler: Compiler,
        network: Network,
        launcher: Launcher,
        gradients: Callable[[], Sequence[torch.Tensor | None]],
    ) -> None:
        self.compiler, self.network, self.launcher, self.gradients = compiler, network, launcher, gradients
        self.is_on = self._is_checked = False
        self._taken = 0  # steps of all trials
        self._known: Counter[Any] = Counter()  # size → steps, since the blocks were compiled or since the beginning
        self._warm = (0, 0.0)  # steps whose sizes were no news, and their seconds
        self._before: float | None = None  # seconds of a step before the blocks were compiled
        self._elapsed = self._spent = 0.0

    @property
    def _pace(self) -> float | None:
        """Seconds of a step; None before enough were measured."""
        steps, seconds = self._warm
        return seconds / steps if steps >= FEWEST else None

    def named(self, way: str) -> str:
        """Returns the ledger's word for trials that ran this way, with the blocks compiled or not."""
        return f"{way}{COMPILED}" if self.is_on and self.compiler.mode != "off" else way

    def decide(self, left: int, sizes: Iterable[Any]) -> None:
        """Compiles the blocks before further steps, if that pays.

        As many steps are expected as this trial has left, and after it as many as the program has taken.

        Args:
            left: Steps that the trial has left.
            sizes: Their sizes.
        """
        if self.is_on or self.network.is_checkpointed or not self.network.blocks:
            return
        pace = self._pace
        if not self.compiler.pays(left + self._taken, pace, len({*sizes, *self._known})):
            return
        self.launcher.wait()
        self.compiler.compile(self.network)
        self.launcher.forget()
        self.is_on, self._before, self._warm = True, pace, (0, 0.0)
        self._known.clear()

    def compiles(self, sizes: Iterable[Any]) -> bool:
        """Whether steps of these sizes have blocks to compile."""
        return self.is_on and not {*sizes} <= {*self._known}

    def check(self) -> None:
        """Compares compiled gradients with plain ones, once. Compiles, which `timed` measures."""
        if self.is_on and not self._is_checked:
            self._is_checked = True
            self.compiler.check(self.gradients)

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Measures a part of what the next steps take: their launch, or the wait for them."""
        start, spent = time.monotonic(), self.compiler.spent
        yield
        spent = self.compiler.spent - spent
        self._spent += spent
        self._elapsed += time.monotonic() - start - spent

    def note(self, sizes: Sequence[Any]) -> float:
        """Notes that these steps were taken, in the time that was measured. Returns the seconds of compiling beside it."""
        seconds, spent = self._elapsed, self._spent
        self._elapsed = self._spent = 0.0
        n_new = len({*sizes} - {*self._known}) if self.is_on else 0
        is_warm = all(self._known[size] > WARM for size in sizes)
        self._known.update(sizes)
        self._taken += len(sizes)
        if is_warm:
            had_none = self._pace is None
            self._warm = (self._warm[0] + len(sizes), self._warm[1] + seconds)
            if self._before is not None and had_none and self._pace is not None:
                self.compiler.note_gain(self._before, self._pace)
        if n_new:
            self.compiler.note_cost(spent, n_new)
        return spent
