"""Exact counts of many configurations of one model: by each method's formula where it has one, else by attaching.

A sampler that asks for sizes asks a thousand times; attaching to a BERT-base on the meta device takes a twentieth of a
second. What adds up is added up: a component that adds parameters, one that trains some of the base, and the head.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from autopeft.methods import Site
from autopeft.methods._unfreeze import Unfreeze
from autopeft.training.model import ModelView
from autopeft.training.recipe import Component, count, resolve


class Counter:
    """Counts configurations of a model.

    Args:
        meta: The model on the meta device, all frozen.
        view: Its parts.
    """

    def __init__(self, meta: nn.Module, view: ModelView) -> None:
        self.meta, self.view = meta, view
        self._sizes = {name: parameter.numel() for name, parameter in meta.named_parameters()}
        self._heads = {name for name in self._sizes if view.in_head(name)}
        self._head = sum(self._sizes[name] for name in self._heads)

    def __call__(self, params: Mapping[str, Any]) -> dict[str, float]:
        """As `recipe.count`: the same numbers, and the same refusals.

        Raises:
            Refused: The recipe is empty, or does not fit the model.
        """
        adapter = self._added_up(resolve(self.view, params))
        if adapter is None:
            return count(self.meta, self.view, params)
        return {
            "trainable_parameters": float(adapter + self._head),
            "adapter_parameters": float(adapter),
            "head_parameters": float(self._head),
        }

    def _added_up(self, parts: list[Component]) -> int | None:
        """The sum of the components' counts; None where they may meet in one tensor, or one has no formula."""
        base = [part for part in parts if isinstance(part.method, Unfreeze)]
        added = [part for part in parts if not isinstance(part.method, Unfreeze)]
        if len(base) > 1 or len(added) > 1 or (len(parts) > 1 and added[0].method.reads_weights):
            return None
        total = 0
        for part in base:
            names = part.method.copies(self.meta, Site(part.scope, part.keys)).trained
            own = sum(self._sizes[name] for name in set(names) - self._heads)
            if not own and part.name != "head":
                return None
            total += own
        for part in added:
            number = part.method.count(self.meta, Site(part.scope, part.keys))
            if number is None:
                return None
            total += number
        return total
