"""Machines of a Ray cluster as network namespaces of this machine: a head, workers, the network between them.

Each machine has a network of its own behind a link that can be taken down, and, unless it shares ours, a /tmp of its own
in which it sees nothing of the driver's. Its processes are known by their network namespace, so that nothing else is ever
ended. Needs root and `ip`: `why_not()` says what is missing.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent.parent
RAY = [sys.executable, "-c", "import sys; from ray.scripts.scripts import main; sys.exit(main())"]
AUTOPEFT = [sys.executable, "-m", "autopeft"]
NAMESPACES = Path("/run/netns")
PORT = 6379
PATIENCE_SECONDS = 300.0  # for what takes seconds on a machine that has time
NODE_PATIENCE_SECONDS = 3 * PATIENCE_SECONDS  # a node that starts again, and again, as Ray's own limits ended it
# On all nodes. By default a node that is silent for five looks of three seconds is dead, and never comes back; and a
# connection that is silent for 20 seconds is closed, which ends the step that its worker is in.
HEALTH = {"RAY_health_check_failure_threshold": "20", "RAY_grpc_keepalive_timeout_ms": "120000"}
# For busy machines: by default Ray's workers step back behind all else (niceness 15), and would hardly get on.
PATIENT = {"RAY_worker_register_timeout_seconds": "1800", "RAY_worker_niceness": "0"}
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_DEDUP_LOGS": "0", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
_counter = itertools.count()


def why_not() -> str:
    """Says why this machine can have no such cluster; empty if it can. The answer is found by making a namespace."""
    if os.geteuid() != 0:
        return "needs root: network namespaces"
    for command in ("ip", "nsenter", "unshare", "mount"):
        if shutil.which(command) is None:
            return f"needs the command `{command}` (Debian: iproute2, util-linux)"
    try:
        with contextlib.closing(Network()) as network:
            network.join("probe")
    except subprocess.CalledProcessError as fault:
        return f"network namespaces cannot be made here: {fault.stderr.strip()}"
    hides = subprocess.run(["unshare", "--mount", "sh", "-c", "mount -t tmpfs none /tmp"], capture_output=True)
    return "" if hides.returncode == 0 else "no folder can be hidden from a process here: `unshare --mount` fails"


class Network:
    """A bridge in a namespace of its own, with a namespace for each machine that joins.

    Nothing of it is seen outside, so that several may run at once. Namespaces of processes that are gone are removed.
    """

    def __init__(self) -> None:
        _sweep()
        number = next(_counter)
        self.prefix = f"autopeft-{os.getpid()}-{number}"
        self.subnet = f"198.{18 + os.getpid() % 2}.{(os.getpid() // 2 + number) % 256}"
        self.machines: list[str] = []
        self.bridge = f"{self.prefix}-bridge"
        try:
            _ip("netns", "add", self.bridge)
            _ip("-n", self.bridge, "link", "add", "br0", "type", "bridge")
            _ip("-n", self.bridge, "addr", "add", f"{self.subnet}.254/24", "dev", "br0")
            _ip("-n", self.bridge, "link", "set", "br0", "up")
        except BaseException:
            self.close()
            raise

    def join(self, name: str) -> tuple[str, str, str]:
        """Makes a machine. Returns its namespace, its address, and the bridge's end of its link."""
        namespace, number = f"{self.prefix}-{name}", len(self.machines) + 1
        address, port = f"{self.subnet}.{number}", f"port{number}"
        _ip("netns", "add", namespace)
        self.machines.append(namespace)
        _ip("-n", self.bridge, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", namespace)
        _ip("-n", self.bridge, "link", "set", port, "master", "br0", "up")
        _ip("-n", namespace, "addr", "add", f"{address}/24", "dev", "eth0")
        for device in ("lo", "eth0"):
            _ip("-n", namespace, "link", "set", device, "up")
        # Ray takes a machine's address from its default route; nothing gets beyond the bridge.
        _ip("-n", namespace, "route", "add", "default", "via", f"{self.subnet}.254")
        return namespace, address, port

    def close(self) -> None:
        """Ends all that runs in the namespaces, and removes them."""
        for namespace in [*self.machines, self.bridge]:
            remove(namespace)


@dataclass
class Machine:
    """A machine that is, or will be, a node of Ray.

    Attributes:
        name: Unique in the cluster.
        cpus, gpus, resources: What it declares to Ray; nothing has to be there.
        shares_disk: Whether it sees the files of this machine; else it has an empty /tmp of its own, and `hidden`
            folders are empty for it.
        disk_bytes: Size of that /tmp.
        environment: Of its node, beside the cluster's.
        should_run: Whether its node was started, and not ended by a test.
        keeper: A process that sleeps, and so keeps the machine's own files while its node is down. None if it has none.
    """

    name: str
    cpus: float = 1
    gpus: float = 0
    resources: Mapping[str, float] = field(default_factory=dict)
    shares_disk: bool = False
    disk_bytes: int = 2**30
    environment: Mapping[str, str] = field(default_factory=dict)
    namespace: str = ""
    address: str = ""
    port: str = ""
    node: subprocess.Popen[bytes] | None = None
    should_run: bool = False
    keeper: subprocess.Popen[bytes] | None = None

    @property
    def files(self) -> Path:
        """Its root folder, seen from this machine."""
        return Path("/") if self.keeper is None else Path(f"/proc/{self.keeper.pid}/root")

    def within(self) -> list[str]:
        """Returns the words before a command that make it run on this machine, with its network and its files."""
        files = [] if self.keeper is None else [f"--mount=/proc/{self.keeper.pid}/ns/mnt"]
        return ["nsenter", f"--net={NAMESPACES / self.namespace}", *files]

    def pids(self) -> list[int]:
        """Lists the processes on this machine, drivers among them."""
        return pids_of(self.namespace)

    def raylet(self) -> int:
        """Returns the process id of its raylet."""
        (found,) = [pid for pid in self.pids() if _comm(pid) == "raylet"]
        return found


class Cluster:
    """A head and workers, with token authentication.

    The head shares this machine's disk, as drivers run there, and has no CPU for trials by default; so trials run on
    workers, which see neither the code, nor the model, nor the data of the driver.

    Args:
        workers: Machines beside the head; a number for so many of one CPU each.
        head: The head's machine.
        hidden: Folders, beside /tmp and this project's package, that machines with a disk of their own do not see.
        environment: Of all nodes and drivers.

    Attributes:
        address: For `executor.address`.
        machines: All that ever joined, by name: `head`, `worker1`, `worker2`, …
    """

    def __init__(
        self,
        workers: int | Sequence[Machine] = 2,
        head: Machine | None = None,
        hidden: Sequence[Path] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.machines: dict[str, Machine] = {}
        self.drivers: list[subprocess.Popen[bytes]] = []
        self.hidden = [PROJECT / "autopeft", *hidden]
        self.network = Network()
        self.folder = Path(tempfile.mkdtemp(prefix="autopeft-cluster-", dir="/run"))  # seen by all; /tmp is not
        self.temporary = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # the paths of Ray's sockets have to be short
        self.token = self.folder / "token"
        self.write_token(self.token)
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
            **QUIET, **HEALTH, **PATIENT, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(self.token),
            **(environment or {}),
        }  # fmt: skip
        if isinstance(workers, int):
            workers = [Machine(f"worker{number}") for number in range(1, workers + 1)]
        try:
            self.start(head or Machine("head", cpus=0, shares_disk=True))
            self.wait_for(1)
            for count, worker in enumerate(workers, 2):  # one by one: several at once pass Ray's limit sooner
                self.start(worker)
                self.wait_for(count)
        except BaseException:
            self.close()
            raise

    @property
    def head(self) -> Machine:
        return self.machines["head"]

    @property
    def address(self) -> str:
        return f"{self.head.address}:{PORT}"

    def write_token(self, path: Path) -> None:
        """Writes a new token, which nobody else may read."""
        path.touch(mode=0o600)
        path.write_text(secrets.token_hex(32))

    def join(self, machine: Machine) -> Machine:
        """Lets one more machine join, and waits until Ray knows it."""
        alive = len(self.alive())
        self.start(machine)
        self.wait_for(alive + 1)
        return machine

    def start(self, machine: Machine) -> None:
        """Starts a machine's node, of a machine whose node has ended too. Does not wait."""
        if not machine.namespace:
            machine.namespace, machine.address, machine.port = self.network.join(machine.name)
            self.machines[machine.name] = machine
            if not machine.shares_disk:
                self._give_files(machine)
        where = (
            ["--head", f"--port={PORT}", f"--temp-dir={self.temporary}", "--include-dashboard=false"]
            if machine.name == "head"
            else [f"--address={self.address}"]
        )
        words = [
            *RAY, "start", "--block", *where, f"--node-ip-address={machine.address}", f"--num-cpus={machine.cpus:g}",
            f"--num-gpus={machine.gpus:g}", f"--resources={json.dumps(dict(machine.resources))}",
            "--object-store-memory=100000000",
        ]  # fmt: skip
        environment = {k: v for k, v in self.environment.items() if k != "PYTHONPATH"}  # nodes lack autopeft
        machine.should_run = True
        machine.node = self.spawn(words, machine, env={**environment, **machine.environment}, output=self.log(machine))

    def log(self, machine: Machine) -> Path:
        """Returns the file with what the machine's `ray start` printed."""
        return self.folder / f"{machine.name}.log"

    def spawn(
        self,
        words: Sequence[str],
        machine: Machine,
        *,
        env: Mapping[str, str],
        output: Path,
        cwd: Path | str = "/",
    ) -> subprocess.Popen[bytes]:
        """Starts a command on a machine, in a session of its own; the process id is the command's."""
        with open(output, "ab") as to:
            return subprocess.Popen(
                [*machine.within(), *words], env=dict(env), cwd=cwd, stdout=to, stderr=to, start_new_session=True
            )

    def _give_files(self, machine: Machine) -> None:
        """Gives a machine empty folders of its own, which are there until the cluster is closed."""
        mounts = [f"mount -t tmpfs -o size={machine.disk_bytes} none /tmp"]
        folders = [path for path in self.hidden if not path.is_relative_to("/tmp")]
        mounts += [f"mount -t tmpfs -o size=1m none {shlex.quote(str(path))}" for path in folders]
        script = " && ".join([*mounts, "echo ready", "exec sleep infinity"])
        words = [*machine.within(), "unshare", "--mount", "sh", "-c", script]
        machine.keeper = subprocess.Popen(words, stdout=subprocess.PIPE, start_new_session=True)
        assert machine.keeper.stdout is not None
        with machine.keeper.stdout as said:
            if said.readline() != b"ready\n":
                raise RuntimeError(f"{machine.name} has no files of its own: `{script}` failed")

    # ── Drivers ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def driver(
        self, *words: str, cwd: Path, output: Path, on: Machine | None = None, **environment: str | None
    ) -> subprocess.Popen[bytes]:
        """Starts `autopeft …` on a machine that shares this one's disk, the head by default.

        What it prints goes to `output`. An environment variable that is None is taken away.
        """
        merged = {**self.environment, "PYTHONPATH": str(PROJECT), **environment}
        kept = {name: value for name, value in merged.items() if value is not None}
        started = self.spawn([*AUTOPEFT, *words], on or self.head, env=kept, output=output, cwd=cwd)
        self.drivers.append(started)
        return started

    def autopeft(
        self, *words: str, cwd: Path, on: Machine | None = None, timeout: float = 1200, **environment: str | None
    ) -> tuple[int, str]:
        """Runs `autopeft …` to its end. Returns its exit code and what it printed."""
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            output = Path(folder) / "printed"
            code = self.driver(*words, cwd=cwd, output=output, on=on, **environment).wait(timeout)
            return code, output.read_text(errors="replace")

    # ── What Ray knows ──────────────────────────────────────────────────────────────────────────────────────────────

    def alive(self) -> list[str]:
        """Returns the addresses of the nodes that Ray takes for alive."""
        return json.loads(self._ask_ray("print(json.dumps(alive()))"))  # type: ignore[no-any-return]

    def wait_for(self, count: int, patience: float = NODE_PATIENCE_SECONDS) -> None:
        """Waits until so many nodes are alive. Starts those again that ended meanwhile, as a supervisor would.

        On a busy machine that happens: a raylet waits 15 s for its own agents, `ray start` 30 s for the raylet.

        Raises:
            RuntimeError: They are not in time; with what each `ray start` printed.
        """
        code = (
            "end = time.monotonic() + 20\n"
            f"while len(alive()) != {count}:\n"
            "    assert time.monotonic() < end, alive()\n"
            "    time.sleep(0.2)\n"
        )
        end = time.monotonic() + patience
        while True:
            try:
                self._ask_ray(code, patience)
                return
            except subprocess.CalledProcessError as fault:
                if time.monotonic() > end:
                    logs = "\n".join(f"{m.name}: {self.log(m).read_text()[-2000:]}" for m in self.machines.values())
                    raise RuntimeError(
                        f"no {count} nodes after {patience:g} s: {fault.stderr[-500:]}\n{logs}"
                    ) from fault
            self.supervise()

    def supervise(self) -> None:
        """Starts those nodes again that ended by themselves."""
        for machine in self.machines.values():
            if machine.should_run and machine.node is not None and machine.node.poll() is not None:
                self.kill(machine)
                self.start(machine)

    def _ask_ray(self, code: str, timeout: float = PATIENCE_SECONDS) -> str:
        code = (
            "import json, time\n"
            "from ray._raylet import GcsClient\n"
            "def alive():\n"
            "    try:\n"
            f"        nodes = GcsClient(address={self.address!r}).get_all_node_info().values()\n"
            "    except Exception: return []\n"
            "    return sorted(node.node_manager_address for node in nodes if node.state == 0)\n"
        ) + code
        within = ["nsenter", f"--net={NAMESPACES / self.head.namespace}", sys.executable, "-c", code]
        done = subprocess.run(
            within, env=self.environment, check=True, capture_output=True, text=True, timeout=timeout, cwd="/"
        )
        return done.stdout

    # ── Faults ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def link(self, machine: Machine, *, up: bool) -> None:
        """Takes a machine's link down, or up again."""
        _ip("-n", self.network.bridge, "link", "set", machine.port, "up" if up else "down")

    @contextlib.contextmanager
    def cut_off(self, machine: Machine) -> Iterator[None]:
        """Takes a machine's link down as long as the context lasts."""
        self.link(machine, up=False)
        try:
            yield
        finally:
            self.link(machine, up=True)

    def kill_raylet(self, machine: Machine) -> None:
        """Kills a machine's raylet with -9, as `ray start --block` under a supervisor would see it."""
        os.kill(machine.raylet(), signal.SIGKILL)

    def kill(self, machine: Machine) -> None:
        """Ends all of a machine's node at once, and no driver. `start` starts it again."""
        machine.should_run = False
        kept = {process.pid for process in (*self.drivers, machine.keeper) if process is not None}
        end_all(lambda: [pid for pid in machine.pids() if _session(pid) not in kept])
        if machine.node is not None:
            machine.node.wait(60)

    def restart(self) -> None:
        """Ends all nodes, and starts a new cluster on the same machines, at the same address. Drivers go on."""
        for machine in self.machines.values():
            self.kill(machine)
        self.start(self.head)
        self.wait_for(1)
        for machine in self.machines.values():
            if machine is not self.head:
                self.start(machine)
        self.wait_for(len(self.machines))

    def close(self) -> None:
        """Ends and removes everything."""
        self.network.close()
        for machine in self.machines.values():
            for process in (machine.node, machine.keeper):
                if process is not None:
                    process.wait(60)
        for driver in self.drivers:
            driver.wait(60)
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.rmtree(self.temporary, ignore_errors=True)


