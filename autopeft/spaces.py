"""Search spaces as files: their folder, and checks of their values against the methods that they name.

`space.parse` knows the grammar. This file knows the methods: their keys and types, and the module kinds and layers that
`modules` and `layers` may name. Imports no torch.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from autopeft import plugins, recipe
from autopeft.errors import Fault, UnknownName
from autopeft.methods import COMMON_KEYS, CROSS, MODULE_KINDS
from autopeft.space import Space, components, method_of, parse

FUSED = ("query", "key", "value")  # one matrix in some models (GPT-2): `qkv`
ASSUMED_LAYERS = 12  # for a model that is not at hand
SWITCHES = {"on": True, "yes": True, "true": True, "off": False, "no": False, "false": False}


def folder() -> Path:
    """Returns search_spaces/: inside the installed package, or at the root of a checkout."""
    package = Path(__file__).parent
    inside = package / "search_spaces"
    return inside if inside.is_dir() else package.parent / "search_spaces"


def shipped() -> dict[str, Path]:
    """Returns the spaces that come with autopeft, by name."""
    return {path.stem: path for path in sorted(folder().glob("*.yaml"))}


def about(name: str) -> str:
    """Describes a shipped space in a line: the first sentence of the comment at the top of its file."""
    lines = shipped()[name].read_text(encoding="utf-8").splitlines()
    comment = itertools.takewhile(lambda line: line.startswith("#"), lines)
    return plugins.sentence(" ".join(line.lstrip("# ") for line in comment))


def find(name: str, beside: Path) -> Path:
    """Finds the file of a space: a path relative to the folder `beside`, or a name under search_spaces/.

    Raises:
        UnknownName: There is neither.
    """
    path = beside / Path(name).expanduser()
    if path.is_file():
        return path
    known = shipped()
    if name not in known:
        near = [entry.name for entry in beside.glob("*.yaml")] if name.endswith((".yaml", ".yml")) else []
        raise UnknownName("search space", name, [*known, *near])
    return known[name]


def read(
    spec: Mapping[str, Any], n_layers: int | None, kinds: Sequence[str] = MODULE_KINDS
) -> tuple[Space | None, list[Fault]]:
    """Reads a space for a model from its YAML mapping. Returns it, and all faults.

    Args:
        spec: The mapping that `space.parse` takes. `{subset: layers}` has one item a block. `{subset: modules}` has the
            module kinds of the model. Kinds in its default that the model lacks are dropped (`query`, `key` and
            `value` become `qkv` if they are one matrix), and attention to an encoder is added to that of the same
            name. If none is left, the default is all kinds. A key of a kind
            that the model lacks (`rank.query`) is dropped. A key of a layer that it lacks (`rank.30`) is a fault.
            `head.layer` may be `{choice: layers, default: last}`: one option a block.
        n_layers: Number of blocks of the model. None if the model is not at hand: then a key may name any layer.
        kinds: Module kinds of the model.
    """
    faults = _recipe_faults(spec)
    if faults:
        return None, faults
    known = _known(spec)
    fitted = {name: _fitted(name, keys, kinds) for name, keys in spec.items()}
    misshapen = _shape_faults(fitted)
    for fault in misshapen:
        component, _, key = fault.path.partition(".")
        del fitted[component][key]
    count = ASSUMED_LAYERS if n_layers is None else n_layers
    if "head" in fitted:
        fitted["head"] = _fitted_head(fitted["head"], count)
    symbols = {"layers": range(count), "modules": recipe.every_kind(kinds)}
    space, faults = parse(fitted, symbols, known)
    wrong = {fault.path for fault in faults}
    for component, keys in fitted.items():
        if component != "method" and isinstance(keys, Mapping) and component in known:
            for key, value in keys.items():
                path = f"{component}.{key}"
                if path not in wrong and key.split(".")[0] in known[component]:
                    faults += [Fault(path, message) for message in _value_faults(component, key, value, n_layers)]
    if space is not None:
        faults += _when_faults(space)
    faults = [*misshapen, *faults]
    return (space if not faults else None), faults


# ── helpers ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _recipes(spec: Mapping[str, Any]) -> list[str]:
    """Returns the recipes of `method`; empty if it has another shape, which space.parse reports."""
    methods = spec.get("method")
    methods = [methods] if isinstance(methods, str) else methods
    is_list = isinstance(methods, list) and all(isinstance(method, str) for method in methods)
    return methods if is_list and methods else []


def _known(spec: Mapping[str, Any]) -> dict[str, set[str]]:
    """Returns the keys of each method, of each component of the recipes, and of `shared`."""
    known = {name: {*COMMON_KEYS, *plugins.load("methods", name).keys} for name in plugins.names("methods")}
    named = {part for method in _recipes(spec) for part in components(method)}
    used = {part: known[method_of(part)] for part in sorted(named) if method_of(part) in known}
    return {**known, **used, "shared": set().union(*(keys for name, keys in known.items() if name != "head"))}


def _owners(component: str) -> list[Any]:
    """Returns the methods that read the keys of a component."""
    names = plugins.names("methods")
    owners = (n for n in names if method_of(component) == n or (component == "shared" and n != "head"))
    return [plugins.load("methods", name) for name in owners]


def _recipe_faults(spec: Mapping[str, Any]) -> list[Fault]:
    """Finds faults in the list of recipes, except unknown names."""
    methods = _recipes(spec)
    twice = sorted({method for method in methods if methods.count(method) > 1})
    faults = [Fault("method", f"{method!r} stands there twice") for method in twice]
    return [*faults, *(Fault("method", fault) for method in methods for fault in recipe.recipe_faults(method))]


def _shape_faults(spec: Mapping[str, Any]) -> list[Fault]:
    """Finds conditions, switches and counts of dimensions that have a wrong shape."""
    faults = []
    for component, keys in spec.items():
        for key, value in keys.items() if isinstance(keys, Mapping) else ():
            path, has = f"{component}.{key}", value if isinstance(value, Mapping) else {}
            if not isinstance(has.get("when", {}), Mapping):
                faults.append(Fault(path, f"expected when: {{key: [values]}}, got {has['when']!r}"))
            elif not isinstance(has.get("log", False), bool):
                faults.append(Fault(path, f"log is true or false, got {has['log']!r}"))
            elif type(has.get("min_size", 1)) is not int:
                faults.append(Fault(path, f"min_size is a whole number, got {has['min_size']!r}"))
    return faults


def _fitted(component: str, keys: Any, kinds: Sequence[str]) -> Any:
    """Fits the keys of one component: switches as booleans, defaults in the items' order, modules of this model."""
    if component == "method" or not isinstance(keys, Mapping):
        return keys
    fitted = {}
    for key, value in keys.items():
        kind, _ = recipe.qualifiers(key)
        if kind in MODULE_KINDS and kind not in kinds:
            continue
        if isinstance(value, Mapping) and isinstance(value.get("log"), str):
            value = {**value, "log": _switched(value["log"])}
        fitted[key] = _fitted_value(_stock(component, key), value, recipe.every_kind(kinds))
        if isinstance(value, Mapping) and isinstance(value.get("when"), Mapping):
            when = {k: _switched(v) if isinstance(_stock(component, k), bool) else v for k, v in value["when"].items()}
            fitted[key] = {**fitted[key], "when": when}
    return fitted


