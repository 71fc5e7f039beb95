"""Search spaces as files: where they lie, and what their values must be for the methods that they name.

`space.parse` knows the grammar; this knows the methods: which keys they have, of which type, and the module kinds and
layers that `modules` and `layers` may name. Imports no torch.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from autopeft import plugins
from autopeft.errors import Fault, UnknownName, did_you_mean
from autopeft.methods import COMMON_KEYS, MODULE_KINDS
from autopeft.space import Space, components, parse

FEW_TAKE = "depthwise"  # grouped convolutions: a space may name them, but `modules` does not stand for them
FUSED = ("query", "key", "value")  # one matrix in some models (GPT-2): `qkv`
SWITCHES = {"on": True, "yes": True, "true": True, "off": False, "no": False, "false": False}


def folder() -> Path:
    """search_spaces/: inside the package when installed, at the root of a checkout."""
    package = Path(__file__).parent
    inside = package / "search_spaces"
    return inside if inside.is_dir() else package.parent / "search_spaces"


def shipped() -> dict[str, Path]:
    """The spaces that come with autopeft, by name."""
    return {path.stem: path for path in sorted(folder().glob("*.yaml"))}


def about(name: str) -> str:
    """What a shipped space is, in a line: the first sentence of the comment that its file begins with."""
    lines = shipped()[name].read_text(encoding="utf-8").splitlines()
    comment = itertools.takewhile(lambda line: line.startswith("#"), lines)
    return plugins.sentence(" ".join(line.lstrip("# ") for line in comment))


def find(name: str, beside: Path) -> Path:
    """The file of a space: a path from the folder `beside`, or a name under search_spaces/.

    Raises:
        UnknownName: Neither.
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
    spec: Mapping[str, Any], n_layers: int, kinds: Sequence[str] = MODULE_KINDS
) -> tuple[Space | None, list[Fault]]:
    """A space for a model, from its YAML mapping, and all that is wrong with it.

    Args:
        spec: As `space.parse` takes it. `{subset: layers}` has one item a block. `{subset: modules}` has the module
            kinds that the model has; those of its default that the model lacks fall away (`query`, `key` and `value`
            become `qkv` where they are one matrix), and where none is left the default is all of them. A key of a kind
            that the model lacks, `rank.query`, falls away.
        n_layers: Blocks of the model.
        kinds: Module kinds of the model.
    """
    faults = _recipe_faults(spec)
    if faults:
        return None, faults
    known: dict[str, set[str]] = {name: {*COMMON_KEYS, *keys} for name, keys in _keys().items()}
    known["shared"] = set().union(*known.values())
    fitted = {name: _fitted(name, keys, kinds) for name, keys in spec.items()}
    misshapen = _shape_faults(fitted)
    for fault in misshapen:
        component, _, key = fault.path.partition(".")
        del fitted[component][key]
    space, faults = parse(fitted, {"layers": range(n_layers), "modules": _meant(kinds)}, known)
    wrong = {fault.path for fault in faults}
    for component, keys in fitted.items():
        if component != "method" and isinstance(keys, Mapping) and component in known:
            for key, value in keys.items():
                path = f"{component}.{key}"
                if path not in wrong and key.split(".")[0] in known[component]:
                    faults += [Fault(path, message) for message in _value_faults(component, key, value)]
    if space is not None:
        faults += _when_faults(space)
    faults = [*misshapen, *faults]
    return (space if not faults else None), faults


# ── helpers ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _keys() -> dict[str, Mapping[str, str]]:
    """Each method's own keys."""
    return {name: plugins.load("methods", name).keys for name in plugins.names("methods")}


def _recipe_faults(spec: Mapping[str, Any]) -> list[Fault]:
    """What is wrong with the list of recipes, beside unknown names."""
    methods = spec.get("method")
    methods = [methods] if isinstance(methods, str) else methods
    if not isinstance(methods, list) or not all(isinstance(method, str) for method in methods):
        return []  # space.parse says so
    twice = sorted({method for method in methods if methods.count(method) > 1})
    faults = [Fault("method", f"{method!r} stands there twice") for method in twice]
    for method in methods:
        parts = components(method)
        twice = sorted({part for part in parts if parts.count(part) > 1})
        faults += [Fault("method", f"{method!r} has the component {part!r} twice") for part in twice]
        if "head" in parts and len(parts) > 1:
            faults.append(Fault("method", f"{method!r}: every recipe trains the head; leave it out of a joined one"))
    return faults


def _shape_faults(spec: Mapping[str, Any]) -> list[Fault]:
    """Conditions, switches and counts of dimensions that have another shape than theirs."""
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


