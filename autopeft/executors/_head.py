"""The head of a Ray cluster may go while trials run. Then the run ends with a message, and a resume goes on elsewhere.

Ray ends a driver that has not reached the head for a minute: at once, wherever its code is, with exit code 1. A call to
Ray waits that long, too. So a thread of its own looks for the head. Some time before Ray would act it ends the run, and
if a call to Ray does not let go, the process. The ledger has all that was told.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator

from autopeft.errors import EnvironmentFault

LIMIT = "RAY_gcs_rpc_server_reconnect_timeout_s"  # Ray's own setting
LIMIT_SECONDS = 60.0  # its default
EARLIER_SECONDS = 20.0  # before Ray's limit, the run ends
LAST_SECONDS = 8.0  # before Ray's limit, the process ends
LOOK_SECONDS = 2.0


class HeadGone(EnvironmentFault):
    """The head of the cluster no longer answers: no call to Ray comes back."""


class Head:
    """Looks for the head of a cluster, in a thread.

    A machine that is slow accepts connections all the same, so only a head that is gone, or cut off, is silent.

    Args:
        address: host:port of its control store.
        limit: Seconds of silence after which Ray ends this process.
        end: Ends this process at once.
    """

    def __init__(self, address: str, limit: float, end: Callable[[int], object] = os._exit) -> None:
        self.address, self.limit, self.end = address, limit, end
        self._is_said = False
        self._heard = time.monotonic()
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True, name="autopeft-head")
        self._thread.start()

    def is_gone(self) -> bool:
        """Whether the head has been silent for too long."""
        return time.monotonic() - self._heard > self.limit - EARLIER_SECONDS

    def require(self) -> None:
        """Raises HeadGone if the head has been silent for too long."""
        if self.is_gone():
            self._is_said = True
            raise HeadGone(self._message())

    def close(self) -> None:
        """Looks no more, unless the head is gone: Ray's own end, at the exit of Python, would hang as well."""
        if not self._is_said:
            self._ending.set()

    def _message(self) -> str:
        return (
            f"the head of the Ray cluster at {self.address} has not answered for {self.limit - EARLIER_SECONDS:g} s. "
            "Nothing told so far is lost: `autopeft resume` goes on, on a cluster at another address with "
            f"`--set executor.address=host:port`. To wait longer, set {LIMIT}, on the nodes, too"
        )

    def _look(self) -> None:
        while not self._ending.wait(LOOK_SECONDS):
            if self._answers():
                self._heard = time.monotonic()
            elif time.monotonic() - self._heard > self.limit - LAST_SECONDS and not self._ending.is_set():
                if not self._is_said:
                    print(f"error: {self._message()}", file=sys.stderr)
                sys.stdout.flush()
                sys.stderr.flush()
                self.end(EnvironmentFault.exit_code)
                return

    def _answers(self) -> bool:
        host, _, port = self.address.rpartition(":")
        with contextlib.suppress(OSError):
            socket.create_connection((host.strip("[]"), int(port)), timeout=LOOK_SECONDS).close()
            return True
        return False


@contextlib.contextmanager
def looked_for(address: str) -> Iterator[Head]:
    """Looks for the head of a cluster as long as the context lasts."""
    head = Head(address, float(os.environ.get(LIMIT, LIMIT_SECONDS)))
    try:
        yield head
    finally:
        head.close()
