"""Watches the operations of a step for those that a CUDA graph does not take, as on a CPU they go unnoticed."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.training.traces import DEPENDENT

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
