"""What is kept of each row lies in the split's order; outputs that are not finite have no score."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from autopeft.tasks import Split
from autopeft.tasks.text_classification import TextClassification
from autopeft.training.answers import Answers, most_places, pass_rows, score_batches

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


@pytest.mark.parametrize(
    ("reads", "device", "rows", "places"),
    [
        ("input_ids", "cpu", 128, None),
        ("input_ids", "cuda", 1024, 2**15),
        ("pixel_values", "cuda", 128, None),
        ("input_values", "cuda", 16, 2**21),
    ],
)
def test_a_pass_of_texts_on_a_gpu_holds_many_rows(reads, device, rows, places):
    """Small passes are all launches there. Pictures are large, and sounds have bounds of their own."""
    weight = SimpleNamespace(device=torch.device(device))
    model = SimpleNamespace(main_input_name=reads, parameters=lambda: iter([weight]))
    assert (pass_rows(model, weight.device), most_places(model, weight.device)) == (rows, places)
    lengths = np.full(3000, 12)
    batches = score_batches(lengths, model)
    assert sum(map(len, batches)) == 3000 and max(map(len, batches)) == rows
    assert all(len(batch) * 12 <= (places or 1e9) for batch in batches)
