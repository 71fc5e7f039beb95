"""What every tracker promises: to read and never to disturb."""

from __future__ import annotations

import contextlib
import copy
import io
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from autopeft.history import History
from autopeft.trackers import Fillable, Opened, Tracker


def check_tracker_only_reads(make: Callable[[], Tracker], events: Sequence[Mapping[str, Any]]) -> None:
    """Checks that a tracker changes neither the history nor an event, and that the search need not wait for it.

    Args:
        make: Builds a new tracker of one run's folder, as `plugin(folder, **options)`.
        events: The events of a search, the header first.
    """
    history, given, tracker = History(events[:1]), copy.deepcopy(list(events)), make()
    tracker.start(history)
    seconds = 0.0
    for event in events[1:]:
        history.apply(event)
        start = time.monotonic()
        tracker.handle(event)
        seconds += time.monotonic() - start
    tracker.finish()
    expected = History(given)
    assert given == list(events), "a tracker changed an event"
    assert (history.records, history.told, history.header) == (expected.records, expected.told, expected.header), (
        "a tracker changed the history"
    )
    assert seconds < 0.05 * len(events), f"handle() took {1000 * seconds / len(events):.0f} ms an event: it must queue"


def check_tracker_begins_anywhere(make: Callable[[], Tracker], events: Sequence[Mapping[str, Any]]) -> None:
    """Checks that a search may end or go on after any event: before the first trial, within a trial, or at its end."""
    for cut in (1, 2, len(events) // 2, len(events)):
        history, tracker = History(events[:cut]), make()
        tracker.start(history)
        for event in events[cut:]:
            history.apply(event)
            tracker.handle(event)
        tracker.finish()
        tracker.finish()  # an interrupted search may call it twice


def check_tracker_leaves_stdout(make: Callable[[], Tracker], events: Sequence[Mapping[str, Any]]) -> None:
    """Checks that trackers write no text to stdout, which is for data (`--json`), but to stderr."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        history, tracker = History(events[:1]), make()
        tracker.start(history)
        for event in events[1:]:
            history.apply(event)
            tracker.handle(event)
        tracker.finish()
    assert out.getvalue() == "", f"a tracker wrote to stdout: {out.getvalue()[:200]!r}"


def check_tracker_fills_once(make: Callable[[], Tracker], events: Sequence[Mapping[str, Any]]) -> None:
    """Checks that `fill` needs no `start` and adds nothing the second time, and that `open_command` is one line."""
    history, tracker = History(events), make()
    if isinstance(tracker, Fillable):
        added = tracker.fill(history)
        assert all(isinstance(count, int) for count in added.values()), f"fill() counts what it added, not {added}"
        again = {name: count for name, count in make().fill(history).items() if count}  # type: ignore[attr-defined]
        assert not again, f"fill() added {again} a second time"
    if isinstance(tracker, Opened):
        line = tracker.open_command(history)
        assert line and "\n" not in line, f"open_command() is one line, not {line!r}"


TRACKER_CHECKS = (
    check_tracker_only_reads,
    check_tracker_begins_anywhere,
    check_tracker_leaves_stdout,
    check_tracker_fills_once,
)
