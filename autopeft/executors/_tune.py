"""Between Tune and a conversation: Tune's searcher, scheduler and callback, and the state that they share."""

from __future__ import annotations

import contextlib
import json
import pickle
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from autopeft.errors import EnvironmentFault
from autopeft.executors import Conversation
from autopeft.executors._actor import Files, LateNode, unpack
from autopeft.executors._head import Head, HeadGone
from autopeft.executors._late import Newcomers
from autopeft.executors._local import INSTEAD
from autopeft.executors._nodes import Luggage
from autopeft.trial import MACHINE, Phase, Report, Result, Status, Trial

# `evaluate` checks a trial's time limit between steps. If a step goes on for so long after it, its worker is ended.
GRACE_SECONDS = 5.0
# If so many workers in a row die before they hold model and data, the set-up is wrong, not the trials.
MOST_SILENT_DEATHS = 3
MOST_TRIES = 3  # for a trial whose workers end before they begin with it
SILENT_SECONDS = 15.0  # until a message says that no worker has begun yet


class Ended(Exception):
    """Ends Tune's run before the search is over. The bridge knows the reason."""


class Left(BaseException):
    """Ends Tune's run where Tune can clean nothing up, as Ray no longer answers. Tune catches Exceptions only."""


@dataclass
class Running:
    """A trial that was asked for and has no result yet.

    Attributes:
        trial: The trial.
        since: Time at which its worker began with it; None before.
        clock: Start of its time limit; None while it does not train.
        tries: Number of workers that it was given.
        why_killed: Reason why we ended its worker; empty if we did not.
    """

    trial: Trial
    since: float | None = None
    clock: float | None = None
    tries: int = 1
    why_killed: str = ""


