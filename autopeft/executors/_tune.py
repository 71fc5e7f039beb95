"""Between Tune and a conversation: Tune's searcher, scheduler and callback, and the state that they share."""

from __future__ import annotations

import json
import pickle
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from autopeft.errors import EnvironmentFault
from autopeft.executors import Conversation
from autopeft.executors._actor import Files, LateNode, unpack
from autopeft.executors._late import Newcomers
from autopeft.executors._local import INSTEAD
from autopeft.executors._nodes import Luggage
from autopeft.trial import MACHINE, Phase, Report, Result, Status, Trial

# Beyond its time limit, which `evaluate` keeps between steps, a step may take so long before its worker is ended.
GRACE_SECONDS = 5.0
# So many workers in a row that die before they hold model and data: then it is the set-up, not the trials.
MOST_SILENT_DEATHS = 3
MOST_TRIES = 3  # of a trial whose workers end before they begin with it
SILENT_SECONDS = 15.0  # until it is said that no worker has begun yet


class Ended(Exception):
    """Flies through Tune when the run ends before the search is over; the bridge knows why."""


@dataclass
class Running:
    """A trial that was asked for and not told.

    Attributes:
        trial: The trial.
        since: When its worker began with it; None before.
        clock: From when its time limit counts; None while it does not train.
        tries: Workers that it was given.
        why_killed: Why we ended its worker; else empty.
    """

    trial: Trial
    since: float | None = None
    clock: float | None = None
    tries: int = 1
    why_killed: str = ""


class Bridge:
    """Which trial of Tune's is which of ours, and why the run has to end.

    Args:
        search: Asked, reported to and told.
        slots: Trials at once.
        trial_seconds: Time limit of a trial, None for none.
        interrupts: Grows with each Ctrl-C, and with SIGTERM.
        luggage: Takes what nodes send that do not share the driver's disk; None where all is on one.
        newcomers: Tells the slots of nodes that come and go; None on one machine.
        most_slots: That newcomers may make of it.

    Attributes:
        fault: Why the run ends before the search is over; None while it does not.
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
    ) -> None:
        self.luggage, self.newcomers, self.most_slots = luggage, newcomers, most_slots
        self.search, self.slots, self.trial_seconds, self.interrupts = search, slots, trial_seconds, interrupts
        self.running: dict[str, Running] = {}
        self.fault: BaseException | None = None
        self._silent_deaths = 0
        self._again: deque[Running] = deque()  # whose worker ended before it began
        self._is_asked_out = False
        self._has_begun = False  # some worker, or it was said that none has
        self._first_ask: float | None = None

    def guarded(self, call: Callable[[], Any], instead: Any) -> Any:
        """Tune takes an exception of ours for a trial's, and goes on: it is kept, and ends the run."""
        if self.fault is not None:
            return instead
        try:
            return call()
        except BaseException as fault:
            self.fault = fault
            return instead

    def ask(self, tune_id: str) -> Trial | None:
        """The next trial; None while all slots are busy, or while a trial may still need another worker."""
        if len(self.running) >= self.slots:
            return None  # Tune asks ahead, which would change what the sampler knows
        if self._again:
            self.running[tune_id] = self._again.popleft()
            return self.running[tune_id].trial
        trial = None if self._is_asked_out else self.search.ask()
        if trial is None:
            self._is_asked_out = True
            return None
        self.running[tune_id] = Running(trial)
        if self._first_ask is None and not self._has_begun:
            self._first_ask = time.monotonic()
        return trial

    def is_over(self) -> bool:
        """Whether no trial is to come: all were asked for, and each has begun with its worker."""
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

    def receive(self, tune_id: str, files: Files) -> None:
        """Takes what a node kept of a trial, before its result is told."""
        assert self.luggage is not None, "only a worker with luggage sends files"
        self.luggage.receive(self.running[tune_id].trial.number, files.contents)

    def tell(self, tune_id: str, event: str) -> None:
        """How a trial ended: by a result, or stopped after a report."""
        data, running = json.loads(event), self.running.pop(tune_id)
        if data["kind"] == "fault":
            raise unpack(data["fault"])
        if data["kind"] == "result":
            self.search.tell(Result.from_json(data["result"]))
        else:
            self.search.tell(Result(running.trial, Status.STOPPED, data["report"]["metrics"]))

    def lose(self, tune_id: str, fault: BaseException | None) -> None:
        """A trial whose worker is gone. One that had begun is told as failed, and the search goes on with another worker.

        One that had not begun is no worse than others: it gets another worker, so many times. Where the user
        interrupts, nothing is told: a signal that went to all processes of a job ended the worker, too.
        """
        running = self.running.pop(tune_id)
        if self.interrupts:
            return
        why = running.why_killed or f"its worker died: {_why_died(fault)}"
        if running.since is None:
            self._silent_deaths += LateNode.__name__ not in str(fault)  # that is no sign of how others fare
            why = f"its worker died while it loaded model and data: {_why_died(fault)}"
        if self._silent_deaths >= MOST_SILENT_DEATHS:
            raise EnvironmentFault(
                f"{self._silent_deaths} Ray workers in a row died while they loaded model and data, the last one: "
                f"{_why_died(fault)}. Their logs, on their nodes: session_latest/logs/worker-*.err in Ray's temporary "
                f"folder, /tmp/ray where it was not set. Where memory or time is short, {INSTEAD}"
            )
        if running.since is None and running.tries < MOST_TRIES:
            self._again.append(Running(running.trial, tries=running.tries + 1))
        else:
            blame = "" if running.why_killed else MACHINE  # a step that hangs is the trial's own
            self.search.tell(Result(running.trial, Status.FAILED, error=why, fault=blame))

    def watch(self, tune_trials: Sequence[Any]) -> None:
        """Ends workers whose step hangs, and the run where it has to end."""
        if self.interrupts and self.fault is None:
            self.fault = KeyboardInterrupt()
        if self.fault is not None or self.search.is_out_of_time():
            for trial in tune_trials:
                _kill(trial)
            raise Ended
        self._look_around()
        if 1 < self.slots <= len(self.running):
            self.guarded(lambda: self.search.prepare(self.slots), None)
        if self.trial_seconds is None:
            return
        latest = time.monotonic() - self.trial_seconds - GRACE_SECONDS
        for tune_id, running in self.running.items():
            if running.clock is not None and running.clock < latest and not running.why_killed:
                running.why_killed = (
                    f"over its time limit of {self.trial_seconds:g} s: a step went on for {GRACE_SECONDS:g} s beyond "
                    "it, and its worker was ended"
                )
                _kill(next(trial for trial in reversed(tune_trials) if trial.trial_id == tune_id))

    def _look_around(self) -> None:
        """Takes the slots of nodes that came or went, and says where workers are slow to begin."""
        slots = self.newcomers.slots() if self.newcomers is not None else None
        if slots is not None:
            self.slots = max(1, slots if self.most_slots is None else min(slots, self.most_slots))
        if not self._has_begun and self._first_ask is not None and time.monotonic() - self._first_ask > SILENT_SECONDS:
            self._has_begun = True
            print("Ray's workers are still starting, or load model and data", file=sys.stderr, flush=True)


