"""Multi-output classification: several labels at once for a text, or for a pair of texts, such as topic and sentiment.

One adapter, one output layer: each column of labels has a slice of it. scikit-learn calls it multiclass-multioutput.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from autopeft.objectives import Goal
from autopeft.tasks import Batch, Columns, Dataset, Kept, Kind, Raw, Scores, Source, Split, column_names
from autopeft.tasks._classification import of_predictions
from autopeft.tasks._many_labels import LabelColumns
from autopeft.tasks._reading import read_table
from autopeft.tasks._texts import Texts


class MultioutputClassification(Texts):
    """A label for each of several columns. A row's loss is the mean of its columns' cross entropies."""

    trivial_title = "majority class of each column"
    metrics: Mapping[str, Goal] = {
        "mean_accuracy": "maximize",
        "exact_match": "maximize",
        "mean_macro_f1": "maximize",
        "loss": "minimize",
    }
    columns: Mapping[str, Kind] = {"text": "texts", "labels": "targets"}
    calls_model = False

    def read(self, data: Mapping[str, Any], seed: int) -> Dataset:
        return read_table(data, column_names(self.columns, data, inputs_only=True), LabelColumns(data), seed)

    def encoder(self, source: Source, about: Mapping[str, Any]) -> Callable[[Raw], Split]:
        """Texts as token ids; targets also hold the `end` of each column's slice of the outputs, the same in all rows."""
        encode_texts, ends = super().encoder(source, about), _ends(about)

        def encode(raw: Raw) -> Split:
            split = encode_texts(raw)
            if not raw.targets:
                return split
            return replace(split, targets={**raw.targets, "end": np.tile(ends, (len(raw), 1))})

        return encode

    def weights(self, targets: Columns) -> np.ndarray:
        """Each row counts 1."""
        return np.ones(len(targets["labels"]), dtype=np.float32)

    def loss(self, outputs: Any, targets: Mapping[str, Any]) -> Any:
        """Computes the cross entropy of each row, as a mean over the columns."""
        from torch.nn.functional import cross_entropy

        ends = targets["end"][0].tolist()
        parts = [
            cross_entropy(outputs[:, start:end], targets["labels"][:, at], reduction="none")
            for at, (start, end) in enumerate(zip([0, *ends], ends, strict=False))
        ]
        return sum(parts) / len(parts)

    def keep(self, outputs: Any, batch: Batch, model: Any) -> Mapping[str, Sequence[Any]]:
        """The logits."""
        return {"logits": outputs}

    def score(self, kept: Kept, targets: Columns, about: Mapping[str, Any]) -> Scores:
        """Means of the columns' accuracies and macro F1, and the share of rows that are right in all columns."""
        logits = np.asarray(kept["logits"])
        predicted = np.stack([logits[:, part].argmax(axis=1) for _, _, part in _slices(about)], axis=1)
        return _of_predictions(predicted, np.asarray(targets["labels"]), about)

    def trivial(self, train: Columns, targets: Columns, about: Mapping[str, Any], base: Callable[[], Kept]) -> Scores:
        """Scores each column's most frequent training label."""
        labels, losses, predicted = np.asarray(targets["labels"]), [], []
        for at, (_, names, _) in enumerate(_slices(about)):
            counts = np.bincount(np.asarray(train["labels"])[:, at], minlength=len(names))
            chances = (counts + 1) / (counts.sum() + len(names))  # a label that training lacks has a chance, too
            predicted.append(np.full(len(labels), counts.argmax()))
            losses.append(-np.log(chances[labels[:, at]]).mean())
        found = _of_predictions(np.stack(predicted, axis=1), labels, about)
        return Scores({**found.metrics, "loss": float(np.mean(losses))}, found.detail)

    def truths(self, kept: Kept, targets: Columns, about: Mapping[str, Any]) -> Mapping[str, Sequence[Any]]:
        """Each column's true label."""
        labels = np.asarray(targets["labels"])
        return {
            column: [names[index] for index in labels[:, at]] for at, (column, names, _) in enumerate(_slices(about))
        }

    def trivial_answers(
        self, train: Columns, targets: Columns, about: Mapping[str, Any], base: Callable[[], Kept]
    ) -> Mapping[str, Any]:
        """Each column's most frequent training label, and each label's share of train, for each row."""
        out: dict[str, Any] = {}
        labels, n_rows = np.asarray(train["labels"]), len(targets["labels"])
        for at, (column, names, _) in enumerate(_slices(about)):
            shares = np.bincount(labels[:, at], minlength=len(names)) / len(labels)
            out[column] = [names[shares.argmax()]] * n_rows
            out |= {f"p({column}={name})": np.full(n_rows, share) for name, share in zip(names, shares, strict=True)}
        return out

    def answers(self, kept: Kept, about: Mapping[str, Any]) -> Mapping[str, Sequence[Any]]:
        """Each column's label, and the probability of each of its labels."""
        from scipy.special import softmax

        out: dict[str, Sequence[Any]] = {}
        chances: dict[str, Sequence[Any]] = {}
        logits = np.asarray(kept["logits"], dtype=np.float64)
        for column, names, part in _slices(about):
            of_column = softmax(logits[:, part], axis=1)
            out[column] = [names[at] for at in of_column.argmax(axis=1)]
            chances |= {f"p({column}={name})": of_column[:, at] for at, name in enumerate(names)}
        return {**out, **chances}


def _of_predictions(predicted: np.ndarray, labels: np.ndarray, about: Mapping[str, Any]) -> Scores:
    """Scores predicted labels (n_rows, n_columns). Detail: the counts of all labels, by `column=label`; `columns`."""
    columns = {
        column: (of_predictions(predicted[:, at], labels[:, at], len(names)), names)
        for at, (column, names, _) in enumerate(_slices(about))
    }
    metrics = {
        "mean_accuracy": float(np.mean([found.metrics["accuracy"] for found, _ in columns.values()])),
        "exact_match": float((predicted == labels).all(axis=1).mean()),
        "mean_macro_f1": float(np.mean([found.metrics["macro_f1"] for found, _ in columns.values()])),
    }
    counts = {
        name: [count for found, _ in columns.values() for count in found.detail[name]]
        for name in ("rows", "predicted", "correct")
    }
    every = [f"{column}={name}" for column, (_, names) in columns.items() for name in names]
    each = {column: dict(found.metrics) for column, (found, _) in columns.items()}
    return Scores(metrics, {"of": "label", "names": every, **counts, "columns": each})


def _ends(about: Mapping[str, Any]) -> np.ndarray:
    return np.cumsum([len(names) for names in about["outputs"].values()])


def _slices(about: Mapping[str, Any]) -> Iterator[tuple[str, list[str], slice]]:
    """Yields each column, its labels, and its slice of the outputs."""
    start = 0
    for column, names in about["outputs"].items():
        yield column, names, slice(start, start + len(names))
        start += len(names)


plugin = MultioutputClassification
