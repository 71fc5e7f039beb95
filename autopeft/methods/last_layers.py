"""Last layers: the top `count` blocks and all that is above them, trained in full (Howard and Ruder, 2018,
arXiv:1801.06146, without gradual unfreezing)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from autopeft.errors import Refused
from autopeft.methods import Scope
from autopeft.methods._unfreeze import Unfreeze


class LastLayers(Unfreeze):
    """Trains the last blocks, and the norms and poolers that follow them."""

    label = "last layers"
    is_shallow = True
    keys: Mapping[str, str] = {"count": "how many of the last blocks"}
    size = "count"
    stock: Mapping[str, Any] = {"count": 1, "lr": 1e-4}

    def unfreezes(self, model: Any, scope: Scope, keys: Mapping[str, Any]) -> list[str]:
        blocks, count = scope.blocks, keys["count"]
        if count > len(blocks):
            raise Refused(f"the model has {len(blocks)} layers, not {count}")
        starts = tuple(f"{part}." for part in (*blocks[len(blocks) - count :], *scope.above))
        return [name for name, _ in model.named_parameters() if name.startswith(starts)]

    def describe(self, keys: Mapping[str, Any]) -> str:
        return "last layer" if keys["count"] == 1 else f"last {keys['count']} layers"


plugin = LastLayers
