"""Metrics of the user's own: Python functions that the config names, for any task that says what its answers mean.

    metrics:
      within_one: scores.py:within_one                                  # more is better
      cost: {function: my_package.scores:cost, goal: minimize}

A function gets the predictions and the true values, two lists with a value a row, as `predict` writes them; if it takes
three arguments, all columns of `predict` as well. It returns a number, or a number a row, whose mean is the score.

Code runs only where trials are scored: in `plan`, `search`, `resume` and `confirm`. `check` reads a file's text alone, and
`report`, `export` and `predict` run none. A file is read once, and its text travels to the workers.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import inspect
import types
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from functools import lru_cache
from numbers import Real
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from autopeft.errors import UsageError, did_you_mean
from autopeft.objectives import Goal
from autopeft.tasks import Columns, Kept, Scores, Task
from autopeft.tasks._generation import mean
from autopeft.trial import LARGEST

EXPECTED = "expected file.py:function or package.module:function"


@runtime_checkable
class Comparable(Protocol):
    """A task whose answers can be compared with true values, by a function that knows nothing of the task."""

    def truths(self, kept: Kept, targets: Columns, about: Mapping[str, Any]) -> Mapping[str, Sequence[Any]]:
        """Returns column of `answers` → its true values, one entry a row of the data; None where there is none."""

    def trivial_answers(
        self, train: Columns, targets: Columns, about: Mapping[str, Any], base: Callable[[], Kept]
    ) -> Mapping[str, Any]:
        """Returns the columns of `answers` for the baseline without learning (`Task.trivial`)."""


@dataclass(frozen=True, slots=True)
class OwnMetric:
    """A metric of the user's.

    Attributes:
        name: Its name among the metrics.
        function: `/folder/file.py:function` or `package.module:function`.
        goal: Whether more or less is better.
        source: Text of the file; None for a module, which each node must have.
    """

    name: str
    function: str
    goal: Goal
    source: str | None = None

    @staticmethod
    def read(name: str, function: str, goal: Goal) -> OwnMetric:
        """Reads the file of a metric. Runs nothing.

        Raises:
            UsageError: There is no such file.
        """
        place, _, _ = function.rpartition(":")
        if not place.endswith(".py"):
            return OwnMetric(name, function, goal)
        try:
            return OwnMetric(name, function, goal, Path(place).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as fault:
            raise UsageError(f"metrics.{name}: {place} cannot be read: {fault}") from fault

    @property
    def digest(self) -> str | None:
        """Hash of the file's text; None for a module."""
        return None if self.source is None else f"sha256:{hashlib.sha256(self.source.encode()).hexdigest()[:16]}"

    def load(self) -> Callable[..., Any]:
        """Runs the file, or imports the module, and returns the function.

        Raises:
            UsageError: There is no such function.
        """
        place, _, name = self.function.rpartition(":")
        if self.source is None:
            module = importlib.import_module(place)
        else:
            module = types.ModuleType(Path(place).stem)
            module.__file__ = place
            # The config names this file as its own code; nothing else gets here.
            exec(compile(self.source, place, "exec"), module.__dict__)  # noqa: S102
        found = getattr(module, name, None)
        if not callable(found):
            raise UsageError(f"metrics.{self.name}: {place} has no function {name!r}")
        function: Callable[..., Any] = found
        return function


def metric_fault(function: Any) -> str | None:
    """Says what is wrong with a function's place: its form, a file, a name that the file lacks. Runs nothing."""
    place, _, name = function.rpartition(":") if isinstance(function, str) else ("", "", "")
    if not place or not name.isidentifier():
        return f"{EXPECTED}, got {function!r}"
    if not place.endswith(".py"):
        package = place.split(".")[0]
        try:
            is_there = importlib.util.find_spec(package) is not None
        except (ImportError, ValueError):
            is_there = False
        return None if is_there else f"there is no package {package!r} here; a file is written with .py"
    if not Path(place).is_file():
        return f"there is no file {Path(place).name!r} in {Path(place).parent}"
    try:
        names = _names_in(Path(place).read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError, ValueError) as fault:
        return f"{Path(place).name} is no Python file: {fault}"
    return None if name in names else f"{Path(place).name} has no {name!r}.{did_you_mean(name, names)}".rstrip(".")


def _names_in(source: str) -> list[str]:
    """Names what a module's text defines, imports or assigns at its top."""
    names: list[str] = []
    for statement in ast.parse(source).body:
        if isinstance(statement, (ast.FunctionDef, ast.ClassDef)):
            names.append(statement.name)
        elif isinstance(statement, (ast.Import, ast.ImportFrom)):
            names += [alias.asname or alias.name for alias in statement.names]
        elif isinstance(statement, (ast.Assign, ast.AnnAssign)):
            targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            names += [target.id for target in targets if isinstance(target, ast.Name)]
    return names


