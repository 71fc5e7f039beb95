"""Methods that add nothing: they train parameters of the base in place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from autopeft.methods import Copies, Method, Scope, Site


class Unfreeze(Method):
    """Trains the base parameters that `unfreezes` names; they are the trial's own copies."""

    def copies(self, model: Any, site: Site) -> Copies:
        return Copies(trained=tuple(self.unfreezes(model, site.scope, site.keys)))

    def unfreezes(self, model: Any, scope: Scope, keys: Mapping[str, Any]) -> list[str]:
        """Full names of what it trains."""
        raise NotImplementedError

    def attach(self, model: Any, site: Site) -> None:
        """Nothing to add."""


def in_blocks(model: Any, scope: Scope) -> list[str]:
    """Names of all parameters in the scope's blocks."""
    starts = tuple(f"{block}." for block in scope.blocks)
    return [name for name, _ in model.named_parameters() if name.startswith(starts)]


def norm_modules(model: Any) -> list[str]:
    """Names of the normalisation layers, of whatever class: they say so in its name."""
    return [name for name, module in model.named_modules() if "norm" in type(module).__name__.lower()]
