"""Nodes that do not share the driver's disk: they receive the files that trials read, and send back those they keep.

Before the first trial, each node says which of these folders it does not see. Ray's object store brings them there
once, into a folder of the node's own, which is removed at the end. A missing package or device cannot be shipped: the
node reports it at this point.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from autopeft.errors import AutoPEFTError, EnvironmentFault
from autopeft.executors import Pack, Packing, Portable
from autopeft.executors._head import HeadGone
from autopeft.executors._local import said_when_slow
from autopeft.files import build_once
from autopeft.trial import Evaluate

MARK = ".shared"  # file in the driver's folder; a node that reads the same content shares the disk
EDGE_BYTES = 2**20
# For a node to start a worker, import packages and write what it is sent. Ray itself notices a node that is gone, so this
# is long: a node that is starved takes twenty times as long as others.
PATIENCE_SECONDS = 1800.0


@dataclass(frozen=True)
class Luggage:
    """Brings a Portable `make_evaluate` to nodes, with or without access to the driver's disk.

    Attributes:
        portable: The Portable with the paths of the driver.
        token: Name of this transfer; content of the driver's mark file.
        prints: Fingerprint of each folder that trials read.
        nodes: Ids of the nodes that were complete before the first trial; others join while trials run (`_late`).
        parcels: Folders that some node lacks → each file's bytes, as an object in Ray's store.
    """

    portable: Portable
    token: str
    prints: Mapping[str, str]
    nodes: frozenset[str] = frozenset()
    parcels: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def lacks(self) -> list[str]:
        """Returns the folders whose content on this node differs from the driver's."""
        return [path for path, mark in self.prints.items() if fingerprint(path) != mark]

    def is_home(self) -> bool:
        """Whether this node sees the driver's folder."""
        with contextlib.suppress(OSError):
            return (Path(self.portable.folder) / MARK).read_text() == self.token
        return False

    def unpack(self) -> Portable:
        """Returns the Portable with the paths of this node. Writes shipped files, once a node.

        Raises:
            EnvironmentFault: The node joined late, lacks files, and did not receive them in time.
        """
        places = {}
        for path in self.lacks():
            place = self._own() / hashlib.sha256(path.encode()).hexdigest()[:8] / Path(path).name
            if path not in self.parcels:
                _wait_for(place, path)
            else:
                build_once(place, lambda to, files=self.parcels[path]: _lay_down(files, to))  # type: ignore[misc]
            places[path] = str(place)
        return self.portable.at(places, None if self.is_home() else str(self._own() / "run"))

    def __call__(self, should_end: Callable[[], bool]) -> Evaluate:
        return self.unpack()(should_end)

    def pack(self, should_end: Callable[[], bool]) -> Pack:
        """Builds the pack of a worker (`autopeft.executors.Packing`), of a Portable that has one."""
        portable = self.unpack()
        assert isinstance(portable, Packing), "asked before the first trial"
        return portable.pack(should_end)

    def send(self, number: int) -> dict[str, bytes]:
        """Returns the files that a trial kept on this node, by name; none if the node shares the driver's disk."""
        if self.is_home():
            return {}
        kept = self.portable.at({}, str(self._own() / "run")).kept(number)
        files = {path.name: path.read_bytes() for path in kept.iterdir()} if kept.is_dir() else {}
        shutil.rmtree(kept, ignore_errors=True)
        return files

    def receive(self, number: int, files: Mapping[str, bytes]) -> None:
        """On the driver: writes a node's files to the trial's folder."""
        to = self.portable.kept(number)
        to.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{to.name}.", dir=to.parent))
        for name, data in files.items():
            (temporary / Path(name).name).write_bytes(data)
        shutil.rmtree(to, ignore_errors=True)  # left by an earlier run of the trial
        os.replace(temporary, to)

    def clean(self) -> None:
        """Removes this node's own folder."""
        shutil.rmtree(self._path(), ignore_errors=True)

    def _own(self) -> Path:
        """Returns a private folder that this node's workers share."""
        path = self._path()
        path.mkdir(mode=0o700, exist_ok=True)
        return path

    def _path(self) -> Path:
        import ray

        return Path(tempfile.gettempdir()) / f"autopeft-{self.token}-{ray.get_runtime_context().get_node_id()[:12]}"

    def is_late(self) -> bool:
        """Whether this node joined after the first trial."""
        import ray

        return ray.get_runtime_context().get_node_id() not in self.nodes


def _wait_for(place: Path, path: str) -> None:
    """Waits, on a node that joined while trials ran, until the driver has put the missing folder there."""
    end = time.monotonic() + PATIENCE_SECONDS
    while not place.exists():
        if time.monotonic() > end:
            raise EnvironmentFault(f"it joined late, does not see {path}, and was not given it")
        time.sleep(0.2)


