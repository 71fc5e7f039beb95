"""A recipe on a model: its components resolved, counted on the meta device, attached to a clone, saved, put back."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from autopeft import plugins, recipe
from autopeft.errors import Refused, UsageError
from autopeft.methods import CROSS, During, Method, Scope, Site
from autopeft.recipe import Head, Part
from autopeft.space import ALWAYS
from autopeft.training.head import headed
from autopeft.training.model import ModelView, clone_shared
from autopeft.trial import derive_seed

# Substitutes for a method's own module kinds if the model lacks them; for all other kinds the convolutions.
STAND_INS = {"query": "qkv", "key": "qkv", "value": "qkv"}


@dataclass(frozen=True, slots=True)
class Component:
    """One part of a recipe on a model, with where it acts."""

    name: str
    method: Method
    scope: Scope
    keys: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Group:
    """A group of the optimiser: parameters that one component trains.

    Attributes:
        component: Name of the component; `head` for the head.
        lr: Learning rate.
        weight_decay: The component's own weight decay; None for the config's.
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
        view: Its parts as the recipe's head sees them.
        groups: Trained parameters by component and learning rate, the head last.
        lowest: The lowest block with a trained parameter; n_layers if only modules above the blocks train. At most
            `view.chain`, so 0 if the blocks are not known to run one after the other.
        trained: Full names of all trained parameters.
        own: Full names of all tensors in which this model differs from its base: trained, added and frozen, or changed
            parameters, and added buffers.
        added: Full names of the modules that components added. Only these are in training mode, for their dropout.
        head: Full names of the head's trained parameters.
        during: Actions of the components while the trial trains.
    """

    model: nn.Module
    view: ModelView
    groups: tuple[Group, ...]
    lowest: int
    trained: tuple[str, ...]
    own: tuple[str, ...]
    added: tuple[str, ...]
    head: frozenset[str]
    during: tuple[During, ...] = ()


def resolve(view: ModelView, params: Mapping[str, Any]) -> list[Component]:
    """The parts of a configuration on this model, with where they act; without those that the model leaves nothing of.

    Args:
        view: The parts that the configuration's head reads (`training.head.headed`).

    Raises:
        Refused: None is left, a key is nobody's, or the model has no such modules or layers.
    """
    recipe.check(params, view.n_layers + view.left_out)
    if params["method"] == "head" and not view.head:
        raise Refused("this model has no head to train")
    found = [component for component in (_component(view, part) for part in recipe.parts(params)) if component]
    if not found:
        raise Refused("empty: no component is left; `head` is the recipe that trains the head alone")
    return found


def _component(view: ModelView, part: Part) -> Component | None:
    """A part on this model; None where its size is 0 on all its module kinds in all its layers."""
    layers = recipe.layers(part.keys.get("layers", "all"), view.n_layers, view.left_out)
    kinds = choose_kinds(view, part.method, part.keys.get("modules"))
    nothing_chosen = "modules" in part.keys and not kinds
    if nothing_chosen or not recipe.is_there(part, kinds, layers):
        return None
    return Component(part.name, part.method, make_scope(view, part, kinds, layers), part.keys)


def choose_kinds(view: ModelView, method: Method, chosen: Any) -> tuple[str, ...]:
    """The module kinds that a component acts on: those chosen, or the method's own, or what stands for them.

    Raises:
        Refused: The model has none of one chosen kind.
    """
    if chosen == "all":
        return recipe.every_kind(view.kinds)
    if chosen is None:
        own = dict.fromkeys(here for kind in method.modules for here in (_here(view, kind), CROSS.get(kind, kind)))
        found = tuple(kind for kind in own if kind in view.kinds)
        if method.modules and not found:
            raise Refused(f"no {', '.join(method.modules)} to act on: {_has(view)}")
        return found
    missing = [kind for kind in chosen if kind not in view.kinds]
    if missing:
        raise Refused(f"no {', '.join(missing)} to act on: {_has(view)}")
    return tuple(chosen)


def _here(view: ModelView, kind: str) -> str:
    """The kind itself, or what stands for it in this model."""
    return next((k for k in (kind, STAND_INS.get(kind, kind)) if k in view.kinds), "convolution")


def _has(view: ModelView) -> str:
    text = f"this {view.model_type} has {', '.join(view.kinds) or 'no module of a known kind'}"
    if "qkv" in view.kinds:
        text += " (qkv is query, key and value in one)"
    return text + (f"; of unknown kind: {', '.join(view.unknown[:3])}" if view.unknown else "")


def make_scope(view: ModelView, part: Part, modules: Sequence[str], layers: Sequence[int]) -> Scope:
    """The modules of some kinds in some blocks, those of size 0 left out."""
    inside = {layer for layer in layers if recipe.is_there(part, modules, [layer])}
    kinds = {kind: tuple(name for name in names if view.block_of(name) in inside) for kind, names in view.kinds.items()}
    sizes = {name: recipe.size(part, kind, view.block_of(name)) for kind in modules for name in kinds[kind]}
    chosen = {kind: tuple(name for name in kinds[kind] if sizes[name] != 0) for kind in modules}
    return Scope(
        modules={kind: names for kind, names in chosen.items() if names or not kinds[kind]},
        sizes={name: size for name, size in sizes.items() if size},
        kinds=kinds,
        layers=tuple(sorted(inside)),
        blocks=tuple(view.blocks[layer] for layer in sorted(inside)),
        above=view.above,
        head=view.head,
    )


def attach(
    base: nn.Module,
    view: ModelView,
    params: Mapping[str, Any],
    seed: int,
    steps: int | None = None,
    batches: Callable[[], Iterator[Mapping[str, Any]]] | None = None,
) -> Attached:
    """Attaches a recipe to a clone of the base, and draws the head from the seed.

    The head depends on the seed only, not on the recipe. Seeds the global random state, and draws from it.

    Args:
        steps, batches: See `Site`.

    Raises:
        Refused: The recipe is empty, or does not fit the model.
    """
    return _attach(*headed(base, view, Head.of(params)), params, seed, steps, batches)


def _attach(
    base: nn.Module,
    view: ModelView,
    params: Mapping[str, Any],
    seed: int,
    steps: int | None = None,
    batches: Callable[[], Iterator[Mapping[str, Any]]] | None = None,
) -> Attached:
    """Does the same on a base that has the recipe's head."""
    parts = [part for part in resolve(view, params) if part.name != "head"]  # which every recipe has, after the others
    heads = [name for name, _ in base.named_parameters() if view.in_head(name)]
    sites = {part.name: Site(part.scope, part.keys, steps, batches) for part in parts}
    require_whole(base, view, parts)
    copies = {part.name: part.method.copies(base, sites[part.name]) for part in parts}
    copied = {name for own in copies.values() for name in (*own.trained, *own.changed)}
    model = clone_shared(base, {*heads, *copied})
    draw_head(model, view, derive_seed(seed, "head"))
    original = {id(module) for module in model.modules()}
    # A component's parameters are compared as objects, not by name, as a peft layer renames the layer that it wraps.
    by_name = dict(model.named_parameters(remove_duplicate=False))
    of_base = {id(tensor) for tensor in _tensors(model).values()} - {id(by_name[name]) for name in copied}
    trained = {"head": [by_name[name] for name in heads]}
    taken = {id(parameter) for parameter in trained["head"]}
    during = []
    for part in sorted(parts, key=lambda part: not part.method.is_peft):  # peft first, so that hooks wrap its layers
        torch.manual_seed(derive_seed(seed, "attach", part.name))
        before = {id(parameter) for parameter in model.parameters()}
        if part.method.reads_weights:
            _require_untouched(model, part, taken | {id(by_name[n]) for own in copies.values() for n in own.trained})
        during.append(part.method.attach(model, sites[part.name]))
        now = {id(parameter) for parameter in model.parameters()}
        if not taken <= now:
            raise Refused(f"unsupported: {part.name} replaces what the rest of the recipe adds to the same modules")
        added = [p for p in model.parameters() if p.requires_grad and id(p) not in before]
        own = {id(by_name[name]): by_name[name] for name in copies[part.name].trained}
        trained[part.name] = [*added, *(p for key, p in own.items() if key not in taken)]
        taken |= {id(parameter) for parameter in trained[part.name]}
        if not trained[part.name]:
            raise Refused(f"empty: {part.name} trains nothing here that the rest of the recipe does not")
    for parameter in model.parameters():  # a peft tuner freezes the parameters of earlier components
        parameter.requires_grad_(id(parameter) in taken)
    torch.manual_seed(seed)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = tuple(_groups(parts, params, {n: tuple(names[id(p)] for p in ps) for n, ps in trained.items()}))
    every = tuple(name for group in groups for name in group.names)
    rest = [name for name, tensor in _tensors(model).items() if id(tensor) not in of_base]
    own_names = tuple(dict.fromkeys([*every, *rest]))
    return Attached(
        model=model.eval(),
        view=view,
        groups=groups,
        lowest=min(view.chain, *(max(0, view.block_of(name)) for name in own_names)),
        trained=every,
        own=own_names,
        added=tuple(name for name, module in model.named_modules() if id(module) not in original),
        head=frozenset(name for group in groups if group.component == "head" for name in group.names),
        during=tuple(own for own in during if own is not None),
    )


