"""The precision of a pass. Trained parameters are fp32 in each of them.

fp32         everything in fp32
bf16         products in bf16, by autocast; activations between them as autocast leaves them, mostly fp32
bf16_frozen  products in bf16; outputs of the stem and the norms in bf16, too, so that no product casts its input
"""

from __future__ import annotations

import contextlib
from collections.abc import MutableMapping
from typing import Any

import torch
from torch import nn
from torch.utils.weak import WeakIdKeyDictionary

from autopeft.training.model import ModelView
from autopeft.training.quantised import compute_in

PRECISIONS = ("fp32", "bf16", "bf16_frozen")


class Precision:
    """Applies one of `PRECISIONS` on a device. Holds the bf16 copies of frozen weights that all trials share.

    Args:
        name: One of `PRECISIONS`.
        device: The model's device.
        view: The model's parts.
    """

    def __init__(self, name: str, device: torch.device, view: ModelView) -> None:
        if name not in PRECISIONS:
            raise ValueError(f"precision is one of {', '.join(PRECISIONS)}, not {name!r}")
        self.name, self.device, self.view = name, device, view
        # Keyed by the tensor itself while it lives: its `id` can be reused for another tensor afterwards.
        self._halves: MutableMapping[torch.Tensor, nn.Parameter] = WeakIdKeyDictionary()

    def context(self) -> contextlib.AbstractContextManager[Any]:
        """Returns the context of a forward pass."""
        if self.name == "fp32":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)

    def lower(self, model: nn.Module) -> None:
        """Prepares a clone of the base with its recipe. Changes the clone's modules, never the tensors of the base."""
        if self.name == "fp32":
            return
        self._halve_frozen(model)
        compute_in(model, torch.bfloat16)
        for module in model.modules():
            if hasattr(module, "active_adapters") and not _reads_weights(module):
                layer: Any = module
                layer.cast_input_dtype_enabled = False  # peft casts to fp32, and autocast would cast back
        if self.name == "bf16_frozen":
            handing_on = {model.get_submodule(name) for name in self.view.stem}
            handing_on |= {module for module in model.modules() if "norm" in type(module).__name__.lower()}
            for module in handing_on:
                module.register_forward_hook(_in_bf16)

    def _halve_frozen(self, model: nn.Module) -> None:
        """Replaces each frozen linear and convolution weight by its bf16 copy, one tensor for all trials.

        The products are bit for bit those of autocast, and no pass casts the weights again.
        """
        for module in model.modules():
            if _reads_weights(module):
                continue
            for _, child in module.named_children():
                if isinstance(child, (nn.Linear, nn.Conv1d, nn.Conv2d)) and not child.weight.requires_grad:
                    weight = child.weight
                    if weight.dtype == torch.float32 and type(weight.data) is torch.Tensor:  # no tensor of torchao's
                        if weight not in self._halves:
                            half = nn.Parameter(weight.detach().to(torch.bfloat16), requires_grad=False)
                            self._halves[weight] = half
                        child.weight = self._halves[weight]


def _reads_weights(module: nn.Module) -> bool:
    """Whether a module is a DoRA layer. It needs fp32 weights: their norms in bf16 would be wrong by 1/256."""
    magnitudes = getattr(module, "lora_magnitude_vector", None)  # every LoRA layer has one, mostly empty
    return magnitudes is not None and len(magnitudes) > 0


def _in_bf16(module: nn.Module, inputs: Any, output: Any) -> Any:
    is_wide = isinstance(output, torch.Tensor) and output.dtype == torch.float32
    return output.to(torch.bfloat16) if is_wide else output
