"""Norms: scale and shift of every normalisation in the chosen layers (Qi et al., 2022, LN-tuning; for batch norms
Frankle et al., 2021, arXiv:2003.00152)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from autopeft.errors import Refused
from autopeft.methods import Scope
from autopeft.methods._unfreeze import Unfreeze, in_blocks, norm_modules


class Norm(Unfreeze):
    """Trains weight and bias of the normalisation layers. Running statistics stay as they are."""

    label = "norms"
    stock: Mapping[str, Any] = {"lr": 1e-3}

    def unfreezes(self, model: Any, scope: Scope, keys: Mapping[str, Any]) -> list[str]:
        norms = set(norm_modules(model))
        names = [name for name in in_blocks(model, scope) if name.rpartition(".")[0] in norms]
        if not names:
            raise Refused("empty: the chosen layers have no normalisation with parameters")
        return names


plugin = Norm
