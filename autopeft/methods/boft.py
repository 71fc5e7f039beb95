"""BOFT: s ⊙ (W R) x, R orthogonal and block-diagonal, by Cayley's transform of trained blocks (Liu et al., 2024,
arXiv:2311.06243, with one butterfly factor: as peft computes it without its CUDA extension)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from autopeft.errors import Refused
from autopeft.methods import Site
from autopeft.methods._peft import PeftMethod


class Boft(PeftMethod):
    """A rotation of each layer's inputs by blocks, and a scale of each output."""

    label = "BOFT"
    peft = "BOFTConfig"
    keys: Mapping[str, str] = {"block_size": "width of a block: a divisor of the inputs", "dropout": "of blocks"}
    arguments: Mapping[str, str] = {"block_size": "boft_block_size", "dropout": "boft_dropout"}
    fixed: Mapping[str, Any] = {"boft_n_butterfly_factor": 1}
    stock: Mapping[str, Any] = {"block_size": 4, "dropout": 0.0, "lr": 1e-3}
    size = "block_size"
    reads_weights = True

    def count(self, model: Any, site: Site) -> int | None:
        """Counts inputs × block_size + outputs a linear layer. Attaching builds a matrix of inputs × inputs."""
        import torch

        total, block = 0, site.keys["block_size"]
        for name in site.scope.names:
            layer = model.get_submodule(name)
            if not isinstance(layer, torch.nn.Linear):
                return None
            if layer.in_features % block:
                raise Refused(f"{name} has {layer.in_features} inputs, no multiple of block_size {block}")
            total += layer.in_features * block + layer.out_features
        return total


plugin = Boft
