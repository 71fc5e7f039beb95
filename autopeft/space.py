"""The space of configurations: domains, the conditional space that they form, and its YAML form.

Knows nothing of methods or models. `method` names the recipe: components joined by "+", each a method or
`<method>@<name>`. Every other dimension is `<component>.<key>`, and exists if its component is in the recipe. Two
components always exist: `head`, and `shared`, whose keys every component of the recipe reads (for example one layer
mask for all).
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from autopeft.errors import Fault, did_you_mean

ALWAYS = ("head", "shared")


@dataclass(frozen=True, slots=True)
class Float:
    """Real numbers in [low, high]; on `log`, drawn uniformly in the logarithm."""

    low: float
    high: float
    log: bool = False

    def __post_init__(self) -> None:
        _check_range(self.low, self.high, self.log)

    @property
    def size(self) -> float:
        return 1 if self.low == self.high else math.inf

    def contains(self, value: object) -> bool:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and self.low <= value <= self.high

    def draw(self, rng: np.random.Generator) -> float:
        if self.log:
            value = math.exp(rng.uniform(math.log(self.low), math.log(self.high)))
        else:
            value = rng.uniform(self.low, self.high)
        return float(min(max(value, self.low), self.high))  # exp(log(x)) may miss x by one ulp


@dataclass(frozen=True, slots=True)
class Int:
    """Whole numbers in [low, high]; on `log`, equal ratios are equally likely."""

    low: int
    high: int
    log: bool = False

    def __post_init__(self) -> None:
        _check_range(self.low, self.high, self.log)

    @property
    def size(self) -> float:
        return self.high - self.low + 1

    def contains(self, value: object) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and self.low <= value <= self.high

    def draw(self, rng: np.random.Generator) -> int:
        if not self.log:
            return int(rng.integers(self.low, self.high + 1))
        value = math.exp(rng.uniform(math.log(self.low - 0.5), math.log(self.high + 0.5)))
        return int(min(max(round(value), self.low), self.high))


@dataclass(frozen=True, slots=True)
class Choice:
    """One of several scalars. One option is a constant."""

    options: tuple[Any, ...]

    def __post_init__(self) -> None:
        if not self.options or len({(type(option), option) for option in self.options}) != len(self.options):
            raise ValueError(f"a choice needs options, each once; it has {list(self.options)}")

    @property
    def size(self) -> float:
        return len(self.options)

    def contains(self, value: object) -> bool:
        return _is_one_of(value, self.options)

    def draw(self, rng: np.random.Generator) -> Any:
        return self.options[int(rng.integers(len(self.options)))]


@dataclass(frozen=True, slots=True)
class Subset:
    """Some of the items, as a list in the items' order: the modules or layers to adapt, for example.

    A draw chooses the size first, then the members, so that one layer and all layers are as likely as half of them.
    """

    items: tuple[Any, ...]
    min_size: int = 1

    def __post_init__(self) -> None:
        if not self.items or len(set(self.items)) != len(self.items):
            raise ValueError(f"a subset needs items, each once; it has {list(self.items)}")
        if not 0 <= self.min_size <= len(self.items):
            raise ValueError(f"min_size is between 0 and {len(self.items)}, not {self.min_size}")

    @property
    def size(self) -> float:
        return sum(math.comb(len(self.items), k) for k in range(self.min_size, len(self.items) + 1))

    def contains(self, value: object) -> bool:
        return (
            isinstance(value, (list, tuple))
            and len(value) >= self.min_size
            and all(_is_one_of(item, self.items) for item in value)
            and list(value) == [item for item in self.items if item in value]
        )

    def draw(self, rng: np.random.Generator) -> list[Any]:
        count = int(rng.integers(self.min_size, len(self.items) + 1))
        chosen = set(rng.choice(len(self.items), size=count, replace=False).tolist())
        return [item for index, item in enumerate(self.items) if index in chosen]


Domain = Float | Int | Choice | Subset


@dataclass(frozen=True, slots=True)
class Dimension:
    """One axis of the space.

    Attributes:
        domain: Possible values.
        default: Value in the stock configuration of the method; a member of the domain.
        when: Other dimension → values that it must have, so that this dimension exists. The component must exist, too.
    """

    domain: Domain
    default: Any
    when: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.domain.contains(self.default):
            raise ValueError(f"the default {self.default!r} is not in {self.domain}")


@dataclass(frozen=True)
class Space:
    """All configurations: a conditional product of dimensions.

    Attributes:
        dimensions: By name, `method` first. A dimension comes after those in its `when`.
    """

    dimensions: Mapping[str, Dimension]

    def __post_init__(self) -> None:
        names = list(self.dimensions)
        if not names or names[0] != "method" or not isinstance(self.dimensions["method"].domain, Choice):
            raise ValueError("the first dimension of a space is `method`, a choice of recipes")
        for index, (name, dimension) in enumerate(self.dimensions.items()):
            late = [other for other in dimension.when if other not in names[:index]]
            if late:
                raise ValueError(f"{name} exists by {', '.join(late)}, which must come before it")

    @property
    def methods(self) -> tuple[str, ...]:
        domain = self.dimensions["method"].domain
        assert isinstance(domain, Choice)
        return domain.options

    def exists(self, name: str, params: Mapping[str, Any]) -> bool:
        """Whether the dimension exists, given the values of the dimensions before it."""
        component = name.split(".", 1)[0]
        if component not in (*ALWAYS, "method", *components(params["method"])):
            return False
        when = self.dimensions[name].when
        return all(other in params and _is_one_of(params[other], allowed) for other, allowed in when.items())

    def draw(self, rng: np.random.Generator) -> dict[str, Any]:
        """Draws a random member: each dimension that exists, independently."""
        params: dict[str, Any] = {}
        for name, dimension in self.dimensions.items():
            if name == "method" or self.exists(name, params):
                params[name] = dimension.domain.draw(rng)
        return params

    def typed(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Returns a configuration with the types of `draw`: real numbers are floats, so 1 and 1.0 are the same rate."""
        reals = {name for name, dimension in self.dimensions.items() if isinstance(dimension.domain, Float)}
        return {name: float(value) if name in reals and type(value) is int else value for name, value in params.items()}

    def contains(self, params: Mapping[str, Any]) -> bool:
        """Whether every dimension that exists has a value of its domain, and there are no other keys."""
        return not self.why_not(params)

    def why_not(self, params: Mapping[str, Any]) -> str:
        """Returns the reason why params are no member; empty if they are one."""
        if "method" not in params or not self.dimensions["method"].domain.contains(params["method"]):
            return f"method {params.get('method')!r} is none of {', '.join(map(str, self.methods))}"
        for name, dimension in self.dimensions.items():
            if not self.exists(name, params):
                if name in params:
                    return f"{name} does not exist for this configuration"
            elif name not in params:
                return f"{name} is missing"
            elif not dimension.domain.contains(params[name]):
                return f"{name} {params[name]!r} is not in {dimension.domain}"
        unknown = [name for name in params if name not in self.dimensions]
        return f"unknown: {', '.join(unknown)}" if unknown else ""

    def defaults(self) -> list[dict[str, Any]]:
        """Returns each recipe's stock configuration: one member per recipe, every dimension at its default."""
        members = []
        for method in self.methods:
            params: dict[str, Any] = {"method": method}
            for name, dimension in self.dimensions.items():
                if name != "method" and self.exists(name, params):
                    params[name] = dimension.default
            members.append(params)
        return members

    def of_method(self, method: str) -> Space:
        """Returns the part of the space with one recipe."""
        only = Dimension(Choice((method,)), method)
        keep = (*ALWAYS, *components(method))
        return Space({"method": only, **{n: d for n, d in self.dimensions.items() if n.split(".", 1)[0] in keep}})

    def size(self) -> tuple[int, int]:
        """Counts the members, with each real-valued dimension as one value, and the real-valued dimensions.

        Returns:
            (combinations of the discrete dimensions, summed over the recipes; real-valued dimensions).
        """
        reals = sum(math.isinf(dimension.domain.size) for dimension in self.dimensions.values())
        return sum(self.of_method(method)._combinations(method) for method in self.methods), reals

    def _combinations(self, method: str) -> int:
        """Counts a recipe's combinations: enumerates dimensions on which others depend, and multiplies the rest."""
        deciding = {other for dimension in self.dimensions.values() for other in dimension.when} - {"method"}

        def count(names: list[str], params: dict[str, Any]) -> int:
            total = 1
            for index, name in enumerate(names):
                if not self.exists(name, params):
                    continue
                domain = self.dimensions[name].domain
                if name in deciding:
                    rest = names[index + 1 :]
                    return total * sum(count(rest, {**params, name: value}) for value in _values(domain))
                total *= 1 if math.isinf(domain.size) else int(domain.size)
            return total

        return count([name for name in self.dimensions if name != "method"], {"method": method})


