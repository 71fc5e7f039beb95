"""Contract tests, a section a family: call them on your plugin, as our own tests do on every plugin of ours.

Each `check_…` raises an AssertionError that says which promise is broken. None needs pytest, a network or a GPU.

    @pytest.mark.parametrize("check", testing.METHOD_CHECKS)
    @pytest.mark.parametrize("subject", testing.method_subjects(), ids=str)
    def test_contract(check, subject):
        check("my_method", subject)     # raises Refused where the method is not for such a model
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import io
import json
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from autopeft import ledger
from autopeft.errors import EnvironmentFault
from autopeft.executors import Conversation, Executor
from autopeft.history import History, Record
from autopeft.ledger import Ledger
from autopeft.objectives import Objective
from autopeft.samplers import Sampler
from autopeft.samplers.random import RandomSampler
from autopeft.search import Search
from autopeft.space import Choice, Dimension, Float, Int, Space, Subset
from autopeft.stoppers import Stopper
from autopeft.trackers import Tracker
from autopeft.trial import WEATHER, Report, Result, Status, Trial, derive_seed

OBJECTIVES = (
    Objective("accuracy", "maximize", reference=0.5),
    Objective("trainable_parameters", "minimize", reference=1e6, scale="log10"),
)


def example_space() -> Space:
    """A small conditional space with every kind of domain, constants and a composed recipe."""
    return Space(
        {
            "method": Dimension(Choice(("head", "lora", "lora+bias")), "head"),
            "head.lr": Dimension(Float(1e-4, 1e-1, log=True), 1e-3),
            "lora.rank": Dimension(Int(1, 64, log=True), 8),
            "lora.layers": Dimension(Subset((0, 1, 2, 3)), [0, 1, 2, 3]),
            "lora.modules": Dimension(Subset(("query", "key", "value"), min_size=2), ["query", "value"]),
            "lora.dora": Dimension(Choice((False, True)), False),
            "lora.magnitude": Dimension(Float(0.0, 1.0), 0.5, when={"lora.dora": (True,)}),
            "lora.dropout": Dimension(Choice((0.0, 0.1, 0.3)), 0.0),
            "lora.init": Dimension(Choice((None, 1, "gaussian")), None),
            "lora.alpha": Dimension(Choice((16,)), 16),
            "bias.lr": Dimension(Float(1e-4, 1e-2, log=True), 1e-3),
        }
    )


# ── samplers ────────────────────────────────────────────────────────────────────────────────────────────────────────


def check_sampler(make: Callable[[Space, Sequence[Objective]], Sampler], trials: int = 30) -> None:
    """Members of the space only; every kind of record heard; each ask a function of what was told and its seed.

    Args:
        make: A new sampler for the space and the objectives, as `plugin(space, objectives, **options)`.
        trials: How many numbers to ask for.
    """
    space = example_space()
    live = make(space, OBJECTIVES)
    records: list[Record] = []
    for number in range(trials):
        seed = derive_seed("contract", number)
        random_states = random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[index,union-attr]
        params = live.ask(number, seed)
        now = random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[index,union-attr]
        assert now == random_states, "an ask used a global random generator: seed your own by the ask's seed"
        assert live.ask(number, seed) == params, f"ask {number} came out otherwise when it was repeated"
        refilled = make(space, OBJECTIVES)
        for record in records:
            refilled.tell(record)
        assert refilled.ask(number, seed) == params, f"ask {number} of a refilled sampler differs from the live one's"
        if params is None:
            break
        why_not = space.why_not(params)
        assert not why_not, f"ask {number} is not in the space: {why_not}"
        assert json.loads(json.dumps(dict(params))) == dict(params), f"ask {number} does not survive JSON: {params}"
        records += _told(Trial(number, params, seed))
        live.tell(records[-1])
    outside = Record(Trial(len(records), {"method": "no such"}, 0), refusal="not in the space")
    live.tell(outside)
    live.ask(len(records) + 1, 0)


def _told(trial: Trial) -> list[Record]:
    """How a trial went: all the ways there are, in turn."""
    size = float(100 + 10 * len(json.dumps(dict(trial.params))))
    known = {"trainable_parameters": size}
    score = {"accuracy": 0.5 + (trial.seed % 1000) / 2000}
    ways = {
        0: Record(trial, refusal="over budget"),
        1: Record(trial, known, [Report(5, score)], Status.STOPPED, {**known, **score}),
        2: Record(trial, known, [], Status.OUT_OF_MEMORY, known, error="out of memory"),
        3: Record(trial, known, [], Status.FAILED, known, error="the training loss is nan"),
    }
    return [ways.get(trial.number % 8, Record(trial, known, [], Status.COMPLETE, {**known, **score}))]


# ── stoppers ────────────────────────────────────────────────────────────────────────────────────────────────────────


def check_stopper(make: Callable[[Sequence[Objective]], Stopper]) -> None:
    """A verdict is a bool and a function of what was heard; what nothing beats runs on; a missing signal is an error.

    Args:
        make: A new stopper for the objectives, as `plugin(objectives, **options)`.
    """
    heard = list(_rungs())
    verdicts = _verdicts(make(OBJECTIVES), heard)
    assert all(isinstance(verdict, bool) for verdict in verdicts), "whether to stop is True or False"
    assert verdicts == _verdicts(make(OBJECTIVES), heard), "the same rungs, heard again, were judged otherwise"
    stopper = make(OBJECTIVES)
    for number in range(10):  # each smaller and better than all before it
        record = Record(Trial(number, {"method": "head"}, 0), {"trainable_parameters": 1000.0 - number})
        record.reports.append(Report(10, {"accuracy": 0.5 + number / 100}))
        assert not stopper.report(record, record.reports[-1]), "stopped a trial that was smaller and better than all"
    if any(verdicts):  # it looks at the score
        record = Record(
            Trial(10, {"method": "head"}, 0), {"trainable_parameters": 1000.0}, [Report(10, {"other": 1.0})]
        )
        try:
            stopper.report(record, record.reports[-1])
        except KeyError as fault:
            assert "accuracy" in str(fault), f"the error does not say what is missing: {fault}"
        else:
            raise AssertionError("a report without the score was judged: a missing signal is an error")


def _rungs() -> Iterator[Record]:
    """Forty trials of two rungs each, as they come in; a record's last report is the one to judge."""
    rng = np.random.default_rng(0)
    for number in range(40):
        record = Record(Trial(number, {"method": "head"}, 0), {"trainable_parameters": float(rng.integers(10, 10_000))})
        for step in (10, 30):
            record.reports.append(Report(step, {"accuracy": float(rng.random())}))
            yield record


