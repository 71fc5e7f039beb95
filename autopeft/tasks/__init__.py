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

from autopeft.errors import Fault
from autopeft.objectives import Goal

# Kind of column that a key of the config's `data` names: one column of texts, one or two of them, a column of pictures,
# a column of sounds, of conversations, or a column of targets of any type, or several of them.
Kind = Literal["text", "texts", "picture", "sound", "conversation", "target", "targets"]
TARGETS = ("target", "targets")

UNSCORED = -100  # target of a token that has none; torch's losses leave it out

# Values that scoring needs for each row, by name: (n_rows, ...) arrays, or lists if the shape differs between rows.
Kept = Mapping[str, "np.ndarray | list[Any]"]


@dataclass(frozen=True, slots=True)
class Raw:
    """One split as read, or some rows of it: the input of the task's encoder.

    Attributes:
        inputs: Column → one value a row: texts, PIL images or their bytes, arrays.
        targets: Name → one value a row. Empty for rows to be predicted.
        rows: (n_rows,) int64: each row's index in the file it came from.
        strata: (n_rows,) int64: carved splits take the same share of each stratum; None if rows are all alike.
        groups: (n_rows,) int64: rows of one group stay in one split; None if there are no groups.
    """

    inputs: Mapping[str, Sequence[Any]]
    targets: Mapping[str, Any]
    rows: np.ndarray
    strata: np.ndarray | None = None
    groups: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True)
class Dataset:
    """Raw splits, and their origin.

    Attributes:
        splits: "train", "validation", and "test" if there is one.
        about: JSON data that scoring, answers and reports need: `n_outputs`, the size of the model's output layer;
            `label_names` by label index, of a classification.
        origin: Facts for reports: `source`; `digest`, a revision or content hash; by split, its `rows` and how it was
            `made`; `notes`, what a reader should know of the data.
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
        pad: Value that fills a batch's shorter rows.
        is_left: Whether padding is before a row, not behind it.
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
        """Puts rows end to end."""
        lengths = [len(row) for row in rows]
        values = np.fromiter((value for row in rows for value in row), dtype, sum(lengths))
        return Ragged(values, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64), pad, is_left)


Columns = Mapping[str, "Ragged | np.ndarray"]


@dataclass(frozen=True)
class Split:
    """One split, or a chunk of it, encoded for one model: arrays that may be memory maps, read without copying.

    Attributes:
        inputs: Name of the model's input (`input_ids`, `pixel_values`) → Ragged, or a dense array (n_rows, ...).
        targets: Name → true values for the loss and the scores: Ragged or dense. If a row of the data becomes several
            rows here, a target holds their origin, too.
        scale: Dense input → (multiply, add) that turn its stored integers into the model's values, channel by channel.
            Absent for an input that is stored as the model takes it.
        left_out: Places of the rows that were given and are not here: too long, and to be dropped.
        notes: What a user must know of these rows → how many rows it is about: "longer than 64 tokens: cut" → 12.
    """

    inputs: Columns
    targets: Columns
    scale: Mapping[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    left_out: Sequence[int] = ()
    notes: Mapping[str, int] = field(default_factory=dict)

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
        rows: (n_rows,), indices of the rows in the split.
        inputs: Inputs of the model, padded.
        targets: Targets of the task, padded; empty for rows to be predicted.
    """

    rows: np.ndarray
    inputs: Mapping[str, Any]
    targets: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Scores:
    """Scores of the predictions for a split.

    Attributes:
        metrics: Numbers by name.
        detail: JSON data for the ledger: counts by class, by entity, examples. Empty if there is nothing to say.
    """

    metrics: Mapping[str, float]
    detail: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Source:
    """Settings of an encoder: the model and the data.

    Attributes:
        model: Local folder or hub name of the model; holds the tokenizer or image processor.
        revision: Revision on the hub; None for a folder.
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
        """Returns the arguments of transformers' `from_pretrained` after the name."""
        return {"revision": self.revision or "main", "trust_remote_code": self.trust_remote_code}


class Task(Protocol):
    """What is learned.

    Attributes:
        auto_class: Name of the transformers class to load: "AutoModelForSequenceClassification".
        metrics: Name of each metric → whether more or less is better. The first one is the default. Every task lists
            `loss`, the mean validation loss; the engine computes it.
        columns: Keys of the config's `data` → the kind of column that they name. By default a column has the name of
            its key.
        reads_folders: Whether `data.train` may be a folder.
        trivial_title: Title of its baseline without learning: "majority class".
        calls_model: Whether `keep` calls the model. If so, no activations are cached, as the whole model is needed.
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
            autopeft.errors.ConfigError: Columns, files or labels are wrong. Names all faults at once. Those of single
                rows are `autopeft.tasks._targets.RowFault`; `data.on_fault: skip` leaves such rows out.
        """

    def read_rows(self, file: Path, data: Mapping[str, Any]) -> Mapping[str, Sequence[Any]]:
        """Reads the input columns of rows without targets, for prediction: from a file, or a folder of pictures."""

    def processor(self, source: Source) -> Any:
        """Loads the model's tokenizer or image processor as the encoder uses it; None if the task needs none.

        Raises:
            autopeft.errors.UsageError: The model has no tokenizer or image processor.
        """

    def encoder(self, source: Source, about: Mapping[str, Any]) -> Callable[[Raw], Split]:
        """Makes a function that encodes a chunk of rows, offline. A row's encoding does not depend on other rows."""

    def weights(self, targets: Columns) -> np.ndarray:
        """Returns the weight of each row in a mean loss (n_rows,): 1, or its number of scored tokens."""

    def loss(self, outputs: Any, targets: Mapping[str, Any]) -> Any:
        """Computes the summed loss of each row (n_rows,). The engine divides by the batch's weights.

        Args:
            outputs: The model's logits, (n_rows, ...), fp32.
            targets: Targets of the same rows.
        """

    def keep(self, outputs: Any, batch: Batch, model: Any) -> Mapping[str, Sequence[Any]]:
        """Returns the values that `score` and `answers` need, one entry a row: tensors, arrays or plain values.

        Args:
            outputs: The model's logits, fp32.
            batch: The rows.
            model: The model in evaluation mode, without gradient; only for a task that `calls_model`. Its
                `autopeft_source` (`path`, `revision`, `trust_remote_code`) is the source of its tokenizer.
        """

    def score(self, kept: Kept, targets: Columns, about: Mapping[str, Any]) -> Scores:
        """Computes all metrics but `loss`. The order of the rows does not matter."""

    def trivial(self, train: Columns, targets: Columns, about: Mapping[str, Any], base: Callable[[], Kept]) -> Scores:
        """Scores the baseline without learning, `loss` included: the most frequent label, the mean, the unchanged base.

        Args:
            train: Targets of the training split.
            targets: Targets of the split that is scored.
            base: Returns the values of `keep` for that split under the unchanged base. Costs a pass over the split.
        """

    def answers(self, kept: Kept, about: Mapping[str, Any]) -> Mapping[str, Sequence[Any]]:
        """Returns columns of predictions, one entry a row of the data."""


