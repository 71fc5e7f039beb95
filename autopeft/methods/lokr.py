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
    takes_quantised = False
    stock: Mapping[str, Any] = {"rank": 8, "alpha": 8, "lr": 1e-3}
    size = "rank"

    def numbers(self, keys: Mapping[str, Any], kind: str, inputs: int, outputs: int, size: int) -> int | None:
        """Splits each side into two factors that are near to each other. If `size` is not low, C and B A are full."""
        from peft.tuners.lokr.layer import factorization

        (in_m, in_n), (out_l, out_k) = factorization(inputs, -1), factorization(outputs, -1)
        return out_l * in_m + (size * (out_k + in_n) if size < max(out_k, in_n) / 2 else out_k * in_n)


plugin = LoKr
