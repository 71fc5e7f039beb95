"""Front, hypervolume and knee, against moocore and by hand."""

import moocore
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from autopeft.pareto import hypervolume, knee, non_dominated

# Few distinct values, so that ties and duplicates are common, and reals.
POINTS = st.integers(2, 3).flatmap(
    lambda width: arrays(
        np.float64,
        st.tuples(st.integers(1, 25), st.just(width)),
        elements=st.integers(0, 8).map(float) | st.floats(0, 8),
    )
)


@settings(max_examples=1000, deadline=None)
@given(POINTS)
def test_the_front_is_moocores(points):
    assert non_dominated(points).tolist() == moocore.is_nondominated(points, keep_weakly=True).tolist()


@settings(max_examples=1000, deadline=None)
@given(POINTS, st.integers(1, 10))
def test_the_hypervolume_is_moocores(points, reference):
    corner = np.full(points.shape[1], float(reference))
    assert hypervolume(points, corner) == pytest.approx(moocore.hypervolume(points, ref=corner), abs=1e-9)


@given(POINTS)
def test_a_member_is_dominated_by_none_and_all_others_by_one(points):
    members = points[non_dominated(points)]
    for point in points:
        dominated = ((members <= point).all(axis=1) & (members < point).any(axis=1)).any()
        assert dominated == (not (members == point).all(axis=1).any())


def test_no_points_command_nothing():
    assert hypervolume(np.empty((0, 2)), np.ones(2)) == 0.0


def test_the_knee_lies_furthest_below_the_line_between_the_ends():
    points = np.array([[0.0, 1.0], [0.1, 0.2], [0.5, 0.15], [1.0, 0.0], [0.9, 0.9]])
    assert knee(points) == 1
    assert knee(points[[0, 3]]) == 0


def test_the_knee_of_three_objectives_lies_furthest_below_the_plane_of_the_ends():
    ends = [[0.0, 1.0, 1.0], [1.0, 0.0, 1.0], [1.0, 1.0, 0.0]]
    points = np.array([*ends, [0.5, 0.5, 0.6], [0.3, 0.3, 0.4], [0.9, 0.9, 0.9]])
    assert knee(points) == 4
    assert knee(points * [1.0, 100.0, 1e-3]) == 4, "whatever the units"
    assert knee(points[:3]) == 0, "only ends: the best in the first objective"


def test_an_objective_in_which_all_are_equal_does_not_change_the_knee():
    points = np.array([[0.0, 1.0], [0.1, 0.2], [0.5, 0.15], [1.0, 0.0]])
    assert knee(np.column_stack([points, np.full(4, 7.0)])) == knee(points) == 1


@given(POINTS)
def test_the_knee_is_on_the_front(points):
    if len(points):
        assert non_dominated(points)[knee(points)]


def test_the_knee_of_one_objective_is_the_best():
    assert knee(np.array([[0.3], [0.1], [0.2]])) == 1


@pytest.mark.parametrize("bad", [np.array([[np.nan, 1.0]]), np.array([1.0, 2.0])])
def test_other_shapes_and_numbers_are_errors(bad):
    with pytest.raises(ValueError, match="finite"):
        non_dominated(bad)
