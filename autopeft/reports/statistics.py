"""Statistics of repeated runs: means with intervals, comparisons, and ties.

Two sources of chance stand behind a test score. The *seeds* (order of the data, start of the head and the adapter)
show as spread over retrainings; the *test rows* are a sample too, which no number of seeds makes larger. `Sample`
carries both: the seeds' values, and the number of test rows where the score is a share of rows (accuracy), so that
its sampling variance is p (1 - p) / rows. For other metrics (F1, Matthews) no closed form exists without the
predictions: there the seeds' spread is all that is counted, and `Sample.sources` says so.

Sources: Student's t interval; Welch (1947) for unequal variances; Holm (1979) for many comparisons; Bouthillier et
al., 2021 (arXiv:2103.03098) and Dodge et al., 2020 (arXiv:2002.06305) on seeds; Dietterich, 1998, on test rows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

LEVEL = 0.95
FEWEST_PAIRS = 3  # below that a paired test has at most one degree of freedom


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean and how far it can be trusted.

    Attributes:
        mean: Mean of the values.
        half_width: Half width of the 95 % t interval over seeds; None with one value.
        deviation: Standard deviation over the values (n - 1); None with one value.
        n: Number of values.
    """

    mean: float
    half_width: float | None
    deviation: float | None
    n: int

    @property
    def low(self) -> float | None:
        return None if self.half_width is None else self.mean - self.half_width

    @property
    def high(self) -> float | None:
        return None if self.half_width is None else self.mean + self.half_width


def interval(values: Sequence[float], level: float = LEVEL) -> Interval:
    """The mean and its Student t interval: how far the mean of more seeds, on the same test rows, may lie.

    Args:
        values: One a seed, at least one. Two give an interval of 12.7 standard errors: honest, and of little use.
        level: Coverage.
    """
    if not values:
        raise ValueError("an interval needs at least one value")
    n, mean = len(values), float(np.mean(values))
    if n == 1:
        return Interval(mean, None, None, 1)
    from scipy import stats

    deviation = float(np.std(values, ddof=1))
    return Interval(mean, float(stats.t.ppf((1 + level) / 2, n - 1)) * deviation / math.sqrt(n), deviation, n)


@dataclass(frozen=True, slots=True)
class Sample:
    """The scores of one configuration, by seed.

    Attributes:
        values: Seed → score on the test split.
        rows: Number of test rows if the score is a share of them; None for other metrics.
        is_fixed: Whether the score is the same for every seed (the majority class, the mean).
    """

    values: Mapping[int, float]
    rows: int | None = None
    is_fixed: bool = False

    def __post_init__(self) -> None:
        if not self.values:
            raise ValueError("a sample needs at least one value")

    @property
    def mean(self) -> float:
        return float(np.mean(list(self.values.values())))

    @property
    def can_be_compared(self) -> bool:
        """Whether its spread over seeds is known."""
        return self.is_fixed or len(self.values) > 1

    @property
    def row_variance(self) -> float:
        """Variance of the mean that comes from the choice of test rows; 0 where it is not known."""
        return 0.0 if self.rows is None else max(self.mean * (1 - self.mean), 0.0) / self.rows

    @property
    def sources(self) -> str:
        """Sources of chance that are counted."""
        return "seeds" if self.rows is None else f"seeds and the choice of {self.rows:,} test rows"


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two configurations, compared.

    Attributes:
        difference: Mean of the first minus mean of the second.
        p: Two-sided p value; None if there is no test (a configuration with one seed only).
        test: "paired t", "Welch t", or the reason why there is no test.
    """

    difference: float
    p: float | None
    test: str


def compare(first: Sample, second: Sample) -> Comparison:
    """Tests whether two means differ by more than chance: paired if both ran the same seeds, else by Welch.

    Within a search they do: a confirmation uses the same seeds for all configurations.

    The variance of the test rows is added as if the errors of the two models were independent. Models on one base are
    often wrong on the same rows, so this is an upper bound. The test is cautious: it may call different models tied.
    """
    difference = first.mean - second.mean
    if not (first.can_be_compared and second.can_be_compared):
        return Comparison(difference, None, "one seed: no spread is known")
    if len(first.values) >= FEWEST_PAIRS and set(first.values) == set(second.values):
        deltas = np.array([value - second.values[seed] for seed, value in first.values.items()])
        parts = [(float(deltas.var(ddof=1)) / len(deltas), len(deltas) - 1)]
        test = "paired t"
    else:
        parts = []
        for sample in (first, second):
            if not sample.is_fixed:
                values = np.array(list(sample.values.values()))
                parts.append((float(values.var(ddof=1)) / len(values), len(values) - 1))
        test = "Welch t"
    seed_variance = sum(variance for variance, _ in parts)
    variance = seed_variance + first.row_variance + second.row_variance
    if variance < 1e-24:  # every seed gave the same: there is nothing to test against
        return Comparison(difference, 1.0 if abs(difference) < 1e-12 else 0.0, f"{test}, no spread")
    # Welch–Satterthwaite. The rows' variance is as good as known (hundreds of rows), so it only adds to the top.
    bottom = sum(variance**2 / freedom for variance, freedom in parts)
    freedom = math.inf if bottom == 0 else variance**2 / bottom
    from scipy import stats

    return Comparison(difference, float(2 * stats.t.sf(abs(difference) / math.sqrt(variance), freedom)), test)


def holm(p_values: Sequence[float]) -> list[float]:
    """P values adjusted for their number, step down (Holm, 1979): below 0.05 after it, at most 5 % to err at all."""
    order = np.argsort(p_values, kind="stable")
    adjusted = [0.0] * len(p_values)
    worst = 0.0
    for rank, index in enumerate(order):
        worst = max(worst, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = worst
    return adjusted


def tied_groups(samples: Sequence[Sample], *, maximize: bool = True, level: float = LEVEL) -> list[int]:
    """Which group each sample is in: 1 for the best and all that cannot be told from it, then the next.

    The best mean leads a group and is compared with all samples that have none yet (comparisons with the best, their
    p values adjusted by Holm); its group reaches down to the first that differs, which leads the next. Being tied is
    no proof of being equal, and is not transitive: two members of a group may differ.

    Returns:
        Group numbers from 1, in the order of `samples`; 0 for a sample with one seed, which cannot be placed.
    """
    placed = [index for index, sample in enumerate(samples) if sample.can_be_compared]
    left = sorted(placed, key=lambda index: -samples[index].mean if maximize else samples[index].mean)
    groups = [0] * len(samples)
    group = 0
    while left:
        leader, others, group = left[0], left[1:], group + 1
        p_values = [compare(samples[leader], samples[other]).p for other in others]
        adjusted = holm([p for p in p_values if p is not None])  # none is None: all can be compared
        end = next((index for index, p in enumerate(adjusted) if p < 1 - level), len(others))
        for index in (leader, *others[:end]):
            groups[index] = group
        left = others[end:]
    return groups