def _require_untouched(model: nn.Module, part: Component, trained: Collection[int]) -> None:
    """Raises Refused if another component trains, or acts inside, a layer whose weight this component reads."""
    for name in part.scope.names:
        layer = model.get_submodule(name)
        if any(parameter.requires_grad or id(parameter) in trained for parameter in layer.parameters()):
            raise _hidden(part, name)


def require_whole(model: nn.Module, view: ModelView, parts: Sequence[Component]) -> None:
    """Refuses components that train, change or compute with weights that are stored in 4 or 8 bits."""
    if not view.quantised:
        return
    packed = set(view.quantised)
    for part in parts:
        copies = part.method.copies(model, Site(part.scope, part.keys))
        weights = [name for name in (*copies.trained, *copies.changed) if name.endswith(".weight")]
        wrong = next((name for name in weights if name.removesuffix(".weight") in packed), None)
        if wrong is not None:
            raise Refused(
                f"unsupported: {part.name} {'trains' if wrong in copies.trained else 'changes'} {wrong}, which is quantised"
            )
        read = next((name for name in part.scope.names if name in packed), None)
        if read is not None and (part.method.reads_weights or not part.method.takes_quantised):
            raise Refused(f"unsupported: {part.name} computes with the weight of {read}, which is quantised")


def _require_apart(meta: nn.Module, parts: Sequence[Component]) -> None:
    """Refuses before counting what `_require_untouched` refuses when it attaches: counted by a formula, it is not
    attached."""
    readers = [part for part in parts if part.method.reads_weights]
    if not readers or len(parts) == 1:
        return
    touched = {
        name.rpartition(".")[0]
        for part in parts
        for name in part.method.copies(meta, Site(part.scope, part.keys)).trained
    }
    for part in sorted(parts, key=lambda part: not part.method.is_peft):  # as `attach` goes
        for name in part.scope.names if part in readers else ():
            if name in touched:
                raise _hidden(part, name)
        if part.method.is_peft:
            touched |= set(part.scope.names)


