"""Tasks: what is learned from which data. One plugin a file.

A task reads raw data, encodes it once for a model into flat arrays, names the transformers class that has the right
head, and scores predictions. It knows nothing of training, search or ledger.

Three splits. The search sees train and validation; `confirm` scores the test split. A set without a labelled test
split: its validation becomes the test, and validation is carved from train, by seed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np


@dataclass(frozen=True, slots=True)
class Raw:
    """One split as read: what the task's `encode` understands, and the labels.

    Attributes:
        inputs: Column → one value a row: texts, PIL images or their bytes, arrays.
        labels: (n_rows,) int64, indices into `Dataset.label_names`.
        rows: (n_rows,) int64: each row's index in the file it came from.
    """

    inputs: Mapping[str, Sequence[Any]]
    labels: np.ndarray
    rows: np.ndarray


@dataclass(frozen=True)
class Dataset:
    """Raw splits, and how they came about.

    Attributes:
        splits: "train", "validation", and "test" where there is one.
        label_names: By label index.
        origin: What a report says: source, revision or content hash, rows by split, how validation and test were made.
    """

    splits: Mapping[str, Raw]
    label_names: tuple[str, ...]
    origin: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Ragged:
    """Rows of different lengths, end to end: row i is `values[offsets[i]:offsets[i + 1]]`.

    Attributes:
        values: (n_values,) or (n_values, width).
        offsets: (n_rows + 1,) int64.
        pad: Fills a batch's shorter rows.
        is_left: Whether it stands before a row, not behind it.
    """

    values: np.ndarray
    offsets: np.ndarray
    pad: float
    is_left: bool = False


@dataclass(frozen=True)
class Split:
    """One split, encoded for one model: arrays that may be memory maps, read without copying.

    Attributes:
        columns: Name of the model's input (`input_ids`, `pixel_values`) → Ragged, or a dense array (n_rows, ...).
        labels: (n_rows,) int64.
        scale: Dense column → (multiply, add) that turn its stored integers into what the model takes, channel by
            channel; absent where the column is stored as the model takes it.
    """

    columns: Mapping[str, Ragged | np.ndarray]
    labels: np.ndarray
    scale: Mapping[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def lengths(self) -> np.ndarray:
        """(n_rows,) int64: tokens a row; 1 each where no column is ragged."""
        for column in self.columns.values():
            if isinstance(column, Ragged):
                return np.diff(column.offsets)
        return np.ones(len(self), dtype=np.int64)


class Task(Protocol):
    """Attributes:
    auto_class: Name of the transformers class to load: "AutoModelForSequenceClassification".
    metrics: Names of the metrics it computes, the first one its default.
    reads_folders: Whether `data.train` may be a folder.
    """

    auto_class: str
    metrics: tuple[str, ...]
    reads_folders: bool

    def read(self, data: Mapping[str, Any], seed: int) -> Dataset:
        """Reads all splits. `data` is the config's section, paths resolved.

        Raises:
            autopeft.errors.ConfigError: Columns, files or labels that are not as they should be; all at once.
        """

    def read_rows(self, file: Any, data: Mapping[str, Any]) -> Mapping[str, Sequence[Any]]:
        """The input columns of rows without labels, for prediction: a file, or a folder of pictures."""

    def processor(self, model_path: str, options: Mapping[str, Any]) -> Any:
        """The model's tokenizer or image processor as `encode` uses it; None for a task that needs none.

        Raises:
            autopeft.errors.ConfigError: The model has none.
        """

    def encode(self, raw: Raw, model_path: str, options: Mapping[str, Any]) -> Split:
        """Encodes a split with the model's own tokenizer or image processor, offline.

        Args:
            raw: A split.
            model_path: Local folder or hub name of the model; may hold the tokenizer or image processor.
            options: `max_length`, `image_size`, `revision`, `trust_remote_code`.
        """

    def score(self, logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """All its metrics of (n_rows, n_labels) logits against (n_rows,) labels."""

    def by_class(self, logits: np.ndarray, labels: np.ndarray) -> dict[str, list[int]]:
        """`predicted` and `correct` rows of each label (`Result.by_class`); empty where it has no classes."""

    def loss(self, logits: Any, labels: Any) -> Any:
        """The mean training loss of a batch, a torch scalar."""

    def trivial(self, train_labels: np.ndarray, labels: np.ndarray, n_labels: int) -> dict[str, float]:
        """All its metrics of always answering the most frequent training label."""
