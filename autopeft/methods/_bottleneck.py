"""A bottleneck: down, a nonlinearity, up. The module that serial and parallel adapters put beside a layer."""

from __future__ import annotations

import itertools
from functools import partial
from typing import Any

import torch
from torch import nn

from autopeft.errors import Refused


class Bottleneck(nn.Module):
    """Computes scale · U gelu(D x). U begins at 0. Linear layers, or 1 × 1 convolutions on feature maps.

    Args:
        inputs, outputs: Features, or channels.
        size: Width of the bottleneck.
        is_map: Whether x is (n, channels, height, width) rather than (..., features).
    """

    def __init__(
        self, inputs: int, outputs: int, size: int, dropout: float, scale: float, is_map: bool, device: Any
    ) -> None:
        super().__init__()
        on = "meta" if torch.device(device).type == "meta" else "cpu"  # drawn on the CPU: the same on every device
        make: Any = partial(nn.Conv2d, kernel_size=1, device=on) if is_map else partial(nn.Linear, device=on)
        self.down, self.up = make(inputs, size), make(size, outputs)
        self.dropout, self.scale = nn.Dropout(dropout), scale
        if not self.up.weight.is_meta:
            nn.init.zeros_(self.up.weight)
            nn.init.zeros_(self.up.bias)
            self.to(device)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.up(nn.functional.gelu(self.down(self.dropout(x)))) * self.scale
        return out


class AddAfter:
    """Forward hook of a layer: adds the adapter's output, given the layer's own output or a remembered input."""

    def __init__(self, adapter: Bottleneck, remembered: Remember | None = None) -> None:
        self.adapter, self.remembered = adapter, remembered

    def __call__(self, module: nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
        added: torch.Tensor = self.adapter(output if self.remembered is None else self.remembered.take())
        return output + added


class Remember:
    """Keeps a layer's input until the adapter takes it.

    Args:
        block: The block of the layer. Each pass of the block first drops an input that an earlier pass left: that pass
            may have run out of memory.
        layer: Runs once in a pass of its block.
    """

    def __init__(self, block: nn.Module, layer: nn.Module) -> None:
        self.input: torch.Tensor | None = None
        block.register_forward_pre_hook(self._forget)
        layer.register_forward_pre_hook(self._keep)

    def _forget(self, module: nn.Module, args: Any) -> None:
        self.input = None

    def _keep(self, module: nn.Module, args: Any) -> None:
        if self.input is not None:
            raise Refused("the sub-layer reads two inputs: none of them alone is what a parallel adapter goes beside")
        self.input = args[0]

    def take(self) -> torch.Tensor:
        kept, self.input = self.input, None
        assert kept is not None, "the layer that gives the adapter's input runs before the one it adds to"
        return kept


def add_beside(model: nn.Module, name: str, adapter: Bottleneck, suffix: str) -> None:
    """Registers the adapter as a sibling of the layer, so that its name lies in the block. A second one is `…_2`."""
    path, _, leaf = name.rpartition(".")
    parent = model.get_submodule(path)
    first = f"{leaf}_{suffix}"
    names = itertools.chain([first], (f"{first}_{number}" for number in itertools.count(2)))
    parent.add_module(next(name for name in names if not hasattr(parent, name)), adapter)


def features(module: nn.Module) -> tuple[int, int, bool]:
    """Returns (inputs, outputs, whether on feature maps) of a linear layer, a convolution, or a peft layer's base."""
    layer: Any = getattr(module, "get_base_layer", lambda: module)()
    if isinstance(layer, nn.Conv2d):
        return layer.in_channels, layer.out_channels, True
    if type(layer).__name__ == "Conv1D":  # transformers': a linear layer with its weight transposed
        return layer.weight.shape[0], layer.weight.shape[1], False
    return layer.in_features, layer.out_features, False