@contextlib.contextmanager
def shipped(portable: Portable, nodes: Sequence[Mapping[str, Any]]) -> Iterator[Luggage]:
    """Checks all nodes, ships the folders that they lack, and yields the Portable's luggage. Cleans up at the end.

    Args:
        portable: Makes `evaluate`.
        nodes: Nodes, as `ray.nodes()` returns them. Nodes that are added meanwhile are cleaned up, too.

    Raises:
        EnvironmentFault: A node lacks something that cannot be shipped. Each such node is named with its reason.
    """
    mark = Path(portable.folder) / MARK
    luggage = Luggage(portable, secrets.token_hex(16), {path: fingerprint(path) for path in portable.reads})
    mark.write_text(luggage.token)
    can_clean = True
    try:
        lacking = {path for answer in ask(nodes, Luggage.lacks, luggage) for path in answer}
        ids = frozenset(str(node["NodeID"]) for node in nodes)
        luggage = replace(luggage, parcels={path: parcel(path) for path in sorted(lacking)}, nodes=ids)
        ask(nodes, settle, luggage)
        yield luggage
    except HeadGone:
        can_clean = False
        raise
    finally:
        mark.unlink(missing_ok=True)
        if can_clean:
            with contextlib.suppress(EnvironmentFault):
                ask(nodes, Luggage.clean, luggage, patience=10.0)


def fingerprint(folder: str) -> str:
    """Hashes names and sizes of a folder's files, and the first and last MiB of each; empty if there is no folder."""
    digest = hashlib.sha256()
    try:
        files = _files(folder)
        for name in files:
            path = Path(folder) / name
            size = path.stat().st_size
            digest.update(f"{name} {size} ".encode())
            with open(path, "rb") as file:
                digest.update(file.read(EDGE_BYTES))
                file.seek(max(size - EDGE_BYTES, 0))
                digest.update(file.read())
    except OSError:
        return ""
    return digest.hexdigest() if files else ""


def _files(folder: str) -> list[str]:
    """Lists the files of a folder and its sub-folders, as sorted relative paths."""
    root = Path(folder)
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


def parcel(folder: str) -> dict[str, Any]:
    """Puts each file of a folder into Ray's object store."""
    import numpy as np
    import ray

    return {name: ray.put(np.fromfile(Path(folder) / name, dtype=np.uint8)) for name in _files(folder)}


def _lay_down(files: Mapping[str, Any], to: Path) -> None:
    import ray

    for name, data in files.items():
        (to / name).parent.mkdir(parents=True, exist_ok=True)
        ray.get(data).tofile(to / name)


def settle(luggage: Luggage) -> None:
    """Writes the folders that this node lacks, and checks that trials can run here."""
    try:
        luggage.unpack().check()
    except ImportError as fault:
        raise EnvironmentFault(f"it lacks a package, {fault}: install autopeft there") from fault


def ask(
    nodes: Sequence[Mapping[str, Any]],
    question: Callable[..., Any],
    luggage: Luggage,
    patience: float = PATIENCE_SECONDS,
) -> list[Any]:
    """Runs a question on all nodes, and returns their answers.

    Raises:
        EnvironmentFault: Some nodes did not answer, or answered with an error. Each is named with its reason.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    def ask(node: Mapping[str, Any]) -> Any:
        where = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        task = ray.remote(_answer).options(num_cpus=0, scheduling_strategy=where, max_retries=0)
        return task.remote(question, luggage)

    asked = {ask(node): node for node in nodes}
    with said_when_slow("nodes of the Ray cluster are slow to answer: still waiting"):
        ready, _ = ray.wait(list(asked), num_returns=len(asked), timeout=patience)
    answers, faults = [], []
    for answer, node in asked.items():
        try:
            if answer not in ready:
                raise EnvironmentFault(f"no answer in {patience:g} s")
            fault, value = ray.get(answer)
            if fault:
                raise EnvironmentFault(fault)
            answers.append(value)
        except (AutoPEFTError, ray.exceptions.RayError) as fault:
            faults.append(f"node {node['NodeManagerAddress']} ({node['NodeID'][:8]}): {_why(fault)}")
    if faults:
        raise EnvironmentFault("; ".join(faults))
    return answers


def _why(fault: Exception) -> str:
    """Returns the line that says why. Where Ray could not set a node up, its last line does, below a traceback."""
    from ray.exceptions import RuntimeEnvSetupError

    first, *others = [line.strip() for line in str(fault).splitlines() if line.strip()]
    return f"{first.rstrip('.')}: {others[-1]}" if others and isinstance(fault, RuntimeEnvSetupError) else first


def _answer(question: Callable[..., Any], luggage: Luggage) -> tuple[str, Any]:
    """Answers a question on a node. Returns the reason if there is no answer (else ""), and the answer."""
    try:
        return "", question(luggage)
    except Exception as fault:
        text = str(fault) if isinstance(fault, AutoPEFTError) else f"{type(fault).__name__}: {fault}"
        return text.splitlines()[0], None
