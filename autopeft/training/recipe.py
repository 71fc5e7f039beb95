"""A recipe on a model: its components resolved, counted on the meta device, attached to a clone, saved, put back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from autopeft import plugins
from autopeft.errors import Refused
from autopeft.methods import Method, Scope
from autopeft.space import components
from autopeft.training.model import ModelView, clone_shared
from autopeft.trial import derive_seed

HEAD_LR = 1e-3  # of a recipe whose params name none


@dataclass(frozen=True, slots=True)
class Component:
    """One method of a recipe, with where it acts and its own keys."""

    name: str
    method: Method
    scope: Scope
    keys: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Group:
    """What one component trains: its group in the optimiser.

    Attributes:
        component: Its name; `head` for the head.
        lr: Its learning rate.
        weight_decay: Its own, or None for the config's.
        names: Full parameter names.
    """

    component: str
    lr: float
    weight_decay: float | None
    names: tuple[str, ...]


@dataclass(frozen=True)
class Attached:
    """A clone of the base with a recipe.

    Attributes:
        model: Shares every frozen tensor with the base.
        groups: What trains, by component, the head last.
        lowest: The lowest block with something trained; n_layers where only what is above the blocks trains. Never
            above the chain of blocks that is known to run one after the other.
        trained: Full names of all trained parameters.
        added: Full names of the modules that the components added: they alone have dropout.
        head: Those of the trained that are the head's.
    """

    model: nn.Module
    groups: tuple[Group, ...]
    lowest: int
    trained: tuple[str, ...]
    added: tuple[str, ...]
    head: frozenset[str]


def resolve(view: ModelView, params: Mapping[str, Any]) -> list[Component]:
    """The components of a configuration, with where they act; those of size 0 left out.

    Raises:
        Refused: Nothing is left, or the model has no such modules or layers.
    """
    shared = _keys(params, "shared")
    found = []
    for name in components(params["method"]):
        method: Method = plugins.load("methods", name)()
        keys = {**method.stock, **shared, **_keys(params, name)}
        if any(keys.get(size) == 0 for size in ("rank", "size", "count") if size in method.stock):
            continue
        layers = choose_layers(keys.get("layers", "all"), view.n_layers)
        if not layers:
            continue
        found.append(Component(name, method, make_scope(view, keys.get("modules", method.modules), layers), keys))
    if not found:
        raise Refused("empty: no component is left; `head` is the recipe that trains the head alone")
    return found


def make_scope(view: ModelView, modules: Sequence[str], layers: Sequence[int]) -> Scope:
    """The modules of some kinds in some blocks.

    Raises:
        Refused: The model has none of one kind.
    """
    inside = set(layers)
    kinds = {kind: tuple(name for name in names if view.block_of(name) in inside) for kind, names in view.kinds.items()}
    missing = [kind for kind in modules if kind not in kinds]
    if missing:
        raise Refused(f"the model has no modules of kind {', '.join(missing)}; it has {', '.join(kinds)}")
    chosen = {kind: kinds[kind] for kind in modules}
    return Scope(chosen, kinds, tuple(layers), tuple(view.blocks[layer] for layer in layers), view.head)


def choose_layers(value: Any, n_layers: int) -> tuple[int, ...]:
    """Block indices from a list of them, "all", or "last_<k>".

    Raises:
        Refused: The model has no such layers.
    """
    if value == "all":
        return tuple(range(n_layers))
    if isinstance(value, str) and value.startswith("last_") and value[5:].isdigit():
        return tuple(range(max(0, n_layers - int(value[5:])), n_layers))
    if isinstance(value, (list, tuple)):
        wrong = [layer for layer in value if not 0 <= layer < n_layers]
        if wrong:
            raise Refused(f"the model has layers 0 to {n_layers - 1}, not {', '.join(map(str, wrong))}")
        return tuple(sorted(value))
    raise Refused(f"layers are a list of indices, 'all' or 'last_<k>', not {value!r}")


def attach(base: nn.Module, view: ModelView, params: Mapping[str, Any], seed: int) -> Attached:
    """A clone of the base with the recipe attached and a head drawn from the seed.

    The head of a seed is the same whatever the recipe. Consumes and leaves the global random state seeded.

    Raises:
        Refused: The recipe is empty, or does not fit the model.
    """
    parts = resolve(view, params)
    heads = [name for name, _ in base.named_parameters() if view.in_head(name)]
    owned = {name for part in parts for name in part.method.unfreezes(base, part.scope, part.keys)}
    model = clone_shared(base, {*owned, *heads})
    draw_head(model, view, derive_seed(seed, "head"))
    modules = {name for name, _ in model.named_modules()}
    groups: list[Group] = []
    taken: set[str] = set(heads)
    for part in parts:
        torch.manual_seed(derive_seed(seed, "attach", part.name))
        known = {name for name, _ in model.named_parameters()}
        part.method.attach(model, part.scope, part.keys)
        added = [name for name, parameter in model.named_parameters() if name not in known and parameter.requires_grad]
        renamed = _renamed(model, part.method.unfreezes(base, part.scope, part.keys))
        names = tuple(name for name in (*added, *renamed) if name not in taken)
        taken |= set(names)
        if names:
            groups.append(Group(part.name, float(part.keys["lr"]), part.keys.get("weight_decay"), names))
    if not any(group.names for group in groups) and params["method"] != "head":
        raise Refused("empty: it trains no parameter beside the head")
    if heads:
        keys = _keys(params, "head")
        groups.append(Group("head", float(keys.get("lr", HEAD_LR)), keys.get("weight_decay"), tuple(heads)))
    trained = tuple(name for group in groups for name in group.names)
    chosen = set(trained)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in chosen)
    lowest = min((max(0, view.block_of(name)) for name in trained), default=view.n_layers)
    return Attached(
        model=model.eval(),
        groups=tuple(groups),
        lowest=lowest if view.chain == view.n_layers else min(lowest, view.chain),
        trained=trained,
        added=tuple(name for name, _ in model.named_modules() if name not in modules),
        head=frozenset(heads),
    )


def count(meta: nn.Module, view: ModelView, params: Mapping[str, Any]) -> dict[str, float]:
    """Exact numbers of trained parameters, from the model on the meta device: nothing is allocated.

    Raises:
        Refused: The recipe is empty, or does not fit the model.
    """
    state = torch.random.get_rng_state()
    try:
        attached = attach(meta, view, params, 0)
    finally:
        torch.random.set_rng_state(state)
    sizes = {name: parameter.numel() for name, parameter in attached.model.named_parameters()}
    head = sum(sizes[name] for name in attached.head)
    total = sum(sizes[name] for name in attached.trained)
    if total == 0 or (total == head and params["method"] != "head"):
        raise Refused("empty: it trains no parameter beside the head")
    return {
        "trainable_parameters": float(total),
        "adapter_parameters": float(total - head),
        "head_parameters": float(head),
    }


def trained_state(attached: Attached) -> dict[str, torch.Tensor]:
    """The trained tensors by name: all that tells this model from its base."""
    parameters = dict(attached.model.named_parameters())
    return {name: parameters[name].detach() for name in attached.trained}


def load_trained(attached: Attached, tensors: Mapping[str, torch.Tensor]) -> None:
    """Puts saved tensors into a model with the same recipe attached.

    Raises:
        ValueError: Their names or shapes are not those of the recipe.
    """
    parameters = dict(attached.model.named_parameters())
    if set(tensors) != set(attached.trained):
        different = sorted(set(tensors) ^ set(attached.trained))
        raise ValueError(f"the saved tensors are of another recipe: {', '.join(different[:4])}")
    with torch.no_grad():
        for name, tensor in tensors.items():
            parameters[name].copy_(tensor)


def draw_head(model: nn.Module, view: ModelView, seed: int) -> None:
    """A fresh head: weights from N(0, initializer_range²), biases 0, norms 1."""
    generator = torch.Generator().manual_seed(seed)
    deviation = float(getattr(model.config, "initializer_range", 0.02))
    for head in view.head:
        for module in model.get_submodule(head).modules():
            for name, parameter in module.named_parameters(recurse=False):
                if parameter.is_meta:
                    continue
                with torch.no_grad():
                    if parameter.ndim >= 2:
                        parameter.copy_(torch.empty(parameter.shape).normal_(0.0, deviation, generator=generator))
                    else:
                        parameter.fill_(0.0 if name == "bias" else 1.0)


def _keys(params: Mapping[str, Any], component: str) -> dict[str, Any]:
    prefix = f"{component}."
    return {name.removeprefix(prefix): value for name, value in params.items() if name.startswith(prefix)}


def _renamed(model: nn.Module, names: Sequence[str]) -> list[str]:
    """Base parameters by their names now: a peft layer moves what it wraps under `base_layer`."""
    now = {name.replace(".base_layer.", "."): name for name, _ in model.named_parameters()}
    return [now[name] for name in names]
