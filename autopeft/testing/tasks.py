"""What every task promises, on a little data of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class TaskSubject:
    """A task with something to learn.

    Attributes:
        name: Of the plugin.
        data: As the config's section, paths absolute; from one source, so that each row is in one split.
        model: Folder of a small model that it is for.
    """

    name: str
    data: Mapping[str, Any]
    model: str

    @property
    def task(self) -> Any:
        from autopeft import plugins

        return plugins.load("tasks", self.name)()

    def encoded(self, raw: Any) -> Any:
        return self.task.encode(raw, self.model, {"image_size": self.data.get("image_size")})


def check_task_reads_by_seed(subject: TaskSubject) -> None:
    """The splits are a function of data and seed, share no row, and have labels by their names."""
    first, again, other = (subject.task.read(subject.data, seed) for seed in (0, 0, 1))
    assert {"train", "validation"} <= set(first.splits), "a search trains and validates"
    for name, raw in first.splits.items():
        assert len(raw.labels) == len(raw.rows) > 0, f"{name} has no rows"
        assert set(raw.labels.tolist()) <= set(range(len(first.label_names))), f"{name}: labels are indices of names"
        assert raw.rows.tolist() == again.splits[name].rows.tolist(), f"{name}: the same seed gives other rows"
    rows = [row for raw in first.splits.values() for row in raw.rows.tolist()]
    assert len(set(rows)) == len(rows), "a row is in two splits: what is validated was trained on"
    assert first.splits["train"].rows.tolist() != other.splits["train"].rows.tolist(), "another seed, the same rows"
    assert first.origin["digest"] == again.origin["digest"], "a run could not tell that its data has changed"


def check_task_encodes_row_by_row(subject: TaskSubject) -> None:
    """Encoding keeps rows and labels, gives the same bits again, and a row's do not hang on the others."""
    from autopeft.tasks import Ragged, Raw

    raw = subject.task.read(subject.data, 0).splits["validation"]
    whole = subject.encoded(raw)
    assert len(whole) == len(raw.labels)
    assert np.array_equal(whole.labels, raw.labels)

    def row(split: Any, name: str, index: int) -> Any:
        column = split.columns[name]
        if isinstance(column, Ragged):
            return column.values[column.offsets[index] : column.offsets[index + 1]]
        return column[index]

    for index in range(min(len(whole), 8)):
        inputs = {name: [values[index]] for name, values in raw.inputs.items()}
        alone = subject.encoded(Raw(inputs, raw.labels[[index]], raw.rows[[index]]))
        for name in whole.columns:
            assert np.array_equal(row(alone, name, 0), row(whole, name, index)), f"{name} of row {index}"


def check_task_fits_its_model(subject: TaskSubject) -> None:
    """The model takes what `encode` gives; its loss is a mean, and has a gradient."""
    import torch

    from autopeft.training.batches import collate
    from autopeft.training.model import load_model
    from autopeft.training.setup import ModelSpec

    dataset = subject.task.read(subject.data, 0)
    split = subject.encoded(dataset.splits["validation"])
    model = load_model(ModelSpec(subject.model), subject.task.auto_class, len(dataset.label_names)).requires_grad_(True)
    rows = np.arange(min(len(split), 6))
    logits = model(**collate(split, rows)).logits
    labels = torch.from_numpy(split.labels[rows])
    assert logits.shape == (len(rows), len(dataset.label_names))
    loss = subject.task.loss(logits, labels)
    each = [subject.task.loss(logits[index : index + 1], labels[index : index + 1]) for index in range(len(rows))]
    assert torch.allclose(loss, torch.stack(each).mean(), atol=1e-5), "micro-batches add up to the mean of the rows"
    loss.backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters()), "nothing to learn from"


def check_task_scores(subject: TaskSubject) -> None:
    """Every metric by its name, best where all is right, whatever the order of the rows; and the trivial baseline's."""
    dataset = subject.task.read(subject.data, 0)
    train, labels = dataset.splits["train"].labels, dataset.splits["validation"].labels
    n_labels = len(dataset.label_names)
    right = np.eye(n_labels, dtype=np.float32)[labels]
    drawn = np.random.default_rng(0).normal(size=right.shape).astype(np.float32)
    best, some = subject.task.score(right, labels), subject.task.score(drawn, labels)
    trivial = subject.task.trivial(train, labels, n_labels)
    assert set(best) == set(some) == set(trivial) <= set(subject.task.metrics)
    assert subject.task.metrics[0] in best, "the default metric is among them"
    for name in best:
        assert best[name] >= max(some[name], trivial[name]), f"{name} is not best where all is right"
    mixed = np.random.default_rng(1).permutation(len(labels))
    shuffled = subject.task.score(drawn[mixed], labels[mixed])
    assert all(abs(shuffled[name] - some[name]) < 1e-9 for name in some), "the order of rows counts"


def check_task_counts_by_class(subject: TaskSubject) -> None:
    """Each row is predicted as one label, and no more of them are right than there are."""
    dataset = subject.task.read(subject.data, 0)
    labels, n_labels = dataset.splits["validation"].labels, len(dataset.label_names)
    drawn = np.random.default_rng(0).normal(size=(len(labels), n_labels)).astype(np.float32)
    counts = subject.task.by_class(drawn, labels)
    if not counts:
        return  # a task without classes
    assert len(counts["predicted"]) == len(counts["correct"]) == n_labels
    assert sum(counts["predicted"]) == len(labels)
    rows = np.bincount(labels, minlength=n_labels)
    assert (np.array(counts["correct"]) <= np.minimum(counts["predicted"], rows)).all()


TASK_CHECKS = (
    check_task_reads_by_seed,
    check_task_encodes_row_by_row,
    check_task_fits_its_model,
    check_task_scores,
    check_task_counts_by_class,
)
