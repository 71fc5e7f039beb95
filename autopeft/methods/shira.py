"""SHiRA: (W + S) x, S sparse with as many trained numbers as LoRA of that rank, at random places (Bhardwaj et al., 2024,
arXiv:2406.13175)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from autopeft.errors import Refused
from autopeft.methods import Site
from autopeft.methods._peft import PeftMethod


class Shira(PeftMethod):
    """Some numbers of each weight, trained as a sparse update."""

    label = "SHiRA"
    peft = "ShiraConfig"
    keys: Mapping[str, str] = {"rank": "rank of the LoRA that has as many numbers"}
    arguments: Mapping[str, str] = {"rank": "r"}
    fixed: Mapping[str, Any] = {"random_seed": 0}  # fixes the random places, which a saved adapter does not contain
    stock: Mapping[str, Any] = {"rank": 8, "lr": 1e-3}
    size = "rank"
    reads_weights = True

    def count(self, model: Any, site: Site) -> int | None:
        """Counts rank × (inputs + outputs) a linear layer. Attaching draws a permutation of all its numbers."""
        import torch

        total = 0
        for name in site.scope.names:
            layer = model.get_submodule(name)
            if not isinstance(layer, torch.nn.Linear):
                raise Refused(f"unsupported: {name} is a {type(layer).__name__}; SHiRA is for linear layers")
            size = site.keys["rank"] * (layer.in_features + layer.out_features)
            if size > layer.weight.numel():
                raise Refused(f"rank {site.keys['rank']} is more than {name} has: {layer.weight.numel():,} numbers")
            total += size
        return total


plugin = Shira
