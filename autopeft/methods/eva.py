"""EVA: LoRA, W x + (alpha / rank) B A x, whose A begins as the first right singular vectors of the layer's inputs on
some batches of the training split (Paischer et al., 2024, arXiv:2410.07170). All modules keep their rank."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

from autopeft.methods import Site
from autopeft.methods._lora import LowRank, require_linear

BATCHES = 8  # the paper's vectors converge within a few


class Eva(LowRank):
    """LoRA that begins where its inputs vary most. What is exported is plain LoRA."""

    label = "EVA"
    packs = True

    def count(self, model: Any, site: Site) -> int | None:
        require_linear(model, site, self.label)
        return super().count(model, site)

    def attach(self, model: Any, site: Site) -> None:
        import torch

        require_linear(model, site, self.label)
        before = {id(module) for module in model.modules()}
        super().attach(model, site)
        if site.batches is None:
            return
        layers = {n: m for n, m in model.named_modules() if hasattr(m, "lora_A") and id(m) not in before}
        grams = inputs_of(model, layers, site)
        for name, layer in layers.items():
            a = layer.lora_A["default"].weight
            _, vectors = torch.linalg.eigh(grams[name].cpu())  # eigenvalues ascend
            a.data.copy_(vectors.flip(1)[:, : len(a)].T)


def inputs_of(model: Any, layers: Mapping[str, Any], site: Site) -> dict[str, Any]:
    """Computes Xᵀ X, (inputs, inputs), of each layer over all rows of its inputs that are no padding."""
    import torch

    grams: dict[str, Any] = {}
    batch: Mapping[str, Any] = {}

    def gather(name: str, states: Any) -> None:
        mask = batch.get("attention_mask")
        if mask is not None and mask.shape == states.shape[:-1]:
            states = states[mask.bool()]
        rows = states.reshape(-1, states.shape[-1]).double()
        grams[name] = grams.get(name, 0) + rows.T @ rows

    handles = [
        layer.register_forward_pre_hook(lambda _, args, name=name: gather(name, args[0]))
        for name, layer in layers.items()
    ]
    was = {module: module.training for module in model.modules()}
    assert site.batches is not None
    with torch.no_grad():
        model.eval()
        for batch in itertools.islice(site.batches(), BATCHES):
            model(**batch)
    for handle in handles:
        handle.remove()
    for module, training in was.items():
        module.training = training
    return grams


plugin = Eva
