"""What a person calls a configuration: "LoRA rank 8 on query and value of layers 3–5, lr 2e-4"."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from autopeft import plugins
from autopeft.space import components


def describe(params: Mapping[str, Any], n_layers: int) -> str:
    """A name for a configuration of a model with so many layers. Imports no torch."""
    parts = []
    shared = {key.removeprefix("shared."): value for key, value in params.items() if key.startswith("shared.")}
    for name in components(params["method"]):
        method = plugins.load("methods", name)()
        own = {key.removeprefix(f"{name}."): value for key, value in params.items() if key.startswith(f"{name}.")}
        keys = {**method.stock, **shared, **own}
        if any(keys.get(size) == 0 for size in ("rank", "size", "count") if size in method.stock):
            continue
        chosen = keys.get("modules", method.modules if method.is_peft else ())
        where = _where(chosen, keys.get("layers", "all"), n_layers)
        rate = f", lr {_rate(own['lr'])}" if "lr" in own else ""
        parts.append(f"{method.describe(keys)}{where}{rate}")
    return " + ".join(parts) or "nothing but the head"


def _where(modules: Sequence[str], layers: Any, n_layers: int) -> str:
    on = f" on {_listed(modules)}" if modules else ""
    if layers == "all" or (isinstance(layers, (list, tuple)) and len(layers) == n_layers):
        return on
    if isinstance(layers, str):
        return f"{on} of the last {layers.removeprefix('last_')} layers"
    return f"{on} of layer{'s' if len(layers) != 1 else ''} {_ranges(layers)}"


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
