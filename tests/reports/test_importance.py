"""Importance: found where it was put in, silent where there is nothing."""

from __future__ import annotations

import numpy as np

from autopeft.history import History
from autopeft.reports.facts import Facts
from autopeft.reports.importance import encode, importances
from tests.reports import histories as h


def facts_of(params_and_scores):
    events = [h.header()]
    for number, (params, score) in enumerate(params_and_scores):
        events += [h.ask(number, params, 5000), h.tell(number, {"accuracy": score, "trainable_parameters": 5000})]
    return Facts(History(events), h.describe)


def test_what_decides_is_found_and_what_does_not_is_not():
    rng = np.random.default_rng(0)
    trials = []
    for _ in range(80):
        rate, rank = float(10 ** rng.uniform(-4, -2)), int(rng.integers(1, 64))
        score = 0.9 - 0.1 * abs(np.log10(rate) + 3) + rng.normal(0, 0.003)
        trials.append(({"method": "lora", "lora.lr": rate, "lora.rank": rank, "lora.alpha": 16}, float(score)))
    found = importances(facts_of(trials))
    assert found.r2 > 0.8
    assert found.between is None  # one method
    shares = {parameter.name: parameter.share for parameter in found.parameters}
    assert shares["lora.lr"] > 0.8
    assert shares["lora.rank"] < 0.1
    assert "lora.alpha" not in shares  # a constant cannot matter
    assert found.parameters[0].name == "lora.lr"


def test_a_parameter_is_judged_among_the_trials_that_have_it():
    rng = np.random.default_rng(1)
    trials = [({"method": "head", "head.lr": 1e-3}, 0.6 + float(rng.normal(0, 0.002))) for _ in range(30)]
    for _ in range(40):
        layers = list(range(int(rng.integers(0, 6)), 6))
        score = 0.8 + 0.02 * len(layers) + float(rng.normal(0, 0.002))
        trials.append(({"method": "lora", "lora.layers": layers}, score))
    found = importances(facts_of(trials))
    shares = {parameter.name: parameter for parameter in found.parameters}
    assert shares["lora.layers"].share > 0.7
    assert shares["lora.layers"].n == 40
    assert found.between > 0.8


def test_noise_and_few_trials_claim_nothing():
    rng = np.random.default_rng(2)
    ranks, scores = rng.integers(1, 64, 60).tolist(), rng.uniform(0.5, 0.9, 60).tolist()
    noise = [({"method": "lora", "lora.rank": rank}, score) for rank, score in zip(ranks, scores, strict=True)]
    found = importances(facts_of(noise))
    assert found.parameters == ()
    assert "cannot be predicted" in found.why_not
    assert "too few" in importances(facts_of(noise[:10])).why_not
    same = [(params, 0.8) for params, _ in noise]
    assert "same score" in importances(facts_of(same)).why_not
    assert importances(facts_of([])).methods == ()


def test_encoding():
    records = facts_of(
        [
            (
                {
                    "method": "lora",
                    "lora.layers": "last_2",
                    "lora.modules": ["query"],
                    "lora.rslora": True,
                    "lora.rank": 4,
                },
                0.5,
            ),
            (
                {
                    "method": "lora",
                    "lora.layers": [0],
                    "lora.modules": ["query", "value"],
                    "lora.rslora": False,
                    "lora.rank": 8,
                },
                0.6,
            ),
            ({"method": "head"}, 0.4),
        ]
    ).complete
    columns, owners = encode(records, 6)
    by_owner = {name: columns[:, [owner == name for owner in owners]].tolist() for name in dict.fromkeys(owners)}
    assert by_owner["lora.rank"] == [[4.0], [8.0], [-1.0]]
    assert by_owner["lora.modules"] == [[1, 1, 0], [2, 1, 1], [-1, -1, -1]]
    assert by_owner["lora.layers"] == [[2, 0, 1, 1], [1, 1, 0, 0], [-1, -1, -1, -1]]
    assert by_owner["lora.rslora"] == [[0, 1], [1, 0], [-1, -1]]
    assert by_owner["method"] == [[0, 1], [0, 1], [1, 0]]


def test_a_report_of_200_trials_says_the_same_twice():
    facts = Facts(History(h.search(100)), h.describe)
    assert importances(facts) == importances(facts)
