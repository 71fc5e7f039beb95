"""What every method promises, on three small models."""

from __future__ import annotations

import copy
import hashlib
import itertools
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class MethodSubject:
    """A tiny model with random weights, and a batch for it.

    Attributes:
        name: "bert".
        base: The model, all frozen, in evaluation mode.
        meta: The same model on the meta device.
        inputs: Arguments of the model's forward.
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
    """Builds a text encoder and a vision transformer of three layers, and a convolutional net."""
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
    """Builds a subject of any transformers architecture with a classifier."""
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
    """Gives batch norms the statistics of the batch. Otherwise a deep net of random weights always answers 0."""
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
    """Yields a method's stock configuration: everywhere, in one layer, and in the last layers."""
    yield {"method": name}
    if name != "head":
        yield {"method": name, f"{name}.layers": [1]}
        yield {"method": name, f"{name}.layers": "last_2"}


def check_method_describes_itself(name: str, subject: MethodSubject) -> None:
    """Checks that each key has a line of text, stock values belong to keys, and the method has a name for people."""
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
    """Checks that the count on the meta device equals what a real model trains, on all layers and on some."""
    import torch

    from autopeft.training.counter import Counter
    from autopeft.training.recipe import count

    for params in method_recipes(name):
        state = torch.random.get_rng_state()
        counts = count(subject.meta, subject.view, params)
        assert Counter(subject.meta, subject.view)(params) == counts, f"{params}: the formula gives another count"
        assert torch.equal(state, torch.random.get_rng_state()), "counting draws from the global random state"
        attached = attach_method(subject, params, seed=1)
        trained = {n: p.numel() for n, p in attached.model.named_parameters() if p.requires_grad}
        assert set(trained) == set(attached.trained)
        assert counts["trainable_parameters"] == sum(trained.values()), params
        assert counts["head_parameters"] == sum(trained[n] for n in attached.head), params
        assert counts["adapter_parameters"] == sum(n for name, n in trained.items() if name not in attached.head)
        assert (counts["adapter_parameters"] > 0) == (name != "head"), params


def check_method_trains_its_own(name: str, subject: MethodSubject) -> None:
    """Checks that logits begin finite, and that gradients and a step reach exactly the trained parameters."""
    import torch

    for params in method_recipes(name):
        attached = attach_method(subject, params, seed=1)
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


def method_pairs(name: str) -> Iterator[dict[str, Any]]:
    """Yields the method alone, and in one recipe with each other method."""
    from autopeft import plugins

    yield {"method": name}
    for other in plugins.names("methods"):
        if name not in ("head", other) and other != "head":
            yield {"method": f"{name}+{other}"}


def check_method_trains_what_is_counted(name: str, subject: MethodSubject) -> None:
    """Checks that each counted tensor gets a gradient, and that each tensor that changes is counted.

    The method is prepared as in a trial, alone and beside every other method. Refused pairs are skipped."""
    import torch

    from autopeft.errors import Refused
    from autopeft.training.network import as_trials_run
    from autopeft.training.precision import Precision

    precision = Precision("fp32", torch.device("cpu"), subject.view)
    for params in method_pairs(name):
        try:
            attached = attach_method(subject, params, seed=1)
        except Refused:
            if params["method"] == name:
                raise
            continue
        as_trials_run(attached.model, subject.view, precision)
        before = {n: t.detach().clone() for n, t in attached.model.state_dict(keep_vars=True).items()}
        waiting, optimizer = dict(attached.model.named_parameters()), _optimizer(attached)
        for step in (1, 2, 3):
            _step(subject, attached, optimizer, step)
            waiting = {n: p for n, p in waiting.items() if p.grad is None}
        without = set(attached.trained) & set(waiting)
        assert not without, f"{params['method']}: counted, yet no gradient reaches {without}"
        changed = {n for n, t in attached.model.state_dict().items() if not torch.equal(before[n], t)}
        assert changed <= set(attached.own), f"{params['method']}: {changed - set(attached.own)} changed"


