"""Serial adapter: h + s U gelu(D h) on the output h of a layer (Houlsby et al., 2019, arXiv:1902.00751: after the
attention and the feed-forward; Pfeiffer et al., 2021, arXiv:2005.00247: after the feed-forward)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from autopeft.errors import Refused
from autopeft.methods import Method, Site
from autopeft.methods._peft import sum_of_linear


class SerialAdapter(Method):
    """A bottleneck after each chosen layer. peft has none, so it is exported in autopeft's own form."""

    label = "serial adapter"
    keys: Mapping[str, str] = {"size": "width of the bottleneck", "dropout": "on its input", "scale": "of its output"}
    stock: Mapping[str, Any] = {"size": 48, "dropout": 0.0, "scale": 1.0, "lr": 1e-3}
    size = "size"
    sized_by = ("kind", "layer")
    modules: tuple[str, ...] = ("down",)

    def count(self, model: Any, site: Site) -> int | None:
        """Counts two matrices and two biases for each layer."""
        return sum_of_linear(model, site, lambda _, i, outputs, size: 2 * outputs * size + size + outputs)

    def attach(self, model: Any, site: Site) -> None:
        from autopeft.methods._bottleneck import AddAfter, Bottleneck, add_beside, features

        scope, keys = site.scope, site.keys
        if not scope.names:
            raise Refused("empty: no module is chosen")
        for name in scope.names:
            layer = model.get_submodule(name)
            _, outputs, is_map = features(layer)
            device = next(layer.parameters()).device
            size = scope.sizes[name]
            adapter = Bottleneck(outputs, outputs, size, keys["dropout"], keys["scale"], is_map, device)
            add_beside(model, name, adapter, "serial_adapter")
            layer.register_forward_hook(AddAfter(adapter))


plugin = SerialAdapter
