"""Head only: the frozen model's features, and a new head on them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from autopeft.methods import Scope
from autopeft.methods._unfreeze import Unfreeze


class Head(Unfreeze):
    """Trains nothing but the head, which every recipe trains."""

    label = "head only"
    baseline = "frozen head"
    is_shallow = True
    stock: Mapping[str, Any] = {"lr": 1e-3}

    def unfreezes(self, model: Any, scope: Scope, keys: Mapping[str, Any]) -> list[str]:
        return []


plugin = Head
