"""What classification tasks share: cross entropy, and scores by name, from scikit-learn."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from autopeft.objectives import Goal
from autopeft.tasks import Batch, Columns, Kept, Scores


class Classification:
    """The half of a `Task` that knows labels and no inputs. (n_rows, n_labels) logits, target `label` (n_rows,)."""

    metrics: Mapping[str, Goal] = {
        "accuracy": "maximize",
        "f1": "maximize",
        "macro_f1": "maximize",
        "matthews_correlation": "maximize",
        "loss": "minimize",
    }
    trivial_title = "majority class"
    calls_model = False

    def weights(self, targets: Columns) -> np.ndarray:
        """Each row counts 1."""
        return np.ones(len(targets["label"]), dtype=np.float32)

    def loss(self, outputs: Any, targets: Mapping[str, Any]) -> Any:
        """Cross entropy of each row."""
        from torch.nn.functional import cross_entropy

        return cross_entropy(outputs, targets["label"], reduction="none")

    def keep(self, outputs: Any, batch: Batch, model: Any) -> Mapping[str, Sequence[Any]]:
        """The logits."""
        return {"logits": outputs}

    def score(self, kept: Kept, targets: Columns, about: Mapping[str, Any]) -> Scores:
        """Accuracy, macro F1, Matthews correlation; F1 of the second label of two."""
        return of_predictions(np.asarray(kept["logits"]).argmax(axis=1), _labels(targets), about["n_outputs"])

    def trivial(self, train: Columns, targets: Columns, about: Mapping[str, Any], base: Callable[[], Kept]) -> Scores:
        """Scores the most frequent training label. Its loss is that of the labels' frequencies as probabilities."""
        n_labels, labels = about["n_outputs"], _labels(targets)
        counts = np.bincount(_labels(train), minlength=n_labels)
        found = of_predictions(np.full(len(labels), counts.argmax()), labels, n_labels)
        chances = (counts + 1) / (counts.sum() + n_labels)  # a label that training lacks has a chance, too
        return Scores({**found.metrics, "loss": float(-np.log(chances[labels]).mean())}, found.detail)

    def answers(self, kept: Kept, about: Mapping[str, Any]) -> Mapping[str, Sequence[Any]]:
        """`label`, and the probability of each label."""
        logits = np.asarray(kept["logits"])
        chances = np.exp(logits - logits.max(axis=1, keepdims=True))
        chances /= chances.sum(axis=1, keepdims=True)
        names = about["label_names"]
        label = [names[index] for index in logits.argmax(axis=1)]
        return {"label": label, **{f"p({name})": chances[:, index] for index, name in enumerate(names)}}


def of_predictions(predicted: np.ndarray, labels: np.ndarray, n_labels: int) -> Scores:
    """Scores predicted labels. Detail, by label: its rows, the rows predicted as it, and the rows that are both."""
    from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

    metrics = {
        "accuracy": float(accuracy_score(labels, predicted)),
        "macro_f1": float(f1_score(labels, predicted, average="macro", zero_division=0)),
        "matthews_correlation": float(matthews_corrcoef(labels, predicted)),
    }
    if n_labels == 2:
        metrics["f1"] = float(f1_score(labels, predicted, pos_label=1, average="binary", zero_division=0))
    counted = {"rows": labels, "predicted": predicted, "correct": predicted[predicted == labels]}
    return Scores(metrics, {name: np.bincount(of, minlength=n_labels).tolist() for name, of in counted.items()})


def _labels(targets: Columns) -> np.ndarray:
    return np.asarray(targets["label"])
