"""The meaning of a configuration: its parts, their sizes and layers. All other code reads params through this file.

    method: lora@attn+lora@ffn      two parts of one method, distinguished by the name after "@"
    lora@attn.rank: 8               a key of one part
    lora@attn.rank.query: 4         its size on one module kind, `rank.3` in one layer, `rank.query.3` on both
    shared.layers: 2-5              a key of all parts that do not have their own
    head.pooling: mean              a key of the head, which every recipe has

Knows methods by their attributes only, and no model. Imports no torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from autopeft import plugins
from autopeft.errors import Refused, did_you_mean
from autopeft.methods import COMMON_KEYS, FEW_TAKE, MODULE_KINDS, Method
from autopeft.space import ALWAYS, components, method_of

# How a head makes one vector of a row's states; `own`: as the head of the checkpoint's architecture does.
POOLINGS = ("own", "first", "mean", "max", "last", "attention")


@dataclass(frozen=True, slots=True)
class Head:
    """What a recipe puts on the model's states. The default is the architecture's own head, with nothing changed.

    Attributes:
        pooling: One of `POOLINGS`.
        hidden: Width of a hidden layer; 0 for none.
        norm: Whether the vector is normalised, without parameters of the norm.
        layer: Index of the block that is read; None for the last one. The blocks above it are not computed.
    """

    pooling: str = "own"
    hidden: int = 0
    norm: bool = False
    layer: int | None = None

    def __post_init__(self) -> None:
        if fault := pooling_fault(self.pooling):
            raise Refused(f"head.pooling {fault}")
        if fault := layer_fault("last" if self.layer is None else self.layer):
            raise Refused(f"head.layer {fault}")
        if type(self.hidden) is not int or self.hidden < 0:
            raise Refused(f"head.hidden is a width, from 0, not {self.hidden!r}")
        if type(self.norm) is not bool:
            raise Refused(f"head.norm is on or off, not {self.norm!r}")

    @staticmethod
    def of(params: Mapping[str, Any]) -> Head:
        """Returns the head of a configuration.

        Raises:
            Refused: A value is none that a head may have.
        """
        keys = {**plugins.load("methods", "head").stock, **keys_of(params, "head")}
        layer = None if keys["layer"] == "last" else keys["layer"]
        return Head(keys["pooling"], keys["hidden"], keys["norm"], layer)


def pooling_fault(value: Any) -> str:
    """Returns the reason why a value names no pooling; empty if it names one."""
    if value in POOLINGS:
        return ""
    near = did_you_mean(value, POOLINGS)
    return f"is one of {', '.join(POOLINGS)}, not {value!r}{f'.{near}' if near else ''}"


def layer_fault(value: Any, n_layers: int | None = None) -> str:
    """Returns the reason why a value names no block that a head may read; empty if it names one.

    Args:
        n_layers: Layers of the model; None for any model.
    """
    if value == "last":
        return ""
    if type(value) is not int or value < 0:
        return f"is the index of a block, from 0, or 'last', not {value!r}"
    return f"is from 0 to {n_layers - 1} in this model, not {value}" if n_layers and value >= n_layers else ""


OWN_HEAD = Head()


@dataclass(frozen=True, slots=True)
class Part:
    """One component of a recipe.

    Attributes:
        name: The component: `lora`, or `lora@ffn`.
        method: Its method.
        given: Keys in the configuration, without the part's name: its own, and the shared ones that it reads.
        keys: The same keys, and the method's stock values for the other keys.
    """

    name: str
    method: Method
    given: Mapping[str, Any]
    keys: Mapping[str, Any]


def parts(params: Mapping[str, Any]) -> tuple[Part, ...]:
    """Returns a configuration's parts in the order of its `method`, without those that act nowhere or have size 0."""
    every = [_part(name, params) for name in components(params["method"])]
    return tuple(part for part in every if _acts(part))


