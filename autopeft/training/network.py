"""A trial's model, with the cached prefix in place of its lowest blocks if there is one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from autopeft.tasks import Augmenting, Ragged, Split, TokenWise, augments
from autopeft.training.answers import most_places, pass_rows
from autopeft.training.batches import batch_weight, by_length, collate, collate_targets, divided
from autopeft.training.checkpointing import checkpoint_blocks
from autopeft.training.faults import is_out_of_memory
from autopeft.training.first_token import read_first_token
from autopeft.training.flat import Flattening
from autopeft.training.head import vectors
from autopeft.training.low_rank import fuse
from autopeft.training.model import ModelView
from autopeft.training.precision import Precision
from autopeft.training.prefix_cache import Cached, Cut, Reach
from autopeft.training.recipe import Attached
from autopeft.training.resident import Column
from autopeft.training.scorer import Scorer
from autopeft.training.sizes import Size, Widths
from autopeft.training.static import Picked, StaticSplit, filled, inhabited, no_cache

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
        depth: Number of blocks that the cache replaces, of those that the head reads; one more than there are if it
            replaces all but the head's layers; 0 for none.
        untrained: Names of trained parameters that no gradient has reached so far.
        is_checkpointed: Whether the blocks compute their activations a second time for the gradients.
        is_static: Whether batches have static shapes.
        is_joined: Whether the tokens of all members of a pass lie in one buffer.
        scorer: Computes the logits of passes without gradient, if they are captured.
    """

    def __init__(self, worker: Worker, attached: Attached) -> None:
        self.worker, self.attached, self.model, self.view = worker, attached, attached.model, attached.view
        parameters = dict(attached.model.named_parameters())
        self.untrained = {name for name in attached.trained if name in parameters}
        for name in self.untrained:
            parameters[name].register_hook(partial(_reached, self.untrained, name))
        self.micro_batch_size = worker.setup.machine.micro_batch_size
        self._caches: dict[str, Cached] = {}
        self._reach: Reach | None = None
        self.cut: Cut | None = None
        self.depth = self._depth()
        if 0 < self.depth <= self.view.n_layers:
            self.cut = Cut(self.model, self.view.stem, self.view.blocks, self.depth)
        is_flat = worker.setup.machine.layout == "flat"
        self.is_static = is_flat and worker.statics.form(worker.data) is not None
        self.flattening: Flattening | None = None
        self.is_joined = False
        self.scorer: Scorer | None = None
        if self.is_static and worker.statics.form(worker.data) == "flat":
            output = self.view.output if isinstance(worker.task, TokenWise) else ()
            self.flattening = Flattening(self.model, self.view.blocks, next(iter(output), None))
        self.is_checkpointed = False
        if worker.setup.machine.gradient_checkpointing == "on":
            self.checkpoint()
        self._no_cache = no_cache(self.model)

    def checkpoint(self) -> None:
        """Lets the blocks keep no activations from now on."""
        self.is_checkpointed = True
        checkpoint_blocks(self.model, self.blocks)

    @property
    def blocks(self) -> tuple[str, ...]:
        """Returns the names of the blocks that run: those that no cache replaces."""
        return self.view.blocks[min(self.depth, self.view.n_layers) :]

    def _depth(self) -> int:
        """Returns the depth of the deepest cache with nothing trained below it; 0 if that cache exceeds the bound."""
        lowest, n_layers = self.attached.lowest, self.view.n_layers
        task = self.worker.task
        if lowest == 0 or task.calls_model or augments(task) or self.worker.setup.machine.prefix_cache_bytes == 0:
            return 0
        if lowest == n_layers and self._reads_vectors() and self._open(n_layers + 1):
            if all(isinstance(part.values, np.ndarray) and part.values.ndim == 2 for part in self._caches.values()):
                return n_layers + 1
            self._caches.clear()  # the head reads more than one vector a row, so only the model can call it
        return lowest if self._open(lowest) else 0

    def _reads_vectors(self) -> bool:
        """Whether all that trains is behind the vectors of the rows."""
        layers = vectors(self.view)
        return bool(layers) and all(name.startswith(f"{layers}.") for name in self.attached.trained)

    def _cached(self, splits: Sequence[str], depth: int) -> dict[str, Cached] | None:
        """Returns the cached activations below a depth, or the vectors that the head's pooling makes of them."""
        if depth > self.view.n_layers:
            return self.worker.cached(splits, self.view.n_layers, self.view.chosen)
        return self.worker.cached(splits, depth)

    def _open(self, depth: int) -> bool:
        """Opens the caches of the splits that every trial reads. Returns whether they are within the bound."""
        cached = self._cached(SPLITS, depth)
        self._caches = cached or {}
        return cached is not None

    def _below(self, split: str, rows: np.ndarray) -> torch.Tensor:
        """Returns the activations at the cut for some rows: from the cache, or computed if the split has no cache."""
        if self._has_cache(split):
            return self._caches[split](rows, self.worker.device)
        assert self._reach is not None
        return self._reach(self.worker.data.splits[split], rows)

    def _has_cache(self, split: str) -> bool:
        """Opens the cache of a split that only some trials read. Returns whether it is within the bound."""
        if split not in self._caches and self._reach is None:
            cached = self._cached((*SPLITS, split), self.depth)
            if cached is None:
                head = self.view.chosen if self.depth > self.view.n_layers else None
                self._reach = self.worker.reach(min(self.depth, self.view.n_layers), head=head)
            else:
                self._caches = cached
        return split in self._caches

    def train(self) -> None:
        """Puts the modules that the recipe added in training mode. Modules of the base stay in evaluation mode."""
        self.model.eval()
        added = set(self.attached.added)
        for name, module in self.model.named_modules():
            if name in added:
                module.training = True

    def eval(self) -> None:
        self.model.eval()

    def score_batches(self, split: str, most_rows: int | None = None, members: int = 1) -> list[np.ndarray]:
        """Returns the rows of a split in batches for scoring.

        Args:
            most_rows: Most rows of a batch; None for those of a pass.
            members: Number of members that share a pass, each with a batch.
        """
        lengths = self.worker.data.splits[split].lengths
        if self.takes_static(split):
            return self._widths(split, most_rows, members).batches()
        return by_length(lengths, most_rows or self.pass_rows, self._most_places(members))

    @property
    def pass_rows(self) -> int:
        """Returns how many rows a pass for scoring may hold."""
        return pass_rows(self.model, self.worker.device)

    def _most_places(self, members: int) -> int | None:
        most = most_places(self.model, self.worker.device)
        return None if most is None else max(1, most // members)

    def logits(self, split: str, rows: np.ndarray) -> torch.Tensor:
        """Computes the logits (n_rows, n_labels) of some rows of a split."""
        worker, data = self.worker, self.worker.data.splits[split]
        if self.takes_static(split):
            size = self.score_size(split, [rows])
            return of_rows(self._pass(self.send([rows], size, split), size, split), data, rows)
        if self.flattening is not None:
            self.flattening.read(None)
        with worker.precision.context():
            if self.depth == 0:
                return _logits(
                    self.model(**self._augmented(collate(data, rows, worker.device), split), **self._no_cache)
                )
            hidden = self._below(split, rows)
            if self.cut is None:
                of_head: torch.Tensor = self.model.get_submodule(vectors(self.view))(hidden)
                return of_head
            self.cut.hidden = hidden
            unseen = frozenset(data.inputs) if self.cut.skips_stem else frozenset()
            return _logits(self.model(**collate(data, rows, worker.device, without=unseen), **self._no_cache))

    def _augmented(self, inputs: Mapping[str, torch.Tensor], split: str) -> Mapping[str, torch.Tensor]:
        """Returns the inputs of a batch, changed by the task if it does so and the batch is one to train on."""
        task = self.worker.task
        if split == "train" and torch.is_grad_enabled() and isinstance(task, Augmenting) and task.augments:
            return task.augment(inputs)
        return inputs

    # ── static shapes ───────────────────────────────────────────────────────────────────────────────────────────────

    def takes_static(self, split: str) -> bool:
        """Whether batches of a split have static shapes: not if its activations would have to be cached, and are not."""
        return self.is_static and (self.depth == 0 or self._has_cache(split))

    def size_of(self, batches: Sequence[np.ndarray], split: str = "train") -> Size:
        """Returns the size of a pass over some batches of training rows, one a trial that shares it."""
        worker, members = self.worker, len(batches) if self.is_joined else 1
        batch_size = worker.setup.train.batch_size
        return worker.statics.sizes(worker.data, split, batch_size, self.micro_batch_size, members).fit(batches)

    def score_size(self, split: str, batches: Sequence[np.ndarray], most_rows: int | None = None) -> Size:
        """Returns the size of a pass without gradient over some batches of rows, one a member of the pass."""
        return self._widths(split, most_rows, len(batches)).fit(batches)

    def _widths(self, split: str, most_rows: int | None, members: int) -> Widths:
        rows, places = most_rows or self.pass_rows, self._most_places(members)
        return self.worker.statics.widths(self.worker.data, split, rows, places, self.is_joined)

    def send(self, batches: Sequence[np.ndarray], size: Size, split: str = "train") -> torch.Tensor:
        """Sends the row numbers of a pass (n_members, size.rows), and what is not on the device, without waiting."""
        rows = filled(batches, size.rows)
        if self.depth > 0:
            self._below_static(split).send(np.where(rows < 0, rows[:, :1], rows).flatten(), size.longest)
        return self._on_device(split).send(rows, size)

    @property
    def is_resident(self) -> bool:
        """Whether a training batch needs nothing from the host but its row numbers."""
        below = self.depth == 0 or self._below_static("train").is_resident
        return below and self._on_device("train").is_resident

    def static_logits(self, rows: torch.Tensor, size: Size, split: str = "train") -> torch.Tensor:
        """Computes the logits of a pass (n_members * size.rows, ...), those of its filler rows, too.

        Shapes depend on the size only, and nothing waits for the device.

        Args:
            rows: What `send` returned.
        """
        return self._static(rows, size, split, picks=False)[0]

    def _pass(self, rows: torch.Tensor, size: Size, split: str) -> torch.Tensor:
        """Computes the logits of a pass, by the program's scorer if there is one and no gradient is wanted."""
        if self.scorer is None or torch.is_grad_enabled():
            return self.static_logits(rows, size, split)
        logits = self.scorer(rows, size, split)
        if self.flattening is not None:  # a replay runs no code of ours, and a task may call the model
            self.flattening.read(None)
        return logits

    def static_loss(
        self, rows: torch.Tensor, size: Size, split: str = "train", weight: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Computes the mean loss of each member's batch (n_members,). A member's loss reads its own rows only.

        Shapes depend on the size only, and nothing waits for the device.

        Args:
            rows: (n_members, size.rows) row numbers on the device, -1 behind the last.
            weight: (n_members,) divisor of the sums; None for the weight of the rows.
        """
        source = self._on_device(split)
        outputs, picked = self._static(rows, size, split, picks=True)
        losses: torch.Tensor = source.losses(outputs, rows, size, picked)
        return losses / (source.weight(rows) if weight is None else weight)

    def _on_device(self, split: str) -> StaticSplit:
        return self.worker.statics.split(self.worker.data, split)

    def _below_static(self, split: str) -> Column:
        """Returns the cached activations of a split on the device."""
        assert self._has_cache(split), "asked by `takes_static`"
        return self.worker.statics.below(self._caches[split])

    def _static(self, rows: torch.Tensor, size: Size, split: str, picks: bool) -> tuple[torch.Tensor, Picked | None]:
        """Computes the outputs of a pass, and of which places they are, if any were picked."""
        worker, source, flat = self.worker, self._on_device(split), inhabited(rows).flatten()
        picked: Picked | None = None
        with worker.precision.context():
            if self.depth > 0:
                below = self._below_static(split)
                hidden = below.padded(flat, size.longest) if below.is_ragged else below.dense(flat)
                if self.cut is None:
                    of_head: torch.Tensor = self.model.get_submodule(vectors(self.view))(hidden)
                    return of_head, None
                self.cut.hidden = hidden
            unseen = frozenset(source.split.inputs) if self.cut is not None and self.cut.skips_stem else frozenset()
            if self.flattening is not None:
                layout = source.layout(rows, size, self.is_joined)
                if picks and source.picks:
                    picked = source.pick(rows, size, layout)
                self.flattening.read(layout)
            inputs = self._augmented(source.inputs(flat, size, without=unseen), split)
            outputs = _logits(self.model(**inputs, **self._no_cache))
            if self.flattening is not None and picked is not None:
                outputs = self.flattening.picked(outputs)
            if self.flattening is not None and not torch.is_grad_enabled():
                self.flattening.read(None)  # a task may call the model; else a checkpoint's second pass reads it
            return outputs, picked

    # ── gradients ───────────────────────────────────────────────────────────────────────────────────────────────────

    def backward(self, split: str, rows: np.ndarray) -> float:
        """Computes the gradients of a batch's mean loss, micro-batch by micro-batch, and returns the loss.

        If memory runs out, the micro-batches are halved, unless other trials hold memory, too. If it runs out with one
        row, the blocks are checkpointed, and the micro-batches begin at their full size again.

        Raises:
            RuntimeError: Memory runs out with one row of checkpointed blocks, or in company.
        """
        while True:
            try:
                return self._backward(split, rows)
            except (RuntimeError, MemoryError) as fault:
                if not is_out_of_memory(fault) or self.is_narrowest or self.worker.has_company():
                    raise
            self.model.zero_grad(set_to_none=True)
            self.narrow(len(rows))

    @property
    def is_narrowest(self) -> bool:
        """Whether passes can need no less memory: of one row, with the blocks checkpointed if the config lets them be."""
        is_fixed = self.worker.setup.machine.gradient_checkpointing != "auto"
        return self.micro_batch_size == 1 and (self.is_checkpointed or is_fixed)

    def narrow(self, n_rows: int) -> None:
        """Lets a batch of so many rows need less memory, as it ran out, in one way more."""
        if self.micro_batch_size == 1:
            self.checkpoint()
            self.micro_batch_size = self.worker.setup.machine.micro_batch_size
        else:
            self.micro_batch_size = max(1, min(self.micro_batch_size, n_rows) // 2)
        if self.worker.device.type == "cuda":
            torch.cuda.empty_cache()

    def _backward(self, split: str, rows: np.ndarray) -> float:
        worker, total = self.worker, 0.0
        split_of, weights = worker.data.splits[split], worker.data.weights[split]
        weight = batch_weight(weights, rows)
        penalties = [during.penalty for during in self.attached.during if during.penalty is not None]
        for part in divided(rows, self.micro_batch_size):
            if self.is_static:
                size = self.size_of([part], split)
                divisor = torch.tensor([weight], device=worker.device)
                loss = self.static_loss(self.send([part], size, split), size, split, divisor).sum()
            else:
                outputs = self.logits(split, part)
                targets = collate_targets(split_of, part, worker.device)
                loss = worker.task.loss(outputs.float(), targets).sum() / weight
            total += float(loss.detach())
            for penalty in penalties:  # weighted by the part's share of the batch's rows
                loss = loss + penalty() * (len(part) / len(rows))
            loss.backward()
        return total


def _reached(untrained: set[str], name: str, gradient: torch.Tensor | None) -> None:
    if gradient is not None:
        untrained.discard(name)


def of_rows(outputs: torch.Tensor, split: Split, rows: np.ndarray) -> torch.Tensor:
    """Takes the outputs of a pass that are some rows' own: without filler rows, and as wide as the longest of them."""
    own = outputs[: len(rows)]
    columns = [column for column in split.inputs.values() if isinstance(column, Ragged)]
    if own.ndim == 2 or not columns:
        return own
    longest = int(split.lengths[rows].max())
    return own[:, -longest:] if columns[0].is_left else own[:, :longest]


def _logits(output: Any) -> torch.Tensor:
    """Takes the logits from the output of a transformers model."""
    logits: torch.Tensor = output.logits
    return logits
