"""Full fine-tuning: every parameter. What the other methods are measured against."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from autopeft.methods import Scope
from autopeft.methods._unfreeze import Unfreeze


class Full(Unfreeze):
    """Trains all of the base."""

    label = "full fine-tuning"
    stock: Mapping[str, Any] = {"lr": 5e-5}

    def unfreezes(self, model: Any, scope: Scope, params: Mapping[str, Any]) -> list[str]:
        heads = tuple(f"{head}." for head in scope.head)
        return [name for name, _ in model.named_parameters() if not name.startswith(heads)]

    def describe(self, params: Mapping[str, Any]) -> str:
        return self.label


plugin = Full