def _fitted_head(keys: Any, n_layers: int) -> Any:
    """Puts the index of the last block in the place of `last`, if a head may read each block."""
    layer = keys.get("layer") if isinstance(keys, Mapping) else None
    if isinstance(layer, Mapping) and layer.get("choice") == "layers" and layer.get("default") == "last":
        return {**keys, "layer": {**layer, "default": n_layers - 1}}
    return keys


def _fitted_value(stock: Any, value: Any, kinds: Sequence[str]) -> Any:
    if isinstance(stock, bool):
        value = _switched(value)
    if not isinstance(value, Mapping) or not isinstance(value.get("default"), list):
        return value
    default, items = value["default"], value.get("subset")
    if items == "modules" and set(default) <= set(MODULE_KINDS):
        there = {"qkv" if kind in FUSED and kind not in kinds and "qkv" in kinds else kind for kind in default}
        there |= {CROSS[kind] for kind in default if kind in CROSS}
        return {**value, "default": [kind for kind in kinds if kind in there] or "all"}
    if isinstance(items, list) and sorted(map(str, default)) == sorted(str(i) for i in items if i in default):
        return {**value, "default": [item for item in items if item in default]}
    if items == "layers" and all(isinstance(layer, int) for layer in default) and len(set(default)) == len(default):
        return {**value, "default": sorted(default)}
    return value


def _switched(value: Any) -> Any:
    """Turns `on` and `off`, which YAML 1.2 reads as text, into booleans, anywhere in a dimension."""
    if isinstance(value, str):
        return SWITCHES.get(value.lower(), value)
    if isinstance(value, list):
        return [_switched(entry) for entry in value]
    if isinstance(value, Mapping):
        return {key: _switched(entry) if key in ("choice", "default") else entry for key, entry in value.items()}
    return value


def _stock(component: str, key: str) -> Any:
    """Returns the stock value of a key, which also shows the key's type; None if no method has one."""
    base = key.split(".")[0]
    for owner in _owners(component):
        if base in owner.stock:
            return owner.stock[base]
    return 0.0 if key == "weight_decay" else None


