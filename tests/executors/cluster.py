"""A Ray cluster on this machine: a head and workers as `ray start` makes them, with a token."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent.parent
RAY = [sys.executable, "-c", "import sys; from ray.scripts.scripts import main; sys.exit(main())"]
TOKEN = "0123456789abcdef" * 2


class Cluster:
    """Two nodes of one CPU each.

    Attributes:
        address: For drivers.
        environment: Of drivers, with the token.
    """

    def __init__(self) -> None:
        self.folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # the paths of Ray's sockets have to be short
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.address = f"127.0.0.1:{port}"
        self.environment = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN, "PYTHONPATH": str(PROJECT)}
        self.nodes: list[subprocess.Popen[bytes]] = []
        try:
            self._node("--head", f"--port={port}", f"--temp-dir={self.folder}", "--include-dashboard=false")
            self.wait_for_nodes(1)
            self._node(f"--address={self.address}")
            self.wait_for_nodes(2)
        except BaseException:
            self.close()
            raise

    def _node(self, *options: str) -> None:
        start = [*RAY, "start", "--block", "--num-cpus=1", "--object-store-memory=100000000", *options]
        environment = {k: v for k, v in self.environment.items() if k != "PYTHONPATH"}  # nodes lack autopeft
        log = open(f"{self.folder}.{len(self.nodes)}.log", "wb")  # noqa: SIM115  (the process has it)
        self.nodes.append(
            subprocess.Popen(start, env=environment, cwd="/", stdout=log, stderr=log, start_new_session=True)
        )
        log.close()

    def wait_for_nodes(self, count: int) -> None:
        """Until so many nodes are up, a minute at most."""
        code = (
            "import ray, sys, time\n"
            "from ray._private.services import canonicalize_bootstrap_address as at\n"
            "from ray._raylet import GcsClient\n"
            "end = time.monotonic() + 60\n"
            "while time.monotonic() < end:\n"
            "    try:\n"
            f"        nodes = GcsClient(address=at({self.address!r})).get_all_node_info().values()\n"
            f"        if sum(node.state == 0 for node in nodes) == {count}: sys.exit(0)\n"
            "    except Exception: pass\n"
            "    time.sleep(0.2)\n"
            "sys.exit(1)\n"
        )
        subprocess.run([sys.executable, "-c", code], env=self.environment, check=True, capture_output=True, timeout=90)

    def close(self) -> None:
        for node in reversed(self.nodes):
            _kill(node.pid)
            node.wait()
        shutil.rmtree(self.folder, ignore_errors=True)
        for log in Path("/tmp").glob(f"{Path(self.folder).name}.*.log"):
            log.unlink()


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
