"""Ray Tune schedules trials over CPUs, GPUs and nodes. Each actor loads the model once and serves trial after trial.

Tune asks `_Searcher.suggest`, which is `search.ask`; its scheduler's `on_trial_result` is `search.report`; and
`on_trial_complete` is `search.tell`. What a step gives travels as one JSON string: Tune flattens anything else.
Nothing of Tune's own state is kept: the ledger is the truth.
"""

from __future__ import annotations

import base64
import contextlib
import json
import logging
import os
import pickle
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from autopeft.errors import EnvironmentFault, UsageError
from autopeft.executors import MakeEvaluate
from autopeft.search import Search
from autopeft.trial import Report, Result, Status, Trial

# Read by Ray when it is imported, or when a run begins.
ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # no CSV, JSON and TensorBoard files of its own
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000000",  # the ledger is the state; this would be a second one
    "TUNE_FORCE_TRIAL_CLEANUP_S": "5",
    "TUNE_WARN_INSUFFICENT_RESOURCE_THRESHOLD_S": "1000000000",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
# Beyond its time limit, which `evaluate` keeps between steps, a step may take so long before its worker is ended.
GRACE_SECONDS = 5.0
MOST_SILENT_DEATHS = 3  # before any worker was heard: then it is the set-up, not the trials
OBJECT_STORE_BYTES = 256 * 2**20  # of a local Ray: events are small, models and data are files


class RayTune:
    """Runs trials side by side.

    Args:
        slots: Trials at once; as many as the resources allow where None.
        cpus_per_trial, gpus_per_trial: Resources of one trial; fractions of a GPU share it.
        address: Of a cluster that is up ("auto", "10.0.0.1:6379"); None starts a local Ray and ends it after.
        trial_seconds: Time limit of a trial. A step that hangs beyond it costs the worker, not the search.
    """

    def __init__(
        self,
        slots: int | None = None,
        cpus_per_trial: float = 1,
        gpus_per_trial: float = 0,
        address: str | None = None,
        trial_seconds: float | None = None,
    ) -> None:
        if slots is not None and slots < 1:
            raise UsageError(f"executor.slots is 1 or more, not {slots}")
        if cpus_per_trial <= 0 or gpus_per_trial < 0:
            raise UsageError("executor.cpus_per_trial is above 0, and gpus_per_trial 0 or more")
        self.slots, self.cpus_per_trial, self.gpus_per_trial = slots, cpus_per_trial, gpus_per_trial
        self.address, self.trial_seconds = address, trial_seconds

    def run(self, search: Search, make_evaluate: MakeEvaluate) -> None:
        os.environ.update({name: value for name, value in ENVIRONMENT.items() if name not in os.environ})
        with self._ray() as slots:
            self._tune(search, make_evaluate, slots)

    def _tune(self, search: Search, make_evaluate: MakeEvaluate, slots: int) -> None:
        from ray import tune

        conversation = _Conversation(search, slots, self.trial_seconds)
        storage = tempfile.mkdtemp(prefix="autopeft-tune-")
        trainable = tune.with_parameters(_trainable(), make_evaluate=make_evaluate, trial_seconds=self.trial_seconds)
        try:
            with _quiet_ray():
                tune.run(
                    tune.with_resources(trainable, {"cpu": self.cpus_per_trial, "gpu": self.gpus_per_trial}),
                    name="search",
                    num_samples=-1,
                    storage_path=storage,
                    search_alg=_searcher(conversation),
                    scheduler=_scheduler(conversation),
                    max_concurrent_trials=0,
                    reuse_actors=True,
                    raise_on_failed_trial=False,
                    verbose=0,
                )
        finally:
            shutil.rmtree(storage, ignore_errors=True)
        if conversation.fault is not None:
            raise conversation.fault
        if not conversation.is_over:
            raise KeyboardInterrupt

    @contextlib.contextmanager
    def _ray(self) -> Iterator[int]:
        """Ray, started where it is not up; yields the number of slots."""
        import ray

        if self.address is not None and os.environ.get("RAY_AUTH_MODE") != "token":
            raise EnvironmentFault(
                "a Ray cluster runs any code that reaches it, so autopeft talks to one by token only: start it, and "
                "autopeft, with RAY_AUTH_MODE=token and the same RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH"
            )
        ours = not ray.is_initialized()
        if ours:
            self._start(ray)
        try:
            yield self._slots(ray)
        finally:
            if ours:
                ray.shutdown()

    def _start(self, ray: Any) -> None:
        common = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": True}
        import autopeft

        package = os.path.dirname(os.path.abspath(autopeft.__file__))
        if self.address is not None:
            try:
                ray.init(address=self.address, runtime_env={"py_modules": [package]}, **common)
            except (ConnectionError, RuntimeError, ValueError) as fault:
                raise EnvironmentFault(f"no Ray cluster at {self.address!r}: {str(fault).splitlines()[0]}") from fault
            return
        slots = self.slots or max(1, int((os.cpu_count() or 1) / self.cpus_per_trial))
        ray.init(
            num_cpus=max(1, round(slots * self.cpus_per_trial + 0.5)),
            include_dashboard=False,
            _node_ip_address="127.0.0.1",
            object_store_memory=OBJECT_STORE_BYTES,
            runtime_env={"env_vars": {"PYTHONPATH": os.pathsep.join([os.path.dirname(package), *_python_path()])}},
            **common,
        )

    def _slots(self, ray: Any) -> int:
        have = ray.cluster_resources()
        room = have.get("CPU", 0.0) / self.cpus_per_trial
        if self.gpus_per_trial:
            room = min(room, have.get("GPU", 0.0) / self.gpus_per_trial)
        if room < 1:
            raise EnvironmentFault(
                f"a trial asks for {self.cpus_per_trial:g} CPUs and {self.gpus_per_trial:g} GPUs, but Ray has only "
                f"{have.get('CPU', 0):g} CPUs and {have.get('GPU', 0):g} GPUs"
            )
        return int(room) if self.slots is None else min(self.slots, int(room))


