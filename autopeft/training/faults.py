"""What goes wrong in a trial: which exceptions are its own, memory that ran out, a device that is not there."""

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
# What the machine does wrong, not a trial.
MACHINE_ERRORS = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EMFILE, errno.EIO}
)


def is_trials_own(fault: Exception) -> bool:
    """Whether an exception is how one trial ended, rather than what the user or the machine does wrong."""
    if isinstance(fault, OSError):
        return fault.errno not in MACHINE_ERRORS
    is_full = os.strerror(errno.ENOSPC) in str(fault)  # safetensors has an error of its own for a full disk
    return not isinstance(fault, (UsageError, EnvironmentFault)) and not is_full


def explain(fault: Exception) -> str:
    """An exception in one line: its type, its text, and where in autopeft it came from."""
    text = (str(fault).strip().splitlines() or [""])[0]
    told = f"{type(fault).__name__}: {text}" if text else type(fault).__name__
    if isinstance(fault, Refused) or is_out_of_memory(fault):
        return told  # those say all there is to say
    frames = [frame for frame in traceback.extract_tb(fault.__traceback__) if PACKAGE in Path(frame.filename).parents]
    if not frames:
        return told
    return f"{told} (autopeft/{Path(frames[-1].filename).relative_to(PACKAGE)}:{frames[-1].lineno})"


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
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
