"""VeRA: W x + b ⊙ B (d ⊙ A x), with A and B random, frozen and shared by all layers; b and d are trained
(Kopiczko et al., 2024, arXiv:2310.11454)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from autopeft.methods import Scope
from autopeft.methods._peft import inject


class Vera:
    """Two vectors a layer around shared random projections, by peft."""

    label = "VeRA"
    keys: Mapping[str, str] = {
        "rank": "rank of the shared projections",
        "d_initial": "first value of d",
        "dropout": "on its input",
    }
    stock: Mapping[str, Any] = {"rank": 256, "d_initial": 0.1, "dropout": 0.0, "lr": 4e-3}
    modules: tuple[str, ...] = ("query", "value")
    is_peft = True

    def config(self, scope: Scope, params: Mapping[str, Any]) -> Any:
        """A fresh peft config."""
        from peft import VeraConfig

        return VeraConfig(
            r=params["rank"],
            d_initial=params["d_initial"],
            vera_dropout=params["dropout"],
            target_modules=scope.names,
        )

    def attach(self, model: Any, scope: Scope, params: Mapping[str, Any]) -> None:
        inject(model, self.config(scope, params))

    def unfreezes(self, model: Any, scope: Scope, params: Mapping[str, Any]) -> list[str]:
        return []

    def describe(self, params: Mapping[str, Any]) -> str:
        return f"{self.label} rank {params['rank']}"


plugin = Vera
