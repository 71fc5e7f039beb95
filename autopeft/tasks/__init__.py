"""Tasks: what is learned from which data. One plugin a file.

A task reads raw data, encodes it chunk by chunk for a model into flat arrays, names the transformers class that has the
right head, and says what the loss, the scores and the answers are. It knows nothing of training, search or ledger.

Three splits. The search sees train and validation; `confirm` scores the test split. A set without a labelled test
split: its validation becomes the test, and validation is carved from train, by seed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np

from autopeft.objectives import Goal

# What a key of the config's `data` names: one column of texts, one or two of them, a column of pictures; or a column
# of targets, of whatever kind.
Kind = Literal["text", "texts", "picture", "target"]

# What scoring needs of each row, by name: (n_rows, ...) arrays, or lists of what differs in shape from row to row.
Kept = Mapping[str, "np.ndarray | list[Any]"]


@dataclass(frozen=True, slots=True)
class Raw:
    """One split as read, or some rows of it: what the task's encoder understands.

    Attributes:
        inputs: Column → one value a row: texts, PIL images or their bytes, arrays.
        targets: Name → one value a row. Empty for rows to be predicted.
        rows: (n_rows,) int64: each row's index in the file it came from.
        strata: (n_rows,) int64: carved splits have a share of each; None if rows are all alike.
    """

    inputs: Mapping[str, Sequence[Any]]
    targets: Mapping[str, Any]
    rows: np.ndarray
    strata: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True)
class Dataset:
    """Raw splits, and how they came about.

    Attributes:
        splits: "train", "validation", and "test" if there is one.
        about: JSON data that scoring, answers and reports need: `n_outputs`, the size of the model's output layer;
            `label_names` by label index, of a classification.
        origin: What a report says: `source`; `digest`, a revision or content hash; `rows` and how it was `made`, both by
            split.
    """

    splits: Mapping[str, Raw]
    about: Mapping[str, Any]
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

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> np.ndarray:
        return self.values[self.offsets[row] : self.offsets[row + 1]]

    @staticmethod
    def of(rows: Sequence[Sequence[Any]], dtype: Any, pad: float, is_left: bool = False) -> Ragged:
        """Rows end to end."""
        lengths = [len(row) for row in rows]
        values = np.fromiter((value for row in rows for value in row), dtype, sum(lengths))
        return Ragged(values, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64), pad, is_left)


Columns = Mapping[str, "Ragged | np.ndarray"]


@dataclass(frozen=True)
class Split:
    """One split, or a chunk of it, encoded for one model: arrays that may be memory maps, read without copying.

    Attributes:
        inputs: Name of the model's input (`input_ids`, `pixel_values`) → Ragged, or a dense array (n_rows, ...).
        targets: Name → what the loss and the scores compare with: Ragged or dense. A row of the data may have become
            several here; what tells which ones is a target, too.
        scale: Dense input → (multiply, add) that turn its stored integers into what the model takes, channel by
            channel; absent for an input that is stored as the model takes it.
    """

    inputs: Columns
    targets: Columns
    scale: Mapping[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))

    @property
    def lengths(self) -> np.ndarray:
        """(n_rows,) int64: tokens a row; 1 each if no input is ragged."""
        for column in self.inputs.values():
            if isinstance(column, Ragged):
                return np.diff(column.offsets)
        return np.ones(len(self), dtype=np.int64)


@dataclass(frozen=True, slots=True)
class Batch:
    """Some rows of a split as tensors on the device.

    Attributes:
        rows: (n_rows,) their indices in the split.
        inputs: The model's, padded.
        targets: The task's, padded; empty for rows to be predicted.
    """

    rows: np.ndarray
    inputs: Mapping[str, Any]
    targets: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Scores:
    """What a split's predictions are worth.

    Attributes:
        metrics: Numbers by name.
        detail: JSON data for the ledger: counts by class, by entity, examples. Empty if there is nothing to say.
    """

    metrics: Mapping[str, float]
    detail: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Source:
    """Whose inputs an encoder makes.

    Attributes:
        model: Local folder or hub name of the model; holds the tokenizer or image processor.
        revision: Of the hub; None for a folder.
        trust_remote_code: Whether code that came with the model may run.
        max_length: Longest input in tokens; None for the model's own.
        data: The config's data section.
    """

    model: str
    revision: str | None = None
    trust_remote_code: bool = False
    max_length: int | None = None
    data: Mapping[str, Any] = field(default_factory=dict)

    @property
    def options(self) -> dict[str, Any]:
        """What transformers' `from_pretrained` takes beside the name."""
        return {"revision": self.revision or "main", "trust_remote_code": self.trust_remote_code}