def _verdicts(stopper: Stopper, records: Sequence[Record]) -> list[bool]:
    verdicts = []
    for index, record in enumerate(records):
        verdicts.append(stopper.report(record, record.reports[index % 2]))
        if index % 2:
            record.status = Status.COMPLETE
            stopper.tell(record)
    return verdicts


# ── methods ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class MethodSubject:
    """A tiny model with random weights, and a batch for it.

    Attributes:
        name: "bert".
        base: All frozen, in evaluation mode.
        meta: The same on the meta device.
        inputs: Of the model's forward.
        labels: (n_rows,) int64.
    """

    name: str
    base: Any
    meta: Any
    inputs: Mapping[str, Any]
    labels: Any

    def __str__(self) -> str:
        return self.name

    @property
    def view(self) -> Any:
        from autopeft.training.model import view

        return view(self.base)

    def logits(self, model: Any) -> Any:
        return model(**self.inputs).logits

    def loss(self, model: Any) -> Any:
        from torch.nn.functional import cross_entropy

        return cross_entropy(self.logits(model), self.labels)


def method_subjects() -> list[MethodSubject]:
    """A text encoder and a vision transformer of three layers, and a convolutional net."""
    import torch
    import transformers

    size = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 24}
    common = {"num_labels": 3, "initializer_range": 0.2}
    text = {
        "input_ids": torch.tensor([[2, 5, 6, 7, 8], [2, 9, 4, 0, 0], [2, 3, 3, 8, 0], [2, 7, 6, 5, 4]]),
        "attention_mask": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]),
    }
    images = {"pixel_values": torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))}
    bert = transformers.BertConfig(vocab_size=20, max_position_embeddings=8, **size, **common)
    vit = transformers.ViTConfig(image_size=32, patch_size=16, **size, **common)
    mobilenet = transformers.MobileNetV2Config(image_size=32, depth_multiplier=0.25, **common)
    return [
        make_method_subject("bert", transformers.BertForSequenceClassification, bert, text),
        make_method_subject("vit", transformers.ViTForImageClassification, vit, images),
        make_method_subject("mobilenet", transformers.MobileNetV2ForImageClassification, mobilenet, images),
    ]


