"""A finding of `autopeft doctor`: what was looked at, how it is, and what to do."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, Protocol, get_args, runtime_checkable

State = Literal["ok", "warn", "fail"]


@dataclass(frozen=True, slots=True)
class Finding:
    """How one thing is.

    Attributes:
        name: What was looked at: "memory", "MLflow".
        state: "ok"; "warn" if a search runs, but slower, or less protected, or if it is not known; "fail" if it does not.
        text: What was found.
        todo: What to do about it; empty only if the state is ok.
    """

    name: str
    state: State
    text: str
    todo: str = ""

    def __post_init__(self) -> None:
        if self.state not in get_args(State):
            raise ValueError(f"a finding is one of {', '.join(get_args(State))}, not {self.state!r}")
        if self.state != "ok" and not self.todo:
            raise ValueError(f"{self.name}: a finding that is not ok says what to do")


@runtime_checkable
class Diagnosed(Protocol):
    """An executor or a tracker that `autopeft doctor` can look at."""

    def diagnose(self) -> Iterable[Finding]:
        """Yields findings, within a minute or so. Changes nothing."""


def worst(findings: Iterable[Finding]) -> State:
    """Returns the worst state of all; ok if there is none."""
    states = {finding.state for finding in findings}
    return "fail" if "fail" in states else "warn" if "warn" in states else "ok"
