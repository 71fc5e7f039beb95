"""Classes of which there are few rows: their weight in the loss, and the mean of recalls."""

import numpy as np
import pandas as pd
import pytest
import torch
from models import bert
from sklearn.metrics import balanced_accuracy_score
from sklearn.utils.class_weight import compute_class_weight

from autopeft.errors import UsageError
from autopeft.tasks import Raw, Source
from autopeft.tasks._classification import of_predictions
from autopeft.tasks.digits import Digits
from autopeft.tasks.intent_classification import IntentClassification
from autopeft.tasks.text_classification import TextClassification
from autopeft.training.batches import batch_weight, collate_targets

LABELS = (["often"] * 9 + ["rare"]) * 10


@pytest.fixture
def rows(tmp_path):
    frame = pd.DataFrame({"text": [f"good day {row}" for row in range(100)], "label": LABELS})
    frame.to_csv(tmp_path / "rows.csv", index=False)
    (tmp_path / "model").mkdir()
    return {"train": str(tmp_path / "rows.csv"), "validation_share": 0.2}, bert(tmp_path / "model")


def test_the_loss_is_pytorchs_with_the_weights_of_scikit_learn(rows):
    data, model = rows
    task = TextClassification(class_weights="balanced")
    dataset = task.read(data, seed=0)
    split = task.encoder(Source(model), dataset.about)(dataset.splits["train"])
    labels = np.asarray(split.targets["label"])
    weights = compute_class_weight("balanced", classes=np.arange(2), y=labels)
    np.testing.assert_allclose(dataset.about["class_weights"], weights)
    outputs = torch.randn(len(labels), 2, generator=torch.Generator().manual_seed(0))
    batch = np.arange(0, len(labels), 3)
    found = task.loss(outputs[batch], collate_targets(split, batch)).sum() / batch_weight(
        task.weights(split.targets), batch
    )
    expected = torch.nn.CrossEntropyLoss(torch.from_numpy(weights).float())(
        outputs[batch], torch.from_numpy(labels[batch])
    )
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    trivial = task.trivial(split.targets, split.targets, dataset.about, dict).metrics
    assert trivial["loss"] == pytest.approx(np.log(2), abs=1e-3), "the classes count the same"
    assert trivial["balanced_accuracy"] == 0.5
    bare = task.encoder(Source(model), dataset.about)(Raw(dataset.splits["train"].inputs, {}, batch))
    assert bare.targets == {}


def test_without_weights_nothing_changes(rows):
    data, model = rows
    task = TextClassification()
    dataset = task.read(data, seed=0)
    assert "class_weights" not in dataset.about
    split = task.encoder(Source(model), dataset.about)(dataset.splits["train"])
    assert list(split.targets) == ["label"]
    assert set(task.weights(split.targets)) == {1.0}
    with pytest.raises(UsageError, match="expected balanced"):
        TextClassification(class_weights="balance")


def test_a_class_that_train_lacks_counts_as_one_row(tmp_path):
    for split, labels in (("train", ["day", "film"] * 6), ("validation", ["day", "oos"]), ("test", ["film", "oos"])):
        frame = pd.DataFrame({"text": [f"{split} {row}" for row in range(len(labels))], "label": labels})
        frame.to_csv(tmp_path / f"{split}.csv", index=False)
    data = {split: str(tmp_path / f"{split}.csv") for split in ("train", "validation", "test")}
    assert IntentClassification(class_weights="balanced").read(data, 0).about["class_weights"] == [1.0, 1.0, 1.0]


def test_digits_have_weights_too():
    found = Digits(class_weights="balanced").read({}, seed=0)
    split = Digits(class_weights="balanced").encoder(Source(""), found.about)(found.splits["train"])
    assert len(split.targets["weight"]) == len(split)


@pytest.mark.parametrize("seed", range(3))
def test_balanced_accuracy_is_scikit_learns(seed):
    rng = np.random.default_rng(seed)
    labels, predicted = rng.integers(0, 4, 50), rng.integers(0, 5, 50)
    found = of_predictions(predicted, labels, 6).metrics["balanced_accuracy"]
    assert found == pytest.approx(balanced_accuracy_score(labels, predicted))
