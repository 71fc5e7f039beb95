"""Rankings: scores against scikit-learn and by hand, and who is a candidate."""

from __future__ import annotations

import json

import numpy as np
import pytest
from models import bert, write_ratings
from sklearn.metrics import ndcg_score

from autopeft.errors import ConfigError
from autopeft.tasks import Source
from autopeft.tasks._ranking import of_rankings
from autopeft.tasks.ranking import SAMPLED, Ranking
from tests.conftest import shared_path


@pytest.mark.parametrize("k", [1, 3, 10])
def test_ndcg_is_that_of_scikit_learn(k):
    """Ties too, which share their places."""
    rng = np.random.default_rng(0)
    users = np.repeat(np.arange(6), [2, 5, 9, 12, 3, 7])
    scores, relevance = rng.integers(0, 4, len(users)).astype(float), rng.integers(0, 3, len(users)).astype(float)
    expected = [
        ndcg_score([2 ** relevance[users == user] - 1], [scores[users == user]], k=k)
        for user in range(6) if relevance[users == user].any()
    ]  # fmt: skip
    found, count = of_rankings(scores, relevance, users, 1, k)
    assert (found["ndcg_at_k"], count) == (pytest.approx(np.mean(expected)), len(expected))


def test_recall_by_hand():
    users = np.array([0, 0, 0, 0, 1, 1, 2])
    scores = np.array([0.9, 0.5, 0.5, 0.1, 0.3, 0.7, 0.2])
    relevance = np.array([1.0, 2.0, 0.0, 2.0, 2.0, 0.0, 1.0])
    found, count = of_rankings(scores, relevance, users, least=2, k=2)
    # User 0: of two relevant items one shares places 2 and 3 with another; user 1: the second of two; user 2 has none.
    assert found["recall_at_k"] == pytest.approx((0.5 / 2 + 1 / 1) / 2)
    assert count == 2


def rows(folder, ratings, **options):
    """Of (user, item, rating), the same for all splits."""
    table = [
        {"user": user, "item": item, "label": label, "a": f"user {user}", "b": f"item {item}"}
        for user, item, label in ratings
    ]
    (folder / "rows.json").write_text(json.dumps(table))
    file = str(folder / "rows.json")
    data = {"train": file, "validation": file, "test": file, "text": ["a", "b"]}
    return Ranking(**options).read(data, 0)


def test_candidates(tmp_path):
    """Who rated few gets sampled items that he rated nowhere, once; the same ones by the same seed."""
    ratings = [("x", item, 1 + item % 5) for item in range(6)] + [("y", 7, 5), ("y", 8, 1)]
    dataset = rows(tmp_path, ratings, candidates=4, negatives=2)
    validation, train = dataset.splits["validation"].targets, dataset.splits["train"].targets
    assert [len(items) for items in validation["sampled"]] == [0] * 6 + [4, 0], "x rated more than 4"
    assert set(validation["sampled"][6]) <= set(range(6)), "not 7 and 8, which y rated; there are 8 items"
    assert validation["sampled_texts"][6] == [f"item {item}" for item in validation["sampled"][6]]
    assert [len(items) for items in train["sampled"]] == [2] * 8
    assert all(not {6, 7} & set(items) for items in train["sampled"][6:])
    assert rows(tmp_path, ratings, candidates=4).splits["validation"].targets["sampled"] == validation["sampled"]
    assert (dataset.about["lowest"], dataset.about["highest"], dataset.about["least"]) == (1.0, 5.0, 2.0)


