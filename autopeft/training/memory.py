"""What trials side by side need of a GPU's memory, as measured, and whether it holds one more."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch

MARGIN = 1.25  # free memory over the measured need, as the next trial may need more, and scoring more than a step


class Memory(Protocol):
    """Reads the state of a device's memory, in bytes."""

    def allocated(self) -> int:
        """Returns what tensors take now."""

    def peak(self) -> int:
        """Returns the most that tensors took since `reset`."""

    def reset(self) -> None:
        """Begins a new peak."""

    def holds(self, more: int) -> bool:
        """Whether there is room for so many bytes more."""

    def release(self) -> None:
        """Gives back what was taken from the device and is not in use."""


class CudaMemory:
    """Reads a GPU's memory as torch's allocator counts it.

    Args:
        device: A GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def allocated(self) -> int:
        return torch.cuda.memory_allocated(self.device)

    def peak(self) -> int:
        return torch.cuda.max_memory_allocated(self.device)

    def reset(self) -> None:
        torch.cuda.reset_peak_memory_stats(self.device)

    def holds(self, more: int) -> bool:
        """Whether the driver has so many bytes, with what the allocator holds unused; not what it holds for graphs."""
        free: int = torch.cuda.mem_get_info(self.device)[0]
        if free > more:
            return True  # to look at all segments takes milliseconds
        unused = sum(
            int(segment["total_size"] - segment["allocated_size"])
            for segment in torch.cuda.memory_snapshot()
            if segment["device"] == (self.device.index or 0) and tuple(segment["segment_pool_id"]) == (0, 0)
        )
        return free + unused > more

    def release(self) -> None:
        torch.cuda.empty_cache()


@dataclass
class Need:
    """What the trials of one runner were seen to take.

    Attributes:
        held: Bytes that stayed after its turns.
        most: Most bytes during a turn, with what was held before.
    """

    held: int = 0
    most: int = 0


class Needs:
    """Measures the runners of a pack, turn by turn. One runs at a time on the host, so all that a turn takes is its own.

    Args:
        memory: Reads the device's memory.

    Attributes:
        largest: Most bytes of a trial so far; 0 before the first was measured.
    """

    def __init__(self, memory: Memory) -> None:
        self.memory, self.largest = memory, 0
        self._of: dict[int, Need] = {}

    @contextmanager
    def measured(self, runner: int) -> Iterator[Need]:
        """Measures a turn of a runner."""
        need = self._of.setdefault(runner, Need())
        self.memory.reset()
        before = self.memory.allocated()
        try:
            yield need
        finally:
            need.most = max(need.most, need.held + self.memory.peak() - before)
            need.held += self.memory.allocated() - before

    def note(self, runner: int, n_trials: int) -> None:
        """Notes that a runner of so many trials has taken a whole step: its need is that of a trial."""
        need = self._of.get(runner)
        if need is not None and n_trials:
            self.largest = max(self.largest, -(-need.most // n_trials))

    def forget(self, runner: int) -> None:
        """Forgets a runner that has ended."""
        self._of.pop(runner, None)

    def has_room(self, n_unmeasured: int) -> bool:
        """Whether memory holds one more trial, beside so many that run and have not taken a whole step yet."""
        if not self.largest:
            return False  # the first one is measured alone
        return self.memory.holds(round(self.largest * (n_unmeasured + MARGIN)))