def canonical(params: Mapping[str, Any]) -> str:
    """Returns one text for each configuration, whatever the order of its keys. 1, 1.0 and True are three values."""
    return json.dumps(params, sort_keys=True)


def _is_one_of(value: object, options: Iterable[Any]) -> bool:
    """Whether an option has the same value and the same type: 1, 1.0 and True are three values."""
    return any(type(value) is type(option) and value == option for option in options)


def components(method: str) -> tuple[str, ...]:
    """Returns the components of a recipe: `"lora+bias"` → `("lora", "bias")`."""
    return tuple(method.split("+"))


def method_of(component: str) -> str:
    """Returns the method of a component: `"lora@ffn"` → `"lora"`. The name after "@" distinguishes its components."""
    return component.partition("@")[0]


def _values(domain: Domain) -> Iterator[Any]:
    if isinstance(domain, Choice):
        yield from domain.options
    elif isinstance(domain, Int):
        yield from range(domain.low, domain.high + 1)
    elif isinstance(domain, Subset):
        sizes = range(domain.min_size, len(domain.items) + 1)
        yield from (list(chosen) for k in sizes for chosen in itertools.combinations(domain.items, k))
    else:
        raise ValueError("no dimension can exist by the value of a real-valued one")


def _check_range(low: float, high: float, log: bool) -> None:
    if not (math.isfinite(low) and math.isfinite(high) and low <= high):
        raise ValueError(f"a range needs low <= high, both finite; it is [{low}, {high}]")
    if log and low <= 0:
        raise ValueError(f"a range on log begins above 0, not at {low}")


