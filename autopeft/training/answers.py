"""What a model says of the rows of a split, batch by batch: what its task keeps of each row, and each row's loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from autopeft.tasks import Batch, Kept, Scores, Split, Task
from autopeft.training.batches import by_length, collate, collate_targets

SCORE_BATCH = 128  # rows of one forward pass without gradient
SCORE_VALUES = 2**27  # logits of one such pass at most, where a model has some for each token: 0.5 GB in fp32
NOT_FINITE = "the model's outputs are not finite: it diverged"


class Answers:
    """Collects answers in whatever order they come; holds them in the split's.

    Args:
        task: Says what is kept.
        split: Whose rows are answered; without targets they have no loss.

    Attributes:
        losses: (n_rows,) sums of each row.
        are_finite: Whether all outputs were. What is not has no score: an argmax would call it the first label.
    """

    def __init__(self, task: Task, split: Split) -> None:
        self.task, self.split = task, split
        self.losses = np.zeros(len(split), dtype=np.float64)
        self.are_finite = True
        self._kept: dict[str, list[Any]] = {}

    def take(self, rows: np.ndarray, outputs: torch.Tensor, model: Any) -> None:
        """The outputs of some rows."""
        outputs = outputs.float()
        self.are_finite = self.are_finite and bool(torch.isfinite(outputs).all())
        device = outputs.device
        targets = collate_targets(self.split, rows, device)
        # The inputs are for a task that calls the model itself; the others keep what the outputs say.
        inputs = collate(self.split, rows, device) if self.task.calls_model else {}
        for name, values in self.task.keep(outputs, Batch(rows, inputs, targets), model).items():
            found = values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else values
            place = self._kept.setdefault(name, [None] * len(self.split))
            for row, value in zip(rows, found, strict=True):
                place[row] = value
        if targets:
            self.losses[rows] = self.task.loss(outputs, targets).detach().cpu().numpy()

    @property
    def kept(self) -> Kept:
        """By name, in the split's order: an array if all rows have one shape, else a list."""
        return {name: _stacked(values) for name, values in self._kept.items()}

    def scores(self, weights: np.ndarray, about: Mapping[str, Any]) -> Scores:
        """All metrics of the task, and the mean loss.

        Args:
            weights: (n_rows,) what each row counts in the loss.
            about: Of the data.

        Raises:
            FloatingPointError: Outputs are not finite.
        """
        if not self.are_finite:
            raise FloatingPointError(NOT_FINITE)
        found = self.task.score(self.kept, self.split.targets, about)
        loss = float(self.losses.sum() / max(float(weights.sum()), 1e-12))
        return Scores({**found.metrics, "loss": loss}, found.detail)


def score_batches(lengths: np.ndarray, model: Any) -> list[np.ndarray]:
    """The rows of a split by the passes in which they are scored.

    Args:
        lengths: (n_rows,) tokens of each.
        model: Which scores them.
    """
    if getattr(model, "get_output_embeddings", lambda: None)() is None:
        return by_length(lengths, SCORE_BATCH)
    return by_length(lengths, SCORE_BATCH, SCORE_VALUES // model.config.get_text_config().vocab_size)


def _stacked(values: list[Any]) -> np.ndarray | list[Any]:
    if isinstance(values[0], np.ndarray | np.generic) and len({np.shape(value) for value in values}) == 1:
        return np.stack(values)
    return values