def check_method_leaves_the_base(name: str, subject: MethodSubject) -> None:
    """Checks that a trial changes no weight, buffer, flag, hook or config of the base, and shares frozen tensors."""
    before, modules = checksum(subject.base), len(list(subject.base.modules()))
    attached = attach_method(subject, {"method": name}, seed=1)
    train_method(subject, attached, steps=2)
    assert checksum(subject.base) == before, "the base is as it was"
    assert not any(p.requires_grad or p.grad is not None for p in subject.base.parameters())
    assert len(list(subject.base.modules())) == modules
    hooks = [m for m in subject.base.modules() if m._forward_hooks or m._forward_pre_hooks]
    assert not hooks, f"hooks on the base: {hooks}"
    shared = {id(parameter) for parameter in subject.base.parameters()}
    own = set(attached.own)
    frozen = {n for n, p in attached.model.named_parameters() if id(p) not in shared and n not in own}
    assert not frozen, f"neither shared with the base nor the trial's own: {frozen}"


def check_method_saves_all_it_trains(name: str, subject: MethodSubject) -> None:
    """Checks that the trained tensors, saved and loaded into a fresh clone, give the same logits."""

    import torch
    from safetensors.torch import load_file, save_file

    from autopeft.training.recipe import load_trained, trained_state

    for params in method_recipes(name):
        trained = attach_method(subject, params, seed=1)
        train_method(subject, trained, steps=2)
        again = attach_method(subject, params, seed=1)
        with tempfile.TemporaryDirectory() as folder:
            save_file(trained_state(trained), Path(folder) / "trained.safetensors")
            load_trained(again, load_file(Path(folder) / "trained.safetensors"))
        with torch.no_grad():
            expected, found = subject.logits(trained.model), subject.logits(again.model)
        assert torch.allclose(expected, found, rtol=0, atol=1e-6), (expected - found).abs().max()


def check_method_takes_rows_end_to_end(name: str, subject: MethodSubject) -> None:
    """Checks that a trained method computes the same from rows of tokens end to end, without padding between them.

    On a GPU trials run so. A method may treat each token by itself, or go through transformers' attention interface.
    """
    import torch

    from autopeft.training.flat import Flattening, Layout
    from autopeft.training.sizes import Size

    for params in method_recipes(name):
        attached = attach_method(subject, params, seed=1)
        if "attention_mask" not in subject.inputs:
            return
        lengths = subject.inputs["attention_mask"].sum(1)
        n_rows, longest = subject.inputs["attention_mask"].shape
        train_method(subject, attached, steps=2)
        with torch.no_grad():
            expected = subject.logits(attached.model)
            flattening = Flattening(attached.model, subject.view.blocks)
            flattening.read(Layout(lengths[None], Size(int(lengths.sum()) + 2, n_rows, longest), n_rows))
            found = subject.logits(attached.model)
        assert torch.allclose(expected, found, rtol=1e-4, atol=1e-5), (expected - found).abs().max()


def check_method_clones_are_independent(name: str, subject: MethodSubject) -> None:
    """Checks that two trials with alternating steps end as each does alone, and that equal seeds begin equally."""
    import torch

    from autopeft.training.recipe import trained_state

    def begin(seed: int) -> Any:
        return attach_method(subject, {"method": name}, seed)

    alone = []
    for seed in (1, 2):
        attached = begin(seed)
        train_method(subject, attached, steps=3)
        alone.append(trained_state(attached))
    both = [begin(1), begin(2)]
    optimizers = [_optimizer(attached) for attached in both]
    for step in (1, 2, 3):
        for attached, optimizer in zip(both, optimizers, strict=True):
            _step(subject, attached, optimizer, step)
    for expected, attached in zip(alone, both, strict=True):
        for parameter, tensor in trained_state(attached).items():
            assert torch.equal(tensor, expected[parameter]), parameter


