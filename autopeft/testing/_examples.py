"""A search space and objectives to try plugins on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from autopeft.objectives import Objective
from autopeft.space import Choice, Dimension, Float, Int, Space, Subset

OBJECTIVES = (
    Objective("accuracy", "maximize", reference=0.5),
    Objective("trainable_parameters", "minimize", reference=1e6, scale="log10"),
)


def example_space() -> Space:
    """Returns a small conditional space with every kind of domain, constants and a composed recipe."""
    return Space(
        {
            "method": Dimension(Choice(("head", "lora", "lora+bias")), "head"),
            "head.lr": Dimension(Float(1e-4, 1e-1, log=True), 1e-3),
            "lora.rank": Dimension(Int(1, 64, log=True), 8),
            "lora.layers": Dimension(Subset((0, 1, 2, 3)), [0, 1, 2, 3]),
            "lora.modules": Dimension(Subset(("query", "key", "value"), min_size=2), ["query", "value"]),
            "lora.dora": Dimension(Choice((False, True)), False),
            "lora.magnitude": Dimension(Float(0.0, 1.0), 0.5, when={"lora.dora": (True,)}),
            "lora.dropout": Dimension(Choice((0.0, 0.1, 0.3)), 0.0),
            "lora.init": Dimension(Choice((None, 1, "gaussian")), None),
            "lora.alpha": Dimension(Choice((16,)), 16),
            "bias.lr": Dimension(Float(1e-4, 1e-2, log=True), 1e-3),
        }
    )


def example_sizes(params: Mapping[str, Any]) -> Mapping[str, float] | None:
    """Returns the counts of a member of the example space; None for a few members, as if they were over a budget."""
    if params.get("lora.rank", 0) > 48:
        return None
    return {"trainable_parameters": float(100 + 10 * len(json.dumps(dict(params))))}
