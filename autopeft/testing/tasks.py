"""What every task promises, on a little data of its own."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, get_args

import numpy as np

from autopeft.tasks import Kind


@dataclass(frozen=True)
class TaskSubject:
    """A task with something to learn.

    Attributes:
        name: The plugin's name.
        data: Like the config's section, with absolute paths; one source, so that each row is in one split.
        model: Folder of a small model for the task.
        options: The task's options.
    """

    name: str
    data: Mapping[str, Any]
    model: str
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def task(self) -> Any:
        from autopeft import plugins

        return plugins.make("tasks", self.name, self.options)

    def encoded(self, raw: Any, about: Mapping[str, Any]) -> Any:
        """Encodes rows with the task for the model."""
        from autopeft.tasks import Source

        return self.task.encoder(Source(self.model, data=self.data), about)(raw)


def check_task_describes_itself(subject: TaskSubject) -> None:
    """Checks that the task names its metrics' goals, `loss` among them, and its columns' kinds."""

    task = subject.task
    assert set(task.metrics.values()) <= {"maximize", "minimize"}, "a metric is maximised or minimised"
    assert task.metrics.get("loss") == "minimize", "the validation loss is a metric of every task"
    assert next(iter(task.metrics)) != "loss", "the default metric says what people want, not what trains"
    assert set(task.columns.values()) <= set(get_args(Kind)), "columns are of known kinds"


def check_task_reads_by_seed(subject: TaskSubject) -> None:
    """Checks that splits depend on data and seed only, share no row, and have targets for each row."""
    first, again, other = (subject.task.read(subject.data, seed) for seed in (0, 0, 1))
    assert {"train", "validation"} <= set(first.splits), "a search trains and validates"
    for name, raw in first.splits.items():
        assert len(raw) > 0, f"{name} has no rows"
        lengths = {len(column) for column in (*raw.inputs.values(), *raw.targets.values())}
        assert lengths == {len(raw)}, f"{name}: columns of {lengths} rows, rows {len(raw)}"
        assert raw.rows.tolist() == again.splits[name].rows.tolist(), f"{name}: the same seed gives other rows"
    rows = [row for raw in first.splits.values() for row in raw.rows.tolist()]
    assert len(set(rows)) == len(rows), "a row is in two splits: what is validated was trained on"
    assert first.splits["train"].rows.tolist() != other.splits["train"].rows.tolist(), "another seed, the same rows"
    lacking = {"source", "digest", "rows", "made"} - set(first.origin)
    assert not lacking, f"`origin` does not say {', '.join(sorted(lacking))}, which splits.json and reports need"
    assert first.origin["digest"] == again.origin["digest"], "a run could not tell that its data has changed"
    assert isinstance(first.about["n_outputs"], int), "`about` says how many outputs the model has"
    assert json.loads(json.dumps(first.about)) == first.about, "`about` goes into the ledger as JSON"


def check_task_encodes_chunk_by_chunk(subject: TaskSubject) -> None:
    """Checks that chunks encode as the whole does: a row's encoding depends on no other row, and no earlier chunk."""
    from autopeft.tasks import chunks

    dataset = subject.task.read(subject.data, 0)
    raw = dataset.splits["validation"]
    whole = subject.encoded(raw, dataset.about)
    parts = [subject.encoded(chunk, dataset.about) for chunk in chunks(raw, 3)]
    assert sum(map(len, parts)) == len(whole), "chunks give other rows than the whole"
    for kind in ("inputs", "targets"):
        for name, column in getattr(whole, kind).items():
            rows = [getattr(part, kind)[name][row] for part in parts for row in range(len(part))]
            for row, value in enumerate(rows):
                assert np.array_equal(value, column[row]), f"{name} of row {row} depends on its chunk"


