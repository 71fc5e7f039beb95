"""Attention that prepends a module's trained keys and values, through transformers' attention interface.

Where a module holds no prefix it is what the model used before, to the bit.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from autopeft.errors import Refused

NAME = "autopeft_prefix_"
SUPPORTED = ("eager", "sdpa")
DEVIATION = 0.02  # of a fresh prefix: small keys, near-uniform attention to it


def add_prefix(model: Any, key: str, value: str, size: int) -> None:
    """Registers `prefix_key` and `prefix_value`, (size, width) each, on the attention module of two layers."""
    owner = model.get_submodule(key.rpartition(".")[0])
    for name, layer in (("prefix_key", key), ("prefix_value", value)):
        module = model.get_submodule(layer)
        width = getattr(module, "base_layer", module).out_features
        device = next(module.parameters()).device
        tensor = torch.empty(size, width, device=device)
        owner.register_parameter(name, nn.Parameter(tensor if tensor.is_meta else tensor.normal_(0.0, DEVIATION)))


def use_prefix_attention(model: Any) -> None:
    """Makes this clone's config name the attention below, on top of the one it had.

    Raises:
        Refused: The model does not go by transformers' attention interface.
    """
    before = str(model.config._attn_implementation)
    if before.startswith(NAME):
        return
    if before not in SUPPORTED:
        raise Refused(f"a prefix needs {' or '.join(SUPPORTED)} attention, not {before}")
    name = NAME + before
    AttentionInterface.register(name, {"eager": _eager, "sdpa": _sdpa}[before])
    AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS[before])
    model.config._attn_implementation = name


def _eager(
    module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: Any, **options: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """softmax(q kᵀ · scaling + mask) v over (n, heads, tokens, width)."""
    key, value, attention_mask = _prepended(module, query, key, value, attention_mask)
    scaling = options.get("scaling")
    scores = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = nn.functional.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    return (weights @ value).transpose(1, 2).contiguous(), weights


def _sdpa(
    module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: Any, **options: Any
) -> tuple[torch.Tensor, None]:
    key, value, attention_mask = _prepended(module, query, key, value, attention_mask)
    if attention_mask is None and hasattr(module, "prefix_key") and getattr(module, "is_causal", False):
        raise Refused("a prefix under a causal model's sdpa attention needs its mask: use eager attention")
    attend: Any = ALL_ATTENTION_FUNCTIONS["sdpa"]
    result: tuple[torch.Tensor, None] = attend(module, query, key, value, attention_mask, **options)
    return result


def _prepended(
    module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any
) -> tuple[torch.Tensor, torch.Tensor, Any]:
    """Keys and values with the module's prefix before them, which every query may see."""
    if not hasattr(module, "prefix_key"):
        return key, value, mask
    rows, heads, _, width = key.shape

    def before(prefix: torch.Tensor) -> torch.Tensor:
        return prefix.to(key.dtype).view(-1, heads, width).transpose(0, 1).expand(rows, -1, -1, -1)

    size = module.prefix_key.shape[0]
    key = torch.cat([before(module.prefix_key), key], dim=2)
    value = torch.cat([before(module.prefix_value), value], dim=2)
    if mask is not None:
        seen = torch.ones if mask.dtype == torch.bool else torch.zeros
        mask = torch.cat([seen(*mask.shape[:-1], size, dtype=mask.dtype, device=mask.device), mask], dim=-1)
    return key, value, mask
