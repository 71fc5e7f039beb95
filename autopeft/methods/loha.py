"""LoHa: W x + (alpha / rank) ((B₁ A₁) ⊙ (B₂ A₂)) x, a Hadamard product of two low-rank matrices (Hyeon-Woo et
al., 2022, arXiv:2108.06098; for adapters Yeh et al., 2024, arXiv:2309.14859)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from autopeft.methods._peft import PeftMethod


class LoHa(PeftMethod):
    """An update of rank up to `rank`² for the price of twice LoRA."""

    label = "LoHa"
    peft = "LoHaConfig"
    keys: Mapping[str, str] = {"rank": "rank of the low-rank factors", "alpha": "numerator of its scale"}
    arguments: Mapping[str, str] = {"rank": "r", "alpha": "alpha"}
    takes_quantised = False
    stock: Mapping[str, Any] = {"rank": 8, "alpha": 8, "lr": 1e-3}
    size = "rank"

    def numbers(self, keys: Mapping[str, Any], kind: str, inputs: int, outputs: int, size: int) -> int | None:
        return 2 * size * (inputs + outputs)


plugin = LoHa
