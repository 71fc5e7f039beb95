"""LoRA+: W x + (alpha / rank) B A x, where B learns faster than A (Hayou et al., 2024, arXiv:2402.12354)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from autopeft.methods._lora import LowRank


class LoraPlus(LowRank):
    """LoRA whose B has `ratio` times the learning rate of its A."""

    label = "LoRA+"
    keys: Mapping[str, str] = {**LowRank.keys, "ratio": "learning rate of B over that of A"}
    stock: Mapping[str, Any] = {**LowRank.stock, "ratio": 16.0, "lr": 5e-5}

    def rate(self, name: str, keys: Mapping[str, Any]) -> float:
        return float(keys["ratio"]) if ".lora_B." in name else 1.0


plugin = LoraPlus
