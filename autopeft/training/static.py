"""Batches of static shapes, made on the device from row numbers alone, and the sums of their losses.

A batch is (M, B) row numbers: of M trials that share a pass (one, unless they are a stack), B each. Where a trial has
fewer rows the rest is -1: filler rows, whose loss counts nothing. A batch's rows are those of the padded layout; only
the shapes differ. All members' tokens lie in one buffer if they are joined, as their sum varies less than each one's
number; else each member has a buffer, all of one length.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from autopeft.tasks import UNSCORED, Columns, Ragged, Split, Task, TokenWise
from autopeft.training.batches import collate, divided, mask_of, order, pick_split
from autopeft.training.data import Data
from autopeft.training.flat import Flattening, Layout
from autopeft.training.model import ModelView, clone_shared
from autopeft.training.prefix_cache import Cached
from autopeft.training.resident import Column, Room, scaled, tensor_of, widened
from autopeft.training.sizes import Rows, Size, Sizes, Widths

logger = logging.getLogger(__name__)

Form = Literal["flat", "padded"]  # how a model takes batches of static shapes
EPOCHS = 4  # whose batches show how long batches are
MOST_BATCHES = 4096  # that are looked at for it
# Largest difference of logits that is rounding, as a share of the largest one: in fp32, and with weights in fewer bits.
SAME, SAME_HALF = 1e-3, 5e-2


@dataclass(frozen=True)
class Picked:
    """Places of a pass whose outputs the loss reads.

    Attributes:
        wanted: (n_picked,), their targets; UNSCORED beyond the last.
        owner: (n_picked,), the members whose rows they are of.
    """

    wanted: torch.Tensor
    owner: torch.Tensor


class StaticSplit:
    """A split on the device.

    Args:
        split: The split.
        weights: (n_rows,) weight of each row in a mean loss.
        task: The task.
        room: Bytes that its columns may take.
        form: "flat": rows end to end; "padded": a row of the batch's width each.

    Attributes:
        of: What its rows need.
    """

    def __init__(self, split: Split, weights: np.ndarray, task: Task, room: Room, form: Form) -> None:
        self.split, self.task, self.form, self.device = split, task, form, room.device
        self.picks = form == "flat" and isinstance(task, TokenWise) and task.token_target in split.targets
        self.inputs_of = {name: Column(column, room) for name, column in split.inputs.items()}
        self.targets_of = {name: Column(column, room, is_small=True) for name, column in split.targets.items()}
        self.scale = {
            name: tuple(tensor_of(np.asarray(part, np.float32)).view(1, -1, 1, 1).to(room.device) for part in parts)
            for name, parts in split.scale.items()
        }
        self.weights = tensor_of(np.asarray(weights, np.float32)).to(room.device)
        self.longest = int(split.lengths.max())
        # Ragged columns with an entry for each token of the first input; others are as wide as their longest row.
        self.aligned = {
            name
            for name, column in (*split.inputs.items(), *split.targets.items())
            if isinstance(column, Ragged) and np.array_equal(np.diff(column.offsets), split.lengths)
        }
        self.of = Rows(split.lengths, _scored(split.targets, task) if self.picks else None, form == "flat")

    def send(self, rows: np.ndarray, size: Size) -> torch.Tensor:
        """Sends (M, B) row numbers, and what of their rows is not on the device, without waiting."""
        own = np.where(rows < 0, rows[:, :1], rows).flatten()
        for name, column in self.inputs_of.items():
            column.send(own, size.longest if name in self.aligned else column.width)
        numbers = torch.from_numpy(np.ascontiguousarray(rows, dtype=np.int64))
        if self.device.type == "cuda":
            return numbers.pin_memory().to(self.device, non_blocking=True)
        return numbers

    @property
    def is_resident(self) -> bool:
        """Whether a batch needs nothing from the host but its row numbers."""
        return all(column.is_resident for column in self.inputs_of.values())

    def inputs(self, rows: torch.Tensor, size: Size, without: frozenset[str] = frozenset()) -> dict[str, torch.Tensor]:
        """Returns the model's inputs of a batch, padded.

        Args:
            rows: (M * B,) row numbers, `inhabited`.
            without: Dense columns that the model does not read. Each becomes one zero a row.
        """
        out: dict[str, torch.Tensor] = {}
        for name, column in self.inputs_of.items():
            if column.is_ragged:
                width = size.longest if name in self.aligned else column.width
                out[name] = widened(column.padded(rows, width))
                place = torch.arange(width, device=self.device)
                place = width - 1 - place if column.is_left else place
                out[mask_of(name)] = (place < column.lengths(rows)[:, None]).long()
            elif name in without:
                out[name] = torch.zeros((len(rows), *[1] * len(column.shape)), device=self.device)
            else:
                stored = column.dense(rows)
                if name in self.scale:
                    out[name] = scaled(stored, self.scale[name])
                else:
                    out[name] = stored.float() if stored.is_floating_point() else stored
        return out

    def targets(self, rows: torch.Tensor, size: Size) -> dict[str, torch.Tensor]:
        """Returns the task's targets of rows (M * B,), `inhabited`: as wide as the inputs, if they have their lengths."""
        out = {}
        for name, column in self.targets_of.items():
            width = size.longest if name in self.aligned else column.width
            out[name] = widened(column.padded(rows, width) if column.is_ragged else column.dense(rows))
        return out

    def weight(self, rows: torch.Tensor) -> torch.Tensor:
        """Returns the divisor of each member's summed loss (M,): the weight of its rows, or 1 if none is scored."""
        sums = (self.weights[rows.clamp(min=0)] * (rows >= 0)).sum(1)
        return torch.where(sums == 0, 1.0, sums)

    def layout(self, rows: torch.Tensor, size: Size, is_joined: bool = False) -> Layout:
        """Returns where the tokens of a batch (M, B) lie end to end.

        Args:
            is_joined: Whether the members' tokens lie in one buffer.
        """
        column = next(column for column in self.inputs_of.values() if column.is_ragged)
        return Layout(column.lengths(rows.flatten()).view(1 if is_joined else len(rows), -1), size, rows.shape[1])

    def pick(self, rows: torch.Tensor, size: Size, layout: Layout) -> Picked:
        """Picks the scored places of a batch (M, B) in its layout."""
        task: Any = self.task
        row = layout.row.clamp(max=layout.n_rows - 1)
        number = inhabited(rows).view(layout.members, -1).gather(1, row)
        position = layout.position.view(row.shape)
        column = self.targets_of[task.token_target]
        place = position + int(task.foretells)
        wanted = widened(column.at(number, place))
        is_there = (layout.row < layout.n_rows) & (place < column.lengths(number.flatten()).view(number.shape))
        wanted = layout.pick(wanted.masked_fill(~is_there, UNSCORED), size.picked, UNSCORED)
        assert layout.picked_owner is not None, "picked just now"
        return Picked(wanted, layout.picked_owner)

    def losses(self, outputs: torch.Tensor, rows: torch.Tensor, size: Size, picked: Picked | None = None) -> Any:
        """Sums the loss of each member's rows (M,).

        Args:
            outputs: Of each row, (M * B, ...); or of the picked places, (n_picked, n).
            rows: (M, B) row numbers.
            picked: The picked places; None if outputs belong to rows.
        """
        if picked is not None:
            task: Any = self.task
            losses = task.token_loss(outputs.float(), picked.wanted)
            return losses.new_zeros(len(rows)).index_add(0, picked.owner, losses)
        found = self.task.loss(outputs.float(), self.targets(inhabited(rows).flatten(), size))
        return found.view(rows.shape).masked_fill(rows < 0, 0.0).sum(1)