# ── YAML ────────────────────────────────────────────────────────────────────────────────────────────────────────────

DOMAINS = ("float", "int", "choice", "subset")


def parse(
    spec: Mapping[str, Any], symbols: Mapping[str, Sequence[Any]], known: Mapping[str, Iterable[str]]
) -> tuple[Space | None, list[Fault]]:
    """Reads a space from its YAML mapping. Returns it, and all faults.

    A dimension is a scalar (a constant) or a mapping with one of

        {float: [1e-4, 1e-2], log: true, default: 1e-3}
        {int: [1, 64], log: true, default: 8}
        {choice: [1, 2, 4], default: 2}
        {subset: [query, value], default: all, min_size: 1}     # or {subset: layers}: one item a block of the model

    and may have `when: {key: [values]}`, naming keys of the same component.

    Args:
        spec: `method: [names]`, then one mapping of keys a component.
        symbols: Name in place of items → the items: `{"layers": range(6), "modules": ("query", …)}`.
        known: Component → its keys, for "did you mean". A key may go on after a dot (`rank.query` if `rank` is known).

    Returns:
        The space, or None if there are faults; and the faults.
    """
    faults: list[Fault] = []
    methods = spec.get("method")
    methods = [methods] if isinstance(methods, str) else methods
    if not isinstance(methods, list) or not methods or not all(isinstance(method, str) for method in methods):
        return None, [Fault("method", f"expected a list of recipes such as [head, lora], got {methods!r}")]
    used = {part for method in methods for part in components(method)}
    for part in sorted(used - set(known)):
        faults.append(Fault("method", f"no method called {method_of(part)!r}.{did_you_mean(method_of(part), known)}"))
    dimensions: dict[str, Dimension] = {"method": Dimension(Choice(tuple(methods)), methods[0])}
    for component, keys in spec.items():
        if component == "method":
            continue
        if component not in (*ALWAYS, *used):
            near = did_you_mean(component, (*ALWAYS, *used))
            faults.append(Fault(component, f"no recipe of `method` has a component {component!r}.{near}"))
        elif not isinstance(keys, Mapping):
            faults.append(Fault(component, f"expected a mapping of keys, got {keys!r}"))
        else:
            for key, value in keys.items():
                path = f"{component}.{key}"
                if component in known and key.split(".")[0] not in known[component]:
                    near = did_you_mean(key, known[component])
                    faults.append(
                        Fault(path, f"{component} has no key {key!r}.{near} It has: {_listed(known[component])}")
                    )
                    continue
                try:
                    dimensions[path] = _parse_dimension(value, component, symbols)
                except (ValueError, TypeError) as fault:
                    faults.append(Fault(path, str(fault)))
    if faults:
        return None, faults
    try:
        return Space(dimensions), []
    except ValueError as fault:
        return None, [Fault("", str(fault))]