def _hidden(part: Component, name: str) -> Refused:
    return Refused(
        f"unsupported: {part.name} computes with the weight of {name}, and would hide it from what the rest of the "
        f"recipe trains there; named before another peft method, {part.name} may fit"
    )


def _tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Returns parameters and saved buffers, each under its first name."""
    first: dict[int, str] = {}
    saved = set(model.state_dict(keep_vars=True))
    buffers = {name: buffer for name, buffer in model.named_buffers() if name in saved}
    tensors = {**dict(model.named_parameters()), **buffers}
    return {name: tensor for name, tensor in tensors.items() if first.setdefault(id(tensor), name) == name}


def _groups(
    parts: Sequence[Component], params: Mapping[str, Any], names: Mapping[str, tuple[str, ...]]
) -> Iterator[Group]:
    for part in parts:
        by_rate: dict[float, list[str]] = {}
        for name in names[part.name]:
            by_rate.setdefault(part.method.rate(name, part.keys), []).append(name)
        for rate, own in by_rate.items():
            yield Group(part.name, float(part.keys["lr"]) * rate, part.keys.get("weight_decay"), tuple(own))
    if names["head"]:
        keys = {**plugins.load("methods", "head").stock, **recipe.keys_of(params, "head")}
        yield Group("head", float(keys["lr"]), keys.get("weight_decay"), names["head"])


def count(meta: nn.Module, view: ModelView, params: Mapping[str, Any]) -> dict[str, float]:
    """Counts the trained parameters exactly, from the model on the meta device: nothing is allocated.

    Raises:
        Refused: The recipe is empty, or does not fit the model.
    """
    state = torch.random.get_rng_state()
    try:
        return _count(*headed(meta, view, Head.of(params)), params)
    finally:
        torch.random.set_rng_state(state)


def _count(meta: nn.Module, view: ModelView, params: Mapping[str, Any]) -> dict[str, float]:
    """By attaching; a component that reads weights, and so may allocate even on meta, by its formula."""
    parts = resolve(view, params)
    _require_apart(meta, parts)
    require_whole(meta, view, parts)
    closed = {
        part.name: part.method.count(meta, Site(part.scope, part.keys)) for part in parts if part.method.reads_weights
    }
    formula = {name: float(number) for name, number in closed.items() if number is not None}
    rest = [part.name for part in parts if part.name not in formula]
    others = {key: value for key, value in params.items() if key.partition(".")[0] in (*ALWAYS, *rest)}
    if rest or view.head:
        found = counts(_attach(meta, view, {**others, "method": "+".join(rest) or "head"}, 0))
    else:  # a language model has no head
        found = dict.fromkeys(("trainable_parameters", "adapter_parameters", "head_parameters"), 0.0)
    added = sum(formula.values())
    return {name: value + (0.0 if name == "head_parameters" else added) for name, value in found.items()}


def counts(attached: Attached) -> dict[str, float]:
    """Counts the trained parameters exactly, with and without the head."""
    sizes = {name: parameter.numel() for name, parameter in attached.model.named_parameters()}
    head = sum(sizes[name] for name in attached.head)
    total = sum(sizes[name] for name in attached.trained)
    return {
        "trainable_parameters": float(total),
        "adapter_parameters": float(total - head),
        "head_parameters": float(head),
    }


def trained_state(attached: Attached) -> dict[str, torch.Tensor]:
    """Returns all tensors in which this model differs from its base, by name: the trained ones and `own`."""
    tensors = _tensors(attached.model)
    return {name: tensors[name].detach() for name in attached.own}


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Reads saved tensors.

    Raises:
        UsageError: The file holds something else.
    """
    try:
        return load_file(path)
    except SafetensorError as fault:
        raise UsageError(f"{path} is no safetensors file, or is damaged ({fault})") from fault


def load_trained(attached: Attached, tensors: Mapping[str, torch.Tensor]) -> None:
    """Puts saved tensors into a model with the same recipe attached.

    Raises:
        ValueError: The names or shapes do not fit the recipe.
    """
    own = trained_state(attached)
    if set(tensors) != set(own):
        different = sorted(set(tensors) ^ set(own))
        raise ValueError(f"the saved tensors are of another recipe: {', '.join(different[:4])}")
    for name, tensor in tensors.items():
        if tensor.shape != own[name].shape:
            raise ValueError(f"{name}: expected shape {tuple(own[name].shape)}, got {tuple(tensor.shape)}")
    with torch.no_grad():
        for name, tensor in tensors.items():
            own[name].copy_(tensor)


def draw_head(model: nn.Module, view: ModelView, seed: int) -> None:
    """Initialises the head: weights from N(0, initializer_range²), biases 0, norms 1."""
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
