"""The rows of validation that a trial gets most wrong, as a reader of a report sees them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from autopeft.tasks import Kind, Ragged, Raw, Task, column_names

if TYPE_CHECKING:
    from autopeft.training.answers import Answers

MOST = 20  # rows
LONGEST = 300  # characters of a row


def quotes(raw: Raw, kinds: Mapping[str, Kind], about: Mapping[str, Any]) -> list[bytes]:
    """Returns what a reader sees of each row, as JSON: `row`, `input` and `expected`.

    Args:
        raw: The rows.
        kinds: Input column → its kind.
        about: Description of the data, which names its labels.
    """
    out = []
    for index, row in enumerate(raw.rows):
        inputs = [_shown(column[index], kinds.get(name, "text")) for name, column in raw.inputs.items()]
        targets = [_target(name, column[index], about) for name, column in raw.targets.items()]
        shown = {"row": int(row), "input": " | ".join(filter(None, inputs)), "expected": ", ".join(targets)}
        out.append(json.dumps(shown, ensure_ascii=False).encode())
    return out


def kinds_of(task: Task, data: Mapping[str, Any]) -> dict[str, Kind]:
    """Returns input column → its kind."""
    names = column_names(task.columns, data, inputs_only=True)
    return {column: task.columns[key] for column, key in names.items()}


def worst(answers: Answers, weights: np.ndarray, given: Ragged, about: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns the rows with the largest mean loss, the worst first: `row`, `input`, `expected`, `predicted`, `loss`.

    Args:
        answers: A trial's answers for a split.
        weights: (n_rows,), weight of each row in the mean loss.
        given: The quotes of the split's rows, as bytes.
        about: Description of the data.
    """
    split, task = answers.split, answers.task
    places = np.arange(len(split))
    if len(given) != len(split):  # a row of the data became several rows, or none
        if "document" not in split.targets:
            return []
        documents = np.asarray(split.targets["document"])  # numbers in the file; windows of one are next to each other
        places = np.cumsum(np.diff(documents, prepend=documents[:1]) != 0)
        if places[-1] + 1 != len(given):
            return []
    losses = answers.losses / np.maximum(weights, 1e-12)
    rows = np.argsort(-losses, kind="stable")[:MOST]
    predicted: Sequence[Any] = [None] * len(rows)
    if not task.calls_model and len(given) == len(split):
        some = {name: [values[row] for row in rows] for name, values in answers.kept.items()}
        kept = {name: np.stack(v) if isinstance(answers.kept[name], np.ndarray) else v for name, v in some.items()}
        choice = answers.choice or {}
        predicted = next(iter(task.answers(kept, {**about, **choice}).values()))
    return [
        {**json.loads(bytes(given[places[row]])), "predicted": _plain(value), "loss": float(losses[row])}
        for row, value in zip(rows, predicted, strict=True)
    ]


def _shown(value: Any, kind: Kind) -> str:
    """Returns the beginning of a text, the words of a list, the name of a file; nothing for other values."""
    if isinstance(value, Mapping) and value.get("path"):
        value = value["path"]
    if isinstance(value, str):
        text = value if kind in ("text", "texts") else Path(value).name
    elif isinstance(value, (list, tuple)) and all(isinstance(word, str) for word in value):
        text = " ".join(value)
    else:
        return ""
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


def _target(name: str, value: Any, about: Mapping[str, Any]) -> str:
    if name == "label" and "label_names" in about and isinstance(value, (int, np.integer)):
        return str(about["label_names"][int(value)])
    if name == "labels" and "labels" in about:  # a yes or a no for each
        return ", ".join(label for label, held in zip(about["labels"], value, strict=True) if held) or "none"
    if name == "labels" and "outputs" in about:
        return ", ".join(str(names[int(at)]) for names, at in zip(about["outputs"].values(), value, strict=True))
    if isinstance(value, (float, np.floating)):
        return f"{value:g}"
    text = str(value.tolist() if isinstance(value, np.ndarray) else value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value
