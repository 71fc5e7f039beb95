"""Scores of written texts, against closed forms and other implementations."""

from decimal import Decimal

import pytest
from scipy.stats import binomtest

from autopeft.tasks import _generation as generation


@pytest.mark.parametrize(("right", "rows"), [(0, 10), (3, 10), (10, 10), (1, 1), (40, 64)])
def test_the_interval_of_a_share_is_scipys(right, rows):
    found = generation.share([True] * right + [False] * (rows - right))
    theirs = binomtest(right, rows).proportion_ci(method="wilson")
    assert found.value == right / rows and found.rows == rows
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), abs=1e-6)


@pytest.mark.parametrize(
    ("written", "wanted", "is_same"),
    [
        ("so it is\n#### 1,234", "#### 1234", True),
        ("#### 5 #### 18.", "because\n#### 18", True),  # the last one counts
        ("#### $18.00\n\nQuestion: more", "#### 18", True),
        ("#### -3", "#### 3", False),
        ("the answer is 18", "#### 18", False),
        ("#### eighteen", "#### eighteen", True),
        ("#### 18 apples", "#### 18", False),
    ],
)
def test_answers_behind_a_pattern(written, wanted, is_same):
    assert generation.is_same(written, wanted, "####") is is_same


def test_without_a_pattern_texts_are_compared_as_they_are():
    assert generation.is_same(" yes ", "yes", None) and not generation.is_same("1,000", "1000", None)


def test_contains_a_number_and_not_its_digits():
    assert generation.has("it is 1,015 in all", "#### 1015", "####")
    assert not generation.has("it is 15", "#### 5", "####")
    assert generation.has("well, yes it is", "yes it is", None)
    assert not generation.has("yes", "no pattern", "####")


def test_numbers():
    assert generation.number_of(" $1,234.50. ") == Decimal("1234.5") and generation.number_of("1 2") is None


def test_a_mean_lies_in_its_interval_and_one_row_has_none():
    found = generation.mean([0.0, 0.5, 1.0, 1.0, 0.2])
    assert found.low < found.value < found.high and found.interval == "bootstrap"
    assert generation.mean([0.5]).low is None
    assert generation.mean([0.5] * 9).low == generation.mean([0.5] * 9).high == 0.5


def test_chrf_and_rouge_are_their_libraries():
    sacrebleu = pytest.importorskip("sacrebleu", reason="needs the [generation] extra")
    rouge = pytest.importorskip("rouge_score.rouge_scorer", reason="needs the [generation] extra")
    written, wanted = ["the cat sat", "on mats", "good day"], ["the cat sits", "on the mat", "good day"]
    found = generation.scores(["chrf", "rouge_l"], written, wanted)
    assert found["chrf"].value == pytest.approx(sacrebleu.corpus_chrf(written, [wanted]).score)
    assert found["chrf"].low < found["chrf"].value < found["chrf"].high
    scorer = rouge.RougeScorer(["rougeL"])
    theirs = [scorer.score(b, a)["rougeL"].fmeasure for a, b in zip(written, wanted)]
    assert found["rouge_l"].value == pytest.approx(sum(theirs) / 3)


def test_a_library_that_lacks_is_named_with_its_command(monkeypatch):
    monkeypatch.setattr(generation, "find_spec", lambda name: None)
    assert generation.missing_library("chrf") == "chrf needs sacrebleu: pip install 'autopeft[generation]'"
    assert "rouge-score" in generation.missing_library("rouge_l")
    assert generation.missing_library("contains") is None