class Statics:
    """The splits of a worker on its device, and the sizes of their batches, each made when it is first asked for.

    Args:
        base: The base, all frozen, in evaluation mode.
        view: The base's parts.
        task: The task.
        device: The base's device.
        seed: The search's seed.
    """

    def __init__(self, base: nn.Module, view: ModelView, task: Task, device: torch.device, seed: int) -> None:
        self.base, self.view, self.task, self.device, self.seed = base, view, task, device, seed
        self.room = Room(device)
        self._form: Form | None = None
        self._is_asked = False
        self._splits: dict[str, StaticSplit] = {}
        self._columns: dict[str, Column] = {}  # never dropped: what was captured reads them
        self._sizes: dict[Any, Sizes | Widths] = {}

    def split(self, data: Data, name: str) -> StaticSplit:
        """Returns a split of the worker's data on the device."""
        split = data.splits[name]
        if name not in self._splits or self._splits[name].split is not split:  # a measurement takes some rows only
            form = self.form(data)
            assert form is not None, "only asked for a model that takes static batches"
            self._splits[name] = StaticSplit(split, data.weights[name], self.task, self.room, form)
            self._sizes = {key: sizes for key, sizes in self._sizes.items() if key[0] != name}
        return self._splits[name]

    def form(self, data: Data) -> Form | None:
        """Returns how the base takes static batches; None if it does not."""
        if not self._is_asked:
            self._form = form_of(self.base, self.view, self.task, data.splits["train"])
            self._is_asked = True
        return self._form

    def sizes(self, data: Data, name: str, batch_size: int, most_rows: int, members: int = 1) -> Sizes:
        """Returns the sizes of training batches of a split.

        Args:
            batch_size: Rows of a batch.
            most_rows: Rows of a member's part of a pass; a batch with more takes several passes.
            members: Number of batches that lie in one buffer.
        """
        split, key = self.split(data, name), (name, batch_size, most_rows, members)
        if key not in self._sizes:
            batches = _training(split.of.lengths, batch_size, most_rows, self.seed)
            self._sizes[key] = Sizes(split.of, batches, min(batch_size, most_rows), members)
        sizes = self._sizes[key]
        assert isinstance(sizes, Sizes)
        return sizes

    def widths(self, data: Data, name: str, most_rows: int, most_places: int | None, is_joined: bool) -> Widths:
        """Returns the sizes of passes without gradient over a split."""
        split, key = self.split(data, name), (name, most_rows, most_places, is_joined, "widths")
        if key not in self._sizes:
            self._sizes[key] = Widths(split.of, most_rows, most_places, is_joined)
        widths = self._sizes[key]
        assert isinstance(widths, Widths)
        return widths

    def below(self, cached: Cached) -> Column:
        """Returns cached activations as a column on the device."""
        values = cached.values.values if isinstance(cached.values, Ragged) else cached.values
        file = str(getattr(values, "filename", id(values)))  # each trial opens the cache's file anew
        if file not in self._columns:
            self._columns[file] = Column(cached.values, self.room, cached.dtype)
        return self._columns[file]


