"""Attention that prepends a module's trained keys and values, through transformers' attention interface.

A module with a prefix gets a config of its own, which names the attention below. That attention extends keys, values
and mask, and then calls the model's attention. All other modules stay unchanged.
"""

from __future__ import annotations

import copy
import sys
from typing import Any

import torch
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from autopeft.errors import Refused

PREFIX = "autopeft_prefix_"
SUPPORTED = ("eager", "sdpa")
DEVIATION = 0.02  # of a fresh prefix: small keys, near-uniform attention to it


def add_prefix(model: Any, key: str, value: str, size: int) -> None:
    """Puts `prefix_key` and `prefix_value`, (size, width) each, on the attention module of two layers.

    Raises:
        Refused: The module does not use transformers' attention interface, or uses an attention without masks, or has a
            prefix already.
    """
    owner = attention_of(model, key)
    for name, layer in (("prefix_key", key), ("prefix_value", value)):
        linear = getattr(model.get_submodule(layer), "get_base_layer", lambda at=layer: model.get_submodule(at))()
        if linear.weight.is_meta:
            tensor = torch.empty(size, linear.out_features, device="meta")
        else:
            tensor = torch.empty(size, linear.out_features).normal_(0.0, DEVIATION).to(linear.weight.device)
        owner.register_parameter(name, nn.Parameter(tensor))
    config = copy.copy(owner.config)
    config._attn_implementation_internal = f"{PREFIX}{owner.config._attn_implementation}"
    owner.config = config


def attention_of(model: Any, key: str) -> Any:
    """Finds the attention module of a layer that makes keys.

    Raises:
        Refused: The module does not use transformers' attention interface, or uses an attention without masks.
    """
    owner = model.get_submodule(key.rpartition(".")[0])
    if "ALL_ATTENTION_FUNCTIONS" not in type(owner).forward.__code__.co_names or not hasattr(owner, "config"):
        raise Refused(f"{type(owner).__name__} is not of transformers' attention interface: no prefix can be prepended")
    if hasattr(owner, "prefix_key"):
        raise Refused(f"{key.rpartition('.')[0]} has a prefix already: give the two other layers")
    before = str(owner.config._attn_implementation)
    if before not in SUPPORTED:
        raise Refused(f"a prefix needs {' or '.join(SUPPORTED)} attention, not {before}")
    return owner


def _with_prefix(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: Any, **options: Any
) -> Any:
    """softmax(q [P_k; K]ᵀ) [P_v; V]: query (n, heads, tokens, width), key and value (n, key heads, tokens, width).

    Every query sees the whole prefix. Positions do not count the prefix.
    """
    before = module.config._attn_implementation.rpartition(PREFIX)[2]  # a name of the engine may come before it
    attend = ALL_ATTENTION_FUNCTIONS.get_interface(before, sys.modules[type(module).__module__].eager_attention_forward)
    if attention_mask is None and getattr(module, "is_causal", False):
        seen = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=query.device)
        attention_mask = seen.tril(key.shape[2] - query.shape[2])[None, None]  # else sdpa aligns it to the prefix
        if before == "eager":
            attention_mask = torch.zeros_like(attention_mask, dtype=query.dtype).masked_fill(
                ~attention_mask, torch.finfo(query.dtype).min
            )
    size = module.prefix_key.shape[0]
    if attention_mask is not None:
        open_ = True if attention_mask.dtype == torch.bool else 0.0
        attention_mask = nn.functional.pad(attention_mask, (size, 0), value=open_)
    if options.get("position_bias") is not None:  # T5's: the prefix has no position
        options["position_bias"] = nn.functional.pad(options["position_bias"], (size, 0))
    key, value = _prepend(module.prefix_key, key), _prepend(module.prefix_value, value)
    return attend(module, query, key, value, attention_mask, **options)


def _prepend(prefix: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
    rows, heads, _, width = states.shape
    prefix = prefix.to(states.dtype).view(-1, heads, width).transpose(0, 1)
    return torch.cat([prefix.expand(rows, -1, -1, -1), states], dim=2)


for _name in SUPPORTED:
    ALL_ATTENTION_FUNCTIONS.register(PREFIX + _name, _with_prefix)
