"""Workers of Ray Tune that each hold a whole GPU and many trials: one base in its memory, trials side by side.

To Tune, a trial is the stay of a worker, and Tune's config holds the first trials of that stay. A step of the worker
returns the events of some of our trials. Before the next step the driver says which trials leave and which join. Calls
of one driver to one worker run in their order, so nothing is lost between two steps.

If a worker dies, its trials begin again, each in a worker of its own, as nobody knows whose fault it was. A trial that
was alone when its worker died is told as failed.
"""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from autopeft.errors import AutoPEFTError, UsageError
from autopeft.executors import MakeEvaluate, Packing
from autopeft.executors._actor import Files, LateNode, event_of, files_of, pack, placed, unpack
from autopeft.executors._nodes import Luggage
from autopeft.executors._tune import GRACE_SECONDS, MOST_TRIES, Bridge, kill, why_died
from autopeft.trial import MACHINE, Report, Result, Status, Trial

TURN_SECONDS = 5.0  # after so long without an event, a worker returns to say that it is alive


def require_packing(make_evaluate: MakeEvaluate) -> None:
    """Raises UsageError if trials cannot share a worker."""
    given = make_evaluate.portable if isinstance(make_evaluate, Luggage) else make_evaluate
    if not isinstance(given, Packing):
        raise UsageError("this evaluate trains one trial at a time: leave out executor.trials_per_worker")


def pack_actor_class() -> Any:
    """Makes the trainable class in a function, so that Ray is imported only if it is used."""
    from ray.tune import Trainable

    class PackActor(Trainable):  # type: ignore[misc]
        """Serves many trials side by side. `setup` receives `make_evaluate`; each config holds the first trials."""

        def setup(self, config: Mapping[str, Any], make_evaluate: MakeEvaluate) -> None:
            self.fault, self.late, self.pack = "", "", None
            self.luggage = make_evaluate if isinstance(make_evaluate, Luggage) else None
            try:
                assert isinstance(make_evaluate, Packing)
                self.pack = make_evaluate.pack(lambda: False)  # a worker is ended by ending its process
            except Exception as fault:
                if self.luggage is not None and self.luggage.is_late():
                    self.late = f"{type(fault).__name__}: {fault}".splitlines()[0]
                else:
                    self.fault = pack(placed(fault, self.luggage))
            self.begin(config)

        def reset_config(self, config: Mapping[str, Any]) -> bool:
            self.begin(config)
            return True

        def begin(self, config: Mapping[str, Any]) -> None:
            self.is_started = False
            self.change([], config["trials"], config["is_open"])

        def change(self, leave: Sequence[str], join: Sequence[str], is_open: bool) -> None:
            """Ends and adds trials, each as JSON. A fault is reported by the next step.

            Args:
                is_open: Whether this worker gets more trials while its memory has room.
            """
            self.is_open = is_open
            if self.fault or self.pack is None:
                return
            try:
                for text in leave:
                    self.pack.leave(Trial.from_json(json.loads(text)))
                for text in join:
                    self.pack.join(Trial.from_json(json.loads(text)))
            except Exception as fault:
                self.fault = pack(placed(fault, self.luggage))

        def has_room(self) -> bool:
            """Whether memory holds one more trial, and the driver may have one."""
            return self.is_open and self.pack is not None and self.pack.has_room()

        def step(self) -> dict[str, Any]:
            if self.late:
                raise LateNode(self.late)  # this worker ends, and its trials go to another one
            try:
                if self.fault or self.pack is None:
                    return event_of("fault", fault=self.fault)
                if not self.is_started:
                    self.is_started = True
                    return event_of("started")
                end = time.monotonic() + TURN_SECONDS
                events = self.pack.advance(lambda: time.monotonic() > end or self.has_room())
                has_room = self.has_room()
                if not events and time.monotonic() < end and not has_room:
                    raise AutoPEFTError("the pack ended without results: that is a bug in it")
                results = [event for _, event in events if isinstance(event, Result)]
                told = [event.to_json() for event in results]
                reports = [[trial.number, event.to_json()] for trial, event in events if isinstance(event, Report)]
                ended = [event.trial.number for event in results]
                return event_of("events", results=told, reports=reports, has_room=has_room) | files_of(
                    ended, self.luggage
                )
            except Exception as fault:
                return event_of("fault", fault=pack(placed(fault, self.luggage)))

        def save_checkpoint(self, checkpoint_dir: str) -> None:
            """Does nothing: trained tensors go to the run's folder."""

        def load_checkpoint(self, checkpoint: Any) -> None:
            """Does nothing: there is nothing to load."""

    return PackActor


@dataclass
class Stay:
    """A worker from its first trials to the end of its last one.

    Attributes:
        trials: Its trials by number.
        is_alone: Whether it holds one trial only, which was with others when their worker died.
        since: Time at which it held model and data; None before.
        heard: Time of its last event; None before the first one.
        tries: Number of workers that its first trials were given.
        why_killed: Reason why we ended it; empty if we did not.
    """

    trials: dict[int, Trial]
    is_alone: bool = False
    since: float | None = None
    heard: float | None = None
    tries: int = 1
    why_killed: str = ""