def _value_faults(component: str, key: str, value: Any, n_layers: int | None) -> Iterator[str]:
    """Yields the faults in the values of a dimension whose grammar is right."""
    base = key.split(".")[0]
    if base == "modules":
        yield from _module_faults(value)
    elif base == "layers":
        yield from _layer_faults(value, n_layers)
    elif component == "head" and base in ("layer", "pooling"):
        yield from _head_faults(base, value, n_layers)
    else:
        reasons = [recipe.key_fault(owner, key, n_layers) for owner in _owners(component) if base in owner.keys]
        if reasons and all(reasons):
            yield reasons[0]
        yield from _type_faults(key, value, _stock(component, key))


def _type_faults(key: str, value: Any, stock: Any) -> Iterator[str]:
    kind, values = _values(value)
    if isinstance(stock, bool):
        wrong = [v for v in values if not isinstance(v, bool)] if kind in ("constant", "choice") else [value]
        if wrong:
            yield f"is on or off; got {_shown(wrong[0])}"
    elif isinstance(stock, int):
        wrong = [v for v in values if not isinstance(v, int) or isinstance(v, bool) or v < 0]
        if kind == "float":
            yield "takes whole numbers: write {int: [low, high], …}"
        elif wrong or kind == "subset":
            yield f"takes whole numbers from 0; got {_shown(wrong[0] if wrong else value)}"
    elif isinstance(stock, float):
        wrong = [v for v in values if not isinstance(v, (int, float)) or isinstance(v, bool) or not math.isfinite(v)]
        if wrong or kind == "subset":
            yield f"takes a number; got {_shown(wrong[0] if wrong else value)}"
        elif key == "lr" and values and min(values) <= 0:
            yield f"a learning rate is above 0; got {_shown(min(values))}"
        elif key == "dropout" and values and not (min(values) >= 0 and max(values) < 1):
            yield f"a dropout is from 0 to below 1; got {_shown(max(values) if min(values) >= 0 else min(values))}"
    elif isinstance(stock, str):
        wrong = [v for v in values if not isinstance(v, str)]
        if wrong or kind not in ("constant", "choice"):
            yield f"takes a name; got {_shown(wrong[0] if wrong else value)}"


def _module_faults(value: Any) -> Iterator[str]:
    kind, values = _values(value)
    if kind == "constant" and value == "all":
        return
    if kind != "subset":
        yield "is `all`, {subset: modules, default: all}, or a subset of kinds: {subset: [query, value], default: all}"
    elif isinstance(value["subset"], list):
        yield from (recipe.no_kind(name) for name in values if name not in MODULE_KINDS)


def _layer_faults(value: Any, n_layers: int | None) -> Iterator[str]:
    kind, values = _values(value)
    if kind in ("constant", "choice"):
        wrong = [v for v in values if not isinstance(v, str) or recipe.layers_fault(v, n_layers)]
        if wrong and isinstance(wrong[0], str) and re.fullmatch(r"(last|first)_\d+|\d+-\d+", wrong[0]):
            yield recipe.layers_fault(wrong[0], n_layers)
        elif wrong:
            known = "all, last_1, first_2, 0-3, …"
            yield f"is {{subset: layers, default: all}}, or a choice among {known}; got {wrong[0]!r}"
    elif kind != "subset" or not all(isinstance(v, int) and v >= 0 for v in values):
        yield "is a subset of layers by index from 0: {subset: layers, default: all}"


def _head_faults(key: str, value: Any, n_layers: int | None) -> Iterator[str]:
    kind, values = _values(value)
    if kind not in ("constant", "choice") and not (key == "layer" and kind == "int"):
        yield "is one value or a {choice: [...], default: ...}"
    else:
        faults = (recipe.pooling_fault(v) if key == "pooling" else recipe.layer_fault(v, n_layers) for v in values)
        yield from itertools.islice(filter(None, faults), 1)


def _values(value: Any) -> tuple[str, list[Any]]:
    """Returns (the domain's name or `constant`, its options, items or bounds)."""
    if not isinstance(value, Mapping):
        return "constant", [value]
    for kind in ("float", "int", "choice", "subset"):
        if kind in value:
            return kind, list(value[kind]) if isinstance(value[kind], list) else []
    raise AssertionError("space.parse has seen to the grammar")


def _when_faults(space: Space) -> list[Fault]:
    """Finds conditions that can never hold, so that a dimension would never exist."""
    faults = []
    for name, dimension in space.dimensions.items():
        for other, allowed in dimension.when.items():
            domain = space.dimensions[other].domain
            wrong = [value for value in allowed if not domain.contains(value)]
            if wrong:
                faults.append(Fault(name, f"exists when {other} is {_shown(wrong[0])}, which {other} never is"))
    return faults


def _shown(value: Any) -> str:
    return repr(dict(value)) if isinstance(value, Mapping) else repr(value)
