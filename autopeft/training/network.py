"""A trial's model, with the cached prefix in place of its lowest blocks if there is one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from autopeft.training.batches import batch_weight, collate, collate_targets
from autopeft.training.faults import is_out_of_memory
from autopeft.training.first_token import read_first_token
from autopeft.training.low_rank import fuse
from autopeft.training.model import ModelView
from autopeft.training.precision import Precision
from autopeft.training.prefix_cache import Cached, Cut, Reach
from autopeft.training.recipe import Attached

if TYPE_CHECKING:
    from autopeft.training.loop import Worker


SPLITS = ("train", "validation")  # the splits that every trial reads


def as_trials_run(model: nn.Module, view: ModelView, precision: Precision) -> None:
    """Puts a clone of the base with its recipe in the search's precision, and drops work that changes no result."""
    precision.lower(model)
    fuse(model)
    read_first_token(model, view)


class Network:
    """Runs a trial's model on batches, with the cached prefix in place of its lowest blocks if there is one.

    Args:
        worker: Owner of the base, the data and the caches.
        attached: The clone with the recipe.

    Attributes:
        depth: Number of blocks that the cache replaces; n_layers + 1 if it replaces all but the head; 0 for none.
        untrained: Trained parameters that no gradient has reached so far, by name.
    """

    def __init__(self, worker: Worker, attached: Attached) -> None:
        self.worker, self.attached, self.model = worker, attached, attached.model
        parameters = dict(attached.model.named_parameters())
        self.untrained = {name: parameters[name] for name in attached.trained if name in parameters}
        self.micro_batch_size = worker.setup.machine.micro_batch_size
        self._caches: dict[str, Cached] = {}
        self._reach: Reach | None = None
        self.cut: Cut | None = None
        self.depth = self._depth()
        if 0 < self.depth <= worker.view.n_layers:
            self.cut = Cut(self.model, worker.view.stem, worker.view.blocks, self.depth)

    def _depth(self) -> int:
        """Returns the depth of the deepest cache with nothing trained below it; 0 if that cache exceeds the bound."""
        lowest, n_layers = self.attached.lowest, self.worker.view.n_layers
        if lowest == 0 or self.worker.task.calls_model or self.worker.setup.machine.prefix_cache_bytes == 0:
            return 0
        if lowest == n_layers and self._trains_one_head() and self._open(n_layers + 1):
            if all(isinstance(part.values, np.ndarray) and part.values.ndim == 2 for part in self._caches.values()):
                return n_layers + 1
            self._caches.clear()  # the head reads more than one vector a row, so only the model can call it
        return lowest if self._open(lowest) else 0

    def _trains_one_head(self) -> bool:
        head = self.worker.view.head
        return len(head) == 1 and all(name.startswith(f"{head[0]}.") for name in self.attached.trained)

    def _open(self, depth: int) -> bool:
        """Opens the caches of the splits that every trial reads. Returns whether they are within the bound."""
        cached = self.worker.cached(SPLITS, depth)
        self._caches = cached or {}
        return cached is not None

    def _below(self, split: str, rows: np.ndarray) -> torch.Tensor:
        """Returns the activations at the cut for some rows: from the cache, or computed if the split has no cache."""
        if split not in self._caches and self._reach is None:
            cached = self.worker.cached((*SPLITS, split), self.depth)
            if cached is None:
                self._reach = self.worker.reach(self.depth)
            else:
                self._caches = cached
        if split in self._caches:
            return self._caches[split](rows, self.worker.device)
        assert self._reach is not None
        return self._reach(self.worker.data.splits[split], rows)

    def train(self) -> None:
        """Puts the modules that the recipe added in training mode. Modules of the base stay in evaluation mode."""
        self.model.eval()
        added = set(self.attached.added)
        for name, module in self.model.named_modules():
            if name in added:
                module.training = True

    def eval(self) -> None:
        self.model.eval()

    def logits(self, split: str, rows: np.ndarray) -> torch.Tensor:
        """Computes the logits (n_rows, n_labels) of some rows of a split."""
        worker, data = self.worker, self.worker.data.splits[split]
        with worker.precision.context():
            if self.depth == 0:
                return _logits(self.model(**collate(data, rows, worker.device)))
            hidden = self._below(split, rows)
            if self.cut is None:
                of_head: torch.Tensor = self.model.get_submodule(worker.view.head[0])(hidden)
                return of_head
            self.cut.hidden = hidden
            unseen = frozenset(data.inputs) if self.cut.skips_stem else frozenset()
            return _logits(self.model(**collate(data, rows, worker.device, without=unseen)))

    def backward(self, split: str, rows: np.ndarray) -> float:
        """Computes the gradients of a batch's mean loss, micro-batch by micro-batch, and returns the loss.

        If memory runs out, the micro-batches are halved.

        Raises:
            RuntimeError: Memory runs out with one row.
        """
        while True:
            try:
                return self._backward(split, rows)
            except (RuntimeError, MemoryError) as fault:
                if not is_out_of_memory(fault) or self.micro_batch_size == 1:
                    raise
            self.model.zero_grad(set_to_none=True)
            self.micro_batch_size = max(1, min(self.micro_batch_size, len(rows)) // 2)
            if self.worker.device.type == "cuda":
                torch.cuda.empty_cache()

    def _backward(self, split: str, rows: np.ndarray) -> float:
        worker, total = self.worker, 0.0
        split_of, weights = worker.data.splits[split], worker.data.weights[split]
        weight = batch_weight(weights, rows)
        penalties = [during.penalty for during in self.attached.during if during.penalty is not None]
        for at in range(0, len(rows), self.micro_batch_size):
            part = rows[at : at + self.micro_batch_size]
            outputs = self.logits(split, part)
            targets = collate_targets(split_of, part, worker.device)
            loss = worker.task.loss(outputs.float(), targets).sum() / weight
            total += float(loss.detach())
            for penalty in penalties:  # weighted by the part's share of the batch's rows
                loss = loss + penalty() * (len(part) / len(rows))
            loss.backward()
        return total


def _logits(output: Any) -> torch.Tensor:
    """Takes the logits from the output of a transformers model."""
    logits: torch.Tensor = output.logits
    return logits
