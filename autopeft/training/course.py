"""A trial's course: how many steps it takes, when it reports, what ends it, and what its result is."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Mapping

import numpy as np

from autopeft.tasks import Scores
from autopeft.training.setup import Setup
from autopeft.trial import LARGEST, Report, Result, Status, Trial, strange


class Course:
    """Follows one trial through its steps. The clock starts when the course is made.

    Args:
        setup: What all trials share.
        trial: The trial.
        n_rows: Number of rows of the training split.

    Attributes:
        total: Optimiser steps.
        rungs: The steps after which it reports.
    """

    def __init__(self, setup: Setup, trial: Trial, n_rows: int) -> None:
        self.setup, self.trial = setup, trial
        self.total = total_steps(setup, n_rows)
        self.rungs = rung_steps(setup.train.rungs, self.total)
        self._recent: deque[float] = deque(maxlen=max(8, self.total // 10))
        self._times = [time.monotonic()]

    def mark(self) -> None:
        """Notes the time at the end of a part: first of attaching, then of training."""
        self._times.append(time.monotonic())

    def again(self) -> None:
        """Begins the trial again. Its clock goes on."""
        self._recent.clear()
        del self._times[1:]

    def wait(self, seconds: float) -> None:
        """Takes off seconds in which the worker did not work for this trial."""
        self._times = [moment + seconds for moment in self._times]

    def failure(self, step: int, loss: float) -> Result | None:
        """Takes the loss of a step. Returns the trial's result if the trial ends here, else None."""
        if strange({"loss": loss}):
            return Result(
                self.trial, Status.FAILED, error=f"the training loss is {loss} at step {step} of {self.total}"
            )
        self._recent.append(loss)
        limit = self.setup.train.trial_seconds
        if limit is not None and time.monotonic() - self._times[0] > limit:
            return Result(
                self.trial, Status.FAILED, error=f"over its time limit of {limit:g} s at step {step} of {self.total}"
            )
        return None

    def report(self, step: int, scores: Mapping[str, float]) -> Report:
        """Makes the report of a rung: the smoothed training loss, and the validation scores if there are any."""
        return Report(step, {"train_loss": float(np.mean(self._recent)), **scores})

    def result(self, scores: Scores, known: Mapping[str, float]) -> Result:
        """Makes the result of a trained and scored trial. `mark` was called after attaching and after training.

        Args:
            scores: Scores on the final split.
            known: Further metrics, such as the counts.
        """
        metrics = {**scores.metrics, "train_loss": float(np.mean(self._recent))}
        if wrong := strange(metrics):
            return Result(self.trial, Status.FAILED, error=f"not finite after training, or above {LARGEST:g}: {wrong}")
        start, attached, trained = self._times
        seconds = {
            "attach_seconds": attached - start,
            "train_seconds": trained - start,
            "evaluate_seconds": time.monotonic() - trained,
        }
        return Result(self.trial, Status.COMPLETE, {**metrics, **known, **seconds}, detail=scores.detail)


def total_steps(setup: Setup, n_rows: int) -> int:
    """Returns the number of optimiser steps of one trial."""
    if setup.train.steps is not None:
        return setup.train.steps
    assert setup.train.epochs is not None, "a setup has epochs or steps"
    return max(1, round(setup.train.epochs * math.ceil(n_rows / setup.train.batch_size)))


def rung_steps(rungs: tuple[float, ...], total: int) -> frozenset[int]:
    """Returns the steps after which a trial reports: each share of the total, at least 1 and before the last step."""
    return frozenset(step for share in rungs if (step := max(1, round(share * total))) < total)
