"""(IA)³: W x ⊙ l, and W (l ⊙ x) for the feed-forward's second layer (Liu et al., 2022, arXiv:2205.05638)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from autopeft.methods import Site
from autopeft.methods._peft import PeftMethod


class IA3(PeftMethod):
    """A learned scale an activation."""

    label = "(IA)³"
    peft = "IA3Config"
    stock: Mapping[str, Any] = {"lr": 3e-3}
    modules: tuple[str, ...] = ("key", "value", "down")

    def given(self, site: Site) -> dict[str, Any]:
        return {**super().given(site), "feedforward_modules": list(site.scope.modules.get("down", ()))}

    def numbers(self, keys: Mapping[str, Any], kind: str, inputs: int, outputs: int, size: int) -> int | None:
        return inputs if kind == "down" else outputs


plugin = IA3
