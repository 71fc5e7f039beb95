"""Exact counts of many configurations of one model: by each method's formula where it has one, else by attaching.

A sampler that asks for sizes asks a thousand times; attaching to a BERT-base on the meta device takes a twentieth of a
second. What adds up is added up: a component that adds parameters, one that trains some of the base, and the head.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from autopeft.methods import Site
from autopeft.methods._unfreeze import Unfreeze
from autopeft.recipe import Head
from autopeft.training.head import fitted, headed, make
from autopeft.training.model import ModelView
from autopeft.training.recipe import Component, count, require_whole, resolve


class Counter:
    """Counts configurations of a model.

    Args:
        meta: The model on the meta device, all frozen.
        view: Its parts.
    """

    def __init__(self, meta: nn.Module, view: ModelView) -> None:
        self.meta, self.view = meta, view
        self._frames: dict[Head, _Frame] = {}
        self._heads: dict[Head, int] = {}

    def __call__(self, params: Mapping[str, Any]) -> dict[str, float]:
        """As `recipe.count`: the same numbers, and the same refusals.

        Raises:
            Refused: The recipe is empty, or does not fit the model.
        """
        head = fitted(self.meta, self.view, Head.of(params))
        frame = self._frame(head)
        parts = resolve(frame.view, params)
        require_whole(frame.meta, frame.view, parts)
        adapter = self._added_up(frame, parts)
        if adapter is None:
            return count(self.meta, self.view, params)
        size = self._head(head)
        return {
            "trainable_parameters": float(adapter + size),
            "adapter_parameters": float(adapter),
            "head_parameters": float(size),
        }

    def _frame(self, head: Head) -> _Frame:
        """The model that all heads share which read the same block, in one of two ways: as its own head, or another."""
        key = Head("own" if head.pooling == "own" else "attention", layer=head.layer)
        if key not in self._frames:
            self._frames[key] = _Frame.of(*headed(self.meta, self.view, key))
        return self._frames[key]

    def _head(self, head: Head) -> int:
        """The size of a head, from its modules on the meta device."""
        if head not in self._heads:
            own = {name: part.numel() for name, part in self.meta.named_parameters() if self.view.in_head(name)}
            if head.pooling != "own":
                own = {}
            elif head.hidden or head.norm:
                own = {name: size for name, size in own.items() if not name.startswith(f"{self.view.head[-1]}.")}
            new = make(self.meta, self.view, head) if head.pooling != "own" or head.hidden or head.norm else None
            added = 0 if new is None else sum(parameter.numel() for parameter in new.parameters())
            self._heads[head] = sum(own.values()) + added
        return self._heads[head]

    def _added_up(self, frame: _Frame, parts: list[Component]) -> int | None:
        """The sum of the components' counts; None where they may meet in one tensor, or one has no formula."""
        base = [part for part in parts if isinstance(part.method, Unfreeze)]
        added = [part for part in parts if not isinstance(part.method, Unfreeze)]
        if len(base) > 1 or len(added) > 1 or (len(parts) > 1 and added[0].method.reads_weights):
            return None
        total = 0
        for part in base:
            names = part.method.copies(frame.meta, Site(part.scope, part.keys)).trained
            own = sum(frame.sizes[name] for name in set(names) if name in frame.sizes)
            if not own and part.name != "head":
                return None
            total += own
        for part in added:
            number = part.method.count(frame.meta, Site(part.scope, part.keys))
            if number is None:
                return None
            total += number
        return total


@dataclass(frozen=True)
class _Frame:
    """The model on the meta device as some heads see it.

    Attributes:
        meta, view: The model, and its parts.
        sizes: Parameter name → its size; without the head's.
    """

    meta: nn.Module
    view: ModelView
    sizes: Mapping[str, int]

    @staticmethod
    def of(meta: nn.Module, view: ModelView) -> _Frame:
        sizes = {name: part.numel() for name, part in meta.named_parameters() if not view.in_head(name)}
        return _Frame(meta, view, sizes)
