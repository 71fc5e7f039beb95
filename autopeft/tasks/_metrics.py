"""Scores of a classification by name, from scikit-learn."""

from __future__ import annotations

import numpy as np


def score(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Accuracy, macro F1, Matthews correlation; F1 of label 1 where there are two labels.

    Args:
        logits: (n_rows, n_labels).
        labels: (n_rows,).
    """
    return of_predictions(logits.argmax(axis=1), labels, logits.shape[1])


def of_predictions(predicted: np.ndarray, labels: np.ndarray, n_labels: int) -> dict[str, float]:
    """The same from predicted labels."""
    from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

    out = {
        "accuracy": float(accuracy_score(labels, predicted)),
        "macro_f1": float(f1_score(labels, predicted, average="macro", zero_division=0)),
        "matthews_correlation": float(matthews_corrcoef(labels, predicted)),
    }
    if n_labels == 2:
        out["f1"] = float(f1_score(labels, predicted, pos_label=1, average="binary", zero_division=0))
    return out


def trivial(train_labels: np.ndarray, labels: np.ndarray, n_labels: int) -> dict[str, float]:
    """The scores of always answering the most frequent training label."""
    most = int(np.bincount(train_labels, minlength=n_labels).argmax())
    return of_predictions(np.full(len(labels), most), labels, n_labels)


METRICS = ("accuracy", "f1", "macro_f1", "matthews_correlation")


def by_class(logits: np.ndarray, labels: np.ndarray) -> dict[str, list[int]]:
    """How many rows were given each label, and how many of them have it: what a classification report is made of."""
    predicted, n_labels = logits.argmax(axis=1), logits.shape[1]
    return {
        "predicted": np.bincount(predicted, minlength=n_labels).tolist(),
        "correct": np.bincount(predicted[predicted == labels], minlength=n_labels).tolist(),
    }
