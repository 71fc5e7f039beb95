"""Guesses a config from data: the task, its columns, the splits, a model, a space. Each guess says why.

Knows nothing of cost: `app.init` plans the search, and fits its budget to the machine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from autopeft import plugins
from autopeft.errors import ConfigError, UsageError
from autopeft.guess.columns import GROUPS, Column, by_name, described
from autopeft.guess.data import Found, find
from autopeft.guess.models import model_for
from autopeft.guess.tasks import Guess, features, is_encoder_decoder, of_columns
from autopeft.tasks import Task
from autopeft.tasks._targets import RowFault

LENGTHS = (32, 64, 128, 256, 512, 1024)  # `training.max_length` is one of these
SKEWED = 0.8  # share of one class above which accuracy says little
SMALL = 2_000  # rows; of fewer, a tenth is too few for validation
FEWEST_GROUPS = 5

__all__ = ["Guess", "Guessed", "guess"]


@dataclass(frozen=True)
class Guessed:
    """A config, and why it is as it is.

    Attributes:
        guesses: In the order of the file.
        notes: What was seen in the data, and should be known.
        rows: Rows of train, as the splits will be.
    """

    guesses: tuple[Guess, ...]
    notes: tuple[str, ...]
    rows: int

    def with_(self, *guesses: Guess) -> Guessed:
        """Returns these guesses with more of them, or with others for the same keys."""
        new = {guess.key: guess for guess in guesses}
        kept = [new.pop(guess.key, guess) for guess in self.guesses]
        return replace(self, guesses=(*kept, *new.values()))

    @property
    def config(self) -> dict[str, Any]:
        """Returns the content of the config."""
        content: dict[str, Any] = {}
        for entry in self.guesses:
            *sections, key = entry.key.split(".")
            at = content
            for section in sections:
                at = at.setdefault(section, {})
            at[key] = entry.value
        return content


def guess(source: str, model: str | None = None) -> Guessed:
    """Looks at data and guesses the config of a search.

    Args:
        source: A file, a folder, or a name on the hub.
        model: A folder or hub name; None to guess one.

    Raises:
        UsageError: The rows are not found, cannot be read, or show no task.
        EnvironmentFault: The hub is not reached.
    """
    found = find(source)
    columns = described(found.table) if found.table is not None else {}
    chosen = _of_folders(found, model) if found.table is None else of_columns(found, columns, model)
    task = task_of(chosen)
    of_data = [Guess(f"data.{key}", value, found.why.get(key, "")) for key, value in found.data.items()]
    named = [entry for entry in chosen if entry.key.startswith("data.")]
    used = [columns[name] for entry in named for name in _names(entry.value) if name in columns]
    texts = [column for column in used if column.kind in ("text", "lists")]
    texts += [columns[name] for e in named if e.key == "data.text" for name in _names(e.value)] if not texts else []
    n_rows = len(next(iter(found.table.values()))) if found.table is not None else 0
    guesses = [
        model_for(task, model, texts),
        *(entry for entry in chosen if not entry.key.startswith("data.")),
        *of_data,
        *named,
        *_splits(found, columns, used, n_rows),
        Guess("space", *_space(task, model)),
        *_objectives(task, named, columns),
        *_lengths(task, texts),
    ]
    return _readable(Guessed(tuple(guesses), (), n_rows))


def task_of(guesses: Sequence[Guess]) -> Task:
    """Makes the task that was guessed, with its options."""
    found = {entry.key.removeprefix("task."): entry.value for entry in guesses if entry.key.startswith("task.")}
    task: Task = plugins.make("tasks", found.pop("name"), found)
    return task


def _of_folders(found: Found, model: str | None) -> list[Guess]:
    task = {"picture": "image_classification", "sound": "audio_classification"}[str(found.medium)]
    why = f"{found.classes} class folders with {found.medium}s"
    return [Guess("task.name", task, why), *features(str(found.medium), model)]


def _names(value: Any) -> list[str]:
    return value if isinstance(value, list) else [str(value)]


def _splits(found: Found, columns: Mapping[str, Column], used: Sequence[Column], n_rows: int) -> list[Guess]:
    """Guesses the shares of splits that are not given, and a column of groups."""
    out = []
    if "test" not in found.splits and "validation" not in found.splits:
        out.append(Guess("data.test_share", 0.2, "there is no test split: `confirm` needs one"))
    if n_rows < SMALL and not {"test", "validation"} <= set(found.splits):
        out.append(Guess("data.validation_share", 0.2, "a tenth of so few rows would say little"))
    names = {column.name for column in used}
    for group in by_name([column for column in columns.values() if column.name not in names], GROUPS)[:1]:
        if len(found.splits) == 1 and FEWEST_GROUPS <= len(group.values) <= group.n_rows / 2:
            why = f"{len(group.values):,} different values: rows of one stay in one split"
            out.append(Guess("data.group", group.name, why))
    return out


def _space(task: Task, model: str | None) -> tuple[str, str]:
    """Returns a search space that fits the task's models, and why: those that write text have no head."""
    if task.auto_class in ("AutoModelForCausalLM", "AutoModelForSeq2SeqLM"):
        return "language_model", "a good first search"
    if task.auto_class == "AutoModelForSequenceClassification" and not is_encoder_decoder(model):
        return "small_heads", "a good first search, of heads too: many checkpoints have an untrained one"
    return "small", "a good first search"


