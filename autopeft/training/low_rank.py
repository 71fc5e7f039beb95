"""A linear layer and its low-rank update as one node of the autograd graph, for one trial or for several side by side.

As separate nodes, layer and update each write a gradient of the input, autograd adds the two, and autocast casts the
input twice. One node saves this work. LoRA: Hu et al., 2021, arXiv:2106.09685.
"""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora.layer import Linear
from torch import nn


def updated(
    x: torch.Tensor,
    base: nn.Module,
    a: torch.Tensor,
    b: torch.Tensor,
    mask: torch.Tensor | None,
    share: torch.Tensor | None = None,
) -> torch.Tensor:
    """Computes W x + B (share · A (mask · x)), in the type of x.

    Args:
        x: (k, n, in): rows of k trials.
        base: The layer, with `weight` and `bias`: linear, or GPT-2's Conv1D. If another component of the recipe trains
            one of them, its gradient is computed, too.
        a, b: (k, rank, in) and (k, out, rank); one of them contains the scale of the update.
        mask: (k, n, in), dropout mask; None for no dropout.
        share: (k, n, rank), what of the update each row takes; None for all of it.

    Returns:
        (k, n, out).
    """
    weight = base.weight if isinstance(base, nn.Linear) else base.weight.mT
    bias = None if base.bias is None else base.bias.to(x.dtype)
    return _Updated.apply(x, weight.to(x.dtype), bias, a.to(x.dtype), b.to(x.dtype), mask, share)  # type: ignore[no-any-return, no-untyped-call]


class _Updated(torch.autograd.Function):
    """Computes `updated`, with gradients of all five tensors. A gradient that is not needed is not computed."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: Any,
        a: torch.Tensor,
        b: torch.Tensor,
        mask: Any,
        share: Any,
    ) -> torch.Tensor:
        out = nn.functional.linear(x, weight, bias)
        narrow = torch.bmm(x if mask is None else x * mask, a.mT)
        if share is not None:
            narrow *= share
        ctx.save_for_backward(x, weight, a, b, narrow, mask, share)
        if (
            torch.compiler.is_compiling()
        ):  # torch 2.11 loses all gradients of a node that returns what it changed in place
            return torch.baddbmm(out, narrow, b.mT)
        return out.baddbmm_(narrow, b.mT)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight, a, b, narrow, mask, share = ctx.saved_tensors
        gradient = gradients[0].contiguous()
        of_narrow = torch.bmm(gradient, b)
        if share is not None:
            of_narrow *= share
        of_a = torch.bmm(of_narrow.mT, x if mask is None else x * mask)
        of_b = torch.bmm(gradient.mT, narrow)
        of_x = of_weight = of_bias = None
        if ctx.needs_input_grad[0]:  # else nothing below is trained
            of_x = torch.matmul(gradient, weight)
            if mask is None:
                of_x.baddbmm_(of_narrow, a)
            else:
                of_x += torch.bmm(of_narrow, a) * mask
        if ctx.needs_input_grad[1]:
            of_weight = gradient.flatten(0, 1).mT @ x.flatten(0, 1)
        if ctx.needs_input_grad[2]:
            of_bias = gradient.sum((0, 1))
        return of_x, of_weight, of_bias, of_a, of_b, None, None


def fuse(model: nn.Module) -> None:
    """Makes peft's plain LoRA layers on linear layers use `updated`. An exported adapter uses peft's own code.

    They change their class, not their method: what is compiled for a class serves all of its layers.
    """
    wrapped = {id(module.base_layer) for module in model.modules() if hasattr(module, "base_layer")}
    for layer in model.modules():  # a wrapper changes the output in place, which our node does not allow
        is_alone = type(layer) is Linear and id(layer) not in wrapped
        if is_alone and is_plain(layer) and type(layer.base_layer) is nn.Linear:
            layer.__class__ = FusedLinear


def is_plain(layer: Any) -> bool:
    """Whether a LoRA layer of peft adds B A x only, to a weight that products can read: no DoRA, no bias, no torchao."""
    is_tensor = type(layer.get_base_layer().weight.data) is torch.Tensor
    return is_tensor and not layer.lora_variant and layer.lora_B["default"].bias is None


class FusedLinear(Linear):
    """A plain LoRA layer of peft on a linear layer, as one node with it."""

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        layer: Any = self  # peft keeps its parts in dictionaries of modules
        base, dropout = layer.base_layer, layer.lora_dropout["default"]
        is_cast = torch.is_autocast_enabled(x.device.type)
        rows = x.to(torch.get_autocast_dtype(x.device.type) if is_cast else base.weight.dtype)
        rows = rows.reshape(1, -1, x.shape[-1])
        is_dropping = self.training and isinstance(dropout, nn.Dropout)
        mask = dropout(torch.ones_like(rows)) if is_dropping else None
        a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight * layer.scaling["default"]
        out = updated(rows, base, a[None], b[None], mask)
        return out.view(*x.shape[:-1], out.shape[-1])