def form_of(base: nn.Module, view: ModelView, task: Task, split: Split) -> Form | None:
    """Returns how a model takes batches of static shapes: it is asked, with three rows among filler.

    Returns:
        "flat" if it computes the same from rows end to end as from rows padded to the longest of them. It does not if its
        attention is not of transformers' registry, if its blocks read more than tokens, if rows are padded on the left, or
        if they have no tokens, or tokens of two kinds. Else "padded", if more padding changes nothing. Else None.
    """
    by_length = np.argsort(split.lengths, kind="stable")
    some = pick_split(split, by_length[[0, len(by_length) // 2, -1]])
    if not any(isinstance(column, Ragged) for column in some.inputs.values()):
        return "padded"  # there is nothing to pad
    asked = Asked(base, view, task, some)
    if _takes_one_buffer(some) and asked.is_same("flat"):
        return "flat"
    if asked.is_same("padded"):
        logger.info("rows are padded, as the model computes otherwise from rows end to end")
        return "padded"
    logger.info("batches have no static shapes, as the model computes otherwise from longer padding")
    return None


def _takes_one_buffer(split: Split) -> bool:
    ragged = [column for column in split.inputs.values() if isinstance(column, Ragged)]
    same = all(np.array_equal(column.offsets, ragged[0].offsets) for column in ragged)
    return same and not any(column.is_left for column in ragged)


class Asked:
    """A model that is asked what it computes from three rows, the longest last.

    Args:
        base: The base, all frozen, in evaluation mode.
        view: The base's parts.
        task: The task.
        split: The rows.
    """

    def __init__(self, base: nn.Module, view: ModelView, task: Task, split: Split) -> None:
        self.base, self.view, self.task, self.split = base, view, task, split
        self.device = next(base.parameters()).device
        is_exact = all(p.dtype == torch.float32 for p in base.parameters())
        self.tolerance = SAME if is_exact else SAME_HALF

    def is_same(self, form: Form) -> bool:
        """Whether the model computes the same in static shapes, with filler, as padded to the longest row."""
        # The shorter two by themselves: the third one is as much padding as a batch can have.
        for rows in ([0, 1], [0, 1, 2]):
            padded = collate(self.split, np.array(rows), self.device)
            with torch.no_grad():
                expected = self._model().eval()(**padded).logits
            found = self._static(form, np.array(rows))
            if found is None or not _is_near(found, expected, padded["attention_mask"].bool(), self.tolerance):
                return False
        return True

    def _static(self, form: Form, rows: np.ndarray) -> torch.Tensor | None:
        """Computes the outputs of some rows in static shapes; None if the model does not take them."""
        source = StaticSplit(self.split, np.ones(3, np.float32), self.task, Room(self.device), form)
        need = source.of.need(rows)
        size = Size(need.tokens + 5, 4, int(self.split.lengths.max()))
        numbers, model = source.send(filled([rows], 4), size), self._model().eval()
        with torch.no_grad():
            layout = source.layout(numbers, size) if form == "flat" else None
            if layout is not None:
                Flattening(model, self.view.blocks).read(layout)
            try:
                inputs = source.inputs(inhabited(numbers).flatten(), size)
                out: torch.Tensor = model(**inputs, **no_cache(model)).logits
            except Exception as fault:  # whatever a model's code makes of shapes that it does not know
                logger.info("the model does not take rows in the form %s: %s", form, fault)
                return None
        return None if layout is not None and not layout.was_read else out[: len(rows)]

    def _model(self) -> nn.Module:
        return clone_shared(self.base, ())


def _is_near(found: torch.Tensor, expected: torch.Tensor, is_real: torch.Tensor, tolerance: float) -> bool:
    """Whether outputs are the same but for rounding; where there is one a token, of the tokens that are no padding."""
    if found.ndim == 3 and found.shape[1] >= expected.shape[1] == is_real.shape[1]:
        width = expected.shape[1]
        is_left = not bool(is_real[:, 0].all())
        found, expected = (found[:, -width:] if is_left else found[:, :width])[is_real], expected[is_real]
    if found.shape != expected.shape:
        return False
    return bool((found - expected).abs().max() <= tolerance * expected.abs().max())


def no_cache(model: nn.Module) -> dict[str, bool]:
    """Returns the option of a model's forward that keeps no keys and values, which only generation needs."""
    return {"use_cache": False} if "use_cache" in inspect.signature(model.forward).parameters else {}


def inhabited(rows: torch.Tensor) -> torch.Tensor:
    """Puts a member's first row in the place of its filler rows (M, B), as some models do not take empty rows."""
    return torch.where(rows < 0, rows[:, :1].clamp(min=0), rows)


def filled(parts: Sequence[np.ndarray], n_rows: int) -> np.ndarray:
    """Returns the rows of some batches, one a member, as (M, n_rows), with -1 behind the last of each."""
    out = np.full((len(parts), n_rows), -1, dtype=np.int64)
    for index, part in enumerate(parts):
        out[index, : len(part)] = part
    return out


def _training(lengths: np.ndarray, batch_size: int, most_rows: int, seed: int) -> Iterator[np.ndarray]:
    n_seen = 0
    for epoch in range(EPOCHS):
        for batch in order(lengths, batch_size, seed, epoch):
            yield from divided(batch, most_rows)
            n_seen += 1
            if n_seen == MOST_BATCHES:
                return


def _scored(targets: Columns, task: Any) -> np.ndarray:
    """Counts the positions of each row whose outputs the loss reads."""
    column = targets[task.token_target]
    assert isinstance(column, Ragged), "one target a token"
    scored = np.concatenate([[0], np.cumsum(column.values != UNSCORED)])
    found: np.ndarray = np.diff(scored[column.offsets])
    return found
