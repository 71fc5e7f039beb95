"""LoRA: W x + (alpha / rank) B A x (Hu et al., 2021, arXiv:2106.09685).

rsLoRA divides by sqrt(rank) instead (Kalajdzievski, 2023, arXiv:2312.03732); DoRA trains the norm of each output's
weights beside the direction (Liu et al., 2024, arXiv:2402.09353).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from autopeft.methods import Site
from autopeft.methods._peft import PeftMethod, by_module


class Lora(PeftMethod):
    """Low-rank updates of linear layers and convolutions."""

    label = "LoRA"
    packs = True
    peft = "LoraConfig"
    keys: Mapping[str, str] = {
        "rank": "rank of the update",
        "alpha": "numerator of its scale",
        "dropout": "on its input",
        "rslora": "scale by alpha / sqrt(rank)",
        "dora": "train magnitudes too",
    }
    stock: Mapping[str, Any] = {"rank": 8, "alpha": 16, "dropout": 0.0, "rslora": False, "dora": False, "lr": 2e-4}
    size = "rank"
    sized_by = ("kind", "layer")
    arguments: Mapping[str, str] = {
        "alpha": "lora_alpha",
        "dropout": "lora_dropout",
        "rslora": "use_rslora",
        "dora": "use_dora",
    }

    def given(self, site: Site) -> dict[str, Any]:
        rank, pattern = by_module(site.scope)
        return {**super().given(site), "r": rank, "rank_pattern": pattern}

    def describe(self, keys: Mapping[str, Any]) -> str:
        name = "DoRA" if keys["dora"] else self.label
        return f"{name} rank {keys['rank']}" + (" (rsLoRA)" if keys["rslora"] else "")


plugin = Lora
