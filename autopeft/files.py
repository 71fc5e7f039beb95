"""Folders that are there whole, or not at all; and locks between processes of one node."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


def build_once(folder: Path, build: Callable[[Path], None]) -> None:
    """Makes a folder by `build(temporary folder)`, then renames it: it is there whole, or not at all.

    Of several processes one builds, the others wait.
    """
    if folder.exists():
        return
    with locked(folder.with_name(folder.name + ".lock")):
        if folder.exists():
            return
        for half_made in folder.parent.glob(f".{folder.name}.*"):  # by a process that was killed: the lock is ours
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
    """Has a folder's files on the disk, not only in memory: after a power cut a renamed folder would hold empty ones."""
    for path in (*folder.rglob("*"), folder):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def trial_folder(folder: str | Path, number: int) -> Path:
    """Where a trial's trained tensors lie in the folder of its run, where they were kept."""
    return Path(folder) / "trials" / f"{number:05d}"


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds an exclusive lock on a file between processes of one node."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
