"""Who is stopped by others that are no larger and better, and who is not."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autopeft.errors import UsageError
from autopeft.history import Record
from autopeft.objectives import Objective
from autopeft.stoppers.dominated import DominatedStopper
from autopeft.trial import Report, Trial

OBJECTIVES = (
    Objective("accuracy", "maximize", 0.0),
    Objective("trainable_parameters", "minimize", 10_000, "log10"),
)
# (step, accuracy, size), few distinct values, so that ties and twins are common.
ARRIVALS = st.lists(
    st.tuples(st.sampled_from([10, 30]), st.sampled_from([0.5, 0.6, 0.7, 0.8]), st.sampled_from([10.0, 100.0, 1000.0])),
    max_size=40,
)


def stops(arrivals, k):
    """What the stopper says to each, arriving in this order."""
    stopper = DominatedStopper(OBJECTIVES, k=k)
    answers = []
    for number, (step, accuracy, size) in enumerate(arrivals):
        report = Report(step, {"accuracy": accuracy})
        answers.append(stopper.report(Record(Trial(number, {}, 0), {"trainable_parameters": size}, [report]), report))
    return answers


@given(ARRIVALS, st.integers(1, 4))
def test_all_that_came_to_a_rung_count_there_the_stopped_too(arrivals, k):
    expected = []
    for index, (step, accuracy, size) in enumerate(arrivals):
        before = [(a, p) for other, a, p in arrivals[:index] if other == step]
        expected.append(sum(a > accuracy and p <= size for a, p in before) >= k)
    assert stops(arrivals, k) == expected


def test_a_larger_trial_pushes_out_none():
    assert stops([(10, 0.9, 1000.0)] * 5 + [(10, 0.5, 10.0)], 2) == [False] * 6


@pytest.mark.parametrize("k", [0, True, 1.5])
def test_k_that_makes_no_sense(k):
    with pytest.raises(UsageError, match="k is a whole number"):
        DominatedStopper(OBJECTIVES, k=k)
