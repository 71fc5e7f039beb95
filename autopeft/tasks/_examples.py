"""Examples before a prompt: how an unchanged language model is shown a task, as a baseline (Brown et al., 2020)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from autopeft.tasks import UNSCORED, Ragged, Source, Split, Task

BETWEEN = "\n\n"  # between an example and the next; where a base that was shown examples is taken to end


@dataclass(frozen=True, slots=True)
class Shown:
    """A baseline: the unchanged base, shown examples.

    Attributes:
        title: For people.
        task: Scores its answers.
        split: The rows, with examples before their prompts.
    """

    title: str
    task: Task
    split: Split


@runtime_checkable
class ShowsExamples(Protocol):
    """A task whose unchanged base may be shown examples."""

    def shown(self, train: Split, split: Split, source: Source, about: Mapping[str, Any], seed: int) -> Shown | None:
        """Returns a split with examples of train, drawn by seed, or of the config; None if the config asks for none."""


def with_examples(split: Split, rows: np.ndarray, examples: Sequence[Sequence[int]], room: int) -> tuple[Split, float]:
    """Puts examples before the prompts of some rows of a language model's split.

    A row that would be too long with all of them has the last ones only.

    Args:
        split: Has the targets `labels`, `cut` and `span` (`causal_language_modelling`).
        examples: Token ids of each.
        room: Most tokens of a prompt with its examples and its completion.

    Returns:
        The rows, and the mean number of examples that they have.
    """
    ids, labels, spans, counts = [], [], [], []
    given, wanted = split.inputs["input_ids"], split.targets["labels"]
    assert isinstance(given, Ragged)
    for row in rows:
        fixed, start, begins = (int(each) for each in split.targets["span"][row])
        own = given[row].tolist()
        fitting: list[int] = []
        count = 0
        for example in reversed(examples):
            if len(own) + len(fitting) + len(example) > room:
                break
            fitting, count = [*example, *fitting], count + 1
        ids.append([*own[:fixed], *fitting, *own[fixed:]])
        labels.append([UNSCORED] * (fixed + len(fitting)) + wanted[row].tolist()[fixed:])
        spans.append((fixed, start if not fitting else fixed, begins + len(fitting)))
        counts.append(count)
    return (
        Split(
            {"input_ids": Ragged.of(ids, np.int32, given.pad, given.is_left)},
            {
                "labels": Ragged.of(labels, np.int32, UNSCORED),
                "cut": np.asarray(split.targets["cut"])[rows],
                "span": np.array(spans, np.int32).reshape(-1, 3),
            },
        ),
        float(np.mean(counts)),
    )
