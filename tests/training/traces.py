"""The operations of a pass: what a CUDA graph holds, and what it does not take, which on a CPU goes unnoticed."""

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


# Operations that make a tensor of numbers of the host: on a GPU a copy that has to wait.
FROM_HOST = {"lift_fresh", "lift", "lift_fresh_copy"}


class Watch(TorchDispatchMode):
    """Collects the operations that a capture does not take."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        is_masked = name in ("index", "index_put", "index_put_", "_index_put_impl_") and any(
            index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        )
        if name in DEPENDENT | FROM_HOST or is_masked:
            self.found.append(name)
        return func(*args, **(kwargs or {}))


def watched(step, size):
    """The operations of a step that a capture does not take."""
    step(size)  # what is made once, in the passes before the capture
    with Watch() as watch:
        step(size)
    return watch.found
