"""Prefix tuning: trained keys and values, prepended in the chosen layers (Li and Liang, 2021, arXiv:2101.00190).

Not peft's implementation: here positions stay unshifted, so that inputs may be as long as without a prefix, and layers
can be chosen (as AutoPEFT does, Zhou et al., 2024, arXiv:2301.12132). Without the paper's reparametrisation by an MLP.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from autopeft.errors import Refused
from autopeft.methods import CROSS, Method, Site
from autopeft.methods._peft import sum_of_linear


class Prefix(Method):
    """`size` virtual tokens' keys and values a layer: softmax(q [P_k; K]ᵀ) [P_v; V]."""

    label = "prefix"
    keys: Mapping[str, str] = {"size": "how many virtual tokens"}
    stock: Mapping[str, Any] = {"size": 24, "lr": 5e-3}
    size = "size"
    sized_by = ("layer",)
    modules: tuple[str, ...] = ("key", "value")  # of a decoder's attention to its encoder, too

    def attach(self, model: Any, site: Site) -> None:
        from autopeft.methods._prefix_attention import add_prefix

        for key, value in pairs(site):
            add_prefix(model, key, value, site.scope.sizes[key])

    def count(self, model: Any, site: Site) -> int | None:
        """Counts a row of keys and a row of values for each token and layer."""
        from autopeft.methods._prefix_attention import attention_of

        for key, _ in pairs(site):
            attention_of(model, key)
        return sum_of_linear(model, site, lambda kind, _, outputs, size: size * outputs)


def pairs(site: Site) -> list[tuple[str, str]]:
    """Pairs the layer that makes keys with the layer that makes values, for each attention module."""
    chosen = site.scope.modules
    keys, values = ((*chosen.get(kind, ()), *chosen.get(CROSS[kind], ())) for kind in ("key", "value"))
    if not keys or len(keys) != len(values):
        raise Refused("the model has no separate key and value layers to prepend to")
    for key, value in zip(keys, values, strict=True):
        if key.rpartition(".")[0] != value.rpartition(".")[0]:
            raise Refused(f"{key} and {value} belong to different attention modules")
    return list(zip(keys, values, strict=True))


plugin = Prefix
