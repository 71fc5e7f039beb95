"""What a person calls a configuration: "LoRA rank 8 on query and value of layers 3–5, lr 2e-4"."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from autopeft import recipe
from autopeft.recipe import Part

# All module kinds of a model: a transformer, one with query, key and value in one matrix, a convolutional net.
EVERY = (
    {"query", "key", "value", "output", "up", "down"},
    {"query", "key", "value", "output", "cross_query", "cross_key", "cross_value", "cross_output", "up", "down"},
    {"qkv", "output", "up", "down"},
    {"convolution"},
)


def describe(params: Mapping[str, Any], n_layers: int) -> str:
    """Names a configuration of a model with `n_layers` layers. Imports no torch."""
    keys, parts = recipe.keys_of(params, "head"), recipe.parts(params)
    layer, computed = keys.get("layer", "last"), n_layers
    if layer != "last" and layer < n_layers - 1:
        computed = layer + 1
        parts = tuple(filter(None, (_up_to(layer, part) for part in parts)))
    named = (_named(part, computed) for part in parts)
    return (" + ".join(named) or "nothing but the head") + _head(keys, n_layers)


def _up_to(layer: int, part: Part) -> Part | None:
    """Returns a part without the layers above the one that the head reads; None if it acts on no other."""
    chosen = recipe.listed_layers(part.keys.get("layers", "all"))
    if chosen is None:
        return part
    below = [index for index in chosen if index <= layer]
    return replace(part, keys={**part.keys, "layers": below}) if below else None


def _head(keys: Mapping[str, Any], n_layers: int) -> str:
    """Describes a head in which something is chosen: ", head: mean of layer 3, hidden 64, norm"; empty for the usual."""
    layer, pooling = keys.get("layer", "last"), keys.get("pooling", "own")
    where = "" if layer in ("last", n_layers - 1) else f" of layer {layer}"
    size = f"hidden {keys['hidden']}" if keys.get("hidden") else ""
    kind = pooling if pooling != "own" or where else ""
    said = [text for text in (f"{kind}{where}", size, "norm" if keys.get("norm") else "") if text]
    return f", head: {', '.join(said)}" if said else ""


def _named(part: Part, n_layers: int) -> str:
    modules, keys = part.keys.get("modules", ()), part.keys
    by_kind = _sizes_by_kind(part)
    if part.method.size is not None:
        keys = {**keys, part.method.size: _sized(part, by_kind)}
    where = _where(() if by_kind else modules, keys.get("layers", "all"), n_layers)
    rate = f", lr {_rate(part.given['lr'])}" if "lr" in part.given else ""
    return f"{part.method.describe(keys)}{where}{rate}"


def _sizes_by_kind(part: Part) -> dict[str, int]:
    """Returns module kind → size if each kind of the part has its own size; else empty."""
    sizes = _own_sizes(part)
    by_kind = {kind: value for (kind, layer), value in sizes.items() if kind and layer is None}
    modules = part.keys.get("modules", part.method.modules)
    enough = EVERY if isinstance(modules, str) else [set(modules)]
    return by_kind if by_kind and any(kinds <= set(by_kind) for kinds in enough) else {}


def _own_sizes(part: Part) -> dict[tuple[str | None, int | None], int]:
    """Returns the sizes that are given for one kind, one layer, or both."""
    dotted = {key: value for key, value in part.keys.items() if key.startswith(f"{part.method.size}.")}
    return {recipe.qualifiers(key): value for key, value in dotted.items()}


def _sized(part: Part, by_kind: Mapping[str, int]) -> Any:
    """`8`, `query 8, value 4`, or `8 (4 on query, 16 in layer 3)`."""
    others = {at: value for at, value in _own_sizes(part).items() if at[1] is not None or at[0] not in by_kind}
    size: Any = ", ".join(f"{kind} {value}" for kind, value in by_kind.items() if value) or recipe.size(part)
    texts = [
        f"{value} {f'on {kind}' if layer is None else f'on {kind} in layer {layer}' if kind else f'in layer {layer}'}"
        for (kind, layer), value in others.items()
    ]
    return f"{size} ({', '.join(texts)})" if texts else size


def _where(modules: Sequence[str] | str, layers: Any, n_layers: int) -> str:
    """Describes modules and layers; empty for a method's usual modules and all layers."""
    names = ["all modules"] if modules == "all" else list(modules)
    on = f" on {_listed(names)}" if names else ""
    link = " of" if names else " in"
    end, _, count = layers.partition("_") if isinstance(layers, str) else ("", "", "")
    if end in ("last", "first"):
        return f"{on}{link} the {end} {'layer' if count == '1' else f'{count} layers'}"
    chosen = recipe.listed_layers(layers)
    if chosen is None or len(chosen) == n_layers:
        return on
    return f"{on}{link} layer{'s' if len(chosen) != 1 else ''} {_ranges(chosen)}"


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _ranges(numbers: Sequence[int]) -> str:
    """`[0, 3, 4, 5]` → `0, 3–5`."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}–{run[-1]}" for run in runs) or "none"


def _rate(value: float) -> str:
    """`0.0002` → `2e-4`."""
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}"
