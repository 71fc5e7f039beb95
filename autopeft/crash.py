"""What ends a driver that cannot say so: a segmentation fault in a trial that it trains itself, or another fatal signal.

While a search runs, such a signal leaves a note in the run's folder. A resume reads it: a trial that crashes its driver
each time would otherwise do so again with every resume.
"""

from __future__ import annotations

import contextlib
import faulthandler
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from autopeft.history import History
from autopeft.redact import shareable
from autopeft.trial import MACHINE, Status

NAME = "crash.txt"


@contextlib.contextmanager
def noted(folder: Path) -> Iterator[None]:
    """While this is entered, a fatal signal writes to a file of the folder what it is, and where Python was then."""
    was_enabled = faulthandler.is_enabled()
    with open(folder / NAME, "w") as file:
        faulthandler.enable(file, all_threads=False)
        try:
            yield
        finally:
            faulthandler.disable()
            if was_enabled:
                faulthandler.enable(sys.__stderr__ or 2)
            (folder / NAME).unlink(missing_ok=True)


def why(folder: Path) -> str:
    """Says what crashed the last driver of a run; empty if nothing did, or if it could not write a note."""
    try:
        text = (folder / NAME).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    signal = re.search(r"^Fatal Python error: (.+)$", text, re.MULTILINE)
    if signal is None:
        return ""
    place = re.search(r'^  File "(.+)", line (\d+) in (.+)$', text, re.MULTILINE)
    where = f", in {place[3]} ({Path(place[1]).name}, line {place[2]})" if place else ""
    return shareable(f"{signal[1]}{where}")


def lost(folder: Path, events: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Returns the events that tell which trial a crash of the last driver cost: it may run again, once.

    If several trials ran in that driver, nobody knows whose fault it was. They all run again, and a note says how to find
    out.
    """
    reason = why(folder)
    running = [record for record in History(events).records if record.is_running]
    if not reason or not running:
        return []
    if len(running) > 1:
        names = ", ".join(str(record.number) for record in running)
        print(
            f"note: the last driver crashed ({reason}) while the trials {names} ran. They run again. If it happens again, "
            "`--set executor=serial` shows which one it is, and goes on without it",
            file=sys.stderr,
        )
        return []
    return [
        {
            "event": "tell", "number": record.number, "status": str(Status.FAILED), "metrics": dict(record.known),
            "error": f"its driver crashed: {reason}", "fault": MACHINE,
        }
        for record in running
    ]  # fmt: skip
