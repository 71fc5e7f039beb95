"""Scores of texts that a model wrote against the texts that were wanted, each with an interval over the rows."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from decimal import Decimal
from importlib.util import find_spec
from typing import Any

import numpy as np

from autopeft.errors import UsageError
from autopeft.objectives import Goal

METRICS: Mapping[str, Goal] = {
    "exact_match": "maximize",
    "contains": "maximize",
    "chrf": "maximize",
    "rouge_l": "maximize",
}
SHARES = ("exact_match", "contains")  # of rows: right or wrong
LIBRARIES = {"chrf": "sacrebleu", "rouge_l": "rouge_score"}  # of the extra `generation`
RESAMPLES = 1000  # of a bootstrap
LEVEL_DEVIATIONS = 1.959964  # standard deviations of a two-sided 95 % interval
NUMBER = re.compile(r"([-+]?)[$€£]?(\d[\d,]*(?:\.\d+)?)\.?")


@dataclass(frozen=True, slots=True)
class RowScore:
    """A score over some rows.

    Attributes:
        value: The score.
        low, high: A 95 % interval over the choice of rows; None if it is not known.
        rows: Number of rows.
        interval: How the interval was made: "Wilson" (of a share of rows), "bootstrap", or "".
    """

    value: float
    low: float | None
    high: float | None
    rows: int
    interval: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def missing_library(metric: str) -> str | None:
    """Says which library a metric needs, and how it is installed; None if nothing lacks."""
    library = LIBRARIES.get(metric)
    if library is None or find_spec(library) is not None:
        return None
    return f"{metric} needs {library.replace('_', '-')}: pip install 'autopeft[generation]'"


def scores(
    metrics: Sequence[str], written: Sequence[str], wanted: Sequence[str], answer_after: str | None = None
) -> dict[str, RowScore]:
    """Computes scores of written texts.

    - `exact_match`: the share of texts that are the wanted ones. With `answer_after`, of those whose answer is.
    - `contains`: the share of texts that have the wanted text, or answer, somewhere.
    - `chrf`: chrF of the whole, 0 to 100, by sacrebleu (Popović, 2015).
    - `rouge_l`: the mean F1 of the longest common subsequence of words, by rouge-score (Lin, 2004).

    Args:
        metrics: Names of METRICS.
        written, wanted: (n_rows,) texts, one row or more.
        answer_after: What stands before the answer in a text: `####`. Answers that are numbers are compared as such.

    Raises:
        UsageError: A library is not installed.
    """
    lacking = [message for name in metrics if (message := missing_library(name))]
    if lacking:
        raise UsageError("; ".join(lacking))
    compute: Mapping[str, Callable[[], RowScore]] = {
        "exact_match": lambda: share([is_same(a, b, answer_after) for a, b in zip(written, wanted, strict=True)]),
        "contains": lambda: share([has(a, b, answer_after) for a, b in zip(written, wanted, strict=True)]),
        "chrf": lambda: _chrf(written, wanted),
        "rouge_l": lambda: _rouge_l(written, wanted),
    }
    return {name: compute[name]() for name in metrics}


def answer_of(text: str, after: str) -> str | None:
    """Returns the rest of the line behind the last `after` of a text; None if the text has none."""
    _, found, rest = text.rpartition(after)
    return rest.strip().partition("\n")[0].strip() if found else None


def number_of(text: str) -> Decimal | None:
    """Reads a number: `1,234.` and `$1234.0` are the same; None if the text is no number."""
    match = NUMBER.fullmatch(text.strip())
    return None if match is None else Decimal(match[1] + match[2].replace(",", ""))


def is_same(written: str, wanted: str, after: str | None) -> bool:
    """Whether two texts, or their answers, are the same."""
    if after is None:
        return written.strip() == wanted.strip()
    ours, theirs = answer_of(written, after), answer_of(wanted, after)
    if ours is None or theirs is None:
        return False
    numbers = number_of(ours), number_of(theirs)
    return ours == theirs if None in numbers else numbers[0] == numbers[1]


def has(written: str, wanted: str, after: str | None) -> bool:
    """Whether a text has the wanted text or answer in it. Of a number, whether one of its numbers is the same."""
    answer = wanted.strip() if after is None else answer_of(wanted, after)
    if not answer:
        return False
    number = None if after is None else number_of(answer)
    if number is None:
        return answer in written
    return any(number_of(match[0]) == number for match in NUMBER.finditer(written))


def share(is_right: Sequence[bool]) -> RowScore:
    """Computes a share of rows with Wilson's interval (1927), which holds near 0 and 1, too."""
    n, p = len(is_right), sum(is_right) / len(is_right)
    z2 = LEVEL_DEVIATIONS**2
    centre, scale = p + z2 / (2 * n), 1 + z2 / n
    half = LEVEL_DEVIATIONS * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    low, high = ((centre + sign * half) / scale for sign in (-1, 1))
    return RowScore(p, min(max(low, 0.0), p), max(min(high, 1.0), p), n, "Wilson")


def mean(values: Sequence[float]) -> RowScore:
    """Computes the mean of one value a row with a bootstrap interval: percentiles over resampled rows, by a fixed seed."""
    given = np.asarray(values, dtype=np.float64)
    value = float(given.mean())
    if len(given) < 2:
        return RowScore(value, None, None, len(given), "")
    draws = np.random.default_rng(0).integers(0, len(given), (RESAMPLES, len(given)))
    low, high = np.quantile(given[draws].mean(1), [0.025, 0.975])
    return RowScore(value, float(low), float(high), len(given), "bootstrap")


def _chrf(written: Sequence[str], wanted: Sequence[str]) -> RowScore:
    from sacrebleu.metrics.chrf import CHRF

    n = len(written)
    if n < 2:
        return RowScore(float(CHRF().corpus_score(list(written), [list(wanted)]).score), None, None, n, "")
    found = CHRF().corpus_score(list(written), [list(wanted)], n_bootstrap=RESAMPLES)
    middle, half = float(found._mean), float(found._ci)  # of resampled rows, with sacrebleu's own seed
    return RowScore(float(found.score), max(middle - half, 0.0), min(middle + half, 100.0), n, "bootstrap")


def _rouge_l(written: Sequence[str], wanted: Sequence[str]) -> RowScore:
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"])
    return mean([scorer.score(b, a)["rougeL"].fmeasure for a, b in zip(written, wanted, strict=True)])
