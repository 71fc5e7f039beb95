"""Parallel adapter: f(x) + s U gelu(D x), beside a sub-layer f and on its input x (He et al., 2022,
arXiv:2110.04366)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from autopeft.errors import Refused
from autopeft.methods import Method, Site

# Module kind at a sub-layer's end → module kind at its beginning: the feed-forward, the attention.
BEGINS = {"down": "up", "output": "query", "cross_output": "cross_query"}

# Model types whose query layer runs a second time, on the relative positions.
READS_TWICE = ("deberta-v2", "sew-d")


class ParallelAdapter(Method):
    """A bottleneck beside each chosen sub-layer; `down` stands for the feed-forward, `output` for the attention."""

    label = "parallel adapter"
    keys: Mapping[str, str] = {"size": "width of the bottleneck", "dropout": "on its input", "scale": "of its output"}
    stock: Mapping[str, Any] = {"size": 48, "dropout": 0.0, "scale": 4.0, "lr": 1e-3}
    size = "size"
    sized_by = ("kind", "layer")
    modules: tuple[str, ...] = ("down",)

    def attach(self, model: Any, site: Site) -> None:
        from autopeft.methods._bottleneck import AddAfter, Bottleneck, Remember, add_beside, features

        for block, begin, end in places(model, site):
            first, last = model.get_submodule(begin), model.get_submodule(end)
            inputs, outputs, device = features(first)[0], features(last)[1], next(last.parameters()).device
            size = (site.scope.sizes[end], site.keys["dropout"], site.keys["scale"])
            adapter = Bottleneck(inputs, outputs, *size, is_map=False, device=device)
            add_beside(model, end, adapter, "parallel_adapter")
            remember = Remember(model.get_submodule(block), first)
            last.register_forward_hook(AddAfter(adapter, remember))

    def count(self, model: Any, site: Site) -> int | None:
        """Counts two matrices and two biases for each sub-layer."""
        from autopeft.methods._bottleneck import features

        total = 0
        for _, begin, end in places(model, site):
            inputs, outputs = features(model.get_submodule(begin))[0], features(model.get_submodule(end))[1]
            total += site.scope.sizes[end] * (inputs + outputs + 1) + outputs
        return total


def places(model: Any, site: Site) -> Iterator[tuple[str, str, str]]:
    """Yields (block, first layer of the sub-layer, last layer of the sub-layer) for each adapter."""
    scope = site.scope
    if not scope.names:
        raise Refused("empty: no module is chosen")
    for kind, names in scope.modules.items():
        if kind not in BEGINS:
            raise Refused(f"a parallel adapter goes beside a sub-layer: down, output or cross_output, not {kind}")
        if kind == "output" and model.config.model_type in READS_TWICE:
            raise Refused(f"the attention of {model.config.model_type} reads two inputs: no adapter goes beside it")
        for block in scope.blocks:
            begins = [name for name in scope.kinds.get(BEGINS[kind], ()) if name.startswith(f"{block}.")]
            ends = [name for name in names if name.startswith(f"{block}.")]
            if not ends and any(name.startswith(f"{block}.") for name in scope.kinds.get(kind, ())):
                continue  # the adapter has size 0 here
            if not ends and not begins and kind.startswith("cross_"):
                continue  # a block of the encoder
            if not ends or not begins:
                raise Refused(f"{block} has no {BEGINS[kind]} and {kind} to put a parallel adapter beside")
            yield block, begins[0], ends[-1]


plugin = ParallelAdapter