def check_method_lowest_is_right(name: str, subject: MethodSubject) -> None:
    """Checks that training changes the output of the lowest trained block, and of no block below it."""
    import torch

    view = subject.view
    assert view.chain == view.n_layers, "the subject's blocks are a chain"
    for params in method_recipes(name):
        attached = attach_method(subject, params, seed=1)
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
    """Checks that trials of one seed begin with the same head, whatever their method; of two seeds, with two heads."""
    import torch

    from autopeft.training.recipe import trained_state

    def head(method: str, seed: int) -> dict[str, Any]:
        attached = attach_method(subject, {"method": method}, seed)
        return {n: t.clone() for n, t in trained_state(attached).items() if n in attached.head}

    ours, other, later = head(name, 1), head("head", 1), head(name, 2)
    assert ours
    assert all(torch.equal(ours[n], other[n]) for n in ours)
    assert any(not torch.equal(ours[n], later[n]) for n in ours)


def check_method_merges(name: str, subject: MethodSubject) -> None:
    """Checks that a merged model has the base's modules only, and the trained model's logits; or says that it cannot."""
    import torch

    from autopeft import plugins
    from autopeft.errors import UsageError
    from autopeft.space import components, method_of
    from autopeft.training.merge import merge

    can_merge = all(plugins.load("methods", method_of(part)).merges for part in components(name))
    params = next(iter(method_recipes(name)))  # where it acts changes nothing of how it merges
    attached = attach_method(subject, params, seed=1)
    train_method(subject, attached, steps=3)
    before = checksum(subject.base)
    with torch.no_grad():
        expected = subject.logits(attached.model)
    try:
        merged = merge(attached, subject.view, params)
    except UsageError as refusal:
        assert not can_merge, f"{params}: {refusal}"
        return
    assert can_merge
    with torch.no_grad():
        found = subject.logits(merged)
    difference = float((found - expected).abs().max() / expected.abs().max())
    # Rounding alone; a convolutional net of random weights amplifies it a hundred times.
    assert difference < 5e-4, f"{params}: the logits differ by {difference} of the largest"
    assert {n: type(m) for n, m in merged.named_modules()} == {n: type(m) for n, m in subject.base.named_modules()}
    assert merged.state_dict().keys() == subject.base.state_dict().keys()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in merged.modules()), "hooks are left"
    assert checksum(subject.base) == before, "the base is as it was"


METHOD_CHECKS: tuple[Callable[[str, MethodSubject], None], ...] = (
    check_method_describes_itself,
    check_method_count_is_exact,
    check_method_trains_its_own,
    check_method_trains_what_is_counted,
    check_method_leaves_the_base,
    check_method_saves_all_it_trains,
    check_method_takes_rows_end_to_end,
    check_method_clones_are_independent,
    check_method_lowest_is_right,
    check_method_head_is_the_seeds,
    check_method_merges,
)


def checksum(model: Any) -> str:
    """Returns a checksum of all weights and buffers, with their names."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def train_method(subject: MethodSubject, attached: Any, steps: int) -> None:
    """Takes steps of AdamW on the subject's batch, with each component's learning rate. The last gradients stay."""
    optimizer = _optimizer(attached)
    for step in range(1, steps + 1):
        _step(subject, attached, optimizer, step)


def attach_method(subject: MethodSubject, params: Mapping[str, Any], seed: int) -> Any:
    """Attaches a recipe to a clone of the subject's base, for a trial of ten steps on the subject's batch."""
    from autopeft.training.recipe import attach

    return attach(subject.base, subject.view, params, seed, 10, lambda: itertools.repeat(subject.inputs))


def _optimizer(attached: Any) -> Any:
    import torch

    parameters = dict(attached.model.named_parameters())
    groups = [{"params": [parameters[name] for name in group.names], "lr": group.lr} for group in attached.groups]
    return torch.optim.AdamW(groups, weight_decay=0.0)


def _step(subject: MethodSubject, attached: Any, optimizer: Any, step: int) -> None:
    """Takes one optimiser step, with the components' penalties and their work after it. The gradients stay."""
    optimizer.zero_grad(set_to_none=True)
    loss = subject.loss(attached.model)
    for during in attached.during:
        loss = loss if during.penalty is None else loss + during.penalty()
    loss.backward()
    optimizer.step()
    for during in attached.during:
        if during.after_step is not None:
            during.after_step(step)


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