def searcher(bridge: Bridge) -> Any:
    """Tune's view of ask and tell."""
    from ray.tune.search import Searcher

    class _Searcher(Searcher):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__(metric="training_iteration", mode="max")  # Tune wants one; the search has its own

        def suggest(self, trial_id: str) -> Any:
            trial = bridge.guarded(lambda: bridge.ask(trial_id), None)
            if trial is not None:
                return {"trial": json.dumps(trial.to_json())}
            return Searcher.FINISHED if bridge.fault is not None or bridge.is_over() else None

        def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
            if trial_id in bridge.running:  # else the scheduler heard that its worker died
                bridge.guarded(lambda: bridge.tell(trial_id, result["event"]), None)

        def set_search_properties(self, metric: Any, mode: Any, config: Any, **spec: Any) -> bool:
            return True

        def save(self, checkpoint_path: str) -> None:
            """Nothing: the ledger has it."""

        def restore(self, checkpoint_path: str) -> None:
            """Nothing: the ledger has it."""

    return _Searcher()


def scheduler(bridge: Bridge) -> Any:
    """Tune's view of report, and of workers that die."""
    from ray.tune.schedulers import FIFOScheduler, TrialScheduler

    class _Scheduler(FIFOScheduler):  # type: ignore[misc]
        def on_trial_result(self, tune_controller: Any, trial: Any, result: Any) -> Any:
            stop = bridge.guarded(lambda: bridge.report(trial.trial_id, result["event"]), True)
            return TrialScheduler.STOP if stop else TrialScheduler.CONTINUE

        def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
            bridge.guarded(lambda: bridge.lose(trial.trial_id, _fault_of(trial)), None)

    return _Scheduler()


def watch(bridge: Bridge) -> Any:
    """Looks around ten times a second or more, and takes files before Tune has them."""
    from ray.tune import Callback

    class _Watch(Callback):  # type: ignore[misc]
        def on_step_begin(self, iteration: int, trials: Sequence[Any], **info: Any) -> None:
            bridge.watch(trials)

        def on_trial_result(self, iteration: int, trials: Sequence[Any], trial: Any, result: Any, **info: Any) -> None:
            files = result.pop("files", None)  # else Tune would hold them to the end
            if files is not None:
                bridge.guarded(lambda: bridge.receive(trial.trial_id, files), None)

    return _Watch()


def _kill(tune_trial: Any) -> None:
    import ray

    actor = tune_trial.temporary_state.ray_actor
    if actor is not None:
        ray.kill(actor)


def _fault_of(tune_trial: Any) -> BaseException | None:
    """What Tune noted when the trial's worker was gone."""
    if not tune_trial.pickled_error_file:
        return None
    with open(tune_trial.pickled_error_file, "rb") as file:
        fault: BaseException = pickle.load(file)  # noqa: S301  (this process wrote it)
    return fault


def _why_died(fault: BaseException | None) -> str:
    """In a few words of ours: Ray's own text runs over ten lines, with addresses and process numbers."""
    text = f"{type(fault).__name__}: {fault}"
    if "low on memory" in text or "OutOfMemory" in text:
        return "Ray ended it, as its node ran low on memory"
    if "ActorDiedError" in text or "ActorUnavailable" in text or "WorkerCrashed" in text:
        return "killed, crashed, or its node is gone"
    return text.splitlines()[0]
