"""LoRA: W x + (alpha / rank) B A x (Hu et al., 2021, arXiv:2106.09685).

rsLoRA divides by sqrt(rank) instead (Kalajdzievski, 2023, arXiv:2312.03732); DoRA trains the norm of each output's
weights beside the direction (Liu et al., 2024, arXiv:2402.09353).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from autopeft.methods import Scope
from autopeft.methods._peft import inject


class Lora:
    """Low-rank updates of linear layers and convolutions, by peft."""

    label = "LoRA"
    keys: Mapping[str, str] = {
        "rank": "rank of the update; `rank.<module kind>` for one kind, 0 to leave it out",
        "alpha": "numerator of its scale",
        "dropout": "on its input",
        "rslora": "scale by alpha / sqrt(rank)",
        "dora": "train magnitudes too",
    }
    stock: Mapping[str, Any] = {"rank": 8, "alpha": 16, "dropout": 0.0, "rslora": False, "dora": False, "lr": 2e-4}
    modules: tuple[str, ...] = ("query", "value")
    is_peft = True

    def config(self, scope: Scope, params: Mapping[str, Any]) -> Any:
        """A fresh peft config: get_peft_model changes the one it is given."""
        from peft import LoraConfig

        ranks = {
            name: params.get(f"rank.{kind}", params["rank"]) for kind, names in scope.modules.items() for name in names
        }
        rank = max(ranks.values(), default=0)
        return LoraConfig(
            r=rank,
            lora_alpha=params["alpha"],
            lora_dropout=params["dropout"],
            use_rslora=params["rslora"],
            use_dora=params["dora"],
            target_modules=list(ranks),
            rank_pattern={f"^{re.escape(name)}$": value for name, value in ranks.items() if value != rank},
        )

    def attach(self, model: Any, scope: Scope, params: Mapping[str, Any]) -> None:
        inject(model, self.config(scope, params))

    def unfreezes(self, model: Any, scope: Scope, params: Mapping[str, Any]) -> list[str]:
        return []

    def describe(self, params: Mapping[str, Any]) -> str:
        name = "DoRA" if params["dora"] else self.label
        by_kind = {key.removeprefix("rank."): value for key, value in params.items() if key.startswith("rank.")}
        kinds = [f"{kind} {rank}" for kind, rank in by_kind.items() if rank]
        size = f"rank{'s' if len(kinds) > 1 else ''} {', '.join(kinds)}" if kinds else f"rank {params['rank']}"
        return f"{name} {size}" + (" (rsLoRA)" if params["rslora"] else "")


plugin = Lora