class PackBridge(Bridge):
    """Maps Tune's trials to stays of workers, and trials to stays.

    Args:
        each: Most trials of one worker; "auto" for as many as its memory holds.
        most_trials: Most trials of all workers; None for no bound.
        given: Arguments of `Bridge`; its slots are workers.
    """

    def __init__(self, each: int | Literal["auto"], most_trials: int | None, *given: Any) -> None:
        super().__init__(*given)
        self.each, self.most_trials = None if isinstance(each, str) else each, most_trials
        self.running: dict[str, Stay] = {}
        self._again: deque[Stay] = deque()  # whose worker died: each for a worker of its own

    def suggest(self, tune_id: str) -> dict[str, Any] | None:
        if len(self.running) >= self.slots:
            return None
        if self._again:
            stay = self._again.popleft()
        else:
            stay = Stay({trial.number: trial for trial in self._asked(self.each or 1)})
        if not stay.trials:
            return None
        self.running[tune_id] = stay
        if self._first_ask is None and not self._has_begun:
            self._first_ask = time.monotonic()
        return {"trials": [_text(trial) for trial in stay.trials.values()], "is_open": self._is_open(stay)}

    def _is_open(self, stay: Stay) -> bool:
        """Whether a worker gets more trials while its memory has room."""
        is_full = self.most_trials is not None and self._n_running >= self.most_trials
        return self.each is None and not stay.is_alone and not self._is_asked_out and not is_full

    @property
    def _n_running(self) -> int:
        return sum(len(stay.trials) for stay in self.running.values())

    def _asked(self, most: int) -> list[Trial]:
        """Asks the search for at most so many trials."""
        if self.most_trials is not None:
            most = min(most, self.most_trials - self._n_running)
        trials: list[Trial] = []
        while len(trials) < most and not self._is_asked_out:
            trial = self.search.ask()
            if trial is None:
                self._is_asked_out = True
            else:
                trials.append(trial)
        return trials

    def is_over(self) -> bool:
        return self._is_asked_out and not self._again and not self.running

    def hear(self, tune_trial: Any, result: Mapping[str, Any]) -> bool:
        """Takes the events of a worker's step, and says which trials leave it and which join. Ends it if it is empty."""
        data, stay = json.loads(result["event"]), self.running[tune_trial.trial_id]
        stay.heard = time.monotonic()
        if data["kind"] == "started":
            stay.since = stay.heard
            self._silent_deaths, self._has_begun = 0, True
            return False
        if "files" in result:
            super().receive(result["files"])
        leave = []
        for told in map(Result.from_json, data["results"]):
            del stay.trials[told.trial.number]
            self.search.tell(told)
        for number, report in data["reports"]:
            trial, given = stay.trials[number], Report.from_json(report)
            if self.search.report(trial, given):
                leave.append(stay.trials.pop(number))
                self.search.tell(Result.stopped(trial, given))
        room = int(data["has_room"]) if self.each is None else self.each - len(stay.trials)
        was_open, join = self._is_open(stay), [] if stay.is_alone else self._asked(max(room, int(not stay.trials)))
        stay.trials.update({trial.number: trial for trial in join})
        if leave or join or was_open != self._is_open(stay):
            texts = [list(map(_text, trials)) for trials in (leave, join)]
            tune_trial.temporary_state.ray_actor.change.remote(*texts, self._is_open(stay))
        if not stay.trials:
            del self.running[tune_trial.trial_id]
        return not stay.trials

    def tell(self, tune_id: str, event: str) -> None:
        """Takes a worker's last event, which is a fault: a worker without one is ended by `hear`."""
        self.running.pop(tune_id)
        raise unpack(json.loads(event)["fault"])

    def lose(self, tune_id: str, fault: BaseException | None) -> None:
        """Handles the trials of a worker that has died: each begins again alone, unless it was alone already.

        If the user interrupts, nothing is told.
        """
        stay = self.running.pop(tune_id)
        if self.interrupts:
            return
        if stay.since is None:
            self.count_silent_death(fault)
        if stay.since is None and stay.tries < MOST_TRIES:
            self._again.append(Stay(stay.trials, stay.is_alone, tries=stay.tries + 1))
            return
        if len(stay.trials) > 1:
            self._again += [Stay({number: trial}, is_alone=True) for number, trial in stay.trials.items()]
            return
        why = stay.why_killed or f"its worker died: {why_died(fault)}"
        blame = "" if stay.why_killed else MACHINE
        for trial in stay.trials.values():
            self.search.tell(Result(trial, Status.FAILED, error=why, fault=blame))

    def receive(self, files: Files) -> None:
        """Does nothing: `hear` took the files before it told the results."""

    def _prepare(self) -> None:
        held = self._n_running
        most = held if self.each is None else self.each * self.slots
        if held > 1 and held >= min(most, self.most_trials or most):
            self.guarded(lambda: self.search.prepare(held), None)

    def end_what_hangs(self, tune_trials: Sequence[Any], trial_seconds: float) -> None:
        """Ends workers that have said nothing for a trial's time limit: one of their trials hangs in a step."""
        latest = time.monotonic() - trial_seconds - GRACE_SECONDS - TURN_SECONDS
        for tune_id, stay in self.running.items():
            if stay.since is not None and stay.heard is not None and stay.heard < latest and not stay.why_killed:
                stay.why_killed = f"over its time limit of {trial_seconds:g} s in one step, and its worker was ended"
                kill(next(trial for trial in reversed(tune_trials) if trial.trial_id == tune_id))


def _text(trial: Trial) -> str:
    return json.dumps(trial.to_json())
