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
        if _is_absent(method, keys):
            continue
        by_kind = any(key.startswith("rank.") for key in keys)  # the description names the kinds already
        where = _where(() if by_kind else keys.get("modules", ()), keys.get("layers", "all"), n_layers)
        rate = f", lr {_rate(own['lr'])}" if "lr" in own else ""
        parts.append(f"{method.describe(keys)}{where}{rate}")
    return " + ".join(parts) or "nothing but the head"


def _is_absent(method: Any, keys: Mapping[str, Any]) -> bool:
    """Whether the component is of size 0, on all module kinds, or acts nowhere."""
    sizes = [size for size in ("rank", "size", "count") if size in method.stock]
    values = [value for key, value in keys.items() if key.partition(".")[0] in sizes]
    nowhere = keys.get("layers") == "last_0" or any(keys.get(key) in ([], ()) for key in ("layers", "modules"))
    return nowhere or (bool(values) and not any(values))


def _where(modules: Sequence[str] | str, layers: Any, n_layers: int) -> str:
    """Where it acts; nothing for a method's usual modules and all layers."""
    names = ["all modules"] if modules == "all" else list(modules)
    on = f" on {_listed(names)}" if names else ""
    if layers == "all" or (isinstance(layers, (list, tuple)) and len(layers) == n_layers):
        return on
    link = " of" if names else " in"
    if isinstance(layers, str):
        count = layers.removeprefix("last_")
        return f"{on}{link} the last {'layer' if count == '1' else f'{count} layers'}"
    return f"{on}{link} layer{'s' if len(layers) != 1 else ''} {_ranges(layers)}"


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
