"""HRA: W R x with R = Π (I − 2 u uᵀ), a chain of `rank` Householder reflections (Yuan et al., 2024, arXiv:2405.17484)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from autopeft.methods._peft import PeftMethod


class Hra(PeftMethod):
    """A chain of reflections of each layer's inputs."""

    label = "HRA"
    peft = "HRAConfig"
    keys: Mapping[str, str] = {"rank": "how many reflections"}
    arguments: Mapping[str, str] = {"rank": "r"}
    stock: Mapping[str, Any] = {"rank": 8, "lr": 1e-3}
    size = "rank"
    reads_weights = True

    def numbers(self, keys: Mapping[str, Any], kind: str, inputs: int, outputs: int, size: int) -> int | None:
        return size * inputs


plugin = Hra
