"""Halving against a table made by hand, and against its definition; what a stopped trial counts for."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autopeft.errors import UsageError
from autopeft.history import Record
from autopeft.objectives import Objective
from autopeft.stoppers.halving import HalvingStopper
from autopeft.trial import Report, Status, Trial

OBJECTIVES = (
    Objective("accuracy", "maximize", 0.0),
    Objective("trainable_parameters", "minimize", 10_000, "log10"),
)

# eta 3, one rung: the n-th to come goes on when fewer than n / 3 before it were better.
TABLE = [
    # accuracy, better so far, stops
    (0.50, 0, False),  # the first goes on: nobody waits
    (0.40, 1, True),
    (0.45, 1, True),  # 1 of 3 goes on, and that is the first
    (0.48, 1, False),  # ceil(4 / 3) = 2 of 4
    (0.60, 0, False),
    (0.49, 2, True),  # 2 of 6
    (0.50, 1, False),  # a tie with the first goes on with it
    (0.50, 1, False),
    (0.10, 8, True),
    (0.49, 4, True),  # 4 of 10, and four are better
    (0.61, 0, False),
]


def judged(stopper, number, step, accuracy):
    report = Report(step, {"accuracy": accuracy})
    return stopper.report(Record(Trial(number, {}, 0), {"trainable_parameters": 10.0}, [report]), report)


def test_a_table_made_by_hand():
    stopper = HalvingStopper(OBJECTIVES, eta=3)
    for number, (accuracy, _, stops) in enumerate(TABLE):
        assert judged(stopper, number, 10, accuracy) is stops, number
    assert [sum(a > accuracy for a, *_ in TABLE[:n]) for n, (accuracy, *_) in enumerate(TABLE)] == [
        b for _, b, _ in TABLE
    ]


@given(
    st.lists(st.tuples(st.sampled_from([10, 30]), st.sampled_from([0.1, 0.2, 0.3, 0.4])), max_size=40),
    st.sampled_from([1.5, 2, 3, 4]),
)
def test_of_n_arrivals_at_a_rung_the_best_go_on_ties_together(arrivals, eta):
    stopper = HalvingStopper(OBJECTIVES, eta=eta)
    for index, (step, accuracy) in enumerate(arrivals):
        there = [a for other, a in arrivals[: index + 1] if other == step]
        worst_that_goes_on = sorted(there, reverse=True)[math.ceil(len(there) / eta) - 1]
        assert judged(stopper, index, step, accuracy) == (accuracy < worst_that_goes_on)


def test_size_does_not_count():
    one, other = (HalvingStopper(OBJECTIVES[:count], eta=3) for count in (1, 2))
    scores = [accuracy for accuracy, *_ in TABLE]
    assert [judged(one, n, 10, a) for n, a in enumerate(scores)] == [
        judged(other, n, 10, a) for n, a in enumerate(scores)
    ]


def test_a_stopped_trial_counts_at_its_rung_alone_and_never_as_final():
    """It had .9 when it stopped: at a later rung, and when it is told, that says nothing."""
    told, untold = HalvingStopper(OBJECTIVES), HalvingStopper(OBJECTIVES)
    for stopper in (told, untold):
        assert not judged(stopper, 0, 10, 0.95)
        assert judged(stopper, 1, 10, 0.9)
    known = {"trainable_parameters": 10.0}
    told.tell(Record(Trial(1, {}, 0), known, [], Status.STOPPED, {**known, "accuracy": 0.9}))
    for stopper in (told, untold):
        assert not judged(stopper, 0, 30, 0.2), "it is the first to come here"
        assert judged(stopper, 2, 10, 0.85), "at its own rung two were better"


@pytest.mark.parametrize("eta", [1, 0, True, "3"])
def test_an_eta_that_makes_no_sense(eta):
    with pytest.raises(UsageError, match="eta is a number above 1"):
        HalvingStopper(OBJECTIVES, eta=eta)
