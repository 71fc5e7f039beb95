"""VeRA: W x + b ⊙ B (d ⊙ A x), with A and B random, frozen and shared by all layers; b and d are trained
(Kopiczko et al., 2024, arXiv:2310.11454)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from autopeft.methods._peft import PeftMethod


class Vera(PeftMethod):
    """Two vectors a layer around shared random projections."""

    label = "VeRA"
    peft = "VeraConfig"
    keys: Mapping[str, str] = {
        "rank": "rank of the shared projections",
        "d_initial": "first value of d",
        "dropout": "on its input",
    }
    arguments: Mapping[str, str] = {"rank": "r", "d_initial": "d_initial", "dropout": "vera_dropout"}
    stock: Mapping[str, Any] = {"rank": 256, "d_initial": 0.1, "dropout": 0.0, "lr": 4e-3}
    size = "rank"

    def numbers(self, keys: Mapping[str, Any], kind: str, inputs: int, outputs: int, size: int) -> int | None:
        return size + outputs


plugin = Vera
