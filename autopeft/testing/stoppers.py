"""What every stopper promises."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from autopeft.history import Record
from autopeft.objectives import Objective
from autopeft.stoppers import Stopper
from autopeft.testing._examples import OBJECTIVES
from autopeft.trial import Report, Status, Trial


def check_stopper(make: Callable[[Sequence[Objective]], Stopper]) -> None:
    """Checks that a verdict is a bool that depends on the reports only, and that the best trial so far runs on.

    A report without the signal that the stopper reads has to raise an error.

    Args:
        make: Builds a new stopper for the objectives, as `plugin(objectives, **options)`.
    """
    heard = list(_rungs())
    verdicts = _verdicts(make(OBJECTIVES), heard)
    assert all(isinstance(verdict, bool) for verdict in verdicts), "whether to stop is True or False"
    assert verdicts == _verdicts(make(OBJECTIVES), heard), "the same rungs, heard again, were judged otherwise"
    stopper = make(OBJECTIVES)
    for number in range(10):  # each trial is smaller and better than all before it
        record = Record(Trial(number, {"method": "head"}, 0), {"trainable_parameters": 1000.0 - number})
        record.reports.append(Report(10, {"accuracy": 0.5 + number / 100}))
        assert not stopper.report(record, record.reports[-1]), "stopped a trial that was smaller and better than all"
    if any(verdicts):  # the stopper reads the score
        record = Record(
            Trial(10, {"method": "head"}, 0), {"trainable_parameters": 1000.0}, [Report(10, {"other": 1.0})]
        )
        try:
            stopper.report(record, record.reports[-1])
        except KeyError as fault:
            assert "accuracy" in str(fault), f"the error does not say what is missing: {fault}"
        else:
            raise AssertionError("a report without the score was judged: a missing signal is an error")


def _rungs() -> Iterator[Record]:
    """Yields forty trials, each once for each of its two rungs, in the order of the reports."""
    rng = np.random.default_rng(0)
    for number in range(40):
        record = Record(Trial(number, {"method": "head"}, 0), {"trainable_parameters": float(rng.integers(10, 10_000))})
        for step in (10, 30):
            record.reports.append(Report(step, {"accuracy": float(rng.random())}))
            yield record


def _verdicts(stopper: Stopper, records: Sequence[Record]) -> list[bool]:
    verdicts = []
    for index, record in enumerate(records):
        verdicts.append(stopper.report(record, record.reports[index % 2]))
        if index % 2:
            record.status = Status.COMPLETE
            stopper.tell(record)
    return verdicts