def _part(name: str, params: Mapping[str, Any]) -> Part:
    method: Method = plugins.load("methods", method_of(name))()
    shared = {key: value for key, value in keys_of(params, "shared").items() if not key_fault(method, key)}
    given = {**shared, **keys_of(params, name)}
    return Part(name, method, given, {**method.stock, **given})


def keys_of(params: Mapping[str, Any], component: str) -> dict[str, Any]:
    """Returns the keys of one component, without its name."""
    prefix = f"{component}."
    return {name.removeprefix(prefix): value for name, value in params.items() if name.startswith(prefix)}


def _acts(part: Part) -> bool:
    """Whether the part acts somewhere, as far as its keys alone show."""
    value, modules = part.keys.get("layers", "all"), part.keys.get("modules", "all")
    if value in ("last_0", "first_0", [], ()) or modules in ([], ()):
        return False
    qualified = [qualifiers(key) for key in part.keys]
    # None stands for all kinds and layers without a size key of their own.
    kinds = [None, *(kind for kind, _ in qualified if kind)] if isinstance(modules, str) else modules
    named = [layer for _, layer in qualified if layer is not None]
    return is_there(part, kinds, listed_layers(value) or [None, *named])


def is_there(part: Part, kinds: Iterable[str | None], chosen: Iterable[int | None]) -> bool:
    """Whether the part has a size other than 0 on one of the module kinds in one of the layers."""
    among = tuple(kinds) or (None,)
    return any(size(part, kind, layer) != 0 for layer in chosen for kind in among)


# ── sizes ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def size(part: Part, kind: str | None = None, layer: int | None = None) -> int | None:
    """Returns the part's size on a module kind in a layer: `rank.query.3`, else `rank.3`, `rank.query`, `rank`.

    None if its method has no size.
    """
    key = part.method.size
    if key is None:
        return None
    names = (f"{key}.{kind}.{layer}", f"{key}.{layer}", f"{key}.{kind}", key)
    value: int = next(part.keys[name] for name in names if name in part.keys)
    return value


def qualifiers(key: str) -> tuple[str | None, int | None]:
    """Splits a key: `rank.query.3` → ("query", 3); (None, None) if it names neither a kind nor a layer."""
    _, *more = key.split(".")
    layer = int(more.pop()) if more and more[-1].isdecimal() else None
    return (".".join(more) or None), layer


def key_fault(method: Method, key: str, n_layers: int | None = None) -> str:
    """Returns the reason why a method has no such key; empty if it has the key.

    Args:
        n_layers: Layers of the model; None if the model is not known.
    """
    base, dot, _ = key.partition(".")
    if base not in method.keys and base not in COMMON_KEYS:
        return f"{method.label} has no key {key!r}"
    if not dot:
        return ""
    kind, layer = qualifiers(key)
    if base != method.size or not method.sized_by:
        return f"{base} of {method.label} is one value for all module kinds and layers"
    if kind is not None and "kind" not in method.sized_by:
        return f"{base} of {method.label} may differ by layer ({base}.3), not by module kind"
    if layer is not None and "layer" not in method.sized_by:
        return f"{base} of {method.label} may differ by module kind ({base}.query), not by layer"
    if kind is not None and kind not in MODULE_KINDS:
        return no_kind(kind)
    if layer is not None and n_layers is not None and layer >= n_layers:
        return f"the model has layers 0 to {n_layers - 1}, not {layer}"
    return ""


def no_kind(name: object) -> str:
    """Returns the message for a module kind that no model has."""
    return f"no module kind called {name!r}.{did_you_mean(name, MODULE_KINDS)} There are: {', '.join(MODULE_KINDS)}"


# ── layers ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def every_kind(kinds: Iterable[str]) -> tuple[str, ...]:
    """Returns the kinds of `modules: all` in a model with these kinds."""
    return tuple(kind for kind in kinds if kind != FEW_TAKE)


