"""Trained tokens: E[t] + D[t] for the most frequent tokens t of the training split; all other embeddings stay.

Embeddings alone under a frozen body: Artetxe et al., 2020, arXiv:1910.11856. For chosen tokens: peft's trainable tokens.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

from autopeft.errors import Refused
from autopeft.methods import Method, Site

BATCHES = 64  # enough to find the frequent tokens


class Tokens(Method):
    """Embeddings of the `size` most frequent tokens. Without batches, as while counting, of the first ones."""

    label = "embeddings"
    keys: Mapping[str, str] = {"size": "how many tokens"}
    stock: Mapping[str, Any] = {"size": 16, "lr": 1e-2}
    size = "size"
    merges = True

    def attach(self, model: Any, site: Site) -> None:
        import torch

        layer, size = self._embedding(model, site), site.keys["size"]
        device = layer.weight.device
        counts = torch.zeros(layer.num_embeddings, dtype=torch.long)
        for batch in itertools.islice(site.batches(), BATCHES) if site.batches is not None else ():
            read = (
                batch["input_ids"][batch["attention_mask"].bool()] if "attention_mask" in batch else batch["input_ids"]
            )
            counts += torch.bincount(read.flatten().cpu(), minlength=layer.num_embeddings)
        chosen = torch.argsort(counts, descending=True, stable=True)[:size]
        layer.register_buffer("chosen_tokens", chosen.to(device))
        layer.register_parameter(
            "chosen_shift", torch.nn.Parameter(torch.zeros(size, layer.embedding_dim, device=device))
        )
        for reader in _readers(model, layer):
            reader.register_forward_hook(Shift(layer))

    def count(self, model: Any, site: Site) -> int | None:
        return int(site.keys["size"] * self._embedding(model, site).embedding_dim)

    def _embedding(self, model: Any, site: Site) -> Any:
        import torch

        try:
            layer = model.get_input_embeddings()
        except NotImplementedError:  # transformers raises this for a convolutional net
            layer = None
        if not isinstance(layer, torch.nn.Embedding):
            raise Refused("unsupported: this model reads no tokens")
        if site.keys["size"] > layer.num_embeddings:
            raise Refused(f"the model has {layer.num_embeddings} tokens, not {site.keys['size']}")
        return layer

    def merge(self, model: Any, site: Site) -> None:
        """Adds the shifts to the rows of the embedding."""
        import torch

        layer = self._embedding(model, site)
        output = getattr(model, "get_output_embeddings", lambda: None)()
        if output is not None and output.weight is layer.weight:
            raise Refused(
                "embeddings of tokens cannot be merged here: the output layer has the same weight, which would change with "
                "them; export them as an adapter"
            )
        merged = layer.weight.detach().clone()
        merged[layer.chosen_tokens] += layer.chosen_shift.detach().to(merged.dtype)
        readers, weight = _readers(model, layer), torch.nn.Parameter(merged, requires_grad=False)
        for reader in readers:
            reader.weight = weight
            for key in [key for key, hook in reader._forward_hooks.items() if isinstance(hook, Shift)]:
                del reader._forward_hooks[key]
        del layer.chosen_tokens, layer.chosen_shift

    def describe(self, keys: Mapping[str, Any]) -> str:
        return f"{self.label} of {keys['size']} tokens"


def _readers(model: Any, layer: Any) -> list[Any]:
    """Finds the embeddings with the layer's weight. An encoder and its decoder read tokens with one each."""
    embeddings = (module for module in model.modules() if hasattr(module, "num_embeddings"))
    return [module for module in embeddings if module.weight is layer.weight]


class Shift:
    """Forward hook of an embedding: adds the trained shifts of the chosen tokens, which `owner` holds."""

    def __init__(self, owner: Any) -> None:
        self.owner = owner

    def __call__(self, layer: Any, args: Any, output: Any) -> Any:
        at = (args[0].unsqueeze(-1) == self.owner.chosen_tokens).to(output.dtype)  # (..., size), mostly 0
        return output + at @ self.owner.chosen_shift.to(output.dtype)


plugin = Tokens
