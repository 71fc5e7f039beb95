"""Head only: the frozen model's features, and a new head on them. Its keys are those of the head of every recipe."""

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
    keys: Mapping[str, str] = {
        "pooling": "how the states of a row become one vector: own (the model's), first, mean, max, last, attention",
        "hidden": "width of a hidden layer; 0 for none",
        "norm": "layer norm of the vector, without parameters: on or off",
        "layer": "the block that is read, by index from 0, or 'last'; blocks above it are not computed",
    }
    stock: Mapping[str, Any] = {"lr": 1e-3, "pooling": "own", "hidden": 0, "norm": False, "layer": "last"}

    def unfreezes(self, model: Any, scope: Scope, keys: Mapping[str, Any]) -> list[str]:
        return []


plugin = Head
