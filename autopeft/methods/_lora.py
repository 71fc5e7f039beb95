"""What LoRA and the methods that vary it share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from autopeft.errors import Refused
from autopeft.methods import Site
from autopeft.methods._peft import PeftMethod, by_module


class LowRank(PeftMethod):
    """W x + (alpha / rank) B A x, by peft's LoRA."""

    peft = "LoraConfig"
    keys: Mapping[str, str] = {
        "rank": "rank of the update",
        "alpha": "numerator of its scale",
        "dropout": "on its input",
        "rslora": "scale by alpha / sqrt(rank)",
    }
    arguments: Mapping[str, str] = {"alpha": "lora_alpha", "dropout": "lora_dropout", "rslora": "use_rslora"}
    stock: Mapping[str, Any] = {"rank": 8, "alpha": 16, "dropout": 0.0, "rslora": False, "lr": 2e-4}
    size = "rank"
    sized_by = ("kind", "layer")

    def given(self, site: Site) -> dict[str, Any]:
        rank, pattern = by_module(site.scope)
        return {**super().given(site), "r": rank, "rank_pattern": pattern}

    def numbers(self, keys: Mapping[str, Any], kind: str, inputs: int, outputs: int, size: int) -> int | None:
        return size * (inputs + outputs)

    def describe(self, keys: Mapping[str, Any]) -> str:
        return f"{self.label} rank {keys['rank']}" + (" (rsLoRA)" if keys["rslora"] else "")


def require_linear(model: Any, site: Site, label: str) -> None:
    """Raises Refused if a chosen module is no linear layer, or cannot have such a rank."""
    import torch

    for name, rank in site.scope.sizes.items():
        layer = model.get_submodule(name)
        layer = layer.get_base_layer() if hasattr(layer, "get_base_layer") else layer
        if not isinstance(layer, torch.nn.Linear):
            raise Refused(f"unsupported: {name} is a {type(layer).__name__}; {label} is for linear layers")
        most = min(layer.in_features, layer.out_features)  # a 4-bit weight has another shape
        if rank > most:
            raise Refused(f"{label} of {name} has a rank of {most} or less, not {rank}")