def make_method_subject(name: str, architecture: Any, config: Any, inputs: Mapping[str, Any]) -> MethodSubject:
    """A subject of any transformers architecture with a classifier."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        base = architecture(copy.deepcopy(config)).eval().requires_grad_(False)
    with torch.device("meta"):
        meta = architecture(copy.deepcopy(config)).eval().requires_grad_(False)
    _calibrate(base, inputs)
    labels = torch.arange(len(next(iter(inputs.values())))) % config.num_labels
    return MethodSubject(name, base, meta, inputs, labels)


def _calibrate(base: Any, inputs: Mapping[str, Any]) -> None:
    """Gives batch norms the statistics of the batch, else a deep net of random weights answers 0 whatever it sees."""
    import torch

    norms = [module for module in base.modules() if isinstance(module, torch.nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.momentum = None  # the mean over all batches
        norm.train()
    if norms:
        with torch.no_grad():
            base(**inputs)
    base.eval()


def method_recipes(name: str) -> Iterator[dict[str, Any]]:
    """The stock configuration of a method, of one layer, and of the last layers."""
    yield {"method": name}
    if name != "head":
        yield {"method": name, f"{name}.layers": [1]}
        yield {"method": name, f"{name}.layers": "last_2"}


def check_method_describes_itself(name: str, subject: MethodSubject) -> None:
    """Its keys have a line each, its stock values are of its keys, and it has a name for a person."""
    from autopeft import plugins
    from autopeft.methods import COMMON_KEYS
    from autopeft.naming import describe

    method = plugins.load("methods", name)()
    assert method.label, "a method has a label"
    assert all(method.keys.values()), "each key has a line that says what it is"
    assert "lr" in method.stock, "a learning rate is among the stock values"
    strange = set(method.stock) - set(method.keys) - set(COMMON_KEYS)
    assert not strange, f"stock values of keys that the method does not name: {strange}"
    assert describe({"method": name, f"{name}.lr": 1e-3}, 3).endswith(", lr 1e-3")


def check_method_count_is_exact(name: str, subject: MethodSubject) -> None:
    """The count on the meta device is what a real model trains, on all layers and on some."""
    import torch

    from autopeft.training.recipe import attach, count

    for params in method_recipes(name):
        state = torch.random.get_rng_state()
        counts = count(subject.meta, subject.view, params)
        assert torch.equal(state, torch.random.get_rng_state()), "counting draws from the global random state"
        attached = attach(subject.base, subject.view, params, seed=1)
        trained = {n: p.numel() for n, p in attached.model.named_parameters() if p.requires_grad}
        assert set(trained) == set(attached.trained)
        assert counts["trainable_parameters"] == sum(trained.values()), params
        assert counts["head_parameters"] == sum(trained[n] for n in attached.head), params
        assert counts["adapter_parameters"] == sum(n for name, n in trained.items() if name not in attached.head)
        assert (counts["adapter_parameters"] > 0) == (name != "head"), params


def check_method_trains_its_own(name: str, subject: MethodSubject) -> None:
    """The logits are finite at first; a gradient reaches every trained parameter and no other; a step changes each."""
    import torch

    from autopeft.training.recipe import attach

    for params in method_recipes(name):
        attached = attach(subject.base, subject.view, params, seed=1)
        parameters = dict(attached.model.named_parameters())
        assert torch.isfinite(subject.logits(attached.model)).all(), "the logits are finite before training"
        in_groups = [name for group in attached.groups for name in group.names]
        assert sorted(in_groups) == sorted(attached.trained), "each trained parameter is in one group of the optimiser"
        before = {name: parameters[name].detach().clone() for name in attached.trained}
        train_method(subject, attached, steps=3)
        without = {name for name in attached.trained if parameters[name].grad is None}
        assert not without, f"no gradient reaches {without}"
        astray = {name for name, p in parameters.items() if p.grad is not None and name not in before}
        assert not astray, f"a gradient reaches {astray}"
        moved = [name for name in before if not torch.equal(before[name], parameters[name])]
        assert set(moved) == set(attached.trained), f"three steps do not change {set(before) - set(moved)}"


def check_method_leaves_the_base(name: str, subject: MethodSubject) -> None:
    """Attaching and training changes no weight, buffer, flag, hook or config of the base; frozen tensors are shared."""
    from autopeft.training.recipe import attach

    before, modules = checksum(subject.base), len(list(subject.base.modules()))
    attached = attach(subject.base, subject.view, {"method": name}, seed=1)
    train_method(subject, attached, steps=2)
    assert checksum(subject.base) == before, "the base is as it was"
    assert not any(p.requires_grad or p.grad is not None for p in subject.base.parameters())
    assert len(list(subject.base.modules())) == modules
    hooks = [m for m in subject.base.modules() if m._forward_hooks or m._forward_pre_hooks]
    assert not hooks, f"hooks on the base: {hooks}"
    shared = {id(parameter) for parameter in subject.base.parameters()}
    frozen = {n for n, p in attached.model.named_parameters() if not p.requires_grad and id(p) not in shared}
    assert not frozen, f"frozen, yet not shared with the base: {frozen}"


def check_method_saves_all_it_trains(name: str, subject: MethodSubject) -> None:
    """The trained tensors, saved and loaded into a fresh clone, give the same logits."""
    import tempfile
    from pathlib import Path

    import torch
    from safetensors.torch import load_file, save_file

    from autopeft.training.recipe import attach, load_trained, trained_state

    for params in method_recipes(name):
        trained = attach(subject.base, subject.view, params, seed=1)
        train_method(subject, trained, steps=2)
        again = attach(subject.base, subject.view, params, seed=1)
        with tempfile.TemporaryDirectory() as folder:
            save_file(trained_state(trained), Path(folder) / "trained.safetensors")
            load_trained(again, load_file(Path(folder) / "trained.safetensors"))
        with torch.no_grad():
            expected, found = subject.logits(trained.model), subject.logits(again.model)
        assert torch.allclose(expected, found, rtol=0, atol=1e-6), (expected - found).abs().max()


def check_method_clones_are_independent(name: str, subject: MethodSubject) -> None:
    """Two trials whose steps alternate end as each does alone; one seed gives one beginning."""
    import torch

    from autopeft.training.recipe import attach, trained_state

    def begin(seed: int) -> Any:
        return attach(subject.base, subject.view, {"method": name}, seed)

    alone = []
    for seed in (1, 2):
        attached = begin(seed)
        train_method(subject, attached, steps=3)
        alone.append(trained_state(attached))
    both = [begin(1), begin(2)]
    optimizers = [_optimizer(attached) for attached in both]
    for _ in range(3):
        for attached, optimizer in zip(both, optimizers, strict=True):
            _step(subject, attached, optimizer)
    for expected, attached in zip(alone, both, strict=True):
        for parameter, tensor in trained_state(attached).items():
            assert torch.equal(tensor, expected[parameter]), parameter


def check_method_lowest_is_right(name: str, subject: MethodSubject) -> None:
    """What the blocks below the lowest trained one give does not depend on what is trained; that one's output does."""
    import torch

    from autopeft.training.recipe import attach

    view = subject.view
    assert view.chain == view.n_layers, "the subject's blocks are a chain"
    for params in method_recipes(name):
        attached = attach(subject.base, view, params, seed=1)
        before = _block_outputs(subject, attached.model, view)
        with torch.no_grad():
            for parameter, tensor in attached.model.named_parameters():
                if parameter in attached.trained:
                    tensor.add_(0.5)
        after = _block_outputs(subject, attached.model, view)
        same = [torch.equal(old, new) for old, new in zip(before, after, strict=True)]
        assert all(same[: attached.lowest]), f"{params}: a block below the lowest, {attached.lowest}, changes: {same}"
        if attached.lowest < view.n_layers:
            assert not same[attached.lowest], f"{params}: the lowest is {attached.lowest}, yet its output is the same"


