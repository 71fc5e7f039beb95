"""Folds a trained recipe into the weights of its base: what is left is a stock transformers model.

The logits stay those of the trained model but for rounding. A component that adds layers of its own cannot be folded.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from autopeft import recipe
from autopeft.errors import Refused, UsageError
from autopeft.methods import Site
from autopeft.recipe import OWN_HEAD
from autopeft.training.model import ModelView, replace_module
from autopeft.training.recipe import Attached, resolve


def refuse_unmergeable(params: Mapping[str, Any]) -> None:
    """Raises UsageError if a component of a configuration cannot become part of the base's weights, whatever the model."""
    lasting = [part.method for part in recipe.parts(params) if not part.method.merges]
    if lasting:
        names = ", ".join(dict.fromkeys(method.label for method in lasting))
        raise UsageError(
            f"{names} cannot be merged: what it adds computes beside the base's layers, and is no part of their weights; "
            "export it as an adapter"
        )


def merge(attached: Attached, view: ModelView, params: Mapping[str, Any]) -> nn.Module:
    """Folds all components into the base's modules, in place. Returns the model, with none but the base's modules.

    Args:
        attached: The trained clone. The base's own weights are left as they are: merged layers get weights of their own.
        view: The parts of the base.

    Raises:
        UsageError: A component cannot be merged, or peft cannot merge into one of the layers; says which. Or the head is
            none that the architecture has.
    """
    refuse_unmergeable(params)
    if attached.view.chosen != OWN_HEAD:
        raise UsageError(
            "a stock model has its own head, on its last block: this one has another (the keys `head.*` say which), "
            "so it cannot be merged; export it as an adapter"
        )
    model = attached.model
    try:
        for part in resolve(view, params):
            part.method.merge(model, Site(part.scope, part.keys))
    except Refused as refusal:
        raise UsageError(str(refusal)) from refusal
    with torch.no_grad():
        _merge_peft(model)
    return model.eval()


def _merge_peft(model: nn.Module) -> None:
    """Merges the layers of peft, and puts the base's own layers back in their places."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    found: dict[str, Any] = {
        name: module for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)
    }
    for name, layer in found.items():
        if any(name.startswith(f"{other}.") for other in found):
            continue  # inside another one, merged with it
        base = layer.get_base_layer()
        for key, parameter in base.named_parameters(recurse=False):
            setattr(base, key, nn.Parameter(parameter.detach().clone(), requires_grad=False))
        if base is layer.base_layer:
            try:
                layer.merge()
            except Exception as fault:
                raise UsageError(f"peft cannot merge into {name}: {' '.join(str(fault).split())[:200]}") from fault
        else:
            _read_off(name, layer, base)
        replace_module(model, name, base)


def _read_off(name: str, layer: nn.Module, base: Any) -> None:
    """Gives a linear layer the weight and bias of adapters around each other, read off from what they do to unit vectors.

    One after the other they cannot be merged: DoRA around LoRA has the norms of the base's weight without that LoRA.
    """
    is_conv1d = type(base).__name__ == "Conv1D"
    if not (isinstance(base, nn.Linear) or is_conv1d):
        raise UsageError(f"{name} has two adapters, and is no linear layer: the two cannot be merged")
    inputs = base.weight.shape[0] if is_conv1d else base.in_features
    device, dtype = base.weight.device, base.weight.dtype
    shift = layer(torch.zeros(1, inputs, device=device, dtype=dtype))
    columns = layer(torch.eye(inputs, device=device, dtype=dtype)) - shift
    base.weight.copy_(columns if is_conv1d else columns.T)
    if base.bias is not None:
        base.bias.copy_(shift[0])
