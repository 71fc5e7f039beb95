"""What classification tasks share: cross entropy, and scores by name, from scikit-learn."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from autopeft.errors import UsageError
from autopeft.objectives import Goal
from autopeft.tasks import Batch, Columns, Dataset, Kept, Raw, Scores, Split

WEIGHTS = (None, "balanced")
MOST_PAIRS = 150  # of confused labels in the ledger: more than the whole matrix of 12 labels has


class Classification:
    """The half of a `Task` that knows labels and no inputs. (n_rows, n_labels) logits, target `label` (n_rows,).

    With class weights there is a target `weight` (n_rows,), too: that of each row in the mean loss.

    Args:
        class_weights: `balanced`: all classes count the same in the loss, a row of class c n_rows / (n_classes n_c), as
            in scikit-learn; None: all rows count the same.
    """

    metrics: Mapping[str, Goal] = {
        "accuracy": "maximize",
        "f1": "maximize",
        "macro_f1": "maximize",
        "balanced_accuracy": "maximize",
        "matthews_correlation": "maximize",
        "loss": "minimize",
    }
    trivial_title = "majority class"
    calls_model = False
    class_weights: str | None = None  # of tasks from elsewhere, whose constructor does not ask

    def __init__(self, class_weights: str | None = None) -> None:
        if class_weights not in WEIGHTS:
            raise UsageError(f"class_weights: expected balanced, or none at all; got {class_weights!r}")
        self.class_weights = class_weights

    def weighted(self, dataset: Dataset) -> Dataset:
        """Adds the weight of each class, counted in train, to what is known of the data."""
        if self.class_weights is None:
            return dataset
        counts = np.bincount(dataset.splits["train"].targets["label"], minlength=dataset.about["n_outputs"])
        weights = counts.sum() / (np.count_nonzero(counts) * np.maximum(counts, 1))
        weights[counts == 0] = 1.0  # a label that train may lack
        return replace(dataset, about={**dataset.about, "class_weights": weights.tolist()})

    def weighing(self, encode: Callable[[Raw], Split], about: Mapping[str, Any]) -> Callable[[Raw], Split]:
        """Adds the target `weight` to what an encoder gives, if classes have weights."""
        if "class_weights" not in about:
            return encode
        weights = np.asarray(about["class_weights"], dtype=np.float32)

        def weigh(raw: Raw) -> Split:
            split = encode(raw)
            if not raw.targets:
                return split
            return replace(split, targets={**split.targets, "weight": weights[np.asarray(raw.targets["label"])]})

        return weigh

    def weights(self, targets: Columns) -> np.ndarray:
        """Returns the weight of each row's class; 1 without class weights."""
        if "weight" in targets:
            return np.asarray(targets["weight"])
        return np.ones(len(targets["label"]), dtype=np.float32)

    def loss(self, outputs: Any, targets: Mapping[str, Any]) -> Any:
        """Cross entropy of each row, times its weight."""
        from torch.nn.functional import cross_entropy

        losses = cross_entropy(outputs, targets["label"], reduction="none")
        return losses * targets["weight"] if "weight" in targets else losses

    def keep(self, outputs: Any, batch: Batch, model: Any) -> Mapping[str, Sequence[Any]]:
        """The logits."""
        return {"logits": outputs}

    def score(self, kept: Kept, targets: Columns, about: Mapping[str, Any]) -> Scores:
        """Accuracy, macro F1, balanced accuracy, Matthews correlation; F1 of the second label of two."""
        return of_predictions(np.asarray(kept["logits"]).argmax(axis=1), _labels(targets), about["n_outputs"])

    def trivial(self, train: Columns, targets: Columns, about: Mapping[str, Any], base: Callable[[], Kept]) -> Scores:
        """Scores the most frequent training label. Its loss is that of the labels' frequencies as probabilities."""
        n_labels, labels = about["n_outputs"], _labels(targets)
        most = np.bincount(_labels(train), minlength=n_labels).argmax()
        found = of_predictions(np.full(len(labels), most), labels, n_labels)
        counts = np.bincount(_labels(train), self.weights(train), minlength=n_labels)
        chances = (counts + 1) / (counts.sum() + n_labels)  # a label that training lacks has a chance, too
        loss = np.average(-np.log(chances[labels]), weights=self.weights(targets))
        return Scores({**found.metrics, "loss": float(loss)}, found.detail)

    def answers(self, kept: Kept, about: Mapping[str, Any]) -> Mapping[str, Sequence[Any]]:
        """`label`, and the probability of each label."""
        logits = np.asarray(kept["logits"])
        chances = np.exp(logits - logits.max(axis=1, keepdims=True))
        chances /= chances.sum(axis=1, keepdims=True)
        names = about["label_names"]
        label = [names[index] for index in logits.argmax(axis=1)]
        return {"label": label, **{f"p({name})": chances[:, index] for index, name in enumerate(names)}}

    def truths(self, kept: Kept, targets: Columns, about: Mapping[str, Any]) -> Mapping[str, Sequence[Any]]:
        """The true `label`."""
        return {"label": [about["label_names"][index] for index in _labels(targets)]}

    def trivial_answers(
        self, train: Columns, targets: Columns, about: Mapping[str, Any], base: Callable[[], Kept]
    ) -> Mapping[str, Any]:
        """The most frequent training label, and each label's share of train, for each row."""
        names, n_rows = about["label_names"], len(targets["label"])
        shares = np.bincount(_labels(train), minlength=len(names)) / len(_labels(train))
        each = {f"p({name})": np.full(n_rows, share) for name, share in zip(names, shares, strict=True)}
        return {"label": [names[shares.argmax()]] * n_rows, **each}


def of_predictions(predicted: np.ndarray, labels: np.ndarray, n_labels: int) -> Scores:
    """Scores predicted labels.

    Detail, by label: its rows, the rows predicted as it, and the rows that are both. `confused`: (true label, predicted
    label, rows), the pairs that are confused most often.
    """
    from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef, recall_score

    occur = np.unique(labels)
    metrics = {
        "accuracy": float(accuracy_score(labels, predicted)),
        "macro_f1": float(f1_score(labels, predicted, average="macro", zero_division=0)),
        "balanced_accuracy": float(recall_score(labels, predicted, labels=occur, average="macro", zero_division=0)),
        "matthews_correlation": float(matthews_corrcoef(labels, predicted)),
    }
    if n_labels == 2:
        metrics["f1"] = float(f1_score(labels, predicted, pos_label=1, average="binary", zero_division=0))
    counted = {"rows": labels, "predicted": predicted, "correct": predicted[predicted == labels]}
    detail: dict[str, Any] = {name: np.bincount(of, minlength=n_labels).tolist() for name, of in counted.items()}
    return Scores(metrics, {**detail, "confused": _confused(predicted, labels)})


def _confused(predicted: np.ndarray, labels: np.ndarray) -> list[list[int]]:
    wrong = predicted != labels
    pairs, counts = np.unique(np.stack([labels[wrong], predicted[wrong]], axis=1), axis=0, return_counts=True)
    found = [[int(true), int(other), int(count)] for (true, other), count in zip(pairs, counts, strict=True)]
    return sorted(found, key=lambda pair: -pair[2])[:MOST_PAIRS]


def _labels(targets: Columns) -> np.ndarray:
    return np.asarray(targets["label"])