class Bridge:
    """Maps Tune's trials to ours, and decides if the run has to end.

    Args:
        search: The conversation that the run serves.
        slots: Trials at once.
        trial_seconds: Time limit of a trial; None for none.
        interrupts: Grows with each Ctrl-C, and with SIGTERM.
        luggage: Receives files from nodes that do not share the driver's disk; None if all share it.
        newcomers: Knows the slots of nodes that come and go; None on one machine.
        most_slots: Most slots, with new nodes.
        head: Looks for the head of a cluster; None on one machine.

    Attributes:
        fault: Reason why the run ends before the search is over; None if there is none.
    """

    def __init__(
        self,
        search: Conversation,
        slots: int,
        trial_seconds: float | None,
        interrupts: Sequence[int],
        luggage: Luggage | None = None,
        newcomers: Newcomers | None = None,
        most_slots: int | None = None,
        head: Head | None = None,
    ) -> None:
        self.head = head
        self.luggage, self.newcomers, self.most_slots = luggage, newcomers, most_slots
        self.search, self.slots, self.trial_seconds, self.interrupts = search, slots, trial_seconds, interrupts
        self.running: dict[str, Any] = {}
        self.fault: BaseException | None = None
        self._silent_deaths = 0
        self._again: deque[Any] = deque()  # trials whose worker ended before it began with them
        self._is_asked_out = False
        self._has_begun = False  # whether some worker has begun, or a message said that none has
        self._first_ask: float | None = None

    def guarded(self, call: Callable[[], Any], instead: Any) -> Any:
        """Keeps an exception of ours, and ends the run. Tune would take it for a trial's fault, and go on."""
        if self.fault is not None:
            return instead
        try:
            return call()
        except BaseException as fault:
            self.fault = fault
            return instead

    def suggest(self, tune_id: str) -> dict[str, Any] | None:
        """Returns the config of Tune's next trial; None while there is none, or if there are no more."""
        trial = self.ask(tune_id)
        return None if trial is None else {"trial": json.dumps(trial.to_json())}

    def hear(self, tune_trial: Any, result: Mapping[str, Any]) -> bool:
        """Takes what a worker's step returned. Returns whether Tune should end its trial here."""
        return self.report(tune_trial.trial_id, result["event"])

    def ask(self, tune_id: str) -> Trial | None:
        """Returns the next trial; None while all slots are busy, or while a trial may still need another worker."""
        if len(self.running) >= self.slots:
            return None  # Tune asks too early: the sampler would not know the latest results
        if self._again:
            again: Running = self._again.popleft()
            self.running[tune_id] = again
            return again.trial
        trial = None if self._is_asked_out else self.search.ask()
        if trial is None:
            self._is_asked_out = True
            return None
        self.running[tune_id] = Running(trial)
        if self._first_ask is None and not self._has_begun:
            self._first_ask = time.monotonic()
        return trial

    def is_over(self) -> bool:
        """Whether there are no more trials: all were asked for, and each has begun with its worker."""
        begun = all(running.since is not None for running in self.running.values())
        return self._is_asked_out and not self._again and begun

    def report(self, tune_id: str, event: str) -> bool:
        """Takes an event that is not a trial's last one. Returns whether the trial should stop here."""
        data, running = json.loads(event), self.running[tune_id]
        if data["kind"] == "started":
            running.since = running.clock = time.monotonic()
            self._silent_deaths, self._has_begun = 0, True
            return False
        if data["kind"] == "phase":
            running.clock = time.monotonic() if data["phase"] == Phase.TRAINING else None
            return False
        return self.search.report(running.trial, Report.from_json(data["report"]))

    def receive(self, files: Files) -> None:
        """Takes the files that a node kept of ended trials, before their results are told."""
        assert self.luggage is not None, "only a worker with luggage sends files"
        for number, contents in files.contents.items():
            self.luggage.receive(number, contents)

    def tell(self, tune_id: str, event: str) -> None:
        """Tells the search how a trial ended: by a result, or stopped after a report."""
        data, running = json.loads(event), self.running.pop(tune_id)
        if data["kind"] == "fault":
            raise unpack(data["fault"])
        if data["kind"] == "result":
            self.search.tell(Result.from_json(data["result"]))
        else:
            self.search.tell(Result.stopped(running.trial, Report.from_json(data["report"])))

    def lose(self, tune_id: str, fault: BaseException | None) -> None:
        """Handles a trial whose worker has died. If the trial had begun, it is told as failed, and the search goes on.

        If the trial had not begun, it gets another worker, up to `MOST_TRIES`. If the user interrupts, nothing is told:
        a signal to all processes of a job ends the workers, too.
        """
        running = self.running.pop(tune_id)
        if self.interrupts:
            return
        why = running.why_killed or f"its worker died: {why_died(fault)}"
        if running.since is None:
            why = f"its worker died while it loaded model and data: {why_died(fault)}"
            self.count_silent_death(fault)
        if running.since is None and running.tries < MOST_TRIES:
            self._again.append(Running(running.trial, tries=running.tries + 1))
        else:
            blame = "" if running.why_killed else MACHINE  # a step that hangs is the trial's fault
            self.search.tell(Result(running.trial, Status.FAILED, error=why, fault=blame))

    def count_silent_death(self, fault: BaseException | None) -> None:
        """Counts a worker that died before it held model and data.

        Raises:
            EnvironmentFault: So many did in a row that the set-up must be wrong.
        """
        self._silent_deaths += LateNode.__name__ not in str(fault)  # a late node says nothing about other workers
        if self._silent_deaths >= MOST_SILENT_DEATHS:
            raise EnvironmentFault(
                f"{self._silent_deaths} Ray workers in a row died while they loaded model and data, the last one: "
                f"{why_died(fault)}. Their logs, on their nodes: session_latest/logs/worker-*.err in Ray's temporary "
                f"folder, /tmp/ray where it was not set. Where memory or time is short, {INSTEAD}"
            )

    def watch(self, tune_trials: Sequence[Any]) -> None:
        """Ends workers whose step hangs. Ends the run if it has to end."""
        if self.interrupts and self.fault is None:
            self.fault = KeyboardInterrupt()
        self._require_head()
        if self.fault is not None or self.search.is_out_of_time():
            for trial in tune_trials:
                kill(trial)
            raise Ended
        self._look_around()
        self._prepare()
        if self.trial_seconds is not None:
            self.end_what_hangs(tune_trials, self.trial_seconds)

    def _require_head(self) -> None:
        """Leaves the run if the head of the cluster is gone."""
        if self.head is not None:
            try:
                self.head.require()
            except HeadGone as fault:
                self.fault = fault
                raise Left from fault

    def _prepare(self) -> None:
        """Lets the search compute proposals ahead while all slots are busy."""
        if 1 < self.slots <= len(self.running):
            self.guarded(lambda: self.search.prepare(self.slots), None)

    def end_what_hangs(self, tune_trials: Sequence[Any], trial_seconds: float) -> None:
        """Ends the worker of a trial whose step goes on beyond its time limit."""
        latest = time.monotonic() - trial_seconds - GRACE_SECONDS
        for tune_id, running in self.running.items():
            if running.clock is not None and running.clock < latest and not running.why_killed:
                running.why_killed = (
                    f"over its time limit of {trial_seconds:g} s: a step went on for {GRACE_SECONDS:g} s beyond "
                    "it, and its worker was ended"
                )
                kill(next(trial for trial in reversed(tune_trials) if trial.trial_id == tune_id))

    def _look_around(self) -> None:
        """Updates the slots as nodes come and go. Writes a message if workers are slow to begin."""
        slots = self.newcomers.slots() if self.newcomers is not None else None
        if slots is not None:
            self.slots = max(1, slots if self.most_slots is None else min(slots, self.most_slots))
        if not self._has_begun and self._first_ask is not None and time.monotonic() - self._first_ask > SILENT_SECONDS:
            self._has_begun = True
            others = "" if self.newcomers is None else ", or wait for what other jobs of the cluster hold"
            print(f"Ray's workers are still starting, or load model and data{others}", file=sys.stderr, flush=True)