@runtime_checkable
class Augmenting(Protocol):
    """A task that may change the inputs of training batches by chance, so that no epoch is like another."""

    @property
    def augments(self) -> bool:
        """Whether it does, by its options. Then no activations are cached, and no trials share passes."""

    def augment(self, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        """Returns the model's inputs of a training batch, changed by torch's global random state, in their shapes."""


def augments(task: Task) -> bool:
    """Whether a task changes the inputs of training batches."""
    return isinstance(task, Augmenting) and task.augments


@runtime_checkable
class OwnBase(Protocol):
    """A task that builds a base model of its own, and brings its rows, too.

    Attributes:
        bases: Names that the config's `model` may have.
    """

    bases: tuple[str, ...]

    def base(self, name: str) -> Path:
        """Returns the folder of that base, and makes the base if it is not in the cache."""


@runtime_checkable
class TokenWise(Protocol):
    """A task with one output a token, whose loss is a sum over the tokens that have a target.

    Such a task's rows can lie end to end, and outputs be computed for the tokens with a target only. It is optional:
    `Task.loss` says the same of padded rows.

    Attributes:
        token_target: Ragged target with an entry for each token of the inputs, UNSCORED where there is no target.
        foretells: Whether a token's output is about the next token of its row, not about the token itself.
    """

    token_target: str
    foretells: bool

    def token_loss(self, outputs: Any, wanted: Any) -> Any:
        """Computes the loss of each token (n_tokens,); 0 where its target is UNSCORED.

        Args:
            outputs: The model's logits (n_tokens, n_outputs), fp32.
            wanted: (n_tokens,), the tokens' targets.
        """


@runtime_checkable
class Calibrated(Protocol):
    """A task that chooses something on validation once a model is trained: the threshold of an answer."""

    def calibrate(self, kept: Kept, targets: Columns, about: Mapping[str, Any]) -> Mapping[str, Any]:
        """Chooses from the answers for validation. The choice, as JSON, joins `about` for scores and answers."""


@runtime_checkable
class ReadsForms(Protocol):
    """A task whose columns depend on what the config's `data` gives: templates, or one of several forms of a row."""

    def data_faults(self, data: Mapping[str, Any]) -> list[Fault]:
        """Finds keys of `data` that do not go together. Reads no file."""

    def columns_of(self, data: Mapping[str, Any], *, inputs_only: bool = False) -> dict[str, str]:
        """Returns column of the data → the key of `data` that names it."""


def input_columns(task: Task, data: Mapping[str, Any]) -> dict[str, str]:
    """Returns input column of the data → the key of the config's `data` that names it."""
    if isinstance(task, ReadsForms):
        return task.columns_of(data, inputs_only=True)
    return column_names(task.columns, data, inputs_only=True)


@runtime_checkable
class Writer(Protocol):
    """A task that `calls_model` to write something for some rows of a split, which can be done for all of them at once.

    Its `keep` leaves out what is written if it is given no model.
    """

    def asked(self, split: Split) -> np.ndarray:
        """Returns the rows of a split with targets for which the model writes (n_asked,)."""

    def write(self, batch: Batch, model: Any) -> Mapping[str, Sequence[Any]]:
        """Returns what the model writes, and what it should, one entry for each row; the names alone for no row."""


def column_names(columns: Mapping[str, Kind], data: Mapping[str, Any], *, inputs_only: bool = False) -> dict[str, str]:
    """Returns column of the data → the key of the config's `data` that names it."""
    return {
        name: key
        for key, kind in columns.items()
        if kind not in TARGETS or not inputs_only
        for name in named(data, key)
    }


def named(data: Mapping[str, Any], key: str) -> list[str]:
    """Returns the columns that a key names: one, the two of a pair, or several of targets."""
    value = data.get(key) or key
    return [value] if isinstance(value, str) else list(value)


def chunks(raw: Raw, size: int) -> Iterator[Raw]:
    """Yields the rows of a split in order, `size` at a time."""
    for at in range(0, len(raw), size):
        yield Raw(
            {name: column[at : at + size] for name, column in raw.inputs.items()},
            {name: column[at : at + size] for name, column in raw.targets.items()},
            raw.rows[at : at + size],
        )
