"""The limits of a container or a job, as the kernel's control groups hold them: version 2, and version 1."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
OWN = Path("/proc/self/cgroup")
UNLIMITED = 2**60  # version 1 writes a number near 2**63 where there is no limit


def cpus() -> float | None:
    """Returns how many cores' time this process may use; None if there is no quota."""
    found = []
    for folder in _folders("cpu"):
        words = _words(folder / "cpu.max") or [
            *_words(folder / "cpu.cfs_quota_us"),
            *_words(folder / "cpu.cfs_period_us"),
        ]
        if len(words) == 2 and words[0] not in ("max", "-1"):
            found.append(int(words[0]) / int(words[1]))
    return min(found, default=None)


def memory() -> tuple[int, int] | None:
    """Returns the least limit in bytes, and how many bytes of it are left; None if there is no limit.

    Cached files count as used in a group, but are dropped before memory runs out: they are counted as left.
    """
    found = []
    for folder in _folders("memory"):
        for limit, used, cached in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            words, now = _words(folder / limit), _words(folder / used)
            if words and now and words[0].isdecimal() and int(words[0]) < UNLIMITED:
                most = int(words[0])
                found.append((most - int(now[0]) + _counts(folder / "memory.stat").get(cached, 0), most))
    if not found:
        return None
    left, most = min(found)
    return most, max(left, 0)


def _folders(controller: str) -> Iterator[Path]:
    """Yields the folders of this process's group and the groups around it.

    A container sees its own group as the root. There the path in /proc does not exist, and the root is looked at.
    """
    try:
        lines = OWN.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        root = ROOT if not controllers else ROOT / controller
        if controllers and controller not in controllers.split(","):
            continue
        own = root / path.lstrip("/")
        yield from (folder for folder in (own, *own.parents) if folder.is_relative_to(root) and folder.is_dir())


def _words(path: Path) -> list[str]:
    """Returns the words of a file; none if there is no such file, or it cannot be read."""
    try:
        return path.read_text().split()
    except OSError:
        return []


def _counts(path: Path) -> dict[str, int]:
    words = _words(path)
    return {name: int(value) for name, value in zip(words[::2], words[1::2], strict=False) if value.isdecimal()}
