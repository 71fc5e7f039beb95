"""(IA)³: W x ⊙ l, and W (l ⊙ x) for the feed-forward's second layer (Liu et al., 2022, arXiv:2205.05638)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from autopeft.methods import Scope
from autopeft.methods._peft import inject


class IA3:
    """A learned scale an activation, by peft."""

    label = "(IA)³"
    keys: Mapping[str, str] = {}
    stock: Mapping[str, Any] = {"lr": 3e-3}
    modules: tuple[str, ...] = ("key", "value", "down")
    is_peft = True

    def config(self, scope: Scope, params: Mapping[str, Any]) -> Any:
        """A fresh peft config."""
        from peft import IA3Config

        return IA3Config(target_modules=scope.names, feedforward_modules=list(scope.modules.get("down", ())))

    def attach(self, model: Any, scope: Scope, params: Mapping[str, Any]) -> None:
        inject(model, self.config(scope, params))

    def unfreezes(self, model: Any, scope: Scope, params: Mapping[str, Any]) -> list[str]:
        return []

    def describe(self, params: Mapping[str, Any]) -> str:
        return self.label


plugin = IA3