def check_method_head_is_the_seeds(name: str, subject: MethodSubject) -> None:
    """Trials of one seed begin with one head, whatever their method; of another seed, with another."""
    import torch

    from autopeft.training.recipe import attach, trained_state

    def head(method: str, seed: int) -> dict[str, Any]:
        attached = attach(subject.base, subject.view, {"method": method}, seed)
        return {n: t.clone() for n, t in trained_state(attached).items() if n in attached.head}

    ours, other, later = head(name, 1), head("head", 1), head(name, 2)
    assert ours
    assert all(torch.equal(ours[n], other[n]) for n in ours)
    assert any(not torch.equal(ours[n], later[n]) for n in ours)


METHOD_CHECKS: tuple[Callable[[str, MethodSubject], None], ...] = (
    check_method_describes_itself,
    check_method_count_is_exact,
    check_method_trains_its_own,
    check_method_leaves_the_base,
    check_method_saves_all_it_trains,
    check_method_clones_are_independent,
    check_method_lowest_is_right,
    check_method_head_is_the_seeds,
)


def checksum(model: Any) -> str:
    """Of all weights and buffers, with their names."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def train_method(subject: MethodSubject, attached: Any, steps: int) -> None:
    """Some steps of AdamW on the subject's batch, with each component's learning rate; the last gradient stays."""
    optimizer = _optimizer(attached)
    for _ in range(steps):
        _step(subject, attached, optimizer)


def _optimizer(attached: Any) -> Any:
    import torch

    parameters = dict(attached.model.named_parameters())
    groups = [{"params": [parameters[name] for name in group.names], "lr": group.lr} for group in attached.groups]
    return torch.optim.AdamW(groups, weight_decay=0.0)


def _step(subject: MethodSubject, attached: Any, optimizer: Any) -> None:
    optimizer.zero_grad(set_to_none=True)
    subject.loss(attached.model).backward()
    optimizer.step()


def _block_outputs(subject: MethodSubject, model: Any, view: Any) -> list[Any]:
    import torch

    outputs: list[Any] = []
    handles = [
        model.get_submodule(block).register_forward_hook(
            lambda _, __, output: outputs.append((output[0] if isinstance(output, tuple) else output).clone())
        )
        for block in view.blocks
    ]
    with torch.no_grad():
        subject.logits(model)
    for handle in handles:
        handle.remove()
    return outputs


# ── tasks ───────────────────────────────────────────────────────────────────────────────────────────────────────────


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

    dataset = subject.task.read(subject.data, 0)
    split = subject.encoded(dataset.splits["validation"])
    model = load_model(subject.model, subject.task.auto_class, len(dataset.label_names)).requires_grad_(True)
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


# ── executors ───────────────────────────────────────────────────────────────────────────────────────────────────────


def check_executor(make: Callable[[], Executor]) -> None:
    """With one slot it writes the ledger that a plain loop writes; what goes wrong outside of a trial ends the run.

    Args:
        make: A new executor with one slot.
    """
    executor = make()
    executor.check()
    assert executor.processes == executor.pack == 1, "one slot is one process, and no trial shares a pass"
    expected = _ledger_of(_plain_loop, _Train())
    statuses = {event["status"] for event in expected if event["event"] == "tell"}
    assert statuses == {"COMPLETE", "STOPPED", "FAILED"}, "the contract itself is out of order"
    found = _ledger_of(lambda search, make_evaluate: make().run(search, make_evaluate), _Train())
    for index, (one, other) in enumerate(zip(found, expected, strict=False)):
        assert one == other, f"event {index} is {one}, where one trial after another gives {other}"
    assert len(found) == len(expected), f"{len(found)} events, where one trial after another gives {len(expected)}"
    for broken, where in (("make", "building evaluate"), ("evaluate", "evaluate"), ("tell", "the search")):
        try:
            _ledger_of(lambda search, make_evaluate: make().run(search, make_evaluate), _Train(broken), broken)
        except EnvironmentFault as fault:
            assert broken in str(fault), f"an error of {where} came out as another one: {fault}"
        else:
            raise AssertionError(f"an error of {where} was swallowed: it has to end the run")


class _Train:
    """make_evaluate: a curve for each trial. Every sixth one fails; `broken` says what is."""

    def __init__(self, broken: str = "") -> None:
        self.broken = broken

    def __call__(self, should_end: Callable[[], bool]) -> Callable[[Trial], Iterator[Report | Result]]:
        if self.broken == "make":
            raise EnvironmentFault("make: no model here")
        return self.evaluate

    def evaluate(self, trial: Trial) -> Iterator[Report | Result]:
        score = 0.5 + (trial.seed % 1000) / 2000
        for step in (1, 2, 3):
            yield Report(step, {"accuracy": score * step / 4, "train_loss": 1 / step})
            if trial.number == 3 and self.broken == "evaluate":
                raise EnvironmentFault("evaluate: the disk is full")
        if trial.number % 6 == 5:
            yield Result(trial, Status.FAILED, {"train_loss": 0.3}, error="the training loss is nan")
        else:
            yield Result(trial, Status.COMPLETE, {"accuracy": score, "train_seconds": float(np.random.random())})


class _StopThirds:
    """Stops every third trial at its second rung."""

    def report(self, record: Record, report: Report) -> bool:
        return report.step == 2 and record.number % 3 == 1

    def tell(self, record: Record) -> None:
        pass


def _ledger_of(
    run: Callable[[Conversation, _Train], None], make_evaluate: _Train, broken: str = ""
) -> list[Mapping[str, Any]]:
    """The events of a search of 12 trials, without times."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / ledger.NAME
        book = Ledger(path)
        search = Search(
            space=example_space(),
            sampler=RandomSampler(example_space(), OBJECTIVES),
            stopper=_StopThirds(),
            ledger=book,
            check=lambda params: {"trainable_parameters": 100.0},
            seed=0,
            most_trials=12,
            listeners=[_fail_to_tell] if broken == "tell" else [],
        )
        try:
            run(search, make_evaluate)
        finally:
            book.close()
        events = ledger.read(path)
    for event in events:
        del event["seconds"]
        if event["event"] == "tell":
            event["metrics"] = {name: value for name, value in event["metrics"].items() if name not in WEATHER}
    return events


