"""Methods that add nothing: they train parameters of the base in place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from autopeft.methods import Copies, Method, Scope, Site


class Unfreeze(Method):
    """Trains the base parameters that `unfreezes` names. The trial has its own copies of them."""

    merges = True

    def copies(self, model: Any, site: Site) -> Copies:
        return Copies(trained=tuple(self.unfreezes(model, site.scope, site.keys)))

    def unfreezes(self, model: Any, scope: Scope, keys: Mapping[str, Any]) -> list[str]:
        """Names the parameters that the method trains, in full."""
        raise NotImplementedError

    def attach(self, model: Any, site: Site) -> None:
        """Adds nothing."""


def in_blocks(model: Any, scope: Scope) -> list[str]:
    """Names all parameters in the scope's blocks."""
    starts = tuple(f"{block}." for block in scope.blocks)
    return [name for name, _ in model.named_parameters() if name.startswith(starts)]


def norm_modules(model: Any) -> list[str]:
    """Names the normalisation layers, found by the name of their class."""
    return [name for name, module in model.named_modules() if "norm" in type(module).__name__.lower()]