def scored_by(task: Task, metrics: Sequence[OwnMetric]) -> Task:
    """Returns the task with metrics of the user's beside its own. Loads none before something is scored.

    Raises:
        UsageError: The task says nothing that could be compared, or has a metric of that name.
    """
    if not metrics:
        return task
    if not isinstance(task, Comparable):
        raise UsageError(f"metrics: {type(task).__name__} does not say what its answers mean (`truths`)")
    twice = [metric.name for metric in metrics if metric.name in task.metrics]
    if twice:
        raise UsageError(f"metrics: the task has a metric {twice[0]!r} of its own: choose another name")
    made: Any = copy(task)
    # A class of its own, so that the result still is what the task's class is, protocols among it.
    made.__class__ = type(type(task).__name__, (Scored, type(task)), {})
    made.metrics = {**task.metrics, **{metric.name: metric.goal for metric in metrics}}
    made.own_metrics = tuple(metrics)
    scored: Task = made
    return scored


class Scored:
    """What a task becomes with metrics of the user's: `score` and `trivial` compute them, too."""

    own_metrics: tuple[OwnMetric, ...]

    def score(self: Any, kept: Kept, targets: Columns, about: Mapping[str, Any]) -> Scores:
        found: Scores = super().score(kept, targets, about)  # type: ignore[misc]
        return _with_own(self.own_metrics, found, self.answers(kept, about), self.truths(kept, targets, about))

    def trivial(
        self: Any, train: Columns, targets: Columns, about: Mapping[str, Any], base: Callable[[], Kept]
    ) -> Scores:
        """Scores the baseline.

        Raises:
            UsageError: A function of the user's fails: it would do so in each trial.
        """
        answers: list[Kept] = []

        def once() -> Kept:
            answers[:] = answers or [base()]
            return answers[0]

        found: Scores = super().trivial(train, targets, about, once)  # type: ignore[misc]
        try:
            kept = once() if self.calls_model else {}
            truths = self.truths(kept, targets, about)
            return _with_own(self.own_metrics, found, self.trivial_answers(train, targets, about, once), truths)
        except OwnMetricError as fault:
            raise UsageError(str(fault)) from fault


class OwnMetricError(Exception):
    """A function of the user's failed, or returned no number."""


def _with_own(
    metrics: Sequence[OwnMetric], found: Scores, answers: Mapping[str, Any], truths: Mapping[str, Sequence[Any]]
) -> Scores:
    """Adds the user's metrics to scores: of the rows that have a true value."""
    first = next(iter(truths.values()))
    rows = [row for row, value in enumerate(first) if value is not None]
    if not rows:
        return found  # nothing was generated
    picked = {name: [_plain(column[row]) for row in rows] for name, column in answers.items()}
    true = {name: [_plain(column[row]) for row in rows] for name, column in truths.items()}
    predicted = {name: picked[name] for name in true}
    given: list[Any] = [predicted, true] if len(true) > 1 else [*predicted.values(), *true.values()]
    values = {metric.name: _value(metric, given, picked, len(rows)) for metric in metrics}
    of_rows = {name: mean(value).to_json() for name, value in values.items() if isinstance(value, list)}
    scores = {name: mean(value).value if isinstance(value, list) else value for name, value in values.items()}
    detail = dict(found.detail)
    if of_rows:
        detail["row_scores"] = {**detail.get("row_scores", {}), **of_rows}
    return Scores({**found.metrics, **scores}, detail)


def _value(metric: OwnMetric, given: Sequence[Any], answers: Mapping[str, Any], n_rows: int) -> float | list[float]:
    """Calls a function. Returns its number, or its number a row."""
    where = f"metrics.{metric.name}: {metric.function}"
    try:
        function = _loaded(metric)
        value = function(*given, answers) if _takes_three(function) else function(*given)
    except UsageError:
        raise
    except Exception as fault:
        raise OwnMetricError(f"{where} fails: {type(fault).__name__}: {fault}") from fault
    if isinstance(value, (Real, np.number)) and not isinstance(value, bool) and abs(float(value)) <= LARGEST:
        return float(value)
    if isinstance(value, (list, tuple, np.ndarray)) and len(value) == n_rows:
        try:
            numbers = [float(each) for each in value]
        except (TypeError, ValueError):
            numbers = [float("nan")]
        if all(abs(number) <= LARGEST for number in numbers):
            return numbers
    raise OwnMetricError(
        f"{where} returns {value!r:.60}: expected a finite number of at most {LARGEST:g}, or a list of {n_rows} of them"
    )


@lru_cache
def _loaded(metric: OwnMetric) -> Callable[..., Any]:
    return metric.load()


def _takes_three(function: Callable[..., Any]) -> bool:
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    required = [
        parameter
        for parameter in inspect.signature(function).parameters.values()
        if parameter.kind in kinds and parameter.default is parameter.empty
    ]
    return len(required) > 2


def _plain(value: Any) -> Any:
    """Returns a number of numpy as one of Python."""
    return value.item() if isinstance(value, np.generic) else value
