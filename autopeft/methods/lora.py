"""LoRA: W x + (alpha / rank) B A x (Hu et al., 2021, arXiv:2106.09685).

rsLoRA divides by sqrt(rank) instead (Kalajdzievski, 2023, arXiv:2312.03732); DoRA trains the norm of each output's
weights beside the direction (Liu et al., 2024, arXiv:2402.09353).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from autopeft.methods._lora import LowRank


class Lora(LowRank):
    """Low-rank updates of linear layers and convolutions."""

    label = "LoRA"
    packs = True
    keys: Mapping[str, str] = {**LowRank.keys, "dora": "train magnitudes too"}
    arguments: Mapping[str, str] = {**LowRank.arguments, "dora": "use_dora"}
    stock: Mapping[str, Any] = {**LowRank.stock, "dora": False}

    def describe(self, keys: Mapping[str, Any]) -> str:
        text = super().describe(keys)
        return text.replace(self.label, "DoRA", 1) if keys["dora"] else text

    def numbers(self, keys: Mapping[str, Any], kind: str, inputs: int, outputs: int, size: int) -> int | None:
        return size * (inputs + outputs) + (outputs if keys["dora"] else 0)


plugin = Lora