def searcher(bridge: Bridge) -> Any:
    """Makes Tune's searcher, which asks and tells."""
    from ray.tune.search import Searcher

    class _Searcher(Searcher):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__(metric="training_iteration", mode="max")  # Tune requires a metric; the search has its own

        def suggest(self, trial_id: str) -> Any:
            config = bridge.guarded(lambda: bridge.suggest(trial_id), None)
            if config is not None:
                return config
            return Searcher.FINISHED if bridge.fault is not None or bridge.is_over() else None

        def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
            if trial_id in bridge.running:  # if not, the scheduler has handled its worker's death
                bridge.guarded(lambda: bridge.tell(trial_id, result["event"]), None)

        def set_search_properties(self, metric: Any, mode: Any, config: Any, **spec: Any) -> bool:
            return True

        def save(self, checkpoint_path: str) -> None:
            """Does nothing: the ledger holds the state."""

        def restore(self, checkpoint_path: str) -> None:
            """Does nothing: the ledger holds the state."""

    return _Searcher()


def scheduler(bridge: Bridge) -> Any:
    """Makes Tune's scheduler, which reports, and handles workers that die."""
    from ray.tune.schedulers import FIFOScheduler, TrialScheduler

    class _Scheduler(FIFOScheduler):  # type: ignore[misc]
        def choose_trial_to_run(self, tune_controller: Any) -> None:
            """Chooses none: Tune then gives a free worker to a trial that has none.

            By default a trial whose own worker still loads would take it, and its own would be ended. With trials that
            are shorter than loading, a node that joins would never get to its first trial.
            """

        def on_trial_result(self, tune_controller: Any, trial: Any, result: Any) -> Any:
            stop = bridge.guarded(lambda: bridge.hear(trial, result), True)
            return TrialScheduler.STOP if stop else TrialScheduler.CONTINUE

        def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
            bridge.guarded(lambda: bridge.lose(trial.trial_id, _fault_of(trial)), None)

    return _Scheduler()


def watch(bridge: Bridge) -> Any:
    """Makes Tune's callback. It watches the run ten times a second or more, and takes files before Tune stores them."""
    from ray.tune import Callback

    class _Watch(Callback):  # type: ignore[misc]
        def on_step_begin(self, iteration: int, trials: Sequence[Any], **info: Any) -> None:
            bridge.watch(trials)

        def on_trial_result(self, iteration: int, trials: Sequence[Any], trial: Any, result: Any, **info: Any) -> None:
            files = result.pop("files", None)  # otherwise Tune would hold them to the end
            if files is not None:
                bridge.guarded(lambda: bridge.receive(files), None)

    return _Watch()


@contextlib.contextmanager
def faults_as_deaths() -> Iterator[None]:
    """Makes Tune take any fault of Ray in a worker's step for the worker's death, which costs one trial.

    By itself Tune ends the whole run where Ray's memory monitor ended a worker: that fault is no RayActorError.
    """
    from ray.air.execution._internal.actor_manager import RayActorManager
    from ray.exceptions import RayActorError, RayError, RayTaskError

    failed = RayActorManager._actor_task_failed

    def as_death(self: Any, tracked_actor_task: Any, exception: Exception) -> None:
        if isinstance(exception, RayError) and not isinstance(exception, (RayActorError, RayTaskError)):
            exception = RayActorError(error_msg=str(exception))
        failed(self, tracked_actor_task, exception)

    RayActorManager._actor_task_failed = as_death
    try:
        yield
    finally:
        RayActorManager._actor_task_failed = failed


def kill(tune_trial: Any) -> None:
    import ray

    actor = tune_trial.temporary_state.ray_actor
    if actor is not None:
        ray.kill(actor)


def _fault_of(tune_trial: Any) -> BaseException | None:
    """Reads the exception that Tune noted when the trial's worker died."""
    if not tune_trial.pickled_error_file:
        return None
    with open(tune_trial.pickled_error_file, "rb") as file:
        fault: BaseException = pickle.load(file)  # noqa: S301  (this process wrote it)
    return fault


def why_died(fault: BaseException | None) -> str:
    """Says in a few words why a worker died. Ray's own text has ten lines, with addresses and process numbers."""
    text = f"{type(fault).__name__}: {fault}"
    if "low on memory" in text or "OutOfMemory" in text:
        return "Ray ended it, as its node ran low on memory"
    if "ActorDiedError" in text or "ActorUnavailable" in text or "WorkerCrashed" in text:
        return "killed, crashed, or its node is gone"
    return text.splitlines()[0]
