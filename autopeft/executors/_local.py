"""A local Ray: started, tried again if the start fails, and ended. It has an authentication token of its own, always.

Ray waits 30 s for its own processes, whatever the settings say. On a busy machine this is too short. The second try is
faster, as the files are in memory then.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from autopeft.errors import EnvironmentFault, command

TRIES = 5  # on a starved machine Ray's node ends a start by itself, as its agent takes longer than 15 s
SILENT_SECONDS = 15.0  # until a message says that the start is slow
TOKEN_VARIABLES = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
# Ray's longest socket below its folder, with a process id of seven digits, and what a system takes.
SOCKET, MOST_CHARACTERS = "session_2026-11-29_13-29-20_123456_4194304/sockets/plasma_store.1", 107
SHORT = "/tmp/ray"  # Ray's folder where TMPDIR and RAY_TMPDIR name none
INSTEAD = "`--set executor=serial` runs one trial after another, without Ray"


@contextlib.contextmanager
def local_ray(ray: Any, interrupts: Sequence[int] = (), **options: Any) -> Iterator[None]:
    """Runs a local Ray as long as the context lasts.

    Args:
        ray: The module.
        interrupts: Grows with each Ctrl-C; read between two tries.
        options: Options of `ray.init`.

    Raises:
        EnvironmentFault: Ray does not start.
        KeyboardInterrupt: The user interrupted the start.
    """
    if longest_socket(temporary_folder()):
        options = {"_temp_dir": SHORT, **options}
    with own_token():
        _start(ray, interrupts, options)
        try:
            yield
        finally:
            ray.shutdown()


def _start(ray: Any, interrupts: Sequence[int], options: dict[str, Any]) -> None:
    why = ""
    for attempt in range(1, TRIES + 1):
        try:
            with said_when_slow(f"Ray is slow to start on this machine: still waiting (try {attempt} of {TRIES})"):
                # "local", as without an address Ray joins a Ray from an earlier `ray start` or from RAY_ADDRESS.
                ray.init(address="local", **options)
            return
        except Exception as fault:  # Ray raises plain Exceptions
            ray.shutdown()
            why = (str(fault).strip().splitlines() or [type(fault).__name__])[0].rstrip(".")
        except BaseException:
            ray.shutdown()
            raise
        if interrupts:
            raise KeyboardInterrupt
        if attempt < TRIES:
            print(f"Ray did not start ({why}): trying again", file=sys.stderr, flush=True)
    raise EnvironmentFault(
        f"Ray did not start in {TRIES} tries: {why}. Its logs: session_latest/logs in Ray's temporary folder, /tmp/ray "
        f"where it was not set. The machine may be short of time or memory: end what else runs on it; or {INSTEAD}"
    )


@contextlib.contextmanager
def said_when_slow(text: str, after: float | None = None) -> Iterator[None]:
    """Writes a line to stderr if the body of the context takes longer than `after` seconds."""
    timer = threading.Timer(
        SILENT_SECONDS if after is None else after, lambda: print(text, file=sys.stderr, flush=True)
    )
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@contextlib.contextmanager
def own_token() -> Iterator[None]:
    """Lets nobody talk to Ray's processes without a token: they listen on all addresses, and run any code they get.

    The token is random. Ray's own default is one token for all its runs, in a file of the home folder that others may be
    able to read. A token that the user has set is kept. A mode without tokens is not. Afterwards the environment is
    restored.
    """
    before = {name: os.environ.get(name) for name in TOKEN_VARIABLES}
    mode = before["RAY_AUTH_MODE"]
    if mode not in (None, "token"):
        print(
            f"note: RAY_AUTH_MODE={mode} is not heeded: a Ray of autopeft's takes a token", file=sys.stderr, flush=True
        )
    os.environ["RAY_AUTH_MODE"] = "token"
    if before["RAY_AUTH_TOKEN"] is None and before["RAY_AUTH_TOKEN_PATH"] is None:
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    _read_again()
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        _read_again()


def say_shared_token() -> None:
    """Writes a note if the file with Ray's token can be read by others, who could run code as this user.

    It is no error, as in a container such a file may be nobody else's.
    """
    path = os.environ.get("RAY_AUTH_TOKEN_PATH")
    if path and os.path.isfile(path) and os.stat(path).st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        why = f"note: others may read Ray's token in {path}, and run code on the cluster with it"
        print(f"{why}: {command('chmod', '600', path)}", file=sys.stderr, flush=True)


def _read_again() -> None:
    """Makes Ray read mode and token again. By itself Ray keeps those that it read first in this process."""
    with contextlib.suppress(ImportError):  # an older Ray has none
        from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]  # compiled

        Config.initialize("")
        AuthenticationTokenLoader.instance().reset_cache()


def temporary_folder() -> Path:
    """Returns the folder in which a local Ray puts its files."""
    return Path(os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or tempfile.gettempdir()) / "ray"


def longest_socket(folder: Path) -> int:
    """Returns by how many characters the path of a socket is too long if Ray's files are in this folder; 0 if it fits."""
    return max(0, len(os.fsencode(folder / SOCKET)) - MOST_CHARACTERS)
