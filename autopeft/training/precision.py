"""The arithmetic of a pass. Trained parameters are fp32 in all of it.

fp32         everything in fp32
bf16         products in bf16, by autocast; what goes from one to the next is as autocast leaves it, mostly fp32
bf16_frozen  products in bf16, and what the stem and the norms hand on, too: no product casts what it reads
"""

from __future__ import annotations

import contextlib
from collections.abc import MutableMapping
from typing import Any

import torch
from torch import nn
from torch.utils.weak import WeakIdKeyDictionary

from autopeft.training.model import ModelView

PRECISIONS = ("fp32", "bf16", "bf16_frozen")


class Precision:
    """One of `PRECISIONS` on a device, with the frozen weights in bf16 that all trials share.

    Args:
        name: Which.
        device: Of the model.
        view: Of the model.
    """

    def __init__(self, name: str, device: torch.device, view: ModelView) -> None:
        if name not in PRECISIONS:
            raise ValueError(f"precision is one of {', '.join(PRECISIONS)}, not {name!r}")
        self.name, self.device, self.view = name, device, view
        # By the tensor itself, for as long as it lives: a number (`id`) is given again after a trial's tensor died.
        self._halves: MutableMapping[torch.Tensor, nn.Parameter] = WeakIdKeyDictionary()

    def context(self) -> contextlib.AbstractContextManager[Any]:
        """Of a forward pass."""
        if self.name == "fp32":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)

    def lower(self, model: nn.Module) -> None:
        """Prepares a clone of the base, its recipe attached: its modules are its own, its frozen tensors the base's."""
        if self.name == "fp32":
            return
        self._halve_frozen(model)
        for module in model.modules():
            if hasattr(module, "active_adapters") and not _reads_weights(module):
                layer: Any = module
                layer.cast_input_dtype_enabled = False  # a peft layer: to fp32, only for autocast to cast it back
        if self.name == "bf16_frozen":
            handing_on = {model.get_submodule(name) for name in self.view.stem}
            handing_on |= {module for module in model.modules() if "norm" in type(module).__name__.lower()}
            for module in handing_on:
                module.register_forward_hook(_in_bf16)

    def _halve_frozen(self, model: nn.Module) -> None:
        """Gives each frozen linear and convolution weight in bf16, one tensor for all trials.

        Under autocast the products are the same to the bit, and no pass casts the weights again.
        """
        for module in model.modules():
            if _reads_weights(module):
                continue
            for _, child in module.named_children():
                if isinstance(child, (nn.Linear, nn.Conv1d, nn.Conv2d)) and not child.weight.requires_grad:
                    weight = child.weight
                    if weight.dtype == torch.float32:
                        if weight not in self._halves:
                            half = nn.Parameter(weight.detach().to(torch.bfloat16), requires_grad=False)
                            self._halves[weight] = half
                        child.weight = self._halves[weight]


def _reads_weights(module: nn.Module) -> bool:
    """Whether it is a DoRA layer, which takes the norms of its weights: in fp32, or they are off by a part in 256."""
    magnitudes = getattr(module, "lora_magnitude_vector", None)  # every LoRA layer has one, mostly empty
    return magnitudes is not None and len(magnitudes) > 0


def _in_bf16(module: nn.Module, inputs: Any, output: Any) -> Any:
    is_wide = isinstance(output, torch.Tensor) and output.dtype == torch.float32
    return output.to(torch.bfloat16) if is_wide else output