def _meant(kinds: Sequence[str]) -> list[str]:
    """The kinds that `modules` stands for."""
    return [kind for kind in kinds if kind != FEW_TAKE]


def _fitted(component: str, keys: Any, kinds: Sequence[str]) -> Any:
    """The keys of one component with switches as booleans, defaults in their items' order, modules of this model."""
    if component == "method" or not isinstance(keys, Mapping):
        return keys
    fitted = {}
    for key, value in keys.items():
        kind = key.partition(".")[2]
        if kind in MODULE_KINDS and kind not in kinds:
            continue
        if isinstance(value, Mapping) and isinstance(value.get("log"), str):
            value = {**value, "log": _switched(value["log"])}
        fitted[key] = _fitted_value(_stock(component, key), value, _meant(kinds))
        if isinstance(value, Mapping) and isinstance(value.get("when"), Mapping):
            when = {k: _switched(v) if isinstance(_stock(component, k), bool) else v for k, v in value["when"].items()}
            fitted[key] = {**fitted[key], "when": when}
    return fitted


def _fitted_value(stock: Any, value: Any, kinds: Sequence[str]) -> Any:
    if isinstance(stock, bool):
        value = _switched(value)
    if not isinstance(value, Mapping) or not isinstance(value.get("default"), list):
        return value
    default, items = value["default"], value.get("subset")
    if items == "modules" and set(default) <= set(MODULE_KINDS):
        there = {"qkv" if kind in FUSED and kind not in kinds and "qkv" in kinds else kind for kind in default}
        return {**value, "default": [kind for kind in kinds if kind in there] or "all"}
    if isinstance(items, list) and sorted(map(str, default)) == sorted(str(i) for i in items if i in default):
        return {**value, "default": [item for item in items if item in default]}
    if items == "layers" and all(isinstance(layer, int) for layer in default) and len(set(default)) == len(default):
        return {**value, "default": sorted(default)}
    return value


def _switched(value: Any) -> Any:
    """`on` and `off`, which YAML 1.2 reads as text, as booleans, wherever they stand in a dimension."""
    if isinstance(value, str):
        return SWITCHES.get(value.lower(), value)
    if isinstance(value, list):
        return [_switched(entry) for entry in value]
    if isinstance(value, Mapping):
        return {key: _switched(entry) if key in ("choice", "default") else entry for key, entry in value.items()}
    return value


def _stock(component: str, key: str) -> Any:
    """The stock value of a key, whose type is the key's; None where no method has one."""
    owners = plugins.names("methods") if component == "shared" else [component]
    for owner in owners:
        if owner in plugins.names("methods"):
            stock = plugins.load("methods", owner).stock
            if key.split(".")[0] in stock:
                return stock[key.split(".")[0]]
    return 0.0 if key == "weight_decay" else None


def _value_faults(component: str, key: str, value: Any) -> Iterator[str]:
    """What is wrong with the values of a dimension whose grammar is right."""
    base = key.split(".")[0]
    if base == "modules":
        yield from _module_faults(value)
    elif base == "layers":
        yield from _layer_faults(value)
    else:
        if "." in key and key.split(".", 1)[1] not in MODULE_KINDS:
            yield _no_kind(key.split(".", 1)[1])
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
        yield from (_no_kind(name) for name in values if name not in MODULE_KINDS)


def _no_kind(name: object) -> str:
    return f"no module kind called {name!r}.{did_you_mean(name, MODULE_KINDS)} There are: {', '.join(MODULE_KINDS)}"


def _layer_faults(value: Any) -> Iterator[str]:
    kind, values = _values(value)
    if kind in ("constant", "choice"):
        wrong = [v for v in values if not (v == "all" or (isinstance(v, str) and re.fullmatch(r"last_\d+", v)))]
        if wrong:
            yield f"is {{subset: layers, default: all}}, or a choice among all, last_1, last_2, …; got {wrong[0]!r}"
    elif kind != "subset" or not all(isinstance(v, int) and v >= 0 for v in values):
        yield "is a subset of layers by index from 0: {subset: layers, default: all}"


def _values(value: Any) -> tuple[str, list[Any]]:
    """(domain's name or `constant`, what it may be: options, items or bounds)."""
    if not isinstance(value, Mapping):
        return "constant", [value]
    for kind in ("float", "int", "choice", "subset"):
        if kind in value:
            return kind, list(value[kind]) if isinstance(value[kind], list) else []
    raise AssertionError("space.parse has seen to the grammar")


def _when_faults(space: Space) -> list[Fault]:
    """Conditions that can never hold, which would leave a dimension out for ever."""
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
