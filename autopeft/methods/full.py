"""Full fine-tuning: every parameter; of some layers only where `layers` says so. What all else is measured against."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from autopeft.methods import Scope
from autopeft.methods._unfreeze import Unfreeze, in_blocks

# Parameters that stand for masked inputs in pretraining. No task of ours reads them, so no gradient would reach them.
OF_PRETRAINING = ("mask_token", "masked_spec_embed", "mask_emb")


class Full(Unfreeze):
    """Trains all of the base with its embeddings, except parameters that only pretraining reads."""

    label = "full fine-tuning"
    baseline = "full fine-tuning"
    stock: Mapping[str, Any] = {"lr": 5e-5}

    def unfreezes(self, model: Any, scope: Scope, keys: Mapping[str, Any]) -> list[str]:
        if "layers" in keys and keys["layers"] != "all":
            return in_blocks(model, scope)
        heads = tuple(f"{head}." for head in scope.head)
        names = [name for name, _ in model.named_parameters() if not name.startswith(heads)]
        return [name for name in names if name.rpartition(".")[2] not in OF_PRETRAINING]


plugin = Full
