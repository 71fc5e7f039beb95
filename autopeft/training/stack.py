"""Several LoRA trials as one pass over their base: their batches side by side through the frozen modules.

Each trial's update of a module is one entry of a batched product, padded with zeros to the largest rank. If a trial
does not act on a module, its entry there is zero and stays zero. Rows of different trials never mix. So a trial's
gradient equals that of a solo run, up to rounding. Its dropout has its own generator: the masks differ from a solo run.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import nn

from autopeft import recipe
from autopeft.recipe import Head
from autopeft.tasks import Writer, augments
from autopeft.training.answers import Answers, calibrated, write
from autopeft.training.batches import batch_weight, collate_targets, endless
from autopeft.training.course import Course
from autopeft.training.faults import is_out_of_memory
from autopeft.training.flat import layout_of
from autopeft.training.head import headed
from autopeft.training.loop import Worker
from autopeft.training.low_rank import is_plain, updated
from autopeft.training.model import ModelView, clone_shared, replace_module
from autopeft.training.network import Network, of_rows
from autopeft.training.optimizer import MOMENTUM, learning_rate_factor
from autopeft.training.recipe import Attached
from autopeft.training.scorer import Scorer
from autopeft.training.sizes import Size
from autopeft.trial import Trial, derive_seed

BETAS, EPSILON = (0.9, 0.999), 1e-8  # the defaults of torch's AdamW
JOINED = (
    0.5  # most numbers of all members' updates, as a share of the blocks' parameters, if each token passes them all
)
LORA_A, LORA_B = ".lora_A.default.weight", ".lora_B.default.weight"


@dataclass(frozen=True)
class Place:
    """What members have in common that share passes.

    Attributes:
        acts: Whether they act on the base. If not, a pass begins at cached activations.
        head: Their head; `hidden` is 1 for a hidden layer of any width.
    """

    acts: bool
    head: Head


@dataclass(frozen=True)
class Update:
    """One trial's update of one module: `scale` B A dropout(x)."""

    scale: float
    dropout: float


@dataclass
class Member:
    """One trial of a stack. Its trained tensors are in the stack until `Stack.unload`.

    Attributes:
        trial: The trial.
        attached: The trial's own clone: source of its tensors, and their destination at the end.
        course: The trial's course.
        batches: Its rows, batch after batch.
        updates: Full module name → the trial's update there.
        randomness: Generator of its dropout.
        step: Optimiser steps done.
        moments: Parameter name → the optimiser's state for it.
    """

    trial: Trial
    attached: Attached
    course: Course
    batches: Iterator[np.ndarray]
    updates: Mapping[str, Update]
    randomness: torch.Generator
    step: int = 0
    moments: dict[str, list[torch.Tensor]] = field(default_factory=dict)

    @property
    def place(self) -> Place:
        """Members of one place can share passes."""
        head = self.attached.view.chosen
        # Of two hidden layers the narrower one is padded with zeros.
        return Place(bool(self.updates), replace(head, hidden=min(head.hidden, 1)))

    @staticmethod
    def of(worker: Worker, trial: Trial) -> Member | None:
        """Attaches a trial's recipe; None if a stack cannot hold the trial.

        Raises:
            Refused: The recipe is empty, or does not fit the model.
        """
        if worker.setup.machine.gradient_checkpointing == "on":
            return None  # the trial runs by itself
        parts = recipe.parts(trial.params)
        is_alone = worker.task.calls_model and not isinstance(worker.task, Writer)
        if is_alone or augments(worker.task) or not all(part.method.packs or part.name == "head" for part in parts):
            return None
        course = worker.course(trial)
        attached = worker.attach(trial)
        updates = lora_updates(attached, attached.view)
        if updates is None:
            return None
        course.mark()
        randomness = torch.Generator(worker.device).manual_seed(derive_seed(trial.seed, "dropout"))
        batches = endless(worker.data.splits["train"].lengths, worker.setup.train.batch_size, trial.seed)
        return Member(trial, attached, course, batches, updates, randomness)


