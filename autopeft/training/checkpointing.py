"""Gradient checkpointing: a block keeps its inputs only, and computes its activations again for the gradients.

Gradients are those of a pass that keeps everything, at the cost of one more forward pass (Chen et al., 2016,
arXiv:1604.06174).
Not transformers' own: that one works in training mode only, and the base stays in evaluation mode here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint


def checkpoint_blocks(model: nn.Module, blocks: Sequence[str]) -> None:
    """Makes blocks of a trial's clone compute their activations again. Hooks of a block itself run once.

    The model must not keep keys and values for generation, to which the second pass would add its own.
    """
    for name in blocks:
        block = model.get_submodule(name)
        if any(True for _ in block.parameters()):  # not one that a cache replaces
            block.forward = Again(block.forward)


class Again:
    """A block's forward pass that is computed again for the gradients.

    What it drew, as dropout does, the second pass draws again, by the host's leave: no CUDA graph can hold that. The first
    pass shows whether it draws at all.

    Args:
        forward: The pass.
    """

    def __init__(self, forward: Callable[..., Any]) -> None:
        self.forward = forward
        self.draws: bool | None = None

    def __call__(self, *args: Any, **options: Any) -> Any:
        if not torch.is_grad_enabled():
            return self.forward(*args, **options)
        tensor = next(leaf for leaf in tree_leaves((args, options)) if isinstance(leaf, torch.Tensor))
        if self.draws is None:
            before = _states(tensor.device)
            out = checkpoint(self.forward, *args, use_reentrant=False, **options)
            self.draws = any(not torch.equal(*pair) for pair in zip(before, _states(tensor.device), strict=True))
            return out
        if self.draws and tensor.is_cuda and torch.cuda.is_current_stream_capturing():
            raise RuntimeError("a checkpointed block has dropout, whose masks are drawn a second time")
        return checkpoint(self.forward, *args, use_reentrant=False, preserve_rng_state=self.draws, **options)


def _states(device: torch.device) -> list[torch.Tensor]:
    """The states of the random numbers that a pass on a device may draw."""
    states = [torch.random.get_rng_state()]
    return [*states, torch.cuda.get_rng_state(device)] if device.type == "cuda" else states
