"""BitFit: every bias in the chosen layers, W x + b with b trained (Ben Zaken et al., 2022, arXiv:2106.10199)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from autopeft.errors import Refused
from autopeft.methods import Scope
from autopeft.methods._unfreeze import Unfreeze, in_blocks


class Bias(Unfreeze):
    """Trains the biases of all modules of the layers, or of the chosen module kinds."""

    label = "biases"
    stock: Mapping[str, Any] = {"lr": 1e-3}

    def unfreezes(self, model: Any, scope: Scope, keys: Mapping[str, Any]) -> list[str]:
        names = [name for name in in_blocks(model, scope) if name.endswith(".bias")]
        if not any(name.endswith(".bias") for name, _ in model.named_parameters()):
            raise Refused("empty: this model has no biases (Llama and most newer language models have none)")
        if scope.modules:
            chosen = set(scope.names)
            names = [name for name in names if name.rpartition(".")[0] in chosen]
        if not names:
            raise Refused("empty: the chosen modules have no bias")
        return names


plugin = Bias
