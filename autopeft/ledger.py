"""The ledger: an append-only file of JSON lines, the only truth of a run. README.md documents each event.

Every event has `event`, and `seconds` of search time (it stops while the search does). An appended event is on the
disk (fsync) before `append` returns. Exactly one torn last line, from a machine that died while writing, is
tolerated: it is dropped when the ledger is opened again for writing.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import gc
import json
import math
import os
import socket
import sys
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from io import FileIO
from pathlib import Path
from types import NoneType
from typing import Any

from pydantic_core import from_json

from autopeft.errors import EnvironmentFault, UsageError
from autopeft.trial import LARGEST

SCHEMA = 2  # 1: `by_class` in place of `detail`, and `dataset.label_rows`
NAME = "ledger.jsonl"
PIECE = 1 << 16  # bytes that are parsed together: what fits the processor's cache is parsed faster
DRIVER = "driver.json"  # beside it: who has it open
# Key → the types of its values, in whichever event. A ledger may be somebody else's: what reads it can rely on these.
TYPES: Mapping[str, tuple[type, ...]] = {
    "event": (str,), "seconds": (int, float), "schema": (int,), "number": (int, NoneType), "params": (dict,),
    "seed": (int,), "status": (str,), "metrics": (dict,), "error": (str,), "step": (int,), "reason": (str,),
    "known": (dict,), "detail": (dict,), "fault": (str,), "ran": (str,), "name": (str,), "seeds": (dict,),
    "race": (int,), "config": (dict,), "objectives": (list,), "dataset": (dict,), "model": (dict,), "signal": (str,),
    "baselines": (dict,), "baseline_names": (dict,), "baseline_details": (dict,), "chosen": (dict,),
    "provenance": (dict, NoneType),
}  # fmt: skip
MEASURED = ("report", "tell", "confirm")  # events whose `metrics` are numbers


class Ledger:
    """Writes a ledger file. Only one process can open it; a second one gets an error that names the first."""

    def __init__(self, path: Path, *, is_search: bool = True) -> None:
        """Opens the file, or makes it. Locks it, and drops a torn last line.

        Args:
            path: The file.
            is_search: Whether search time goes on; else the clock stays at the time of the last event.

        Raises:
            UsageError: Another process has the file open, or a line before the last one is damaged.
            EnvironmentFault: The file cannot be opened or locked here.
        """
        self.path = path
        try:
            self._file = open(path, "a+b", buffering=0)  # noqa: SIM115  (open for the ledger's life)
        except OSError as fault:
            raise EnvironmentFault(f"cannot open {path}: {fault.strerror}") from fault
        try:
            _lock(self._file, path)
            _sign(path, is_search)
            self.events, length = _parse(path)  # events at opening; appended ones are not added
            if torn := os.fstat(self._file.fileno()).st_size - length:
                print(
                    f"{path} ends with {torn:,} bytes of an event that was not written whole: it never was, and is dropped",
                    file=sys.stderr,
                )
            self._file.truncate(length)
        except BaseException:
            self._file.close()  # this also removes the lock
            raise
        self._offset = self.events[-1]["seconds"] if self.events else 0.0
        self._start = time.monotonic() if is_search else None

    @property
    def seconds(self) -> float:
        """Search time so far, over all sessions."""
        return self._offset + (0.0 if self._start is None else time.monotonic() - self._start)

    def append(self, event: Mapping[str, Any]) -> dict[str, Any]:
        """Writes one event, with its time. It is on the disk before this returns.

        Returns:
            The event as it would be read back: tuples are lists. So live and replayed events are the same.

        Raises:
            EnvironmentFault: The file is gone, or the event cannot be written (disk full); earlier ones stay readable.
        """
        stamped = {**event, "seconds": round(self.seconds, 3)}
        line = (json.dumps(stamped, allow_nan=False) + "\n").encode()
        start = self._size()
        try:
            if self._file.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(self._file.fileno())
        except OSError as fault:
            try:
                self._file.truncate(start)
            except OSError:  # leaves a torn last line, which is tolerated if nothing follows
                self._file.close()
            raise EnvironmentFault(
                f"cannot write {self.path}: {fault.strerror}. Nothing told so far is lost: make room, then resume"
            ) from fault
        written: dict[str, Any] = _loads(line)
        return written

    def _size(self) -> int:
        """Returns the file's size. Raises if the file was deleted, as writing to a deleted file would still succeed."""
        found = os.fstat(self._file.fileno())
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(found, os.stat(self.path)):
                return found.st_size
        raise EnvironmentFault(f"{self.path} was deleted or moved while this wrote to it: the run cannot go on")

    def close(self) -> None:
        """Closes and unlocks."""
        self._file.close()


