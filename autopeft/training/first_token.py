"""Computes the last block for the first token only, if the head reads no other token.

After the last block's attention, the other tokens no longer change the first one, so they are dropped there. This saves
three quarters of the block's products, forward and backward.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from autopeft.training.flat import layout_of
from autopeft.training.model import ModelView

# Model type → a module of the block. From its inputs on, the block treats each token by itself. A test checks each row.
TOKEN_BY_TOKEN = {
    "bert": "attention.output",
    "camembert": "attention.output",
    "distilbert": "sa_layer_norm",
    "electra": "attention.output",
    "roberta": "attention.output",
    "xlm-roberta": "attention.output",
}


def read_first_token(model: nn.Module, view: ModelView) -> None:
    """Makes the last block of a clone drop all tokens but the first, if the head reads no other."""
    place = TOKEN_BY_TOKEN.get(view.model_type) if view.chosen.pooling in ("own", "first") else None
    if place is not None and type(model).__name__.endswith("ForSequenceClassification"):
        model.get_submodule(f"{view.blocks[-1]}.{place}").register_forward_pre_hook(_first)


def _first(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    layout = layout_of(module)
    if layout is not None:
        return tuple(states.index_select(1, layout.first) for states in inputs)
    return tuple(states[:, :1] for states in inputs)