def _parse_dimension(value: Any, component: str, symbols: Mapping[str, Sequence[Any]]) -> Dimension:
    if not isinstance(value, Mapping):
        if isinstance(value, list):
            raise ValueError(
                f"write {{choice: {value}, default: …}} or {{subset: {value}, default: …}}, not a bare list"
            )
        return Dimension(Choice((value,)), value)
    kinds = [kind for kind in DOMAINS if kind in value]
    extra = [key for key in value if key not in (*DOMAINS, "log", "default", "when", "min_size")]
    if len(kinds) != 1 or extra:
        hint = f"; unknown: {', '.join(map(str, extra))}" if extra else ""
        raise ValueError(f"expected one of {', '.join(DOMAINS)} with its default, got {dict(value)!r}{hint}")
    kind, inner = kinds[0], value[kinds[0]]
    domain: Domain
    if kind in ("float", "int"):
        if not (isinstance(inner, list) and len(inner) == 2 and all(_is_number(bound) for bound in inner)):
            raise ValueError(f"expected {kind}: [low, high], got {inner!r}")
        if kind == "int" and not all(isinstance(bound, int) for bound in inner):
            raise ValueError(f"the bounds of an int are whole numbers, got {inner!r}")
        make = Float if kind == "float" else Int
        domain = make(inner[0], inner[1], bool(value.get("log", False)))
    else:
        if isinstance(inner, str):
            if inner not in symbols:
                raise ValueError(f"{inner!r} stands for no list of items.{did_you_mean(inner, symbols)}")
            inner = list(symbols[inner])
        if not isinstance(inner, list):
            raise ValueError(f"expected {kind}: [items], got {inner!r}")
        domain = Choice(tuple(inner)) if kind == "choice" else Subset(tuple(inner), value.get("min_size", 1))
    if "default" not in value:
        raise ValueError("needs a `default`: the first trials are each method's stock configuration")
    default = value["default"]
    if isinstance(domain, Subset) and default == "all":
        default = list(domain.items)
    if isinstance(domain, Float) and isinstance(default, int) and not isinstance(default, bool):
        default = float(default)
    when = {
        f"{component}.{key}": tuple(allowed) if isinstance(allowed, list) else (allowed,)
        for key, allowed in (value.get("when") or {}).items()
    }
    return Dimension(domain, default, when)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "none"