class _Conversation:
    """Between Tune's calls and the search: which Tune trial is which of ours, and what went wrong on the way."""

    def __init__(self, search: Search, slots: int, trial_seconds: float | None) -> None:
        self.search, self.slots, self.trial_seconds = search, slots, trial_seconds
        self.running: dict[str, tuple[Trial, float]] = {}
        self.fault: BaseException | None = None
        self.is_over = False  # the search has no more trials to give
        self.deaths: int | None = 0  # of workers before the first word from any; None from then on

    def guarded(self, call: Callable[[], Any], instead: Any) -> Any:
        """Tune would take an exception of ours for a trial's: it is kept, and ends the run."""
        if self.fault is not None:
            return instead
        try:
            return call()
        except BaseException as fault:
            self.fault = fault
            return instead

    def ask(self, trial_id: str) -> Trial | str | None:
        """A trial; None while all slots are busy: Tune asks ahead, which would change what the sampler knows."""
        if len(self.running) >= self.slots:
            return None
        trial = self.search.ask()
        if trial is None:
            self.is_over = True
            return "FINISHED"
        self.running[trial_id] = (trial, time.monotonic())
        return trial

    def report(self, trial_id: str, event: str) -> bool:
        data = json.loads(event)
        self.deaths = None
        if data["kind"] != "report":
            return True
        return self.search.report(self.running[trial_id][0], Report.from_json(data["report"]))

    def tell(self, trial_id: str, event: str | None) -> None:
        """How a Tune trial ended: by a result, stopped after a report, or with its worker."""
        trial, since = self.running.pop(trial_id)
        if event is None:
            self._note_death()
            self.search.tell(Result(trial, Status.FAILED, error=self._why_lost(time.monotonic() - since)))
            return
        self.deaths = None
        data = json.loads(event)
        if data["kind"] == "fault":
            raise pickle.loads(base64.b64decode(data["fault"]))  # noqa: S301  (from our own worker)
        if data["kind"] == "report":
            self.search.tell(Result(trial, Status.STOPPED, data["report"]["metrics"]))
        else:
            self.search.tell(Result.from_json(data["result"]))

    def _note_death(self) -> None:
        if self.deaths is not None:
            self.deaths += 1
            if self.deaths == MOST_SILENT_DEATHS:
                raise EnvironmentFault(
                    f"{self.deaths} Ray workers died before they could say a word; their logs say why: "
                    "/tmp/ray/session_latest/logs/worker-*.err on their nodes"
                )

    def _why_lost(self, seconds: float) -> str:
        if self.trial_seconds is not None and seconds >= self.trial_seconds:
            return f"over its time limit of {self.trial_seconds:g} s: a step hung, and its worker was ended"
        return "its worker died: killed, crashed, or ended for memory by the system"


