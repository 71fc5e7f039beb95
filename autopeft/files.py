"""Folders that exist whole or not at all, and locks between processes of one node."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from autopeft.errors import UsageError

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


def remove_empty(folder: Path) -> None:
    """Removes a run's folder that holds no file but locks of its caches. Of any other it leaves all files."""
    files = [path for path in folder.rglob("*") if not path.is_dir()]
    if all(path.suffix == ".lock" and path.is_relative_to(folder / "cache") for path in files):
        for path in files:
            path.unlink(missing_ok=True)
    for path in (*sorted(folder.rglob("*"), reverse=True), folder):
        with suppress(OSError):  # a file, a folder with files, or a folder that is gone
            path.rmdir()


def trial_folder(folder: str | Path, number: int) -> Path:
    """Returns the folder of a trial's trained tensors within its run's folder. It exists only if they were kept."""
    return Path(folder) / "trials" / f"{number:05d}"


def refuse_links(folder: Path) -> None:
    """Raises UsageError if something in a folder is no plain file or folder, such as a link to a place outside.

    What reads, writes or removes a file of the folder would do so elsewhere. The folder may be somebody else's.
    """
    waiting = [str(folder)]
    while waiting:
        with suppress(FileNotFoundError, NotADirectoryError), os.scandir(waiting.pop()) as entries:  # a search goes on
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
                elif entry.is_symlink() and not Path(os.path.realpath(entry.path)).is_relative_to(folder):
                    raise UsageError(f"{entry.path} leads out of the run's folder: put there what it leads to")
                elif not entry.is_symlink() and not entry.is_file(follow_symlinks=False):
                    raise UsageError(f"{entry.path} is no plain file: remove it")


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds an exclusive lock on a file between processes of one node."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
