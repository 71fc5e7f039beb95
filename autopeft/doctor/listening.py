"""Which of Ray's and MLflow's processes of this user listen, and whether on all addresses. From /proc, so on Linux only."""

from __future__ import annotations

import contextlib
import ipaddress
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from autopeft.finding import Finding

PROC = Path("/proc")
LISTENS = "0A"  # the state, in the kernel's tables
RAY = ("raylet", "gcs_server", "ray::", "ray/dashboard", "ray/_private")
MLFLOW = ("mlflow",)


@dataclass(frozen=True, slots=True)
class Listener:
    """A process that listens.

    Attributes:
        program: "Ray" or "MLflow".
        process: Its id.
        name: Its first word, without folders.
        ports: Address → ports.
        has_token: Whether Ray's token mode is on in its environment; None if that is not known.
    """

    program: str
    process: int
    name: str
    ports: dict[str, list[int]]
    has_token: bool | None


def findings() -> Iterator[Finding]:
    """Yields a finding for each process that listens."""
    if not (PROC / "net" / "tcp").exists():
        yield Finding("listening", "warn", "not known on this system", "look with `lsof -i -P` which ports are open")
        return
    found = list(listeners())
    if not found:
        yield Finding("listening", "ok", "no process of Ray or MLflow of yours listens in this network")
    for listener in found:
        yield _finding(listener)


def _finding(listener: Listener) -> Finding:
    everywhere = listener.ports.get("all addresses", [])
    where = "; ".join(f"{address}: {', '.join(map(str, ports))}" for address, ports in listener.ports.items())
    text = f"{listener.program}: {listener.name} (process {listener.process}) listens on {where}"
    if not everywhere:
        return Finding("listening", "ok", text)
    if listener.program == "MLflow":
        todo = "`mlflow server --host 127.0.0.1`, or --app-name basic-auth, and a firewall"
        return Finding("listening", "warn", text, todo)
    if listener.has_token:
        return Finding("listening", "ok", f"{text}, as Ray does; by token only")
    if listener.has_token is None:
        todo = "Ray runs any code that reaches it: start it with RAY_AUTH_MODE=token"
        return Finding("listening", "warn", f"{text}; whether a token is needed is not known", todo)
    todo = "whoever reaches these ports runs code as you: end it, and start it with RAY_AUTH_MODE=token"
    return Finding("listening", "fail", f"{text}, without a token", todo)


def listeners() -> Iterator[Listener]:
    """Yields this user's processes of Ray and MLflow that listen, by process."""
    sockets = _sockets()
    for process in sorted(int(path.name) for path in PROC.iterdir() if path.name.isdecimal()):
        with contextlib.suppress(OSError):
            folder = PROC / str(process)
            words = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
            program = _program(words)
            if program is None or folder.stat().st_uid != os.getuid():
                continue
            ports: dict[str, list[int]] = {}
            for address, port in sorted({sockets[inode] for inode in _inodes(folder) if inode in sockets}):
                ports.setdefault(address, []).append(port)
            if ports:
                yield Listener(program, process, Path(words[0]).name, ports, _has_token(folder))


def _program(words: list[str]) -> str | None:
    """Tells whose process it is, by its program or script: an argument such as a folder's name says nothing."""
    text = " ".join(words[:3])
    if any(mark in text for mark in RAY):
        return "Ray"
    return "MLflow" if any(Path(word).name in MLFLOW or word.startswith("mlflow.") for word in words[:6]) else None


def _inodes(folder: Path) -> Iterator[int]:
    """Yields the sockets that a process has open."""
    for path in (folder / "fd").iterdir():
        with contextlib.suppress(OSError):
            target = os.readlink(path)
            if target.startswith("socket:["):
                yield int(target[len("socket:[") : -1])


def _has_token(folder: Path) -> bool | None:
    with contextlib.suppress(OSError):
        return b"RAY_AUTH_MODE=token" in (folder / "environ").read_bytes().split(b"\0")
    return None


def _sockets() -> dict[int, tuple[str, int]]:
    """Returns the inode of each listening socket → its address for people, and its port."""
    found = {}
    for name in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):
            for line in (PROC / "net" / name).read_text().splitlines()[1:]:
                _, local, _, state, *rest = line.split()
                if state == LISTENS:
                    found[int(rest[5])] = _address(local)
    return found


def _address(text: str) -> tuple[str, int]:
    """Reads `0100007F:1F90` as ("127.0.0.1", 8080): words of four bytes, each in the order of this machine."""
    address, _, port = text.partition(":")
    raw = bytes.fromhex(address)
    packed = b"".join(raw[index : index + 4][::-1] for index in range(0, len(raw), 4))
    parsed = ipaddress.ip_address(packed)
    mapped = getattr(parsed, "ipv4_mapped", None)
    return "all addresses" if parsed.is_unspecified else str(mapped or parsed), int(port, 16)
