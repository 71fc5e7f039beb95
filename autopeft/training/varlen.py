"""Flash attention by the rows' boundaries (torch's `varlen_attn`), where it is there and computes what it should.

It came with torch 2.10, takes windows from 2.11 on, and needs a GPU of compute capability 8. So it is asked, once for
each form: does it compute what plain attention does, and its gradients?
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import torch

logger = logging.getLogger(__name__)

MOST_WIDTH = 256  # of a head
# What an attention function may be given and `varlen_attn` needs no more; anything else goes the general way.
NEEDLESS = frozenset({
    "position_ids", "use_cache", "output_attentions", "output_hidden_states", "cache_position", "is_causal",
    "past_key_values", "past_key_value", "head_mask", "encoder_hidden_states", "encoder_attention_mask",
})  # fmt: skip
LENGTHS = (5, 1, 9)  # rows that it is asked with
SAME = 0.05  # largest difference of them that is rounding, as a share of the largest value
Window = tuple[int, int]  # places that a query sees before and behind it; -1: all
Kernel = Callable[..., Any]


def takes(query: torch.Tensor, value: torch.Tensor, options: Mapping[str, Any], window: Window) -> bool:
    """Whether it does all that is asked: on a GPU, in 16 bits, without biases or dropout."""
    if not query.is_cuda or query.dtype not in (torch.bfloat16, torch.float16):
        return False
    if query.shape[-1] > MOST_WIDTH or query.shape[-1] % 8 or query.shape[-1] != value.shape[-1]:
        return False
    more = {name for name, given in options.items() if given is not None and name not in NEEDLESS}
    if not more <= {"scaling", "dropout", "sliding_window"} or options.get("dropout"):
        return False
    return _is_right_here(query.device, query.dtype, query.shape[-1], window)


@torch.compiler.disable  # type: ignore[untyped-decorator]
def attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    bounds: torch.Tensor,
    longest: int,
    window: Window,
    scaling: float | None = None,
    kernel: Kernel | None = None,
) -> torch.Tensor:
    """Attention within rows that lie end to end: query (heads, n, width), key and value (key heads, n, width).

    Args:
        bounds: (n_rows + 1,) int32, where each row begins and ends.
        longest: At least the length of the longest row.
        scaling: Factor of the scores; None for 1 / √width.

    Returns:
        (n, heads, width).
    """
    kernel = kernel or _kernel()
    query, key, value = (states.transpose(0, 1) for states in (query, key, value))
    width, copies = query.shape[-1], query.shape[1] // key.shape[1]
    if scaling is not None and scaling != width**-0.5:  # it scales by the width alone
        query = query * (scaling * width**0.5)
    if copies > 1:
        key, value = (states.repeat_interleave(copies, 1) for states in (key, value))
    query, key, value = (states.contiguous() for states in (query, key, value))
    out: torch.Tensor = kernel(query, key, value, bounds, bounds, longest, longest, window_size=window)
    return out


def _kernel() -> Kernel:
    from torch.nn.attention.varlen import varlen_attn

    return varlen_attn


@cache
def _is_right_here(device: torch.device, dtype: torch.dtype, width: int, window: Window) -> bool:
    try:
        is_right = agrees(_kernel(), device, dtype, width, window)
    except Exception as fault:  # another version of torch, a card that is too old, a form that it does not take
        logger.info("attention goes by padded rows, as flash attention by boundaries is not to be had: %s", fault)
        return False
    if not is_right:
        logger.warning("attention goes by padded rows, as torch %s computes otherwise by boundaries", torch.__version__)
    return is_right


def agrees(kernel: Kernel, device: torch.device, dtype: torch.dtype, width: int, window: Window) -> bool:
    """Whether a kernel computes, forward and backward, what plain attention does in fp32."""
    draw = torch.Generator().manual_seed(0)
    states = [torch.randn(2, sum(LENGTHS), width, generator=draw).to(device).requires_grad_() for _ in range(3)]
    bounds = torch.tensor([0, *LENGTHS]).cumsum(0).int().to(device)
    found = []
    with torch.enable_grad(), torch.autocast(device.type, enabled=False):
        q, k, v = (each.to(dtype) for each in states)
        fast = attention(q, k, v, bounds, max(LENGTHS), window, kernel=kernel)
        for out in (fast, _plain(states[0], states[1], states[2], window)):
            own = out.float()
            found.append([own.detach(), *torch.autograd.grad(own.square().sum(), states)])
    pairs = zip(*found, strict=True)
    return all(bool((one - other).abs().max() <= SAME * other.abs().max()) for one, other in pairs)


def _plain(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, window: Window) -> torch.Tensor:
    """Attention within rows of `LENGTHS`, row by row, (n, heads, width)."""
    out = []
    for q, k, v in zip(*(states.split(LENGTHS, dim=1) for states in (query, key, value)), strict=True):
        place = torch.arange(q.shape[1], device=q.device)
        behind = place - place[:, None]  # how far each key is behind each query
        is_seen = torch.ones_like(behind, dtype=torch.bool)
        if window[0] >= 0:
            is_seen &= behind >= -window[0]
        if window[1] >= 0:
            is_seen &= behind <= window[1]
        scores = (q @ k.mT * q.shape[-1] ** -0.5).masked_fill(~is_seen, float("-inf"))
        out.append((scores.softmax(-1) @ v).transpose(0, 1))
    return torch.cat(out)
