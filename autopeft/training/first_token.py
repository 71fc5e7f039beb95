"""The last block, for the one token that the head reads.

The heads of these models look at the first token alone. Once the last block's attention has mixed the others into it,
what they would become is nobody's business: of the block's products three quarters fall away, forward and backward.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from autopeft.training.model import ModelView

# Model type → the module of a block after whose inputs everything goes token by token. A test holds each to it.
TOKEN_BY_TOKEN = {
    "bert": "attention.output",
    "camembert": "attention.output",
    "distilbert": "sa_layer_norm",
    "electra": "attention.output",
    "roberta": "attention.output",
    "xlm-roberta": "attention.output",
}


def read_first_token(model: nn.Module, view: ModelView) -> None:
    """Lets the last block of a clone go on with the first token alone, where its head reads no other."""
    place = TOKEN_BY_TOKEN.get(view.model_type)
    if place is not None and type(model).__name__.endswith("ForSequenceClassification"):
        model.get_submodule(f"{view.blocks[-1]}.{place}").register_forward_pre_hook(_first)


def _first(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(states[:, :1] for states in inputs)