def check_task_fits_its_model(subject: TaskSubject) -> None:
    """Checks that the model takes the inputs, and that a row's loss depends on no other row and has a gradient."""
    import torch

    from autopeft.training.batches import collate, collate_targets
    from autopeft.training.model import load_model
    from autopeft.training.setup import ModelSpec

    dataset = subject.task.read(subject.data, 0)
    split = subject.encoded(dataset.splits["validation"], dataset.about)
    task = subject.task
    model = load_model(ModelSpec(subject.model), task.auto_class, dataset.about["n_outputs"]).requires_grad_(True)
    rows = np.arange(min(len(split), 6))
    losses = task.loss(model(**collate(split, rows)).logits, collate_targets(split, rows))
    assert losses.shape == (len(rows),), f"the loss is a sum a row, (n_rows,); got {tuple(losses.shape)}"
    for row in rows:
        one = rows[row : row + 1]
        alone = task.loss(model(**collate(split, one)).logits, collate_targets(split, one))
        assert torch.allclose(alone, losses[row : row + 1], rtol=1e-4, atol=1e-4), f"the loss of row {row} alone"
    weights = task.weights(split.targets)
    assert weights.shape == (len(split),), f"a weight a row; got {weights.shape}"
    assert (weights >= 0).all() and weights.any(), "weights are 0 or more"
    losses.sum().backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters()), "nothing to learn from"


def check_task_loses_the_same_token_by_token(subject: TaskSubject) -> None:
    """Checks that the losses of a row's tokens sum to the row's loss, if the task has one output a token."""
    import torch

    from autopeft.tasks import UNSCORED, TokenWise
    from autopeft.training.batches import collate_targets

    task = subject.task
    is_token_wise = isinstance(task, TokenWise)  # in a name, as it would narrow the type of `task`
    if not is_token_wise:
        return
    dataset = task.read(subject.data, 0)
    split = subject.encoded(dataset.splits["validation"], dataset.about)
    targets = collate_targets(split, np.arange(min(len(split), 6)))
    wanted = targets[task.token_target]
    outputs = torch.randn(*wanted.shape, max(2, int(wanted.max()) + 1), generator=torch.Generator().manual_seed(0))
    behind = torch.full_like(wanted[:, :1], UNSCORED)
    of_tokens = torch.cat([wanted[:, 1:], behind], 1) if task.foretells else wanted
    losses = task.token_loss(outputs.flatten(0, 1), of_tokens.flatten()).view(wanted.shape)
    assert (losses[of_tokens == UNSCORED] == 0).all(), "a token without a target has no loss"
    assert torch.allclose(losses.sum(1), task.loss(outputs, targets), rtol=1e-4), "tokens' losses sum to the row's"


def check_task_scores(subject: TaskSubject) -> None:
    """Checks that metrics are named, finite and the same in any order of rows, the detail JSON, each row answered."""
    from autopeft.training.batches import pick_rows

    split, dataset, answers = _answered(subject)
    about, task = dataset.about, subject.task
    found = task.score(answers.kept, split.targets, about)
    assert set(found.metrics) <= set(task.metrics), f"metrics that it does not name: {set(found.metrics)}"
    assert next(iter(task.metrics)) in found.metrics, "the default metric is among them"
    assert all(np.isfinite(value) for value in found.metrics.values()), f"scores are finite: {found.metrics}"
    assert json.loads(json.dumps(found.detail)) == dict(found.detail), "the detail goes into the ledger as JSON"
    train = subject.encoded(dataset.splits["train"], about)
    trivial = task.trivial(train.targets, split.targets, about, lambda: answers.kept)
    assert set(trivial.metrics) == {*found.metrics, "loss"}, "the baseline has the same metrics, and the loss"
    mixed = np.random.default_rng(1).permutation(len(split))
    kept: dict[str, Any] = {name: [values[row] for row in mixed] for name, values in answers.kept.items()}
    kept = {name: np.stack(v) if isinstance(answers.kept[name], np.ndarray) else v for name, v in kept.items()}
    shuffled = task.score(kept, pick_rows(split.targets, mixed), about)
    for name, value in found.metrics.items():
        assert abs(shuffled.metrics[name] - value) < 1e-9, f"{name} depends on the order of the rows"
    columns = task.answers(answers.kept, about)
    lengths = {len(column) for column in columns.values()}
    assert lengths == {len(dataset.splits["validation"])}, "an answer for each row of the data"