def _searcher(conversation: _Conversation) -> Any:
    from ray.tune.search import Searcher

    class _Searcher(Searcher):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__(metric="training_iteration", mode="max")  # Tune wants one; the search has its own

        def suggest(self, trial_id: str) -> Any:
            trial = conversation.guarded(lambda: conversation.ask(trial_id), "FINISHED")
            if trial is None:
                return None
            return Searcher.FINISHED if trial == "FINISHED" else {"trial": json.dumps(trial.to_json())}

        def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
            if trial_id in conversation.running:
                event = None if error or not result else result["event"]
                conversation.guarded(lambda: conversation.tell(trial_id, event), None)

        def set_search_properties(self, metric: Any, mode: Any, config: Any, **spec: Any) -> bool:
            return True

        def save(self, checkpoint_path: str) -> None:
            """Nothing: the ledger has it."""

        def restore(self, checkpoint_path: str) -> None:
            """Nothing: the ledger has it."""

    return _Searcher()


def _scheduler(conversation: _Conversation) -> Any:
    from ray.tune.schedulers import FIFOScheduler, TrialScheduler

    class _Scheduler(FIFOScheduler):  # type: ignore[misc]
        def on_trial_result(self, tune_controller: Any, trial: Any, result: Any) -> str:
            event = result["event"]
            stop = conversation.guarded(lambda: conversation.report(trial.trial_id, event), True)
            return TrialScheduler.STOP if stop else TrialScheduler.CONTINUE

    return _Scheduler()


def _trainable() -> Any:
    from ray.tune import Trainable

    class Actor(Trainable):  # type: ignore[misc]
        """Serves trial after trial; loads model and data once."""

        def setup(self, config: dict[str, Any], make_evaluate: MakeEvaluate, trial_seconds: float | None) -> None:
            self.trial_seconds, self.fault = trial_seconds, b""
            try:
                self.evaluate = make_evaluate(lambda: False)
            except Exception as fault:
                self.fault = pickle.dumps(fault)  # this node lacks something: the search ends, not just this trial
            self.reset_config(config)

        def reset_config(self, config: dict[str, Any]) -> bool:
            self.events = None if self.fault else self.evaluate(Trial.from_json(json.loads(config["trial"])))
            self.deadline = None
            if self.trial_seconds is not None:
                self.deadline = time.monotonic() + self.trial_seconds + GRACE_SECONDS
            return True

        def step(self) -> dict[str, Any]:
            try:
                if self.fault:
                    raise pickle.loads(self.fault)  # noqa: S301  (our own, from `setup`)
                with self._watched():
                    event = next(self.events)
            except Exception as fault:  # evaluate keeps its own: this one ends the run, as it does in `serial`
                text = base64.b64encode(pickle.dumps(fault)).decode()
                return {"event": json.dumps({"kind": "fault", "fault": text}), "done": True}
            if isinstance(event, Result):
                return {"event": json.dumps({"kind": "result", "result": event.to_json()}), "done": True}
            return {"event": json.dumps({"kind": "report", "report": event.to_json()}), "done": False}

        @contextlib.contextmanager
        def _watched(self) -> Iterator[None]:
            """Ends this process when the step outlasts the trial's time limit: nothing else can end what hangs."""
            if self.deadline is None:
                yield
                return
            watchdog = threading.Timer(max(0.0, self.deadline - time.monotonic()), os._exit, args=(1,))
            watchdog.daemon = True
            watchdog.start()
            try:
                yield
            finally:
                watchdog.cancel()

        def save_checkpoint(self, checkpoint_dir: str) -> None:
            """Nothing: trained tensors go to the run's folder."""

        def load_checkpoint(self, checkpoint: Any) -> None:
            """Nothing to load."""

    return Actor


def _python_path() -> list[str]:
    return [part for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part]


@contextlib.contextmanager
def _quiet_ray() -> Iterator[None]:
    """Without Tune's notices: what happens is in the ledger, and trackers show it."""
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
