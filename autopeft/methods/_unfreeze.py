"""Methods that add nothing: they train parameters of the base in place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from autopeft.methods import Scope


class Unfreeze:
    """Trains the base parameters that `unfreezes` names; they are the trial's own copies."""

    keys: Mapping[str, str] = {}
    modules: tuple[str, ...] = ()
    is_peft = False

    def attach(self, model: Any, scope: Scope, params: Mapping[str, Any]) -> None:
        """Nothing to add."""


def in_blocks(model: Any, scope: Scope) -> list[str]:
    """Names of all parameters in the scope's blocks."""
    starts = tuple(f"{block}." for block in scope.blocks)
    return [name for name, _ in model.named_parameters() if name.startswith(starts)]


def norm_modules(model: Any) -> list[str]:
    """Names of the normalisation layers, of whatever class: they say so in its name."""
    return [name for name, module in model.named_modules() if "norm" in type(module).__name__.lower()]