def check_task_compares(subject: TaskSubject) -> None:
    """Checks that a task that offers true values to metrics of the user's has them as columns of its answers."""
    from autopeft.tasks._own_metrics import Comparable

    task = subject.task
    is_comparable = isinstance(task, Comparable)  # in a name, as it would narrow the type of `task`
    if not is_comparable:
        return
    split, dataset, answers = _answered(subject)
    about = dataset.about
    train = subject.encoded(dataset.splits["train"], dataset.about).targets
    columns = task.answers(answers.kept, about)
    truths = task.truths(answers.kept, split.targets, about)
    trivial = task.trivial_answers(train, split.targets, about, lambda: answers.kept)
    assert set(truths) <= set(columns), f"true values of columns that are no answers: {set(truths) - set(columns)}"
    assert set(trivial) == set(columns), "the baseline answers the same columns"
    lengths = {len(column) for part in (truths, trivial, columns) for column in part.values()}
    assert lengths == {len(dataset.splits["validation"])}, f"as many rows as the data has; got {lengths}"


def check_task_writes_the_same_at_once(subject: TaskSubject) -> None:
    """Checks that a `Writer` writes the same for all rows at once as batch by batch, and for two models side by side."""
    import torch

    from autopeft.tasks import Writer
    from autopeft.training.answers import Answers, write
    from autopeft.training.batches import by_length, collate

    task = subject.task
    is_writer = isinstance(task, Writer)  # in a name, as it would narrow the type of `task`
    if not is_writer:
        return
    split, dataset, expected = _answered(subject)
    model = _model_of(subject, dataset.about)
    found = [Answers(task, split) for _ in range(2)]
    with torch.no_grad():
        for rows in by_length(split.lengths, 16):
            outputs = model(**collate(split, rows)).logits
            for own in found:
                own.take(rows, outputs, None)
        write(task, found, model, torch.device("cpu"))
    for own in found:
        assert own.kept.keys() == expected.kept.keys()
        for name, values in expected.kept.items():
            assert all(np.array_equal(a, b) for a, b in zip(own.kept[name], values, strict=True)), name


def check_task_answers_without_targets(subject: TaskSubject) -> None:
    """Checks that rows without targets, as in `predict`, are encoded and get the same answers in the same order."""
    from autopeft.tasks import Raw

    _, dataset, answers = _answered(subject)
    raw = dataset.splits["validation"]
    bare = subject.encoded(Raw(raw.inputs, {}, np.arange(len(raw))), dataset.about)
    found = _answers_of(subject, bare, dataset.about)
    theirs, ours = (subject.task.answers(each.kept, dataset.about) for each in (answers, found))
    for name, column in theirs.items():
        same = [a == b if isinstance(a, str) else np.allclose(a, b) for a, b in zip(column, ours[name], strict=True)]
        assert all(same), f"{name} is answered otherwise without targets"


def _answered(subject: TaskSubject) -> tuple[Any, Any, Any]:
    """Returns the validation split, its data set, and the untrained model's answers to the split.

    What the task chooses on validation is in the `about` of the data set.
    """
    from autopeft.tasks import Calibrated

    task = subject.task
    dataset = task.read(subject.data, 0)
    split = subject.encoded(dataset.splits["validation"], dataset.about)
    answers = _answers_of(subject, split, dataset.about)
    if isinstance(task, Calibrated):
        choice = task.calibrate(answers.kept, split.targets, dataset.about)
        assert json.loads(json.dumps(choice)) == dict(choice), "the choice goes into the ledger as JSON"
        dataset = replace(dataset, about={**dataset.about, **choice})
    return split, dataset, answers


def _model_of(subject: TaskSubject, about: Mapping[str, Any]) -> Any:
    from autopeft.training.model import load_model
    from autopeft.training.setup import ModelSpec

    return load_model(ModelSpec(subject.model), subject.task.auto_class, about["n_outputs"])


def _answers_of(subject: TaskSubject, split: Any, about: Mapping[str, Any]) -> Any:
    import torch

    from autopeft.training.answers import Answers
    from autopeft.training.batches import by_length, collate

    model = _model_of(subject, about)
    found = Answers(subject.task, split)
    with torch.no_grad():
        for rows in by_length(split.lengths, 16):
            found.take(rows, model(**collate(split, rows)).logits, model)
    return found


TASK_CHECKS = (
    check_task_describes_itself,
    check_task_reads_by_seed,
    check_task_encodes_chunk_by_chunk,
    check_task_fits_its_model,
    check_task_loses_the_same_token_by_token,
    check_task_writes_the_same_at_once,
    check_task_scores,
    check_task_compares,
    check_task_answers_without_targets,
)
