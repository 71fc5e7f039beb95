"""Faults of a trial: which exceptions the trial itself causes, memory that ran out, a device that does not exist."""

from __future__ import annotations

import errno
import os
import resource
import sys
import traceback
from pathlib import Path

import torch

from autopeft.errors import EnvironmentFault, Refused, UsageError

PACKAGE = Path(__file__).resolve().parent.parent
# Faults of the machine, not of a trial.
MACHINE_ERRORS = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EMFILE, errno.EIO}
)


def is_trials_own(fault: Exception) -> bool:
    """Whether a trial itself caused an exception, not the user or the machine."""
    if isinstance(fault, OSError):
        return fault.errno not in MACHINE_ERRORS
    is_full = os.strerror(errno.ENOSPC) in str(fault)  # safetensors raises its own error type for a full disk
    return not isinstance(fault, (UsageError, EnvironmentFault)) and not is_full


def explain(fault: Exception) -> str:
    """Describes an exception in one line: its type, its text, and the place in autopeft."""
    text = (str(fault).strip().splitlines() or [""])[0]
    told = f"{type(fault).__name__}: {text}" if text else type(fault).__name__
    if isinstance(fault, Refused) or is_out_of_memory(fault):
        return told  # these messages are complete
    frames = [frame for frame in traceback.extract_tb(fault.__traceback__) if PACKAGE in Path(frame.filename).parents]
    if not frames:
        return told
    return f"{told} (autopeft/{Path(frames[-1].filename).relative_to(PACKAGE)}:{frames[-1].lineno})"


def require_device(device: str) -> None:
    """Raises EnvironmentFault if torch has no such device here."""
    if torch.device(device).type == "cuda" and not torch.cuda.is_available():
        raise EnvironmentFault(f"training.device is {device}, but torch {torch.__version__} sees no GPU here")


def is_out_of_memory(fault: BaseException) -> bool:
    """Whether an exception says that memory ran out, on a GPU or on the CPU."""
    if isinstance(fault, (MemoryError, torch.cuda.OutOfMemoryError)):
        return True
    text = str(fault).lower()
    return isinstance(fault, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text)


def peak_memory_bytes(device: torch.device) -> int:
    """Returns the peak of the trial on a GPU. On a CPU: the peak of the worker process so far, a rough number."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
