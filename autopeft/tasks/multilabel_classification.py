"""Multi-label classification: any number of labels for a text, or for a pair of texts; a yes or a no for each label."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from autopeft.errors import UsageError
from autopeft.objectives import Goal
from autopeft.tasks import Batch, Columns, Dataset, Kept, Kind, Scores, column_names
from autopeft.tasks._many_labels import LabelSets
from autopeft.tasks._reading import read_table
from autopeft.tasks._texts import Texts


class MultilabelClassification(Texts):
    """A yes or a no for each label, each by an output of its own: yes if its probability is one half or more.

    Args:
        separator: What stands between the labels of a text.
    """

    trivial_title = "majority of each label"
    metrics: Mapping[str, Goal] = {
        "micro_f1": "maximize",
        "macro_f1": "maximize",
        "mean_average_precision": "maximize",
        "exact_match": "maximize",
        "loss": "minimize",
    }
    columns: Mapping[str, Kind] = {"text": "texts", "labels": "targets"}
    calls_model = False

    def __init__(self, separator: str = ";") -> None:
        if not separator:
            raise UsageError("task: separator is one character or more")
        self.separator = separator

    def read(self, data: Mapping[str, Any], seed: int) -> Dataset:
        inputs = column_names(self.columns, data, inputs_only=True)
        return read_table(data, inputs, LabelSets(data, self.separator), seed)

    def weights(self, targets: Columns) -> np.ndarray:
        """Each row counts 1."""
        return np.ones(len(targets["labels"]), dtype=np.float32)

    def loss(self, outputs: Any, targets: Mapping[str, Any]) -> Any:
        """Computes the binary cross entropy of each row, as a mean over the labels."""
        from torch.nn.functional import binary_cross_entropy_with_logits

        return binary_cross_entropy_with_logits(outputs, targets["labels"].float(), reduction="none").mean(dim=1)

    def keep(self, outputs: Any, batch: Batch, model: Any) -> Mapping[str, Sequence[Any]]:
        """The logits."""
        return {"logits": outputs}

    def score(self, kept: Kept, targets: Columns, about: Mapping[str, Any]) -> Scores:
        """F1 over all labels together and as a mean of labels, mean average precision, the share of rows all right."""
        return of_chances(_sigmoid(kept["logits"]), np.asarray(targets["labels"]), about["labels"])

    def trivial(self, train: Columns, targets: Columns, about: Mapping[str, Any], base: Callable[[], Kept]) -> Scores:
        """Scores the share of training rows that have a label as its probability in every row."""
        held, labels = np.asarray(train["labels"]), np.asarray(targets["labels"])
        shares = (held.sum(axis=0) + 1) / (len(held) + 2)  # a label that training lacks has a chance, too
        chances = np.broadcast_to(shares, labels.shape)
        found = of_chances(chances, labels, about["labels"])
        loss = -np.where(labels == 1, np.log(chances), np.log(1 - chances)).mean()
        return Scores({**found.metrics, "loss": float(loss)}, found.detail)

    def truths(self, kept: Kept, targets: Columns, about: Mapping[str, Any]) -> Mapping[str, Sequence[Any]]:
        """The true `labels`, with separators between them."""
        return {"labels": self._said(np.asarray(targets["labels"]) == 1, about)}

    def trivial_answers(
        self, train: Columns, targets: Columns, about: Mapping[str, Any], base: Callable[[], Kept]
    ) -> Mapping[str, Any]:
        """The labels that most training rows have, and each label's share of them, for each row."""
        shares = np.broadcast_to(np.asarray(train["labels"]).mean(axis=0), np.asarray(targets["labels"]).shape)
        each = {f"p({name})": shares[:, at] for at, name in enumerate(about["labels"])}
        return {"labels": self._said(shares >= 0.5, about), **each}

    def _said(self, has: np.ndarray, about: Mapping[str, Any]) -> list[str]:
        """Writes the labels of each row, of (n_rows, n_labels) bool."""
        return [self.separator.join(about["labels"][at] for at in np.flatnonzero(row)) for row in has]

    def answers(self, kept: Kept, about: Mapping[str, Any]) -> Mapping[str, Any]:
        """`labels` with separators between them, and the probability of each label."""
        names, chances = about["labels"], _sigmoid(kept["logits"])
        each = {f"p({name})": chances[:, at] for at, name in enumerate(names)}
        return {"labels": self._said(chances >= 0.5, about), **each}


def of_chances(chances: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> Scores:
    """Scores probabilities (n_rows, n_labels). The mean average precision is over the labels that occur."""
    from sklearn.metrics import average_precision_score, f1_score

    predicted = (chances >= 0.5).astype(int)
    occurs = labels.any(axis=0)
    precisions = [average_precision_score(labels[:, at], chances[:, at]) for at in np.flatnonzero(occurs)]
    metrics = {
        "micro_f1": float(f1_score(labels, predicted, average="micro", zero_division=0)),
        "macro_f1": float(f1_score(labels, predicted, average="macro", zero_division=0)),
        "mean_average_precision": float(np.mean(precisions)) if precisions else 0.0,
        "exact_match": float((predicted == labels).all(axis=1).mean()),
    }
    counted: dict[str, np.ndarray] = {"rows": labels, "predicted": predicted, "correct": labels * predicted}
    return Scores(
        metrics, {"of": "label", "names": list(names), **{k: v.sum(axis=0).tolist() for k, v in counted.items()}}
    )


def _sigmoid(logits: Any) -> np.ndarray:
    from scipy.special import expit

    chances: np.ndarray = expit(np.asarray(logits, dtype=np.float64))
    return chances


plugin = MultilabelClassification
