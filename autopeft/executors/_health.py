"""What `autopeft doctor` says of Ray: its authentication, the cluster that was named, and the places of its own files."""

from __future__ import annotations

import json
import os
import shutil
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from autopeft.executors._local import longest_socket, temporary_folder
from autopeft.finding import Finding

KNOCK_SECONDS, JOIN_SECONDS = 5.0, 60.0
AUTHENTICATION = "Ray's authentication"
CLUSTER = "Ray's cluster"
# In a process of its own: Ray tries for long, and keeps the first token that a process reads.
JOIN = """
import json, sys
from ray._raylet import GcsClient
from ray.exceptions import AuthenticationError
try:
    client = GcsClient(address=sys.argv[1])
except AuthenticationError:
    sys.exit(3)
nodes = [node for node in client.get_all_node_info().values() if node.state == 0]
total = {}
for node in nodes:
    for name, count in node.resources_total.items():
        total[name] = total.get(name, 0) + count
print(json.dumps({"nodes": len(nodes), "CPU": total.get("CPU", 0), "GPU": total.get("GPU", 0)}))
"""
REFUSED = 3  # the exit code if the token is wrong


def findings(address: str | None, store_bytes: int) -> Iterator[Finding]:
    """Yields what is known of Ray.

    Args:
        address: The config's address of a cluster; None for a local Ray.
        store_bytes: Size of a local Ray's object store.
    """
    if address is None:
        yield from _local(store_bytes)
        named = os.environ.get("RAY_ADDRESS")
        if named:
            yield _unused(named)
        return
    yield from _authentication()
    named = current_cluster() if address == "auto" else address
    if named is None:
        text = "executor.address is auto, and neither RAY_ADDRESS nor a `ray start` on this machine names a cluster"
        yield Finding(
            CLUSTER, "warn", text, "start one, or write executor.address: HOST:PORT; Ray looks among processes, too"
        )
        return
    found = knock(named)
    yield found if found.state != "ok" else _join(named)


def current_cluster() -> str | None:
    """Returns the cluster that `auto` means: RAY_ADDRESS, else the last one that `ray start` began on this machine."""
    named = os.environ.get("RAY_ADDRESS")
    if named and named != "auto":
        return named
    try:
        return (temporary_folder() / "ray_current_cluster").read_text().strip() or None
    except OSError:
        return None


def _local(store_bytes: int) -> Iterator[Finding]:
    mode = os.environ.get("RAY_AUTH_MODE")
    text = "a local Ray listens on all addresses, by a random token of each search"
    if mode not in (None, "token"):
        text += f"; RAY_AUTH_MODE={mode} is not heeded"
    yield Finding(AUTHENTICATION, "ok", text)
    yield from _token_file(is_needed=False)
    temporary, length = temporary_folder(), longest_socket(temporary_folder())
    if length:
        text = f"{temporary}: {length} characters too long for Ray's sockets, so that its files go to /tmp/ray"
        yield Finding("Ray's folder", "warn", text, "a shorter TMPDIR, or RAY_TMPDIR, if /tmp has no room")
    shared = Path("/dev/shm")
    if shared.is_dir() and (free := shutil.disk_usage(shared).free) < store_bytes:
        text = f"{shared} has {free / 2**20:.0f} MiB free; Ray's object store is {store_bytes / 2**20:.0f} MiB"
        yield Finding("Ray's folder", "warn", text, "in a container: docker run --shm-size=1g; it goes to a disk else")


def _unused(named: str) -> Finding:
    """RAY_ADDRESS, where the config names no cluster."""
    found = knock(named)
    what = "somebody answers there" if found.state == "ok" else found.text
    text = f"RAY_ADDRESS is {named} ({what}), and not used, as executor.address names no cluster"
    todo = "executor: {name: ray_tune, address: auto} searches there; else unset RAY_ADDRESS"
    return Finding(CLUSTER, "warn", text, todo)


def _authentication() -> Iterator[Finding]:
    mode = os.environ.get("RAY_AUTH_MODE")
    todo = "start the cluster and autopeft with RAY_AUTH_MODE=token and the same RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH"
    if mode != "token":
        text = f"RAY_AUTH_MODE is {mode or 'not set'}: a cluster runs any code that reaches it"
        yield Finding(AUTHENTICATION, "fail", text, todo)
        return
    yield Finding(AUTHENTICATION, "ok", "token mode")
    yield from _token_file(is_needed=not os.environ.get("RAY_AUTH_TOKEN"))


def _token_file(is_needed: bool) -> Iterator[Finding]:
    """Looks at the file of the token: that it is there, and that nobody else can read it. Never at the token."""
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    path = Path(named) if named else Path.home() / ".ray" / "auth_token"
    try:
        found = path.stat()
    except OSError as fault:
        if is_needed or named:
            text = f"no token: RAY_AUTH_TOKEN is not set, and {path}: {fault.strerror}"
            yield Finding(
                AUTHENTICATION, "fail", text, "give the cluster's token by RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH"
            )
        return
    mode = stat.S_IMODE(found.st_mode)
    if not found.st_size:
        yield Finding(
            AUTHENTICATION, "fail" if is_needed else "warn", f"{path} is empty", "write the cluster's token there"
        )
    elif mode & 0o077:
        # no "token: …", which is taken for one
        text = f"others can read {path} (mode {mode:04o}), which holds a token"
        yield Finding(AUTHENTICATION, "warn", text, f"chmod 600 {path}")
    else:
        yield Finding(AUTHENTICATION, "ok", f"{path} has mode {mode:04o}")


def knock(address: str) -> Finding:
    """Says whether a server listens at an address."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    todo = "is the cluster up, and the address that of its head, HOST:PORT (6379 as a rule)?"
    try:
        socket.create_connection((host.strip("[]"), int(port.rstrip("/"))), timeout=KNOCK_SECONDS).close()
    except TimeoutError:
        return Finding(CLUSTER, "warn", f"no answer from {address} in {KNOCK_SECONDS:g} s", todo)
    except (OSError, OverflowError, ValueError) as fault:
        return Finding(CLUSTER, "fail", f"nobody listens at {address}: {fault}", todo)
    return Finding(CLUSTER, "ok", f"{address} answers")


def _join(address: str) -> Finding:
    """Asks a cluster for its nodes, with the token of the environment."""
    environment = {**os.environ, "RAY_NUM_REDIS_GET_RETRIES": "2"}
    words = [sys.executable, "-c", JOIN, address.rpartition("://")[2]]
    try:
        done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=JOIN_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        text = f"{address} answers, and says nothing as Ray in {JOIN_SECONDS:g} s"
        return Finding(CLUSTER, "warn", text, "a busy machine, another service, or another version of Ray: try again")
    if done.returncode == REFUSED:
        todo = "give the cluster's token by RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH; its nodes were started with it"
        has_one = os.environ.get("RAY_AUTH_MODE") == "token"
        return Finding(CLUSTER, "fail", f"{address} {'refuses this token' if has_one else 'asks for a token'}", todo)
    if done.returncode:
        why = (done.stderr.strip().splitlines() or ["it ended without a word"])[-1]
        todo = (
            "is it Ray's head, of the same version, and is RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH that of the cluster?"
        )
        return Finding(CLUSTER, "fail", f"{address} does not let autopeft in: {why}", todo)
    found: Mapping[str, float] = json.loads(done.stdout.splitlines()[-1])
    nodes = "1 node" if found["nodes"] == 1 else f"{found['nodes']} nodes"
    text = f"{address}: {nodes} with {found['CPU']:g} CPUs and {found['GPU']:g} GPUs, by token"
    return Finding(CLUSTER, "ok", text)