def layers(value: Any, n_layers: int, left_out: int = 0) -> tuple[int, ...]:
    """Returns block indices, ascending, from "all", "last_<k>", "first_<k>", "<a>-<b>" (both included), or a list.

    Args:
        n_layers: Number of blocks that are computed: "last_2" are the last two of them.
        left_out: Number of blocks above them, as the head reads a lower one. A list may name these; they fall away.

    Raises:
        Refused: The model has no such layers, or the value has none of these forms.
    """
    found = listed_layers(value)
    fault = layers_fault(value, n_layers + (0 if found is None else left_out))
    if fault:
        raise Refused(fault)
    if found is not None:
        return tuple(sorted(layer for layer in set(found) if layer < n_layers))
    end, _, count = value.partition("_")
    if end == "last":
        return tuple(range(n_layers - int(count), n_layers))
    return tuple(range(int(count) if end == "first" else n_layers))


def layers_fault(value: Any, n_layers: int | None = None) -> str:
    """Returns the reason why a value names no layers; empty if it names some.

    Args:
        n_layers: Layers of the model; None for any model.
    """
    found = listed_layers(value)
    if found is not None:
        if value and not found:
            return f"a range of layers goes up: {'-'.join(reversed(value.split('-')))}, not {value}"
        wrong = [] if n_layers is None else [layer for layer in found if not 0 <= layer < n_layers]
        shown = value if isinstance(value, str) else ", ".join(map(str, wrong))
        return f"the model has layers 0 to {n_layers - 1}, not {shown}" if n_layers and wrong else ""
    form = re.fullmatch(r"all|(last|first)_(\d+)", value) if isinstance(value, str) else None
    if form is None:
        return f"layers are a list of indices, 'all', 'last_<k>', 'first_<k>' or '<a>-<b>', not {value!r}"
    if form[2] and n_layers is not None and int(form[2]) > n_layers:
        return f"the model has {n_layers} layers, not {form[2]}"
    return ""


def listed_layers(value: Any) -> list[int] | None:
    """Returns the indices in a list or a range, for any model; None for the other forms."""
    if isinstance(value, (list, tuple)):
        return list(value)
    bounds = re.fullmatch(r"(\d+)-(\d+)", value) if isinstance(value, str) else None
    return list(range(int(bounds[1]), int(bounds[2]) + 1)) if bounds else None


# ── recipes ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def recipe_faults(method: str) -> list[str]:
    """Finds faults in the name of a recipe, except unknown methods."""
    names = components(method)
    faults = [
        f"{method!r}: what follows the @ of {name!r} is a word of letters, digits and _"
        for name in dict.fromkeys(names)
        if not re.fullmatch(r"[^@]+(@\w+)?", name, flags=re.ASCII)
    ]
    twice = sorted({name for name in names if names.count(name) > 1})
    faults += [
        f"{method!r} has the component {name!r} twice: name them apart, {method_of(name)}@a+{method_of(name)}@b"
        for name in twice
    ]
    if "head" in map(method_of, names) and names != ("head",):
        faults.append(f"{method!r}: every recipe trains the head; leave it out of a joined one")
    return faults


def check(params: Mapping[str, Any], n_layers: int | None = None) -> None:
    """Checks the recipe's name and the keys of a configuration, not its values.

    Raises:
        Refused: The recipe's name is wrong, or a key belongs to no part.
    """
    faults = recipe_faults(params["method"])
    names = components(params["method"])
    strange = [key for key in params if key != "method" and key.partition(".")[0] not in (*ALWAYS, *names)]
    if strange:
        faults.append(f"{', '.join(strange)}: of no component of {params['method']}")
    for name in dict.fromkeys(names):
        method: Method = plugins.load("methods", method_of(name))()
        wrong = (key_fault(method, key, n_layers) for key in keys_of(params, name))
        faults += [f"{name}: {fault}" for fault in wrong if fault]
    if names != ("head",):
        wrong = (key_fault(plugins.load("methods", "head")(), key) for key in keys_of(params, "head"))
        faults += [f"head: {fault}" for fault in wrong if fault]
    if faults:
        raise Refused("; ".join(faults))
