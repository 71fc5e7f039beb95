"""Ray Tune schedules trials over CPUs, GPUs and nodes. Each worker loads the model once and serves trial after trial.

Tune asks a searcher whose `suggest` is `search.ask`; its scheduler's `on_trial_result` is `search.report`; and
`on_trial_complete` is `search.tell`. Tune's own state is not kept: the ledger is the truth.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import secrets
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from autopeft.errors import EnvironmentFault, UsageError
from autopeft.executors import Conversation, MakeEvaluate, Portable
from autopeft.executors._demand import Demand
from autopeft.executors._head import Head, looked_for
from autopeft.executors._interrupt import interruptible
from autopeft.executors._local import local_ray, say_shared_token
from autopeft.executors.packed import AUTO, TYPICAL
from autopeft.finding import Finding

# Ray reads these when it is imported, or when a run begins. A value that the user has set is kept.
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # we handle Ctrl-C
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # no CSV, JSON and TensorBoard files of its own
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000000",  # the ledger holds the state; no second one
    "TUNE_FORCE_TRIAL_CLEANUP_S": "1",
    # By default Tune asks for one trial at a time and starts workers one by one. A trial that waits for its own worker
    # may then take another trial's worker, and its own is ended while it loads. With short trials a slot stays unused.
    "TUNE_MAX_PENDING_TRIALS_PG": "1000000",
    # Bounds of Ray that a busy machine passes: importing takes longer there than 60 s, and answers than 50 s.
    "RAY_worker_register_timeout_seconds": "1800",
    "RAY_health_check_failure_threshold": "1000",  # a local Ray has one node, which is this machine
    "RAY_agent_register_timeout_ms": "1800000",
    "TUNE_WARN_INSUFFICENT_RESOURCE_THRESHOLD_S": "1000000000",
    "TUNE_STATE_REFRESH_PERIOD": "1000000000",  # a call to the head, only for messages; without a head it hangs
}
# How often Ray tries to join a cluster. Its default is 20 times. A try takes a second if the token is wrong, and 40 s
# if the server at the address is not Ray.
CLUSTER_ENVIRONMENT = {"RAY_NUM_REDIS_GET_RETRIES": "2"}
# A variable of a cluster's workers that is different for each driver. If a node could not be set up, for want of room for
# example, it keeps that for ten minutes, and refuses all that ask for the same set-up.
DRIVER_VARIABLE = "AUTOPEFT_DRIVER"
ANSWER_SECONDS = 5.0
STRANGER_SECONDS = 30.0  # joining a server that is not Ray fails after 40 s; a wrong token after 2 s
OBJECT_STORE_BYTES = 256 * 2**20  # for a local Ray; enough, as events are small, and models and data are files


class RayTune:
    """Runs trials side by side.

    If Ray already runs in this process, its resources are used, and it goes on running.

    Args:
        slots: Most trials at once; None for as many as the resources allow.
        cpus_per_trial, gpus_per_trial: Resources of one trial, in a process of its own. Trials share a GPU by
            fractions: 0.5.
        resources_per_trial: Other resources that nodes declare (`ray start --resources='{"licence": 2}'`) → how much of
            each a trial has; `memory` in bytes, too.
        trials_per_worker: Most trials that share one process and one base in its memory, side by side in shared passes
            (see `packed`); "auto" for as many as a GPU's memory holds, by measurement. Each worker has `cpus_per_trial`
            CPUs, and a whole GPU where Ray has some. Excludes `gpus_per_trial`. By default auto where trials compute on
            GPUs and `gpus_per_trial` is not given, else 1.
        address: Address of a running cluster ("auto", "10.0.0.1:6379"), started with RAY_AUTH_MODE=token. None starts a
            local Ray and ends it afterwards. Nodes that lack autopeft receive it, but not its dependencies. Nodes that
            do not see the model and the data receive them, and send trained tensors back.
        n_gpus: Number of GPUs that trials may use here.
        trial_seconds: Time limit of a trial. If a step hangs beyond it, the worker is ended, and the search goes on.
    """

    def __init__(
        self,
        slots: int | None = None,
        cpus_per_trial: float = 1,
        gpus_per_trial: float = 0,
        resources_per_trial: Mapping[str, float] | None = None,
        trials_per_worker: int | Literal["auto"] | None = None,
        address: str | None = None,
        trial_seconds: float | None = None,
        n_gpus: int = 0,
    ) -> None:
        if slots is not None and slots < 1:
            raise UsageError(f"executor.slots is 1 or more, not {slots}")
        if cpus_per_trial <= 0:
            raise UsageError(f"executor.cpus_per_trial is above 0, not {cpus_per_trial:g}")
        if gpus_per_trial < 0:
            raise UsageError(f"executor.gpus_per_trial is 0 or more, not {gpus_per_trial:g}")
        if gpus_per_trial > 1 and gpus_per_trial % 1:
            raise UsageError(f"executor.gpus_per_trial is a fraction of one GPU, or whole GPUs, not {gpus_per_trial:g}")
        demand = Demand(cpus_per_trial, gpus_per_trial, resources_per_trial or {})
        each: int | Literal["auto"] = 1 if trials_per_worker is None else trials_per_worker
        if trials_per_worker is None and n_gpus and not gpus_per_trial:
            each = AUTO
        if each != AUTO and (isinstance(each, str) or each < 1):
            raise UsageError(f"executor.trials_per_worker is 1 or more, or {AUTO}, not {each}")
        if each != 1 and gpus_per_trial:
            raise UsageError(
                "executor: a worker with several trials has one whole GPU: give trials_per_worker or gpus_per_trial"
            )
        if address not in (None, "auto") and not str(address).rpartition(":")[2].isdecimal():
            raise UsageError(f"executor.address is host:port or auto, not {address!r}")
        self.slots, self.demand = slots, demand  # of one worker
        self.address, self.trial_seconds, self.each = address, trial_seconds, each
        self.pack = TYPICAL if isinstance(each, str) else each
        # Before Ray runs, we do not know the resources of a cluster, or the GPUs.
        is_known = address is None and not gpus_per_trial and not resources_per_trial and each == 1
        self.processes = (slots or demand.room({"CPU": os.cpu_count() or 1})) if is_known else None
        self.most_workers = None if slots is None else math.ceil(slots / self.pack)

    def check(self) -> None:
        """Checks that the cluster at the address is there, lets this driver in, and has a node with room for a trial."""
        if self.address is None:
            return
        self._knock()
        with _handlers_kept(), self._ray([]):
            pass

    def _knock(self) -> None:
        """Checks that there is a token for a cluster, and that a server listens at its address."""
        if self.address is not None and os.environ.get("RAY_AUTH_MODE") != "token":
            raise EnvironmentFault(
                "a Ray cluster runs any code that reaches it, so autopeft talks to one by token only: start it, and "
                "autopeft, with RAY_AUTH_MODE=token and the same RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH"
            )
        if self.address is not None:
            say_shared_token()
        from autopeft.executors._health import current_cluster

        named = current_cluster() if self.address == "auto" else self.address
        if named is not None:
            _knock(named)

    def diagnose(self) -> Iterator[Finding]:
        """Looks at Ray (`autopeft.finding.Diagnosed`)."""
        from autopeft.executors._health import findings

        return findings(self.address, OBJECT_STORE_BYTES)

    def run(self, search: Conversation, make_evaluate: MakeEvaluate) -> None:
        from autopeft.executors._nodes import shipped

        with contextlib.ExitStack() as stack:
            interrupts = stack.enter_context(interruptible())
            stack.enter_context(_handlers_kept())
            workers, nodes, head = stack.enter_context(self._ray(interrupts))
            if self.address is not None and isinstance(make_evaluate, Portable):
                make_evaluate = stack.enter_context(shipped(make_evaluate, nodes))
            self._tune(search, make_evaluate, workers, nodes, head, interrupts)

    def _tune(
        self,
        search: Conversation,
        make_evaluate: MakeEvaluate,
        workers: int,
        nodes: list[Mapping[str, Any]],
        head: Head | None,
        interrupts: list[int],
    ) -> None:
        import ray
        from ray import tune

        from autopeft.executors import _tune as between
        from autopeft.executors._actor import actor_class
        from autopeft.executors._late import Newcomers
        from autopeft.executors._nodes import Luggage
        from autopeft.executors._packs import PackBridge, pack_actor_class, require_packing

        luggage = make_evaluate if isinstance(make_evaluate, Luggage) else None
        newcomers = Newcomers(nodes, self._room_of, luggage, ray.nodes) if self.address is not None else None
        given = (search, workers, self.trial_seconds, interrupts, luggage, newcomers, self.most_workers, head)
        bridge, worker_class = between.Bridge(*given), actor_class
        if self.pack > 1:
            require_packing(make_evaluate)
            bridge, worker_class = PackBridge(self.each, self.slots, *given), pack_actor_class
        trainable = tune.with_parameters(worker_class(), make_evaluate=make_evaluate)
        storage = tempfile.mkdtemp(prefix="autopeft-tune-")
        try:
            with _quiet(), between.faults_as_deaths(), contextlib.suppress(between.Ended, between.Left):
                tune.run(
                    tune.with_resources(trainable, self.demand.to_json()),
                    name="search",
                    num_samples=-1,
                    storage_path=storage,
                    search_alg=between.searcher(bridge),
                    scheduler=between.scheduler(bridge),
                    callbacks=[between.watch(bridge)],
                    max_concurrent_trials=0,
                    reuse_actors=True,
                    raise_on_failed_trial=False,
                    verbose=0,
                )
        except RuntimeError as fault:  # Tune gives up if a worker is ended for want of memory while it starts
            if "low on memory" not in str(fault):
                raise
            raise EnvironmentFault(
                "a node of Ray ran low on memory, and Ray ended workers that were starting. Nothing told is lost: end "
                "what else runs there, or let fewer trials run at once (executor.slots), and `autopeft resume`"
            ) from fault
        finally:
            shutil.rmtree(storage, ignore_errors=True)
        if bridge.fault is not None:
            raise bridge.fault

    @contextlib.contextmanager
    def _ray(self, interrupts: Sequence[int]) -> Iterator[tuple[int, list[Mapping[str, Any]], Head | None]]:
        """Starts or joins Ray if it does not run.

        Yields the number of workers, the nodes that have room for some, and who looks for the head of a cluster.
        """
        self._knock()
        settings = ENVIRONMENT if self.address is None else {**ENVIRONMENT, **CLUSTER_ENVIRONMENT}
        os.environ.update({name: value for name, value in settings.items() if name not in os.environ})
        import ray

        head = None
        with contextlib.ExitStack() as stack:
            if not ray.is_initialized():
                with _handlers_kept():  # Ray would replace our SIGTERM handler
                    if self.address is not None:
                        self._join(ray)
                        head = stack.enter_context(looked_for(ray.get_runtime_context().gcs_address))
                        stack.callback(lambda: None if head.is_gone() else ray.shutdown())  # it would hang
                    else:
                        stack.enter_context(local_ray(ray, interrupts, **self._options()))
            yield *self._workers(ray), head

    def _options(self) -> dict[str, Any]:
        """Returns the options of a local Ray."""
        paths = [str(_package().parent), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
        return {
            "num_cpus": None if self.most_workers is None else math.ceil(self.most_workers * self.demand.cpus - 1e-9),
            "include_dashboard": False,
            "_node_ip_address": "127.0.0.1",
            "object_store_memory": OBJECT_STORE_BYTES,
            "runtime_env": {"env_vars": {"PYTHONPATH": os.pathsep.join(paths)}},
            "log_to_driver": False,
            "logging_level": logging.CRITICAL,
        }

    def _join(self, ray: Any) -> None:
        start = time.monotonic()
        try:
            ray.init(
                address=self.address,
                runtime_env={"py_modules": [str(_package())], "env_vars": {DRIVER_VARIABLE: secrets.token_hex(8)}},
                log_to_driver=False,
                logging_level=logging.CRITICAL,
            )
        except (ConnectionError, RuntimeError, ValueError, ray.exceptions.AuthenticationError) as fault:
            is_ray = isinstance(fault, ConnectionError) and time.monotonic() - start < STRANGER_SECONDS
            if is_ray and _refuses_token(ray, str(self.address)):
                raise EnvironmentFault(
                    f"the Ray cluster at {self.address!r} refuses this driver's token: is RAY_AUTH_TOKEN or "
                    "RAY_AUTH_TOKEN_PATH that of the cluster?"
                ) from fault
            raise EnvironmentFault(
                f"the Ray cluster at {self.address!r} does not let this driver in: {str(fault).splitlines()[0]}. Is it "
                "one, of the same version of Ray, with a node on this machine, and is RAY_AUTH_TOKEN or "
                "RAY_AUTH_TOKEN_PATH that of the cluster?"
            ) from fault

    def _workers(self, ray: Any) -> tuple[int, list[Mapping[str, Any]]]:
        every = ray.nodes()
        alive = [node for node in every if node["Alive"]]
        if self.pack > 1:  # a worker has a whole GPU, where there is one
            self.demand = replace(self.demand, gpus=float(any(n["Resources"].get("GPU", 0.0) for n in alive)))
        rooms = [self._room_of(node) for node in alive]
        room = sum(rooms)
        if room < 1:
            raise EnvironmentFault(self.demand.why_no_room(every))
        nodes = [node for node, has in zip(alive, rooms, strict=True) if has]
        return room if self.most_workers is None else min(self.most_workers, room), nodes

    def _room_of(self, node: Mapping[str, Any]) -> int:
        return self.demand.room(node["Resources"])


def _knock(address: str) -> None:
    """Checks that a server listens at an address, as Ray itself tries for minutes."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_SECONDS).close()
    except (OSError, OverflowError) as fault:
        raise EnvironmentFault(f"no Ray cluster at {address!r}: {fault}") from fault


def _refuses_token(ray: Any, address: str) -> bool:
    """Whether a cluster refuses this driver's token. Ray itself says only that it cannot connect."""
    try:
        from ray._raylet import GcsClient  # type: ignore[attr-defined]  # compiled

        GcsClient(address=address)
    except ray.exceptions.AuthenticationError:
        return True
    except Exception:  # anything else: what `ray.init` said stands
        pass
    return False


def _package() -> Path:
    """Returns the folder of autopeft itself."""
    import autopeft

    return Path(autopeft.__file__).resolve().parent


@contextlib.contextmanager
def _handlers_kept() -> Iterator[None]:
    """Restores the signal handlers that Ray and Tune replace."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hides Tune's messages: the ledger holds the events, and trackers show them."""
    loggers = [logging.getLogger(name) for name in ("ray", "ray.tune", "ray.train", "ray.air")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


plugin = RayTune