class Task(Protocol):
    """What is learned.

    Attributes:
        auto_class: Name of the transformers class to load: "AutoModelForSequenceClassification".
        metrics: Names of the metrics that it computes and whether more or less is better; the first one is its default.
            `loss`, the mean loss of validation, is among those of every task, and the engine computes it.
        columns: Keys of the config's `data` → what they name. The name of a column is its key's unless `data` says
            otherwise.
        reads_folders: Whether `data.train` may be a folder.
        trivial_title: What its baseline without learning is called: "majority class".
        calls_model: Whether `keep` calls the model: then its whole forward pass is there, and no activations are cached.
    """

    auto_class: str
    metrics: Mapping[str, Goal]
    columns: Mapping[str, Kind]
    reads_folders: bool
    trivial_title: str
    calls_model: bool

    def read(self, data: Mapping[str, Any], seed: int) -> Dataset:
        """Reads all splits. `data` is the config's section, paths resolved.

        Raises:
            autopeft.errors.ConfigError: Columns, files or labels that are not as they should be; all at once.
        """

    def read_rows(self, file: Path, data: Mapping[str, Any]) -> Mapping[str, Sequence[Any]]:
        """The input columns of rows without targets, for prediction: a file, or a folder of pictures."""

    def processor(self, source: Source) -> Any:
        """The model's tokenizer or image processor as the encoder uses it; None for a task that needs none.

        Raises:
            autopeft.errors.UsageError: The model has none.
        """

    def encoder(self, source: Source, about: Mapping[str, Any]) -> Callable[[Raw], Split]:
        """Makes what encodes the rows of a chunk, offline. A row's encoding does not depend on the others."""

    def weights(self, targets: Columns) -> np.ndarray:
        """(n_rows,): what a row counts in a mean loss: 1, or its scored tokens."""

    def loss(self, outputs: Any, targets: Mapping[str, Any]) -> Any:
        """(n_rows,) sums of the loss over what is scored of a row; the engine divides by the batch's weights.

        Args:
            outputs: The model's logits, (n_rows, ...), fp32.
            targets: Of the same rows.
        """

    def keep(self, outputs: Any, batch: Batch, model: Any) -> Mapping[str, Sequence[Any]]:
        """What `score` and `answers` need of some rows, one entry a row: tensors, arrays or plain values.

        Args:
            outputs: The model's logits, fp32.
            batch: The rows.
            model: In evaluation mode, without gradient; only for a task that `calls_model`. Its `autopeft_source`
                (`path`, `revision`, `trust_remote_code`) says where its tokenizer is.
        """

    def score(self, kept: Kept, targets: Columns, about: Mapping[str, Any]) -> Scores:
        """All its metrics but `loss`, whatever the order of the rows."""

    def trivial(self, train: Columns, targets: Columns, about: Mapping[str, Any], base: Callable[[], Kept]) -> Scores:
        """The baseline without learning, `loss` included: the most frequent label, the mean, the untouched base.

        Args:
            train: Targets of the training split.
            targets: Of the split that is scored.
            base: Gives what `keep` has of that split under the untouched base; costs a pass over it.
        """

    def answers(self, kept: Kept, about: Mapping[str, Any]) -> Mapping[str, Sequence[Any]]:
        """Columns of predictions, one entry a row of the data."""


@runtime_checkable
class OwnBase(Protocol):
    """A task that builds a base model of its own, and brings its rows, too.

    Attributes:
        bases: Names that the config's `model` may have.
    """

    bases: tuple[str, ...]

    def base(self, name: str) -> Path:
        """The folder of that base: from the cache, or made now."""


def column_names(columns: Mapping[str, Kind], data: Mapping[str, Any], *, inputs_only: bool = False) -> dict[str, str]:
    """Column of the data → the key of the config's `data` that names it."""
    return {
        name: key for key, kind in columns.items() if kind != "target" or not inputs_only for name in named(data, key)
    }


def named(data: Mapping[str, Any], key: str) -> list[str]:
    """The columns that a key names: one, or the two of a pair."""
    value = data.get(key) or key
    return [value] if isinstance(value, str) else list(value)


def chunks(raw: Raw, size: int) -> Iterator[Raw]:
    """The rows of a split in order, some at a time."""
    for at in range(0, len(raw), size):
        yield Raw(
            {name: column[at : at + size] for name, column in raw.inputs.items()},
            {name: column[at : at + size] for name, column in raw.targets.items()},
            raw.rows[at : at + size],
        )
