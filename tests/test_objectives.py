"""Metrics to losses: the one place where signs flip."""

import math

import pytest

from autopeft.objectives import Objective, losses, reference_point, with_signal

SCORE = Objective("accuracy", "maximize", 0.5)
SIZE = Objective("trainable_parameters", "minimize", 1e6, "log10")


def test_losses_are_lower_for_better():
    assert losses((SCORE, SIZE), {"accuracy": 0.9, "trainable_parameters": 1000.0}).tolist() == [-0.9, 3.0]
    assert reference_point((SCORE, SIZE)).tolist() == [-0.5, 6.0]


def test_a_missing_metric_is_an_error():
    with pytest.raises(KeyError, match="no metric accuracy among f1"):
        losses((SCORE,), {"f1": 0.5})


def test_a_signal_takes_the_scores_place():
    signal, size = with_signal((SCORE, SIZE), "train_loss")
    assert (signal.metric, signal.loss(0.3)) == ("train_loss", 0.3)
    assert size == SIZE
    assert with_signal((SCORE, SIZE), "accuracy") == (SCORE, SIZE)


@pytest.mark.parametrize(
    "wrong",
    [{"goal": "up"}, {"scale": "log2"}, {"reference": math.nan}, {"reference": 0.0, "scale": "log10"}],
)
def test_a_wrong_objective_cannot_exist(wrong):
    with pytest.raises(ValueError):
        Objective(**{"metric": "x", "goal": "maximize", "reference": 1.0, **wrong})


def test_json_and_back():
    assert Objective.from_json(SIZE.to_json()) == SIZE


@pytest.mark.parametrize("value", [0.5, 0.002, 3.0])
def test_a_small_score_has_its_logarithm_too(value):
    """An error on log10 goes below 1; nothing has the logarithm of 0."""
    error = Objective("mean_absolute_error", "minimize", 0.8, "log10")
    assert error.loss(value) == pytest.approx(math.log10(value))
    assert math.isfinite(error.loss(0.0))
