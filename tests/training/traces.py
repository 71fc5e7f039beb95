"""The operations of a pass: what a CUDA graph holds."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# Their result or shape depends on values: on a GPU they wait for the device.
DEPENDENT = frozenset({
    "_local_scalar_dense", "nonzero", "masked_select", "_unique", "_unique2", "is_nonzero", "equal", "bincount",
})  # fmt: skip


class Trace(TorchDispatchMode):
    """Notes each operation with the shapes of its tensors, and refuses those that wait for values."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        masks = [leaf for leaf in tree_leaves(args[1:]) if isinstance(leaf, torch.Tensor) and leaf.dtype == torch.bool]
        assert name not in DEPENDENT and not (name in ("index", "index_put_") and masks), f"{name} waits for values"
        out = function(*args, **(kwargs or {}))
        shapes = [tuple(leaf.shape) for leaf in tree_leaves((args, out)) if isinstance(leaf, torch.Tensor)]
        self.seen.append((name, shapes))
        return out


def traced(call):
    """Returns the operations of a call."""
    with Trace() as trace:
        call()
    return trace.seen
