"""What classification tasks share: cross entropy, and scores by name, from scikit-learn."""

from __future__ import annotations

from typing import Any

import numpy as np


class Classification:
    """The half of a `Task` that knows labels and no inputs. (n_rows, n_labels) logits, (n_rows,) labels throughout."""

    metrics = ("accuracy", "f1", "macro_f1", "matthews_correlation")

    def score(self, logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """Accuracy, macro F1, Matthews correlation; F1 of label 1 where there are two labels."""
        return of_predictions(logits.argmax(axis=1), labels, logits.shape[1])

    def by_class(self, logits: np.ndarray, labels: np.ndarray) -> dict[str, list[int]]:
        """How many rows were given each label, and how many of them have it: a classification report is made of it."""
        predicted, n_labels = logits.argmax(axis=1), logits.shape[1]
        return {
            "predicted": np.bincount(predicted, minlength=n_labels).tolist(),
            "correct": np.bincount(predicted[predicted == labels], minlength=n_labels).tolist(),
        }

    def loss(self, logits: Any, labels: Any) -> Any:
        """Cross entropy."""
        from torch.nn.functional import cross_entropy

        return cross_entropy(logits, labels)

    def trivial(self, train_labels: np.ndarray, labels: np.ndarray, n_labels: int) -> dict[str, float]:
        """The scores of always answering the most frequent training label."""
        most = int(np.bincount(train_labels, minlength=n_labels).argmax())
        return of_predictions(np.full(len(labels), most), labels, n_labels)


def of_predictions(predicted: np.ndarray, labels: np.ndarray, n_labels: int) -> dict[str, float]:
    """The scores of predicted labels."""
    from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

    out = {
        "accuracy": float(accuracy_score(labels, predicted)),
        "macro_f1": float(f1_score(labels, predicted, average="macro", zero_division=0)),
        "matthews_correlation": float(matthews_corrcoef(labels, predicted)),
    }
    if n_labels == 2:
        out["f1"] = float(f1_score(labels, predicted, pos_label=1, average="binary", zero_division=0))
    return out