def until(happens: Callable[[], object], patience: float = NODE_PATIENCE_SECONDS) -> float:
    """Waits until something happens. Returns the seconds that it took.

    Raises:
        TimeoutError: It did not in time.
    """
    start = time.monotonic()
    while not happens():
        if time.monotonic() - start > patience:
            raise TimeoutError(f"not within {patience:g} s")
        time.sleep(0.1)
    return time.monotonic() - start


# ── Namespaces and processes ────────────────────────────────────────────────────────────────────────────────────────


def pids_of(namespace: str) -> list[int]:
    if not (NAMESPACES / namespace).exists():
        return []
    return [int(pid) for pid in _ip("netns", "pids", namespace).split()]


def end_all(list_pids: Callable[[], list[int]], patience: float = 60.0) -> None:
    """Kills processes until none are left: those that are killed may have started others meanwhile."""
    end = time.monotonic() + patience
    while pids := [pid for pid in list_pids() if not _is_zombie(pid)]:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if time.monotonic() > end:
            raise TimeoutError(f"processes that do not end: {pids}")
        time.sleep(0.05)


def remove(namespace: str) -> None:
    """Ends all processes of a namespace, and removes it."""
    if (NAMESPACES / namespace).exists():
        end_all(lambda: pids_of(namespace))
        _ip("netns", "del", namespace)


def _sweep() -> None:
    """Removes the namespaces, with their processes, of test runs that were killed themselves."""
    for path in NAMESPACES.glob("autopeft-*-*-*"):
        owner = path.name.split("-")[1]
        if owner.isdecimal() and not Path(f"/proc/{owner}").exists():
            remove(path.name)


def _ip(*words: str) -> str:
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True, timeout=60).stdout


def _comm(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return ""


def _session(pid: int) -> int:
    with contextlib.suppress(OSError):
        return os.getsid(pid)
    return 0


def _is_zombie(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    return True