def lora_updates(attached: Attached, view: ModelView) -> dict[str, Update] | None:
    """Finds a trial's LoRA updates, by module; None if a stack cannot hold the trial.

    A stack holds plain LoRA of linear layers and a linear head, nothing else. It does not hold a model whose blocks are
    not known to run one after the other, row by row. It does not hold a recipe that acts during training, has tensors
    of its own that are not trained, or has two learning rates in one component.
    """
    from peft.tuners.lora.layer import Linear

    if attached.during or set(attached.own) != set(attached.trained) or view.chain < view.n_layers:
        return None
    if sum(group.component != "head" for group in attached.groups) > 1:
        return None  # two learning rates in one component
    updates: dict[str, Update] = {}
    for name in attached.trained:
        owner = attached.model.get_submodule(name.rpartition(".")[0])
        if name in attached.head:
            if not isinstance(owner, nn.Linear):
                return None
            continue
        module = name.removesuffix(LORA_A).removesuffix(LORA_B)
        layer = attached.model.get_submodule(module) if module != name else None
        if not isinstance(layer, Linear) or not is_plain(layer):
            return None
        updates[module] = Update(layer.scaling["default"], float(getattr(layer.lora_dropout["default"], "p", 0.0)))
    return updates


class Stack:
    """Trains members side by side. All their tensors are one matrix: a row for each member, a column for each number.

    Args:
        worker: Owner of the base, the data and the caches.
        members: At least one, all of one place.
        most_members: Most members of one pass; more need several passes. Halved if memory runs out.
        wide: Shapes of tensors that members to come may have, by name; empty for those of the members alone.

    Attributes:
        vacant: Indices of members that have left. They still take part in each pass, and nothing comes of it.
        scorer: Computes the logits of passes of all members without gradient, if they are captured.
    """

    def __init__(
        self,
        worker: Worker,
        members: Sequence[Member],
        most_members: int,
        wide: Mapping[str, tuple[int, ...]] = MappingProxyType({}),
    ) -> None:
        self.worker, self.members, self.most_members = worker, list(members), most_members
        self.vacant: set[int] = set()
        self.scorer: Scorer | None = None
        self.shapes = _shapes(self.members, wide)
        adapters = [name for name in self.shapes if name not in members[0].attached.head]
        heads = [name for name in self.shapes if name in members[0].attached.head]
        self.names = [*adapters, *heads]  # the head last, as it has another learning rate
        self.sizes = [math.prod(self.shapes[name]) for name in self.names]
        starts = itertools.accumulate(self.sizes, initial=0)
        self._starts = dict(zip(self.names, starts, strict=False))
        self.n_adapters, self._n_names = sum(self.sizes[: len(adapters)]), len(adapters)
        shape = (len(members), sum(self.sizes))
        self.values = nn.Parameter(torch.zeros(shape, device=worker.device))
        n_moments = 1 if worker.setup.train.optimizer == "sgd" else 2
        self.moments = [torch.zeros(shape, device=worker.device) for _ in range(n_moments)]
        for index in range(len(members)):
            self._load(index)
        self.scale = torch.stack([self._scale(member) for member in self.members])
        self.lowest = min(member.attached.lowest for member in members)
        self.chosen: tuple[int, ...] = ()
        self._keeps: dict[Any, torch.Tensor] = {}
        self.network = self._network(heads)
        stacked = (StackedLora, StackedLinear)
        self._stacked = [module for module in self.network.model.modules() if isinstance(module, stacked)]
        self.network.is_joined = self.network.flattening is not None and len(members) > 1 and self._joins()

    def _joins(self) -> bool:
        """Whether members' tokens lie in one buffer. Each token then passes all members' updates, and takes its own."""
        blocks = [self.worker.base.get_submodule(name) for name in self.worker.view.blocks]
        base = sum(parameter.numel() for block in blocks for parameter in block.parameters())
        of_updates = sum(self.sizes[: self._n_names])
        return len(self.members) * of_updates <= JOINED * base

    def vacate(self, index: int) -> None:
        """Lets a member go. Its tensors are gone unless they were unloaded."""
        self.vacant.add(index)
        self._empty(index)

    def _empty(self, index: int) -> None:
        for matrix in (self.values.data, *self.moments):
            matrix[index].zero_()

    def fits(self, member: Member) -> bool:
        """Whether a member can take a vacant index, with nothing else changed: shapes, depth, no dropout."""
        if member.attached.lowest < self.lowest or _drops(member) or any(map(_drops, self.members)):
            return False
        shapes = {name: parameter.shape for name, parameter in _tensors(member).items()}
        return all(
            name in self.shapes and all(own <= held for own, held in zip(shape, self.shapes[name], strict=True))
            for name, shape in shapes.items()
        )

    def occupy(self, index: int, member: Member) -> None:
        """Puts a member that fits in a vacant index."""
        self.vacant.remove(index)
        self.members[index] = member
        self._empty(index)  # a head of zeros still has gradients, and so moments
        self._load(index)
        self.scale[index].copy_(self._scale(member))

    def step(self) -> list[float]:
        """Takes one optimiser step of every member. Returns the mean loss of each member's batch.

        Raises:
            RuntimeError: Memory runs out with one member.
        """
        losses = self.take([next(member.batches) for member in self.members], self.coefficients())
        for member in self.members:
            member.step += 1
        return losses

    def take(self, rows: Sequence[np.ndarray], coefficients: torch.Tensor) -> list[float]:
        """Takes one optimiser step of every member on these rows. Returns the mean loss of each member's batch.

        Raises:
            RuntimeError: Memory runs out with one member.
        """
        losses: list[float] = self._halving(lambda: self._backward(rows))
        self.update(coefficients.to(self.values.device))
        self.values.grad = None
        return losses

    def clear(self) -> None:
        """Lets go of the gradients and of the last pass."""
        self.values.grad = None
        self.end()

    def end(self) -> None:
        """Lets go of the last pass."""
        for module in self._stacked:
            module.take({})

    def answers(self, split: str, chosen: Sequence[int]) -> list[Answers]:
        """Collects the answers of the chosen members (by index) for a split."""
        worker = self.worker
        return list(calibrated(worker.task, split, worker.data.about, lambda name: self._answers(name, chosen)))

    def _answers(self, split: str, chosen: Sequence[int]) -> list[Answers]:
        worker, data = self.worker, self.worker.data.splits[split]

        def score() -> list[Answers]:
            out: list[Answers] = []
            for some in _parts(chosen, self.most_members):
                whole = self.network.pass_rows
                most = min(whole, max(whole, len(some) * worker.setup.train.batch_size) // len(some))
                found = [Answers(worker.task, data) for _ in some]
                for rows in self.network.score_batches(split, most, len(some)):
                    for answers, own in zip(found, self._logits(split, [rows] * len(some), some, most), strict=True):
                        answers.take(rows, own, None)
                if isinstance(worker.task, Writer):
                    self._choose(some)
                    with worker.precision.context():
                        write(worker.task, found, self.network.model, worker.device)
                out += found
            return out

        with torch.no_grad():
            found: list[Answers] = self._halving(score)
        return found

    def unload(self) -> None:
        """Copies each member's tensors to its clone, and the optimiser's state to the member."""
        for index, member in enumerate(self.members):
            if index in self.vacant:
                continue
            self._unload_values(index)
            for name, parameter in _tensors(member).items():
                places = (self._place(moment, index, name, parameter.shape) for moment in self.moments)
                member.moments[name] = [place.clone() for place in places]

    def _unload_values(self, index: int) -> None:
        for name, parameter in _tensors(self.members[index]).items():
            parameter.data.copy_(self._place(self.values.data, index, name, parameter.shape))

    def shares(self, module: str) -> list[float]:
        """Returns the dropout of each member of this pass in an update."""
        members = [self.members[index] for index in self.chosen]
        return [member.updates[module].dropout if module in member.updates else 0.0 for member in members]

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # draws from generators
    def mask(self, module: str, inputs: torch.Tensor) -> torch.Tensor:
        """Draws the dropout mask of an update's inputs (n_chosen, n, width), by each member's generator."""
        masks = torch.ones_like(inputs)
        for mask, index, share in zip(masks, self.chosen, self.shares(module), strict=True):
            if share:
                mask.bernoulli_(1 - share, generator=self.members[index].randomness).div_(1 - share)
        return masks

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def token_mask(self, module: str, inputs: torch.Tensor, owner: torch.Tensor) -> torch.Tensor:
        """Draws the dropout mask of an update's inputs (1, n, width), of several members in one buffer.

        Args:
            owner: (n,), the member of the pass whose each token is.
        """
        key = (module, self.chosen)
        if key not in self._keeps:
            self._keeps[key] = torch.tensor([1.0 - share for share in self.shares(module)], device=inputs.device)
        keep = self._keeps[key][owner][:, None]
        generator = self.members[self.chosen[0]].randomness
        drawn = torch.rand(inputs.shape, generator=generator, device=inputs.device)
        return ((drawn < keep) / keep).to(inputs.dtype)

    # ── one pass ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _backward(self, rows: Sequence[np.ndarray]) -> list[float]:
        """Computes the gradients of each member's mean loss over its rows."""
        worker, self.values.grad = self.worker, None
        split, weights = worker.data.splits["train"], worker.data.weights["train"]
        micro = worker.setup.machine.micro_batch_size
        losses = torch.zeros(len(rows), device=worker.device)
        for some in _parts(range(len(rows)), self.most_members):
            for at in range(0, max(len(rows[index]) for index in some), micro):
                parts = {index: rows[index][at : at + micro] for index in some if at < len(rows[index])}
                divisors = torch.tensor([batch_weight(weights, rows[i]) for i in parts], device=worker.device)
                if self.network.is_static:
                    own_rows = list(parts.values())
                    size = self.network.size_of(own_rows)
                    loss = self.static_loss(tuple(parts), self.network.send(own_rows, size), size, divisors)
                else:
                    logits = self._logits("train", list(parts.values()), tuple(parts))
                    sums = [
                        worker.task.loss(own.float(), collate_targets(split, part, worker.device)).sum()
                        for own, part in zip(logits, parts.values(), strict=True)
                    ]
                    loss = torch.stack(sums) / divisors
                loss.sum().backward()
                losses[list(parts)] += loss.detach()
        return losses.tolist()

    def _logits(
        self, split: str, parts: Sequence[np.ndarray], chosen: Sequence[int], most_rows: int | None = None
    ) -> list[torch.Tensor]:
        """Computes each chosen member's logits (n_rows of its part, n_labels). Pads shorter parts for the pass.

        Args:
            most_rows: Most rows of a member's part in static shapes.
        """
        network, data = self.network, self.worker.data.splits[split]
        if network.takes_static(split):
            size = network.score_size(split, parts, most_rows)
            longest = size.rows
            of_pass: Callable[..., torch.Tensor] = self.static_logits
            if self.scorer is not None and len(chosen) == len(self.members):  # others rarely meet again
                of_pass = self.scorer
            logits = of_pass(network.send(parts, size, split), size, split, tuple(chosen))
        else:
            self._choose(chosen)
            longest = max(len(part) for part in parts)
            logits = network.logits(split, np.concatenate([np.resize(part, longest) for part in parts]))
        return [of_rows(own, data, part) for own, part in zip(logits.split(longest), parts, strict=True)]

    def static_logits(self, rows: torch.Tensor, size: Size, split: str, chosen: Sequence[int]) -> torch.Tensor:
        """Computes the logits of a pass of the chosen members, as `Network.static_logits` does."""
        self._choose(chosen)
        return self.network.static_logits(rows, size, split)

    def static_loss(
        self, chosen: Sequence[int], rows: torch.Tensor, size: Size, weight: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Computes the mean loss of each chosen member's batch (n_chosen,), as `Network.static_loss` does.

        Args:
            chosen: Indices of the members of this pass.
            rows: (n_chosen, size.rows), from `Network.send`.
        """
        self._choose(chosen)
        return self.network.static_loss(rows, size, "train", weight)

    def _choose(self, chosen: Sequence[int]) -> None:
        """Chooses the members of the next pass, and takes their tensors apart."""
        self.chosen = tuple(chosen)
        values = self.values if len(chosen) == len(self.members) else self.values[list(chosen)]
        scale = self.scale if len(chosen) == len(self.members) else self.scale[list(chosen)]
        adapters, head = values.split([self.n_adapters, values.shape[1] - self.n_adapters], dim=1)
        adapters = adapters * scale
        if self.worker.setup.machine.precision != "fp32":
            adapters = adapters.to(torch.bfloat16)  # in one cast; autocast would cast tensor by tensor
        of_adapters, of_head = self.sizes[: self._n_names], self.sizes[self._n_names :]
        pieces = [*(adapters.split(of_adapters, dim=1) if of_adapters else ()), *head.split(of_head, dim=1)]
        own = {
            name: piece.view(len(self.chosen), *self.shapes[name])
            for name, piece in zip(self.names, pieces, strict=True)
        }
        for module in self._stacked:
            module.take(own)

    def _halving(self, call: Callable[[], Any]) -> Any:
        """Returns the call's value. If memory runs out, calls again with half as many members in a pass."""
        while True:
            try:
                return call()
            except (RuntimeError, MemoryError) as fault:
                if not is_out_of_memory(fault) or self.most_members == 1:
                    raise
            self.halve()

    def halve(self) -> None:
        """Halves the members of a pass, as memory ran out."""
        self.clear()
        self.most_members = max(1, min(self.most_members, len(self.members)) // 2)
        if self.worker.device.type == "cuda":
            torch.cuda.empty_cache()

    # ── one step ────────────────────────────────────────────────────────────────────────────────────────────────────

    def update(self, coefficients: torch.Tensor) -> None:
        """Clips gradients and updates tensors, each member by its own norm, learning rates and step.

        Args:
            coefficients: (n_members, 6), those of `coefficients`, on the device.
        """
        setup, grad = self.worker.setup, self.values.grad
        assert grad is not None, "a step follows its gradients"
        if setup.train.clip is not None:
            norms = torch.linalg.vector_norm(grad, dim=1, keepdim=True)
            grad *= (setup.train.clip / (norms + 1e-6)).clamp(max=1.0)
        rates, decays, corrections = coefficients.split([2, 2, 2], dim=1)
        columns = (slice(0, self.n_adapters), slice(self.n_adapters, None))
        with torch.no_grad():
            for part, rate, decay in zip(columns, rates.split(1, dim=1), decays.split(1, dim=1), strict=True):
                values, own = self.values[:, part], grad[:, part]
                moments = [moment[:, part] for moment in self.moments]
                if setup.train.optimizer == "sgd":
                    values *= 1 - rate * decay
                    values -= rate * moments[0].mul_(MOMENTUM).add_(own)
                    continue
                first, second = moments
                first.lerp_(own, 1 - BETAS[0])
                second.mul_(BETAS[1]).addcmul_(own, own, value=1 - BETAS[1])
                values *= 1 - rate * decay
                values -= rate / corrections[:, :1] * first / ((second / corrections[:, 1:]).sqrt() + EPSILON)

    def coefficients(self, ahead: int = 0) -> torch.Tensor:
        """Returns (n_members, 6): learning rate and weight decay of adapter and head, and AdamW's bias corrections.

        Args:
            ahead: Number of steps to come before the one that they are for.
        """
        setup, rows = self.worker.setup, []
        for index, member in enumerate(self.members):
            if index in self.vacant:
                rows.append([0.0] * 4 + [1.0] * 2)
                continue
            step = member.step + ahead
            factor = learning_rate_factor(setup, member.course.total, step)
            rates, decays = [], []
            for is_head in (False, True):  # a trial of a head alone has no other group, a model without one no head's
                group = next((g for g in member.attached.groups if (g.component == "head") == is_head), None)
                own = None if group is None else group.weight_decay
                rates.append(0.0 if group is None else group.lr * factor)
                decays.append(setup.train.weight_decay if own is None else own)
            rows.append([*rates, *decays, *(1 - beta ** (step + 1) for beta in BETAS)])
        return torch.tensor(rows)

    # ── what is stacked ─────────────────────────────────────────────────────────────────────────────────────────────

    def _load(self, index: int) -> None:
        member = self.members[index]
        for name, parameter in _tensors(member).items():
            self._place(self.values.data, index, name, parameter.shape).copy_(parameter.data)
            for moment, held in zip(self.moments, member.moments.get(name, ()), strict=False):
                self._place(moment, index, name, parameter.shape).copy_(held)

    def _place(self, matrix: torch.Tensor, index: int, name: str, shape: torch.Size) -> torch.Tensor:
        """Returns a member's part of a tensor as a view: without the padding."""
        at = self._starts[name]
        whole = matrix[index, at : at + math.prod(self.shapes[name])].view(self.shapes[name])
        return whole[tuple(slice(0, size) for size in shape)]

    def _scale(self, member: Member) -> torch.Tensor:
        """Returns the factor of each number of a member (n_adapters,): the update's scale for B, 1 for A."""
        scale = torch.ones(1, self.values.shape[1], device=self.worker.device)
        for module, update in member.updates.items():
            name = module + LORA_B
            self._place(scale, 0, name, torch.Size(self.shapes[name])).fill_(update.scale)
        return scale[0, : self.n_adapters]

    def _network(self, heads: Sequence[str]) -> Network:
        """Returns the base with stacked modules, without the blocks that the lowest member's prefix cache replaces."""
        chosen = self.members[0].attached.view.chosen
        base, view = headed(self.worker.base, self.worker.view, chosen)
        model = clone_shared(base, ())
        updated = {name.removesuffix(LORA_A) for name in self.names if name.endswith(LORA_A)}
        for name in sorted(updated):
            replace_module(model, name, StackedLora(self, name, model.get_submodule(name)))
        for name in sorted({parameter.rpartition(".")[0] for parameter in heads}):
            replace_module(model, name, StackedLinear(name))
        head = self.members[0].attached.head
        names = tuple(self.names)
        return self.worker.wrap(Attached(model.eval(), view, (), self.lowest, names, names, (), head))


class StackedLora(nn.Module):
    """Applies a frozen linear layer, and adds each member's own update.

    What differs from pass to pass are tensors: what is compiled for one module serves all that are alike.
    """

    def __init__(self, stack: Stack, name: str, base: nn.Module) -> None:
        super().__init__()
        self.__dict__["stack"] = stack  # not registered as a module
        self.name, self.base = name, base
        self.is_dropping = False
        self.take({})

    def take(self, pieces: Mapping[str, torch.Tensor]) -> None:
        """Takes the members' updates of the next pass (n_chosen, rank, in) and (n_chosen, out, rank); none to let go."""
        self.a, self.b = pieces.get(self.name + LORA_A), pieces.get(self.name + LORA_B)
        # No dropout while scoring
        self.is_dropping = bool(pieces) and torch.is_grad_enabled() and any(self.__dict__["stack"].shares(self.name))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        stack, a, b = self.__dict__["stack"], self.a, self.b
        assert a is not None, "a pass was begun"
        assert b is not None, "a pass was begun"
        layout, mask = layout_of(self), None
        if layout is not None and stack.network.is_joined and inputs.shape[:2] == (1, layout.n_tokens):
            members, rank, width = a.shape
            rows = inputs.to(a.dtype)
            all_a, all_b = a.reshape(1, -1, width), b.transpose(0, 1).reshape(1, b.shape[1], -1)
            share = layout.share(members, rank, a.dtype)[None]
            if self.is_dropping:
                mask = stack.token_mask(self.name, rows, layout.owner)
            return updated(rows, self.base, all_a, all_b, mask, share)
        rows = inputs.to(a.dtype).reshape(len(a), -1, inputs.shape[-1])
        if self.is_dropping:
            mask = stack.mask(self.name, rows)
        out = updated(rows, self.base, a, b, mask)
        return out.view(*inputs.shape[:-1], out.shape[-1])


class StackedLinear(nn.Module):
    """Applies a linear layer of the head, with each member's own weights."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.take({})

    def take(self, pieces: Mapping[str, torch.Tensor]) -> None:
        """Takes the members' weights and biases of the next pass; none to let go."""
        self.weight, self.bias = pieces.get(f"{self.name}.weight"), pieces.get(f"{self.name}.bias")

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        assert self.weight is not None, "a pass was begun"
        rows = inputs.reshape(len(self.weight), -1, inputs.shape[-1])
        out = torch.bmm(rows, self.weight.mT)
        if self.bias is not None:
            out = out + self.bias.unsqueeze(1)
        return out.view(*inputs.shape[:-1], out.shape[-1])


def _tensors(member: Member) -> dict[str, nn.Parameter]:
    parameters = dict(member.attached.model.named_parameters())
    return {name: parameters[name] for name in member.attached.trained}


def _drops(member: Member) -> bool:
    """Whether a member has dropout: its generator and share are part of a captured pass."""
    return any(update.dropout for update in member.updates.values())


def _shapes(members: Sequence[Member], wide: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Returns the shape of every tensor that any member has, large enough for all members.

    Those of `wide` are included, unless this more than doubles the numbers.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for member in members:
        for name, parameter in _tensors(member).items():
            shapes[name] = tuple(map(max, shapes.get(name, parameter.shape), parameter.shape))
    every = {name: tuple(map(max, shapes.get(name, shape), shape)) for name, shape in wide.items()}
    every = {**{name: shape for name, shape in shapes.items() if name not in every}, **every}
    return every if sum(map(math.prod, every.values())) <= 2 * sum(map(math.prod, shapes.values())) else shapes


def _parts(items: Sequence[int], most: int) -> Iterator[Sequence[int]]:
    for at in range(0, len(items), most):
        yield items[at : at + most]
