"""What is kept of each row lies in the split's order; outputs that are not finite have no score."""

import numpy as np
import pytest
import torch

from autopeft.tasks import Split
from autopeft.tasks.text_classification import TextClassification
from autopeft.training.answers import Answers

ABOUT = {"n_outputs": 2, "label_names": ["a", "b"]}


def answered(logits):
    split = Split({"x": np.zeros((4, 1))}, {"label": np.array([0, 1, 1, 0])})
    found = Answers(TextClassification(), split)
    for rows in (np.array([3, 1]), np.array([0, 2])):
        found.take(rows, torch.tensor(logits)[rows], None)
    return found


def test_rows_lie_in_the_splits_order_with_the_mean_loss():
    logits = [[2.0, 0.0], [0.0, 1.0], [3.0, 0.0], [1.0, 0.0]]
    found = answered(logits)
    np.testing.assert_allclose(found.kept["logits"], logits)
    scores = found.scores(np.ones(4), ABOUT)
    assert scores.metrics["accuracy"] == 0.75
    expected = torch.nn.functional.cross_entropy(torch.tensor(logits), torch.tensor([0, 1, 1, 0]))
    assert scores.metrics["loss"] == pytest.approx(float(expected))


def test_outputs_that_are_not_finite_have_no_score():
    """An argmax calls them the first label: half the rows were right."""
    found = answered([[float("nan")] * 2] * 4)
    with pytest.raises(FloatingPointError, match="not finite"):
        found.scores(np.ones(4), ABOUT)
