"""A Ray cluster on this machine: a head and workers as `ray start` makes them, with a token."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent.parent
RAY = [sys.executable, "-c", "import sys; from ray.scripts.scripts import main; sys.exit(main())"]
# A mount namespace of its own: what is mounted in it, nobody else sees.
UNSHARE = ["unshare", "--mount", *([] if os.geteuid() == 0 else ["--map-root-user"])]
TOKEN = "0123456789abcdef" * 2


class Cluster:
    """Two nodes: a head and a worker.

    Args:
        head_cpus: Of the head; the worker has one.
        hidden: Folders that the worker's node does not see.
        is_whole: Whether the worker is there from the start; else it comes with `join`.
        packages: A folder of what is installed on all nodes, and for drivers.

    Attributes:
        address: For drivers.
        environment: Of drivers, with the token.
    """

    def __init__(
        self, head_cpus: int = 1, hidden: Sequence[Path] = (), is_whole: bool = True, packages: Path | None = None
    ) -> None:
        self.folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # the paths of Ray's sockets have to be short
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.address = f"127.0.0.1:{port}"
        self.packages = [] if packages is None else [str(packages)]
        path = os.pathsep.join([*self.packages, str(PROJECT)])
        self.environment = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN, "PYTHONPATH": path}
        self.nodes: list[subprocess.Popen[bytes]] = []
        try:
            self._node(
                head_cpus, (), "--head", f"--port={port}", f"--temp-dir={self.folder}", "--include-dashboard=false"
            )
            self.wait_for_nodes(1)
            if is_whole:
                self.join(hidden)
        except BaseException:
            self.close()
            raise

    def join(self, hidden: Sequence[Path] = ()) -> None:
        """One more node of one CPU, which does not see these folders."""
        self._node(1, hidden, f"--address={self.address}")
        self.wait_for_nodes(len(self.nodes))

    def _node(self, cpus: int, hidden: Sequence[Path], *options: str) -> None:
        start = [*RAY, "start", "--block", f"--num-cpus={cpus}", "--object-store-memory=100000000", *options]
        if hidden:
            start = [*UNSHARE, "sh", "-c", _hide(hidden), "sh", *start]
        environment = {k: v for k, v in self.environment.items() if k != "PYTHONPATH"}  # nodes lack autopeft
        if self.packages:
            environment["PYTHONPATH"] = os.pathsep.join(self.packages)
        log = open(f"{self.folder}.{len(self.nodes)}.log", "wb")  # noqa: SIM115  (the process has it)
        self.nodes.append(
            subprocess.Popen(start, env=environment, cwd="/", stdout=log, stderr=log, start_new_session=True)
        )
        log.close()

    def wait_for_nodes(self, count: int) -> None:
        """Until so many nodes are up, five minutes at most."""
        code = (
            "import ray, sys, time\n"
            "from ray._private.services import canonicalize_bootstrap_address as at\n"
            "from ray._raylet import GcsClient\n"
            "end = time.monotonic() + 300\n"
            "while time.monotonic() < end:\n"
            "    try:\n"
            f"        nodes = GcsClient(address=at({self.address!r})).get_all_node_info().values()\n"
            f"        if sum(node.state == 0 for node in nodes) == {count}: sys.exit(0)\n"
            "    except Exception: pass\n"
            "    time.sleep(0.2)\n"
            "sys.exit(1)\n"
        )
        subprocess.run([sys.executable, "-c", code], env=self.environment, check=True, capture_output=True, timeout=400)

    def kill_worker(self) -> None:
        """The worker's node is gone, with all that ran on it."""
        _kill(self.nodes[-1].pid)

    def close(self) -> None:
        for node in reversed(self.nodes):
            _kill(node.pid)
            node.wait()
        shutil.rmtree(self.folder, ignore_errors=True)
        for log in Path("/tmp").glob(f"{Path(self.folder).name}.*.log"):
            log.unlink()


def can_hide() -> bool:
    """Whether this machine lets us hide folders from a node."""
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(OSError):
        return subprocess.run([*UNSHARE, "sh", "-c", _hide([Path(folder)])], capture_output=True).returncode == 0
    return False


def _hide(folders: Sequence[Path]) -> str:
    """A shell command that hides folders, and then becomes the command that it is given."""
    mounts = [f"mount -t tmpfs none {shlex.quote(str(folder))}" for folder in folders]
    return " && ".join([*mounts, 'if test $# -gt 0; then exec "$@"; fi'])


def _kill(process: int) -> None:
    """It and all that came from it, whatever their groups: Ray gives its workers groups of their own."""
    for child in _children(process):
        _kill(child)
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)


def _children(process: int) -> list[int]:
    try:
        return [
            int(c) for task in Path(f"/proc/{process}/task").iterdir() for c in (task / "children").read_text().split()
        ]
    except OSError:
        return []
