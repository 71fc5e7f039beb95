"""Folders that exist whole or not at all, and locks between processes of one node."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

WORST = "worst.json"  # in a trial's folder: the rows that it gets most wrong


def build_once(folder: Path, build: Callable[[Path], None]) -> None:
    """Calls `build(temporary folder)`, then renames that folder: `folder` exists whole or not at all.

    If several processes call this at once, one builds and the others wait.
    """
    if folder.exists():
        return
    with locked(folder.with_name(folder.name + ".lock")):
        if folder.exists():
            return
        for half_made in folder.parent.glob(f".{folder.name}.*"):  # of a killed process: the lock is ours
            shutil.rmtree(half_made, ignore_errors=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        try:
            build(temporary)
            to_disk(temporary)
            os.replace(temporary, folder)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


def to_disk(folder: Path) -> None:
    """Flushes a folder's files to the disk. Otherwise a renamed folder could hold empty files after a power cut."""
    for path in (*folder.rglob("*"), folder):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def trial_folder(folder: str | Path, number: int) -> Path:
    """Returns the folder of a trial's trained tensors within its run's folder. It exists only if they were kept."""
    return Path(folder) / "trials" / f"{number:05d}"


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds an exclusive lock on a file between processes of one node."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
