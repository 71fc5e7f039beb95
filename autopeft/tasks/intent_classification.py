"""Intent classification: a message is of one of the intents, or out of scope.

A message is out of scope if the model is sure of no intent: if the largest probability of an intent is below a
threshold. The threshold is chosen on validation, and an export keeps it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from autopeft.errors import Fault, did_you_mean
from autopeft.objectives import Goal
from autopeft.tasks import Columns, Dataset, Kept, Raw, Scores, Source, Split, column_names
from autopeft.tasks._classification import Classification, of_predictions
from autopeft.tasks._reading import read_table
from autopeft.tasks._targets import Labels, nothing_wrong
from autopeft.tasks._texts import Texts


class IntentClassification(Texts, Classification):
    """A label a row, one of which says that the message has none of the intents.

    Training may have rows out of scope, or none: they are a class of their own beside the intents.

    Args:
        out_of_scope: The label of such rows.
        class_weights: See `Classification`.
    """

    trivial_title = "always out of scope"
    metrics: Mapping[str, Goal] = {
        "routing_score": "maximize",
        "in_scope_accuracy": "maximize",
        "out_of_scope_recall": "maximize",
        "out_of_scope_precision": "maximize",
        "accuracy": "maximize",
        "loss": "minimize",
    }

    def __init__(self, out_of_scope: str = "oos", class_weights: str | None = None) -> None:
        super().__init__(class_weights)
        self.out_of_scope = out_of_scope

    def read(self, data: Mapping[str, Any], seed: int) -> Dataset:
        inputs = column_names(self.columns, data, inputs_only=True)
        dataset = read_table(data, inputs, Intents(data, self.out_of_scope), seed)
        faults = []
        for split in ("validation", "test"):
            if split not in dataset.splits:
                continue
            is_out = self._is_out(dataset.splits[split].targets, dataset.about)
            if is_out.all() or not is_out.any():
                lacks = "in scope" if is_out.all() else f"out of scope (label {self.out_of_scope!r})"
                faults.append(Fault("data", f"{split} has no row {lacks}: no threshold can be judged there"))
        nothing_wrong(faults)
        return self.weighted(dataset)

    def encoder(self, source: Source, about: Mapping[str, Any]) -> Callable[[Raw], Split]:
        """Texts as token ids, and the weight of each row if classes have weights."""
        return self.weighing(super().encoder(source, about), about)

    def calibrate(self, kept: Kept, targets: Columns, about: Mapping[str, Any]) -> Mapping[str, Any]:
        """Chooses the `threshold` with the best `routing_score`; of several equally good ones, the lowest."""
        intent, confidence = self._likeliest(kept, about)
        labels, is_out = np.asarray(targets["label"]), self._is_out(targets, about)
        order = np.argsort(confidence, kind="stable")
        # If the first n rows in order are below the threshold: what is lost in scope, and won out of scope.
        lost = np.concatenate([[0], np.cumsum((intent == labels)[order] & ~is_out[order])])
        won = np.concatenate([[0], np.cumsum(is_out[order])])
        gain = won / is_out.sum() - lost / (~is_out).sum()
        ranked = confidence[order]
        cuts = np.concatenate([[0.0], (ranked[1:] + ranked[:-1]) / 2, [1.0]])
        splits = np.concatenate([[True], ranked[1:] > ranked[:-1], [ranked[-1] < 1.0]])  # rows that tie stay together
        return {"threshold": float(cuts[np.where(splits, gain, -np.inf).argmax()])}

    def score(self, kept: Kept, targets: Columns, about: Mapping[str, Any]) -> Scores:
        """Accuracy in scope, recall and precision out of scope, and the mean of the first two."""
        return self._of_predictions(self._predicted(kept, about), targets, about)

    def trivial(self, train: Columns, targets: Columns, about: Mapping[str, Any], base: Callable[[], Kept]) -> Scores:
        """Scores `out of scope` for each row. The loss is that of the labels' frequencies as probabilities."""
        loss = super().trivial(train, targets, about, base).metrics["loss"]
        found = self._of_predictions(np.full(len(targets["label"]), self._out(about)), targets, about)
        return Scores({**found.metrics, "loss": loss}, found.detail)

    def answers(self, kept: Kept, about: Mapping[str, Any]) -> Mapping[str, Sequence[Any]]:
        """`label`, the largest probability of an intent as `confidence`, and the probability of each label."""
        names = about["label_names"]
        label = [names[index] for index in self._predicted(kept, about)]
        chances = {name: column for name, column in super().answers(kept, about).items() if name != "label"}
        return {"label": label, "confidence": self._likeliest(kept, about)[1].tolist(), **chances}

    def trivial_answers(
        self, train: Columns, targets: Columns, about: Mapping[str, Any], base: Callable[[], Kept]
    ) -> Mapping[str, Any]:
        """`out of scope`, for each row, with no confidence in an intent."""
        n_rows, known = len(targets["label"]), super().trivial_answers(train, targets, about, base)
        return {**known, "label": [self.out_of_scope] * n_rows, "confidence": np.zeros(n_rows)}

    def _of_predictions(self, predicted: np.ndarray, targets: Columns, about: Mapping[str, Any]) -> Scores:
        labels, is_out, said_out = (
            np.asarray(targets["label"]),
            self._is_out(targets, about),
            predicted == self._out(about),
        )
        found = of_predictions(predicted, labels, about["n_outputs"])
        in_scope = float((predicted == labels)[~is_out].mean())
        recall = float(said_out[is_out].mean())
        metrics = {
            "routing_score": (in_scope + recall) / 2,
            "in_scope_accuracy": in_scope,
            "out_of_scope_recall": recall,
            "out_of_scope_precision": float(is_out[said_out].mean()) if said_out.any() else 0.0,
            "accuracy": found.metrics["accuracy"],
        }
        return Scores(metrics, found.detail)

    def _predicted(self, kept: Kept, about: Mapping[str, Any]) -> np.ndarray:
        intent, confidence = self._likeliest(kept, about)
        predicted: np.ndarray = np.where(confidence < about["threshold"], self._out(about), intent)
        return predicted

    def _likeliest(self, kept: Kept, about: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        """Returns the likeliest intent of each row, and its probability among all labels."""
        from scipy.special import softmax

        chances = softmax(np.asarray(kept["logits"], dtype=np.float64), axis=1)
        chances[:, self._out(about)] = -1.0
        intent = chances.argmax(axis=1)
        return intent, chances[np.arange(len(intent)), intent]

    def _out(self, about: Mapping[str, Any]) -> int:
        """Returns the index of the label for rows out of scope."""
        index: int = about["label_names"].index(self.out_of_scope)
        return index

    def _is_out(self, targets: Mapping[str, Any], about: Mapping[str, Any]) -> np.ndarray:
        is_out: np.ndarray = np.asarray(targets["label"]) == self._out(about)
        return is_out


class Intents(Labels):
    """Labels among which one is out of scope; train itself may have no such row.

    Args:
        data: The config's data section.
        out_of_scope: That label.
    """

    def __init__(self, data: Mapping[str, Any], out_of_scope: str) -> None:
        super().__init__(data, may_lack=[out_of_scope])
        self.out_of_scope = out_of_scope

    def about(
        self, train: Mapping[str, Sequence[Any]], given: Sequence[Any] | None
    ) -> tuple[dict[str, Any], list[Fault]]:
        """Names the labels, the one out of scope among them."""
        about, faults = super().about(train, given)
        names = about["label_names"]
        if self.out_of_scope not in names:
            near = did_you_mean(self.out_of_scope, names)
            faults.append(Fault("data.label", f"no label is {self.out_of_scope!r}, the task's out_of_scope.{near}"))
        return about, faults


plugin = IntentClassification
