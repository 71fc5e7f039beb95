"""Checks of the folders that a search writes to: that they can be written and locked, and have room."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from autopeft.finding import Finding

LITTLE_BYTES, NOTHING_BYTES = 5 * 2**30, 2**29  # of free disk: a warning, and too little for a search
LITTLE_FILES = 1000  # inodes


def findings(runs: Path) -> Iterator[Finding]:
    """Looks at the folder of runs, the cache and the temporary folder; at each disk once.

    Args:
        runs: Folder of the run folders; it need not exist.
    """
    from autopeft.tasks.digits import cache_folder

    places = {"runs": runs, "cache": cache_folder(), "temporary folder": temporary()}
    disks: set[int] = set()
    for name, place in places.items():
        folder = nearest(place)
        yield writable(name, place, folder)
        with contextlib.suppress(OSError):
            device = os.stat(folder).st_dev
            if device not in disks:
                disks.add(device)
                yield disk(folder)


def temporary() -> Path:
    """Returns the folder that the environment names, else the system's. Python would pass one that is not writable."""
    return Path(os.environ.get("TMPDIR") or tempfile.gettempdir())


def nearest(folder: Path) -> Path:
    """Returns a folder, or the nearest folder above it that exists."""
    folder = folder.expanduser().absolute()
    return next((each for each in (folder, *folder.parents) if each.exists()), Path("/"))


def writable(name: str, place: Path, folder: Path) -> Finding:
    """Writes and locks a file in a folder, and removes it."""
    will = "" if folder == place.expanduser().absolute() else f", which is made in {folder}"
    other = {"runs": "`runs: FOLDER` in the config", "cache": "XDG_CACHE_HOME", "temporary folder": "TMPDIR"}[name]
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"x" * 4096)
            file.flush()
            os.fsync(file.fileno())
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as fault:
        is_lock = fault.errno in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)
        what = "has no locks" if is_lock else f"cannot be written: {fault.strerror}"
        return Finding(name, "fail", f"{place}{will} {what}", f"choose another one by {other}")
    return Finding(name, "ok", f"{place} is writable{will}")


def disk(folder: Path) -> Finding:
    """Says how much room a disk has, in bytes and in files."""
    usage, files = shutil.disk_usage(folder), os.statvfs(folder)
    text = f"{usage.free / 2**30:.1f} of {usage.total / 2**30:.1f} GiB free at {folder}"
    if files.f_files > 0 and files.f_favail < LITTLE_FILES:
        return Finding("disk", "fail", f"{text}, and room for {files.f_favail} files", "remove some files there")
    if usage.free < NOTHING_BYTES:
        return Finding("disk", "fail", text, "make room: encoded data, trained tensors and reports go there")
    if usage.free < LITTLE_BYTES:
        todo = "make room; `keep: none` keeps no tensors, training.prefix_cache_gib bounds the cached activations"
        return Finding("disk", "warn", text, todo)
    return Finding("disk", "ok", text)