def _lock(file: FileIO, path: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as fault:
        raise UsageError(
            f"{path} is being written by another process{_signed(path)}: wait for it, or end it"
        ) from fault
    except OSError as fault:
        raise EnvironmentFault(
            f"cannot lock {path}: {fault.strerror}. Put the run on a file system that has locks"
        ) from fault


def _sign(path: Path, is_search: bool) -> None:
    """Writes who has the ledger open, for messages. The lock alone decides: a signature may be of a dead process."""
    signature = {"host": socket.gethostname(), "process": os.getpid(), "is_search": is_search}
    with contextlib.suppress(OSError):  # a full disk is said by the first event
        path.with_name(DRIVER).write_text(json.dumps(signature))


def _signature(path: Path) -> dict[str, Any]:
    """Reads who had the ledger open last; empty if nobody says so."""
    with contextlib.suppress(OSError, ValueError):
        found = json.loads(path.with_name(DRIVER).read_text())
        if isinstance(found, dict):
            return found
    return {}


def _signed(path: Path) -> str:
    found = _signature(path)
    return f" (process {found.get('process')} on {found.get('host')})" if found else ""


def writer(path: Path) -> dict[str, Any] | None:
    """Returns `host`, `process` and `is_search` of the process that has a ledger open for writing; None if none has.

    Only the lock decides, which goes with its process: what a dead one left behind is no writer.
    """
    try:
        with open(path, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _signature(path)
    except OSError as fault:
        raise EnvironmentFault(f"cannot look at {path}: {fault.strerror}") from fault
    return None


def follow(path: Path, seconds: float = 0.5) -> Iterator[list[dict[str, Any]]]:
    """Yields the events so far, then new ones as they come, in lists; ends when nobody writes any more.

    Args:
        seconds: Time between two looks.
    """
    done = 0
    while True:
        is_written = writer(path) is not None  # asked before reading, so that its last events are seen
        events, length = _parse(path, done)
        if events or not done:
            yield events
        done += length
        if not is_written:
            return
        time.sleep(seconds)


def read(path: Path) -> list[dict[str, Any]]:
    """Reads all events so far, also while another process writes. A torn last line is left out.

    Raises:
        UsageError: There is no ledger, a line before the last one is damaged, or a newer autopeft wrote it.
    """
    with without_collection():
        return list(stream(path))


def stream(path: Path) -> Iterator[dict[str, Any]]:
    """Yields what `read` returns, so that not all events are in memory at once."""
    if not path.is_file():
        raise UsageError(f"{path.parent} is no run: it has no {path.name}")
    yield from _events(path, _pieces(path))


def _loads(line: bytes) -> Any:
    """Parses one line. Equal keys share one string: copies of keys took a fifth of a history's memory."""
    return json.loads(line, object_pairs_hook=lambda pairs: {sys.intern(key): value for key, value in pairs})


@contextlib.contextmanager
def without_collection() -> Iterator[None]:
    """Pauses the search for garbage cycles, which takes a third of reading a ledger: events hold no cycles."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


class Check:
    """Checks that events have the values that readers rely on. Of events with equal keys and types, once the types."""

    def __init__(self) -> None:
        # Event, keys and types of those that passed → whether it has a number, params and metrics to look at.
        self._known: dict[tuple[Any, ...], tuple[bool, bool, bool]] = {}

    def __call__(self, event: Any) -> dict[str, Any]:
        """Returns the event.

        Raises:
            ValueError: A value has another type than readers rely on, or this is no event.
        """
        if not isinstance(event, dict) or "event" not in event or "seconds" not in event:
            raise ValueError("no event")
        kind = event["event"]
        build = (kind if isinstance(kind, str) else None, *event, *map(type, event.values()))
        parts = self._known.get(build)
        if parts is None:
            _check_types(event)
            parts = isinstance(event.get("number"), int), "params" in event, kind in MEASURED and "metrics" in event
            self._known[build] = parts
        has_number, has_params, is_measured = parts
        if has_number and event["number"] < 0:
            raise ValueError(f"number is 0 or more, got {event['number']}")
        if has_params and not isinstance(event["params"].get("method", ""), str):
            raise ValueError(f"a method is a name, got {event['params']['method']!r:.60}")
        if is_measured and not _are_finite(event["metrics"].values()):
            wrong = {name: value for name, value in event["metrics"].items() if not _are_finite([value])}
            raise ValueError(f"metrics are finite numbers up to {LARGEST:g}, got {wrong!r:.60}")
        return event


def _check_types(event: Mapping[str, Any]) -> None:
    for key, value in event.items():
        if key in TYPES and not isinstance(value, TYPES[key]):
            raise ValueError(f"{key} is {' or '.join(kind.__name__ for kind in TYPES[key])}, got {value!r:.60}")


def _are_finite(values: Collection[Any]) -> bool:
    try:
        return all(map(math.isfinite, values)) and max(map(abs, values), default=0.0) <= LARGEST
    except (TypeError, OverflowError):  # no number, or a whole one that is larger than any real one
        return False


def _parse(path: Path, skip: int = 0) -> tuple[list[dict[str, Any]], int]:
    """Returns the events behind the first `skip` bytes, and the number of bytes that hold them."""
    pieces = list(_pieces(path, skip))
    with without_collection():
        return list(_events(path, pieces)), sum(map(len, pieces))


def _pieces(path: Path, skip: int = 0) -> Iterator[bytes]:
    """Yields whole lines, some at a time. Text after the last newline is torn: its writer died before `append` returned."""
    with open(path, "rb") as file:
        file.seek(skip)
        torn = b""
        while data := file.read(PIECE):
            lines, newline, torn = (torn + data).rpartition(b"\n")
            if newline:
                yield lines + newline


def _events(path: Path, pieces: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    """Parses pieces of whole lines."""
    check, number = Check(), 0
    for lines in pieces:
        for event in _parse_all(lines, check) or _parse_each(lines, check, path, number):
            if not number and event["event"] == "search" and event["schema"] > SCHEMA:
                raise UsageError(
                    f"{path} has schema {event['schema']}, this autopeft reads up to {SCHEMA}: upgrade autopeft"
                )
            number += 1
            yield event


def _parse_all(lines: bytes, check: Check) -> list[dict[str, Any]] | None:
    """Parses whole lines as one list; None if a line is damaged.

    pydantic's reader takes half the time of `json`'s, and shares equal keys. What it refuses `json` has the last word on.
    """
    try:
        found = from_json(b"[" + lines[:-1].replace(b"\n", b",") + b"]", cache_strings="keys")
        return list(map(check, found)) if len(found) == lines.count(b"\n") else None
    except ValueError:
        return None


def _parse_each(lines: bytes, check: Check, path: Path, before: int) -> Iterator[dict[str, Any]]:
    """Parses whole lines one by one. There are `before` lines before them.

    Raises:
        UsageError: A line is damaged; says which.
    """
    for number, line in enumerate(lines.split(b"\n")[:-1], start=before + 1):
        try:
            yield check(_loads(line))
        except (ValueError, RecursionError) as fault:
            raise UsageError(f"{path}: line {number} is damaged ({fault}); restore it from a copy") from fault
