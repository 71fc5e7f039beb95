"""Prefix tuning: trained keys and values, prepended in the chosen layers (Li and Liang, 2021, arXiv:2101.00190).

Ours, not peft's: positions stay unshifted, so that inputs may be as long as ever, and it knows layers (AutoPEFT,
Zhou et al., 2024, arXiv:2301.12132, masks them). Without the paper's reparametrisation by an MLP.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from autopeft.errors import Refused
from autopeft.methods import Scope


class Prefix:
    """`size` virtual tokens' keys and values a layer: softmax(q [P_k; K]ᵀ) [P_v; V]."""

    label = "prefix"
    keys: Mapping[str, str] = {"size": "how many virtual tokens"}
    stock: Mapping[str, Any] = {"size": 24, "lr": 5e-3}
    modules: tuple[str, ...] = ("key", "value")
    is_peft = False

    def attach(self, model: Any, scope: Scope, params: Mapping[str, Any]) -> None:
        from autopeft.methods._prefix_attention import add_prefix

        keys, values = scope.modules.get("key", ()), scope.modules.get("value", ())
        if not keys or len(keys) != len(values):
            raise Refused("the model has no separate key and value layers to prepend to")
        for key, value in zip(keys, values, strict=True):
            if key.rpartition(".")[0] != value.rpartition(".")[0]:
                raise Refused(f"{key} and {value} belong to different attention modules")
            add_prefix(model, key, value, params["size"])

    def unfreezes(self, model: Any, scope: Scope, params: Mapping[str, Any]) -> list[str]:
        return []

    def describe(self, params: Mapping[str, Any]) -> str:
        return f"{self.label} of {params['size']}"


plugin = Prefix