def test_what_the_model_learns(tmp_path):
    (tmp_path / "model").mkdir()
    ratings = [("x", 0, 1), ("x", 1, 5), ("y", 1, 3), ("y", 2, 5)]
    dataset = rows(tmp_path, ratings, candidates=0, negatives=1)
    encode = Ranking().encoder(Source(bert(tmp_path / "model")), dataset.about)
    targets = encode(dataset.splits["train"]).targets
    assert targets["row"].tolist() == [0, SAMPLED, 1, SAMPLED, 2, SAMPLED, 3, SAMPLED]
    assert targets["share"][::2].tolist() == [0.0, 1.0, 0.5, 1.0]
    assert not targets["share"][1::2].any()
    assert targets["item"][::2].tolist() == [0, 1, 1, 2]
    assert targets["item"][1::2].tolist() == [2, 2, 0, 0], "the only one that the user did not rate"


def test_popularity_counts_the_relevant_ratings_of_train():
    about = {"lowest": 0.0, "highest": 2.0, "least": 1.0}
    train = {
        "item": np.array([0, 0, 1, 1, 1, 2]),
        "relevance": np.array([1, 2, 2, 0, 0, 0.0]),
        "share": np.full(6, 0.5),
    }
    scored = {"user": np.zeros(3, int), "item": np.array([1, 0, 2]), "relevance": np.array([0, 2, 0.0]),
              "row": np.array([0, 1, SAMPLED]), "share": np.array([0, 1, 0.0])}  # fmt: skip
    found = Ranking(k=1).trivial(train, scored, about, dict)
    assert found.metrics == {"ndcg_at_k": 1.0, "recall_at_k": 1.0, "loss": pytest.approx(np.log(2))}
    assert found.detail["rankings"] == {"users": 1, "users_with_a_relevant_item": 1, "candidates": 3, "sampled": 1}


def test_answers_rank_the_rows_of_one_user():
    kept = {
        "score": np.array([0.0, 3.0, 1.0, 2.0]),
        "row": np.array([0, SAMPLED, 1, 2]),
        "reader": np.array([7, 7, 7, 9]),
    }
    answers = Ranking().answers(kept, {})
    assert answers["rank"] == [2, 1, 1]
    assert answers["score"] == pytest.approx([0.5, 1 / (1 + np.exp(-1)), 1 / (1 + np.exp(-2))])


def test_metrics_of_the_users_own_are_of_the_rated_items():
    about = {"lowest": 0.0, "highest": 2.0, "least": 1.0}
    train = {"item": np.array([0, 0, 1]), "relevance": np.array([2, 2, 2.0]), "share": np.ones(3)}
    scored = {"item": np.array([1, 2, 0]), "row": np.array([1, SAMPLED, 0]), "share": np.array([0.5, 0, 1]),
              "reader": np.array([7, 7, 7])}  # fmt: skip
    assert Ranking().truths({}, scored, about) == {"score": [1.0, 0.5]}
    assert Ranking().trivial_answers(train, scored, about, dict) == {"score": [1.0, 0.5], "rank": [1, 2]}


@pytest.mark.parametrize(
    ("ratings", "options", "expected"),
    [
        ([("x", 0, 1), ("y", 1, 1)], {}, "is 1 in each row of train"),
        ([("x", 0, 1), ("y", 1, 2)], {"relevant": 3.0}, "is 3; ratings of train go from 1 to 2"),
        ([("x", None, 1), ("y", 1, 2)], {}, "1 row without 'item': row 0"),
    ],
)
def test_faults(tmp_path, ratings, options, expected):
    with pytest.raises(ConfigError, match=expected):
        rows(tmp_path, ratings, **options)


def test_one_text_is_no_pair(tmp_path):
    with pytest.raises(ConfigError, match=r"expected two columns: \[user's text, item's text\]"):
        Ranking().read({"train": str(write_ratings(tmp_path / "a.csv", 20)), "text": "dish"}, 0)


def test_restaurants():
    folder = shared_path("data", "restaurant_ratings")
    data = {split: str(folder / f"{split}.parquet") for split in ("train", "validation", "test")}
    dataset = Ranking().read({**data, "text": ["text_a", "text_b"], "user": "user_id", "item": "item_id"}, 0)
    targets = dataset.splits["test"].targets
    assert [len(items) for items in targets["sampled"]].count(20) == len(np.unique(targets["user"]))