def _fail_to_tell(event: Mapping[str, Any]) -> None:
    if event["event"] == "tell" and event["number"] == 2:
        raise EnvironmentFault("tell: the disk is full")


def _plain_loop(search: Conversation, make_evaluate: _Train) -> None:
    evaluate = make_evaluate(lambda: False)
    while (trial := search.ask()) is not None:
        for event in evaluate(trial):
            if isinstance(event, Result):
                search.tell(event)
            elif search.report(trial, event):
                search.tell(Result(trial, Status.STOPPED, event.metrics))
                break


# ── trackers ────────────────────────────────────────────────────────────────────────────────────────────────────────


def check_tracker_only_reads(make: Callable[[], Tracker], events: Sequence[Mapping[str, Any]]) -> None:
    """Neither the history nor an event is changed by a tracker, and the search need not wait for it.

    Args:
        make: A new tracker of one run's folder, as `plugin(folder, **options)`.
        events: Of a search, the header first.
    """
    history, given, tracker = History(events[:1]), copy.deepcopy(list(events)), make()
    tracker.start(history)
    seconds = 0.0
    for event in events[1:]:
        history.apply(event)
        start = time.monotonic()
        tracker.handle(event)
        seconds += time.monotonic() - start
    tracker.finish()
    expected = History(given)
    assert given == list(events), "a tracker changed an event"
    assert (history.records, history.told, history.header) == (expected.records, expected.told, expected.header), (
        "a tracker changed the history"
    )
    assert seconds < 0.05 * len(events), f"handle() took {1000 * seconds / len(events):.0f} ms an event: it must queue"


def check_tracker_begins_anywhere(make: Callable[[], Tracker], events: Sequence[Mapping[str, Any]]) -> None:
    """A search may end, or go on, after any of its events: before the first trial, in the middle of one, at its end."""
    for cut in (1, 2, len(events) // 2, len(events)):
        history, tracker = History(events[:cut]), make()
        tracker.start(history)
        for event in events[cut:]:
            history.apply(event)
            tracker.handle(event)
        tracker.finish()
        tracker.finish()  # an interrupted search may do so twice


def check_tracker_leaves_stdout(make: Callable[[], Tracker], events: Sequence[Mapping[str, Any]]) -> None:
    """stdout is for data (`--json`); trackers speak on stderr."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        history, tracker = History(events[:1]), make()
        tracker.start(history)
        for event in events[1:]:
            history.apply(event)
            tracker.handle(event)
        tracker.finish()
    assert out.getvalue() == "", f"a tracker wrote to stdout: {out.getvalue()[:200]!r}"


TRACKER_CHECKS = (check_tracker_only_reads, check_tracker_begins_anywhere, check_tracker_leaves_stdout)
