"""Gradient checkpointing: a block keeps its inputs only, and computes its activations again for the gradients.

Gradients are those of a pass that keeps everything, at the cost of one more forward pass (Chen et al., 2016,
arXiv:1604.06174).
Not transformers' own: that one works in training mode only, and the base stays in evaluation mode here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def checkpoint_blocks(model: nn.Module, blocks: Sequence[str]) -> None:
    """Makes blocks of a trial's clone compute their activations again. Hooks of a block itself run once.

    The model must not keep keys and values for generation, to which the second pass would add its own.
    """
    for name in blocks:
        block = model.get_submodule(name)
        if any(True for _ in block.parameters()):  # not one that a cache replaces
            block.forward = partial(_again, block.forward)


def _again(forward: Callable[..., Any], *args: Any, **options: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **options)
    return checkpoint(forward, *args, use_reentrant=False, **options)
