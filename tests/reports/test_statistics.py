"""Intervals and comparisons against scipy and closed forms; Holm and groups against cases worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from autopeft.reports.statistics import Sample, compare, holm, interval, tied_groups


def sample(*values: float, rows: int | None = None, first_seed: int = 0) -> Sample:
    return Sample({first_seed + seed: value for seed, value in enumerate(values)}, rows)


def test_interval_agrees_with_scipy():
    values = [0.91, 0.93, 0.90, 0.92, 0.905]
    low, high = stats.t.interval(0.95, 4, loc=np.mean(values), scale=stats.sem(values))
    found = interval(values)
    assert (found.low, found.high) == pytest.approx((low, high))
    assert found.n == 5
    assert found.deviation == pytest.approx(np.std(values, ddof=1))


def test_one_value_has_no_interval():
    found = interval([0.9])
    assert (found.mean, found.half_width, found.low, found.high, found.deviation) == (0.9, None, None, None, None)
    with pytest.raises(ValueError, match="at least one"):
        interval([])


def test_two_values_have_the_wide_interval_of_one_degree_of_freedom():
    assert interval([0.9, 0.92]).half_width == pytest.approx(12.7062 * 0.01, rel=1e-4)


@given(st.lists(st.floats(0, 1), min_size=2, max_size=8), st.lists(st.floats(0, 1), min_size=2, max_size=8))
def test_welch_agrees_with_scipy(first, second):
    if np.var(first) < 1e-9 or np.var(second) < 1e-9:
        return
    found = compare(sample(*first), sample(*second, first_seed=100))
    expected = stats.ttest_ind(first, second, equal_var=False)
    assert found.test == "Welch t"
    assert found.p == pytest.approx(expected.pvalue, abs=1e-9)


def test_the_same_seeds_are_paired():
    first, second = [0.90, 0.95, 0.85, 0.91], [0.89, 0.935, 0.845, 0.90]
    found = compare(sample(*first), sample(*second))
    assert found.test == "paired t"
    assert found.p == pytest.approx(stats.ttest_rel(first, second).pvalue)
    assert found.p < compare(sample(*first), sample(*second, first_seed=9)).p


def test_rows_add_their_binomial_variance():
    # closed form: with equal values over seeds all variance is that of the rows, and the test is a z test
    first, second = sample(0.9, 0.9, rows=1000), sample(0.88, 0.88, rows=1000, first_seed=9)
    error = np.sqrt(0.9 * 0.1 / 1000 + 0.88 * 0.12 / 1000)
    assert compare(first, second).p == pytest.approx(2 * stats.norm.sf(0.02 / error))


def test_a_test_split_of_few_rows_ties_what_seeds_alone_would_separate():
    values, others = (0.90, 0.902, 0.898), (0.88, 0.882, 0.878)
    assert compare(sample(*values), sample(*others, first_seed=9)).p < 0.01
    assert compare(sample(*values, rows=200), sample(*others, rows=200, first_seed=9)).p > 0.3


def test_one_seed_says_nothing():
    found = compare(sample(0.9), sample(0.5, 0.51))
    assert found.p is None
    assert found.difference == pytest.approx(0.395)


def test_no_spread_at_all():
    assert compare(sample(0.9, 0.9), sample(0.9, 0.9, first_seed=9)).p == 1.0
    assert compare(sample(0.9, 0.9), sample(0.8, 0.8, first_seed=9)).p == 0.0


def test_what_no_seed_changes_is_compared_by_its_one_value():
    majority = Sample({0: 0.5}, 1000, is_fixed=True)
    assert compare(sample(0.9, 0.91, rows=1000), majority).p < 0.01
    assert tied_groups([majority, sample(0.9, 0.91, rows=1000)]) == [2, 1]


def test_holm_by_hand():
    # Holm, 1979: ordered 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1, made monotone
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), max_size=12))
def test_holm_lies_between_the_raw_p_value_and_bonferroni(p_values):
    adjusted = holm(p_values)
    for raw, value in zip(p_values, adjusted, strict=True):
        assert raw <= value <= min(1.0, raw * len(p_values)) + 1e-12
    for i in range(len(p_values)):
        for j in range(len(p_values)):
            if p_values[i] < p_values[j]:
                assert adjusted[i] <= adjusted[j]


def test_groups_follow_the_means():
    tight = [
        sample(*(center + offset for offset in (-0.001, 0.0, 0.001)), first_seed=10 * index)
        for index, center in enumerate((0.80, 0.9005, 0.90, 0.70))
    ]
    assert tied_groups(tight) == [2, 1, 1, 3]
    assert tied_groups(tight, maximize=False) == [2, 3, 3, 1]


def test_a_sample_with_one_seed_is_in_no_group():
    assert tied_groups([sample(0.99), sample(0.9, 0.91, 0.9)]) == [0, 1]
    assert tied_groups([]) == []


def test_groups_hold_their_error_rate():
    """Ten equal configurations, five seeds: the leader's group should be all of them about 95 % of the time."""
    rng = np.random.default_rng(0)
    split = sum(
        max(tied_groups([sample(*rng.normal(0.9, 0.01, 5), first_seed=100 * k) for k in range(10)])) > 1
        for _ in range(200)
    )
    # The leader was picked for being the best, so the nominal 5 % is exceeded; it stays far from the 60 % of raw p's.
    assert split < 0.25 * 200
