"""LoRA-FA: W x + (alpha / rank) B A x, with A random and frozen (Zhang et al., 2023, arXiv:2308.03303)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from autopeft.methods import Site
from autopeft.methods._lora import LowRank


class LoraFA(LowRank):
    """LoRA that trains its B alone."""

    label = "LoRA-FA"
    stock: Mapping[str, Any] = {**LowRank.stock, "lr": 1e-3}

    def attach(self, model: Any, site: Site) -> None:
        before = {id(parameter) for parameter in model.parameters()}
        super().attach(model, site)
        for name, parameter in model.named_parameters():
            if ".lora_A." in name and id(parameter) not in before:
                parameter.requires_grad_(False)

    def numbers(self, keys: Mapping[str, Any], kind: str, inputs: int, outputs: int, size: int) -> int | None:
        return size * outputs


plugin = LoraFA
