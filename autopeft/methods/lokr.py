"""LoKr: W x + (alpha / rank) (C ⊗ B A) x, a Kronecker product with a low-rank factor (Yeh et al., 2024,
arXiv:2309.14859)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from autopeft.methods._peft import PeftMethod


class LoKr(PeftMethod):
    """A Kronecker product: few numbers, full rank."""

    label = "LoKr"
    peft = "LoKrConfig"
    keys: Mapping[str, str] = {"rank": "rank of the low-rank factors", "alpha": "numerator of its scale"}
    arguments: Mapping[str, str] = {"rank": "r", "alpha": "alpha"}
    stock: Mapping[str, Any] = {"rank": 8, "alpha": 8, "lr": 1e-3}
    size = "rank"


plugin = LoKr
