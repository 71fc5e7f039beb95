"""A model's answers for the rows of a split: what its task keeps of each row, and each row's loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from autopeft.tasks import Batch, Calibrated, Kept, Scores, Split, Task, Writer
from autopeft.training.batches import by_length, collate, collate_targets
from autopeft.training.greedy import static_generation

SCORE_BATCH = 128  # rows of one forward pass without gradient
GPU_BATCH, GPU_PLACES = 1024, 2**15  # the same of texts on a GPU, and its tokens: smaller passes are all launches
SCORE_SHARE = 128  # on a GPU: its bytes for each of them; with copies, a sixth of its memory
WRITTEN = 1024  # rows for which a model writes at once
SCORE_VALUES = 2**27  # most logits of one such pass, for a model with logits for each token: 0.5 GB in fp32
SOUND_INPUTS = ("input_values", "input_features")  # of models that read sounds: one row may be 10 s, or 1,024 frames
SOUND_BATCH, SOUND_SAMPLES = 16, 2**21  # most rows of such a pass, and most samples; 2 GB in wav2vec2's first layer
CHOICE = "calibration"  # key of a score's detail
NOT_FINITE = "the model's outputs are not finite: it diverged"


class Answers:
    """Collects answers in any order, and returns them in the split's order.

    Args:
        task: Decides what is kept.
        split: The split with the rows. Without targets there are no losses.

    Attributes:
        losses: (n_rows,), summed loss of each row.
        choice: What the task chose on validation (`tasks.Calibrated`); None until then: `scores` chooses on this split.
        are_finite: Whether all outputs are finite. If not, there is no score: an argmax would return the first label.
    """

    def __init__(self, task: Task, split: Split) -> None:
        self.task, self.split = task, split
        self.losses = np.zeros(len(split), dtype=np.float64)
        self.are_finite = True
        self.choice: Mapping[str, Any] | None = None
        self._kept: dict[str, list[Any]] = {}

    def take(self, rows: np.ndarray, outputs: torch.Tensor, model: Any) -> None:
        """Takes the outputs of some rows. Without the model, a `Writer` writes nothing yet."""
        outputs = outputs.float()
        self.are_finite = self.are_finite and bool(torch.isfinite(outputs).all())
        device = outputs.device
        targets = collate_targets(self.split, rows, device)
        # Only a task that calls the model itself needs the inputs.
        inputs = collate(self.split, rows, device) if self.task.calls_model else {}
        for name, values in self.task.keep(outputs, Batch(rows, inputs, targets), model).items():
            self.put(name, rows, values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else values)
        if targets:
            self.losses[rows] = self.task.loss(outputs, targets).detach().cpu().numpy()

    def put(self, name: str, rows: Sequence[int] | np.ndarray, values: Sequence[Any]) -> None:
        """Keeps values of some rows; None stands for the other rows until theirs come."""
        place = self._kept.setdefault(name, [None] * len(self.split))
        for row, value in zip(rows, values, strict=True):
            place[row] = value

    @property
    def kept(self) -> Kept:
        """Returns what was kept, by name, in the split's order: an array if all rows have one shape, else a list."""
        return {name: _stacked(values) for name, values in self._kept.items()}

    def scores(self, weights: np.ndarray, about: Mapping[str, Any]) -> Scores:
        """Computes all metrics of the task, and the mean loss.

        Args:
            weights: (n_rows,), weight of each row in the loss.
            about: Description of the data (`tasks.Dataset.about`).

        Raises:
            FloatingPointError: Outputs are not finite.
        """
        if not self.are_finite:
            raise FloatingPointError(NOT_FINITE)
        found = self._score(about)
        loss = float(self.losses.sum() / max(float(weights.sum()), 1e-12))
        return Scores({**found.metrics, "loss": loss}, found.detail)

    def _score(self, about: Mapping[str, Any]) -> Scores:
        if not isinstance(self.task, Calibrated):
            return self.task.score(self.kept, self.split.targets, about)
        if self.choice is None:
            self.choice = self.task.calibrate(self.kept, self.split.targets, about)
        found = self.task.score(self.kept, self.split.targets, {**about, **self.choice})
        return Scores(found.metrics, {**found.detail, CHOICE: dict(self.choice)})


def calibrated(
    task: Task, split: str, about: Mapping[str, Any], answers_of: Callable[[str], Sequence[Answers]]
) -> Sequence[Answers]:
    """Returns the answers of models for a split, with what the task chooses for each on validation.

    Args:
        answers_of: Returns the answers of all models for a split.
    """
    found = answers_of(split)
    if split != "validation" and isinstance(task, Calibrated):
        for own, seen in zip(found, answers_of("validation"), strict=True):
            if seen.are_finite:  # if not, the trial fails
                own.choice = task.calibrate(seen.kept, seen.split.targets, about)
            own.are_finite = own.are_finite and seen.are_finite
    return found


def write(task: Writer, members: Sequence[Answers], model: Any, device: torch.device) -> None:
    """Lets a model write for the rows of a split that its task asks for, for several members side by side.

    Args:
        members: Answers of each member of the model's passes, for one split.
        model: Writes for the members' rows, one member after the other.
    """
    split, n_members = members[0].split, len(members)
    asked, most = task.asked(split), max(1, WRITTEN // n_members)
    with static_generation(model, device):
        for at in range(0, max(1, len(asked)), most):  # once without rows, for the names
            rows = asked[at : at + most]
            every = np.tile(rows, n_members)
            inputs, targets = (
                (collate(split, every, device), collate_targets(split, every, device)) if len(rows) else ({}, {})
            )
            for name, values in task.write(Batch(every, inputs, targets), model).items():
                for index, member in enumerate(members):
                    member.put(name, rows, values[index * len(rows) : (index + 1) * len(rows)])


def score_batches(lengths: np.ndarray, model: Any) -> list[np.ndarray]:
    """Returns the rows of a split in batches for scoring.

    Args:
        lengths: (n_rows,) tokens, or samples of a sound, a row.
        model: The model that scores the rows.
    """
    device = next(model.parameters()).device
    return by_length(lengths, pass_rows(model, device), most_places(model, device))


def _hears(model: Any) -> bool:
    return getattr(model, "main_input_name", None) in SOUND_INPUTS


def _reads_on_gpu(model: Any, device: torch.device) -> bool:
    return getattr(model, "main_input_name", None) == "input_ids" and device.type == "cuda"


def has_vocabulary(model: Any) -> bool:
    """Whether a model has an output for each word of its vocabulary, so that its logits are most of a pass's memory."""
    return getattr(model, "get_output_embeddings", lambda: None)() is not None


def pass_rows(model: Any, device: torch.device) -> int:
    """Returns how many rows a pass for scoring may hold."""
    if _hears(model):
        return SOUND_BATCH
    return GPU_BATCH if _reads_on_gpu(model, device) else SCORE_BATCH


def most_places(model: Any, device: torch.device) -> int | None:
    """Returns how many tokens, or samples, a pass for scoring may hold, padding included; None for no bound."""
    if _hears(model):
        return SOUND_SAMPLES
    if not has_vocabulary(model):
        return GPU_PLACES if _reads_on_gpu(model, device) else None
    values = SCORE_VALUES
    if device.type == "cuda":  # small passes would leave a large GPU idle
        values = max(values, torch.cuda.get_device_properties(device).total_memory // SCORE_SHARE)
    return int(values // model.config.get_text_config().vocab_size)


def _stacked(values: list[Any]) -> np.ndarray | list[Any]:
    if isinstance(values[0], np.ndarray | np.generic) and len({np.shape(value) for value in values}) == 1:
        return np.stack(values)
    return values
