"""Ctrl-C, once and twice. SIGTERM, which schedulers such as Slurm send before they kill, counts as one."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def interruptible() -> Iterator[list[int]]:
    """The first Ctrl-C is noted in the list that this yields; the second one interrupts at once.

    The handlers that were there before come back at the end. Outside of the main thread, where Python allows no
    handlers, the list stays empty and Ctrl-C does what it did before.
    """
    interrupts: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield interrupts
        return

    def note(number: int, frame: FrameType | None) -> None:
        interrupts.append(number)
        if len(interrupts) > 1:
            raise KeyboardInterrupt

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield interrupts
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
