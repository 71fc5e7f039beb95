"""What runs in a Ray worker: a Tune trainable that loads model and data once and serves trial after trial.

A step returns its event as one JSON string under `event`, as Tune flattens anything else. If the node does not share
the driver's disk, a result also has `files`, name → bytes. Kinds of events:

started   the worker holds model and data, and begins with this trial
phase     what the trial does now: `phase`
report    a rung: `report`
result    the end: `result`
fault     an exception that the trial did not cause: `fault`, pickled. It ends the run, as it does in `serial`
"""

from __future__ import annotations

import base64
import errno
import json
import os
import pickle
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from autopeft.errors import AutoPEFTError, EnvironmentFault
from autopeft.executors import MakeEvaluate
from autopeft.executors._nodes import Luggage
from autopeft.trial import Phase, Report, Result, Trial


class LateNode(Exception):
    """The worker's node joined while trials ran, and cannot run trials."""


def actor_class() -> Any:
    """Makes the trainable class in a function, so that Ray is imported only if it is used."""
    from ray.tune import Trainable

    class Actor(Trainable):  # type: ignore[misc]
        """Serves trials. `setup` receives `make_evaluate`; each config holds one trial, as JSON."""

        def setup(self, config: Mapping[str, Any], make_evaluate: MakeEvaluate) -> None:
            self.fault, self.late = "", ""
            self.events: Iterator[Report | Result | Phase] = iter(())
            self.luggage = make_evaluate if isinstance(make_evaluate, Luggage) else None
            try:
                self.evaluate = make_evaluate(lambda: False)  # a trial is ended by ending its worker
            except Exception as fault:
                if self.luggage is not None and self.luggage.is_late():
                    self.late = f"{type(fault).__name__}: {fault}".splitlines()[0]
                else:
                    # This node lacks something: the first step reports it, and the run ends.
                    self.fault = pack(placed(fault, self.luggage))
            self.begin(config)

        def reset_config(self, config: Mapping[str, Any]) -> bool:
            self.begin(config)
            return True

        def begin(self, config: Mapping[str, Any]) -> None:
            self.trial, self.is_started = Trial.from_json(json.loads(config["trial"])), False
            self.close()  # frees the memory of a stopped trial before the next one begins

        def close(self) -> None:
            if hasattr(self.events, "close"):
                self.events.close()

        def step(self) -> dict[str, Any]:
            if self.late:
                raise LateNode(self.late)  # this worker ends, and its trial goes to another one
            try:
                if self.fault:
                    return event_of("fault", fault=self.fault)
                if not self.is_started:
                    self.is_started, self.events = True, self.evaluate(self.trial)
                    return event_of("started")
                event = next(self.events, None)
                if event is None:
                    number = self.trial.number
                    raise AutoPEFTError(f"evaluate ended trial {number} without a result: that is a bug in it")
                if isinstance(event, Phase):
                    return event_of("phase", phase=event)
                if not isinstance(event, Result):
                    return event_of("report", report=event.to_json())
                self.close()
                return event_of("result", result=event.to_json()) | files_of([event.trial.number], self.luggage)
            except Exception as fault:
                return event_of("fault", fault=pack(placed(fault, self.luggage)))

        def save_checkpoint(self, checkpoint_dir: str) -> None:
            """Does nothing: trained tensors go to the run's folder."""

        def load_checkpoint(self, checkpoint: Any) -> None:
            """Does nothing: there is nothing to load."""

    return Actor


@dataclass(frozen=True)
class Files:
    """Files that a node sends with results: trial number → name → bytes. Not a plain dict, as Tune would flatten it."""

    contents: Mapping[int, Mapping[str, bytes]]


def files_of(numbers: Sequence[int], luggage: Luggage | None) -> dict[str, Files]:
    """Returns the entry of an event with the files that this node kept of ended trials; empty if there are none."""
    contents = {number: files for number in numbers if luggage is not None and (files := luggage.send(number))}
    return {"files": Files(contents)} if contents else {}


def placed(fault: Exception, luggage: Luggage | None) -> Exception:
    """Names the node in a fault of the machine, such as a full disk, if this is a node of a cluster."""
    if luggage is None:
        return fault
    if isinstance(fault, OSError):
        text = f"{fault.strerror or fault}{f' ({fault.filename})' if fault.filename else ''}"
    elif isinstance(fault, EnvironmentFault) or os.strerror(errno.ENOSPC) in str(fault):  # safetensors has its own type
        text = str(fault)
    else:
        return fault
    import ray

    context = ray.get_runtime_context()
    named = EnvironmentFault(f"node {ray.util.get_node_ip_address()} ({context.get_node_id()[:8]}): {text}")
    named.__cause__ = fault
    return named


def pack(fault: Exception) -> str:
    """Encodes an exception as text, with the worker's traceback as its note."""
    fault.add_note("In the worker:\n" + "".join(traceback.format_exception(fault)))
    try:
        data = pickle.dumps(fault)
        pickle.loads(data)  # noqa: S301  (some exceptions can be pickled but not unpickled)
    except Exception:
        data = pickle.dumps(AutoPEFTError(f"in a worker: {type(fault).__name__}: {fault}"))
    return base64.b64encode(data).decode()


def unpack(text: str) -> Exception:
    """Decodes the exception. The text comes from our own worker, over Ray's authenticated connection."""
    fault: Exception = pickle.loads(base64.b64decode(text))  # noqa: S301
    return fault


def event_of(kind: str, **data: Any) -> dict[str, Any]:
    return {"event": json.dumps({"kind": kind, **data}), "done": kind in ("result", "fault")}
