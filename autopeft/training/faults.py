"""What goes wrong in a trial: which exceptions are its own, memory that ran out, a device that is not there."""

from __future__ import annotations

import resource

import torch

from autopeft.errors import EnvironmentFault, Refused

FAULTS = (Refused, ValueError, RuntimeError, ArithmeticError, KeyError, TypeError, MemoryError)  # a trial's own


def require_device(device: str) -> None:
    """Raises EnvironmentFault where torch has no such device here."""
    if torch.device(device).type == "cuda" and not torch.cuda.is_available():
        raise EnvironmentFault(f"training.device is {device}, but torch {torch.__version__} sees no GPU here")


def is_out_of_memory(fault: BaseException) -> bool:
    """Whether an exception says that memory ran out, on a GPU or on the CPU."""
    if isinstance(fault, (MemoryError, torch.cuda.OutOfMemoryError)):
        return True
    text = str(fault).lower()
    return isinstance(fault, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text)


def peak_memory_bytes(device: torch.device) -> int:
    """Of the trial on a GPU; on a CPU of the whole worker so far, which is weather."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
