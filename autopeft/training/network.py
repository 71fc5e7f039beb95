"""A trial's model, and how its batches reach it: through the cached prefix where there is one."""

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


SPLITS = ("train", "validation")  # that every trial reads


def as_trials_run(model: nn.Module, view: ModelView, precision: Precision) -> None:
    """Prepares a clone of the base, its recipe attached, as each trial trains it: exact, and fast."""
    precision.lower(model)
    fuse(model)
    read_first_token(model, view)


class Network:
    """A trial's model, and how its batches reach it: through the cached prefix where there is one.

    Args:
        worker: Whose base, data and caches it uses.
        attached: The clone with the recipe.

    Attributes:
        depth: How many blocks the cache stands for; n_layers + 1 where it stands for all but the head; 0 for none.
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
        """The deepest cache that holds nothing trained; 0 where it would be over the bound."""
        lowest, n_layers = self.attached.lowest, self.worker.view.n_layers
        if lowest == 0 or self.worker.task.calls_model or self.worker.setup.machine.prefix_cache_bytes == 0:
            return 0
        if lowest == n_layers and self._trains_one_head() and self._open(n_layers + 1):
            if all(isinstance(part.values, np.ndarray) and part.values.ndim == 2 for part in self._caches.values()):
                return n_layers + 1
            self._caches.clear()  # the head reads more than one vector a row: it is called by the model
        return lowest if self._open(lowest) else 0

    def _trains_one_head(self) -> bool:
        head = self.worker.view.head
        return len(head) == 1 and all(name.startswith(f"{head[0]}.") for name in self.attached.trained)

    def _open(self, depth: int) -> bool:
        """Opens the caches of the splits that every trial reads; whether they are within the bound."""
        cached = self.worker.cached(SPLITS, depth)
        self._caches = cached or {}
        return cached is not None

    def _below(self, split: str, rows: np.ndarray) -> torch.Tensor:
        """What the cut stands for, of some rows: cached, or computed where a further split is over the bound."""
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
        """What the recipe added trains with its dropout; the base stays in evaluation mode, inside what wraps it too."""
        self.model.eval()
        added = set(self.attached.added)
        for name, module in self.model.named_modules():
            if name in added:
                module.training = True

    def eval(self) -> None:
        self.model.eval()

    def logits(self, split: str, rows: np.ndarray) -> torch.Tensor:
        """(n_rows, n_labels) of some rows of a split."""
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
        """Gradients of a batch's mean loss, in micro-batches; halves them when memory runs out. Returns the loss.

        Raises:
            RuntimeError: Out of memory with one row.
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
            for penalty in penalties:  # by the part's share of the rows, so that they add up to the batch's
                loss = loss + penalty() * (len(part) / len(rows))
            loss.backward()
        return total


def _logits(output: Any) -> torch.Tensor:
    """Of what a transformers model returns."""
    logits: torch.Tensor = output.logits
    return logits