def _objectives(task: Task, named: Sequence[Guess], columns: Mapping[str, Column]) -> list[Guess]:
    """Chooses another score than accuracy if nearly all rows are of one class."""
    label = next((columns[e.value] for e in named if e.key == "data.label" and e.value in columns), None)
    metrics = list(task.metrics)
    if label is None or metrics[0] != "accuracy" or not label.values:
        return []
    share = max(label.values.values()) / label.n_rows
    if share < SKEWED:
        return []
    why = f"{share:.0%} of the rows are of one class: its accuracy is that of always saying it"
    return [Guess("objectives", ["macro_f1", "trainable_parameters"], why)]


def _lengths(task: Task, texts: Sequence[Column]) -> list[Guess]:
    """Guesses the longest row. Documents of words need no bound: they are read in windows."""
    tokens = sum(column.tokens for column in texts)
    if not tokens or "tokens" in task.columns:
        return []
    longest = next((length for length in LENGTHS if length >= tokens + 8), LENGTHS[-1])
    return [Guess("training.max_length", longest, f"95 of 100 rows have about {tokens} tokens or fewer")]


def _readable(guessed: Guessed) -> Guessed:
    """Reads the data as the search will, and leaves faulty rows out if there are some.

    Raises:
        ConfigError: The data has other faults.
    """
    config = guessed.config
    task = task_of(guessed.guesses)
    is_medium = set(task.columns.values()) & {"picture", "sound"}
    try:
        dataset = task.read({**config["data"], **({"on_fault": "skip"} if is_medium else {})}, 0)
    except ConfigError as fault:
        if not all(isinstance(inner, RowFault) for inner in fault.faults):
            raise
        dataset = task.read({**config["data"], "on_fault": "skip"}, 0)
    notes = dataset.origin.get("notes", [])
    left_out = [note.removeprefix("left out: ") for note in notes if note.startswith("left out: ")]
    found = replace(guessed, notes=tuple(notes), rows=len(dataset.splits["train"]))
    return found.with_(Guess("data.on_fault", "skip", "; ".join(left_out))) if left_out else found


def require_yaml(path: Path) -> Path:
    """Returns the path for a new config.

    Raises:
        UsageError: It has another ending, exists, or its folder does not.
    """
    if path.suffix not in (".yaml", ".yml"):
        raise UsageError(f"a config is a YAML file, such as {path.stem or 'my'}.yaml; got {str(path)!r}")
    if path.exists():
        raise UsageError(f"{path} exists: name another file, --to {path.stem}-2.yaml")
    if not path.parent.is_dir():
        raise UsageError(f"cannot write to {path}: no folder {path.parent}")
    return path
