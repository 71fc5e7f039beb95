"""The head that a configuration chooses, on a clone of the base that ends at the block which the head reads.

`pooled` makes one vector of the states of a row, `Layers` makes logits of it. The architecture's own head stays where a
configuration says `own`. Knows nothing of methods.
"""

from __future__ import annotations

import inspect
from dataclasses import replace
from functools import cache
from typing import Any, cast

import torch
from torch import nn
from torch.nn import functional

from autopeft.errors import Refused
from autopeft.recipe import OWN_HEAD, POOLINGS, Head, layer_fault
from autopeft.training.model import ModelView, Passed, clone_shared, replace_module

# Model type → the pooling of the architecture's own head, if that is one linear layer behind it. A test checks each.
# Such a head is the same as `own`: stock code holds it.
PLAIN = {
    "deit": "first", "gpt2": "last", "llama": "last", "mobilenet_v1": "mean", "mobilenet_v2": "mean", "vit": "first",
}  # fmt: skip

# Model type → number of tokens before those of the patches, which mean, max and attention leave out.
BEFORE_PATCHES = {"deit": 2, "vit": 1}

# Model types whose own head does more than read the states: Funnel's are fewer than the tokens, and Longformer's head
# says which tokens attend to all.
OWN_ALONE = frozenset({"funnel", "longformer"})


# ── a model with a head ─────────────────────────────────────────────────────────────────────────────────────────────


def headed(model: nn.Module, view: ModelView, head: Head) -> tuple[nn.Module, ModelView]:
    """Returns a clone of the base with a head, and its parts. Both are as given if the head is the model's own.

    What the head does not read has no parameters in the clone: blocks and convolutions above, a pooler. All other
    parameters are shared. Those of a new head are not drawn.

    Raises:
        Refused: The architecture does not allow this head.
    """
    head = fitted(model, view, head)
    if head == OWN_HEAD:
        return model, view
    clone, seen = clone_shared(model, ()), seen_by(view, head)
    for name in view.blocks[seen.n_layers :]:
        replace_module(clone, name, Passed())
    for name in set(view.above) - set(seen.above):
        replace_module(clone, name, nn.Identity())
    if head.pooling == "own":
        if head.hidden or head.norm:
            replace_module(clone, view.head[-1], make(model, view, head))
        return clone.eval(), seen
    for name in view.head:
        replace_module(clone, name, nn.Identity())
    replace_module(clone, seen.head[0], make(model, view, head))
    clone.__class__ = _reading(cast(Any, type(clone)))
    clone.autopeft_head = seen.head[0]  # type: ignore[assignment]  # a name, no module
    return clone.eval(), seen


def fitted(model: nn.Module, view: ModelView, head: Head) -> Head:
    """Returns the head in its shortest form for this model: what the model has anyway is the default.

    Raises:
        Refused: The architecture does not allow this head.
    """
    if head.layer is not None and (fault := layer_fault(head.layer, view.n_layers)):
        raise Refused(f"head.layer {fault}")
    if head.layer == view.n_layers - 1:
        head = replace(head, layer=None)
    if PLAIN.get(view.model_type) == head.pooling and head == Head(head.pooling):
        head = OWN_HEAD
    if head == OWN_HEAD:
        return head
    known = poolings(model, view)
    if head.pooling not in known:
        raise Refused(f"unsupported: head.pooling {head.pooling}: {type(model).__name__} allows {', '.join(known)}")
    if head.layer is not None and view.chain < view.n_layers:
        raise Refused(f"unsupported: head.layer: the blocks of a {view.model_type} are not known to run one by one")
    if head.pooling == "own":
        _require_own_fits(model, view, head)
    return head


def _require_own_fits(model: nn.Module, view: ModelView, head: Head) -> None:
    if head.layer is not None and (not view.head or _is_convolutional(view)):
        others = ", ".join(poolings(model, view)[1:])
        raise Refused(
            f"unsupported: head.layer with pooling own: the own head of {type(model).__name__} reads the last block"
            + (f"; choose another pooling: {others}" if others else "")
        )
    last = model.get_submodule(view.head[-1]) if view.head else None
    if (head.hidden or head.norm) and not isinstance(last, nn.Linear):
        raise Refused(
            f"unsupported: head.{'hidden' if head.hidden else 'norm'} with pooling own: the own head of "
            f"{type(model).__name__} has layers of its own; choose another pooling"
        )


def poolings(model: nn.Module, view: ModelView) -> tuple[str, ...]:
    """Returns the poolings that an architecture allows: `own` alone for outputs that are not one a row."""
    name, config = type(model).__name__, model.config
    prefix = getattr(model, "base_model_prefix", "")
    is_inside = bool(prefix) and all(block.startswith(f"{prefix}.") for block in view.blocks)
    if not view.head or not is_inside or getattr(config, "is_encoder_decoder", False) or view.model_type in OWN_ALONE:
        return ("own",)
    if name.endswith("ForSequenceClassification") and view.embeddings:  # sounds have other masks than their states
        return POOLINGS
    if not name.endswith("ForImageClassification"):
        return ("own",)
    if _is_convolutional(view):
        return tuple(pooling for pooling in POOLINGS if pooling not in ("first", "last"))
    return tuple(pooling for pooling in POOLINGS if pooling != "last")


def _is_convolutional(view: ModelView) -> bool:
    return not set(view.kinds) - {"convolution", "depthwise"}


def seen_by(view: ModelView, head: Head) -> ModelView:
    """Returns the parts of a model that a head reads, with the head's own name. `head` is fitted to the model."""
    count = view.n_layers if head.layer is None else head.layer + 1
    blocks = view.blocks[:count]
    kinds = {kind: tuple(name for name in names if view.block_of(name) < count) for kind, names in view.kinds.items()}
    return replace(
        view,
        blocks=blocks,
        kinds={kind: names for kind, names in kinds.items() if names},
        unknown=tuple(name for name in view.unknown if view.block_of(name) < count),
        chain=min(view.chain, count),
        above=view.above if head.pooling == "own" else tuple(name for name in view.above if _reads(view, head, name)),
        head=view.head if head.pooling == "own" else view.head[-1:],
        chosen=head,
        left_out=view.n_layers - count,
    )


def _reads(view: ModelView, head: Head, name: str) -> bool:
    """Whether a head with a pooling of its own reads what a module above the blocks computes."""
    leaf = name.rpartition(".")[2]
    if _is_convolutional(view):  # its norm is of the pooled vector; its last convolution takes the last block's width
        return leaf == "conv_1x1" and head.layer is None
    return leaf != "pooler"


def vectors(view: ModelView) -> str:
    """Names the module of the head whose input is one vector a row, made without parameters of the head.

    Empty if there is none. The input of an architecture's own head may have another shape: the caller looks.
    """
    if view.chosen.pooling == "attention" or len(view.head) != 1:
        return ""
    return view.head[0] if view.chosen.pooling == "own" else f"{view.head[0]}.layers"


class _Reads:
    """Forward pass of a model whose head is a `Searched`: the states of the base model, then the head."""

    def forward(self: Any, **inputs: Any) -> Any:
        from transformers.modeling_outputs import SequenceClassifierOutput

        base = getattr(self, self.base_model_prefix)
        if _keeps_keys(cast(Any, type(base))):
            inputs["use_cache"] = False  # of keys and values, for generation
        output = base(**inputs)
        head = self.get_submodule(self.autopeft_head)
        return SequenceClassifierOutput(logits=head(output[0], inputs.get("attention_mask")))


@cache
def _keeps_keys(architecture: type) -> bool:
    return "use_cache" in inspect.signature(cast(Any, architecture).forward).parameters


@cache
def _reading(architecture: type) -> type:
    """Returns the architecture with the forward pass of `_Reads`. As a class, not an attribute that refers to the
    model: a model that no longer trains frees its memory at once."""
    return type(architecture.__name__, (_Reads, architecture), {"__module__": architecture.__module__})


# ── a head ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def make(model: nn.Module, view: ModelView, head: Head, device: Any = None) -> nn.Module:
    """Makes the new modules of a head, frozen: a `Searched`, or `Layers` behind the architecture's own pooling."""
    device = next(model.parameters()).device if device is None else device
    n_outputs = int(cast(Any, model).config.num_labels)
    if head.pooling == "own":
        last: Any = model.get_submodule(view.head[-1])
        made: nn.Module = Layers(last.in_features, n_outputs, head, device)
    else:
        made = Searched(width(model, view, head.layer), n_outputs, head, BEFORE_PATCHES.get(view.model_type, 0), device)
    return made.requires_grad_(False).eval()


def width(model: nn.Module, view: ModelView, layer: int | None) -> int:
    """Returns the width of the states that a head reads: after block `layer`, or of all that its own head reads."""
    if layer is not None and _is_convolutional(view):
        block = model.get_submodule(view.blocks[layer])
        convolutions = [module for module in block.modules() if isinstance(module, nn.Conv2d)]
        return convolutions[-1].out_channels
    linear = (m for name in view.head for m in model.get_submodule(name).modules() if isinstance(m, nn.Linear))
    return next(linear).in_features


class Searched(nn.Module):
    """Pooling, then layers.

    Args:
        width: Width of the states.
        n_outputs: Number of logits.
        head: The configuration's.
        before: Number of tokens before the patches of a picture.
    """

    def __init__(self, width: int, n_outputs: int, head: Head, before: int, device: Any) -> None:
        super().__init__()
        self.pooling, self.before = head.pooling, before
        if head.pooling == "attention":
            self.scores = nn.Linear(width, 1, bias=False, device=device, dtype=torch.float32)
        self.layers = Layers(width, n_outputs, head, device)

    def forward(self, states: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        if states.ndim == 4:  # (n, channels, height, width)
            states = states.flatten(2).mT
        elif self.pooling not in ("first", "last"):
            states = states[:, self.before :]
        scores = self.scores(states).squeeze(-1) if self.pooling == "attention" else None
        logits: torch.Tensor = self.layers(pooled(self.pooling, states, mask, scores))
        return logits


def pooled(
    pooling: str, states: torch.Tensor, mask: torch.Tensor | None, scores: torch.Tensor | None = None
) -> torch.Tensor:
    """Makes one vector of the states of each row, in fp32.

    Args:
        pooling: One of `POOLINGS` but `own`. `attention`: a mean weighted by the softmax of the scores.
        states: (n, tokens, width).
        mask: (n, tokens), 1 for a token and 0 for padding, on either side; None if all are tokens.
        scores: (n, tokens), for `attention`.

    Returns:
        (n, width).
    """
    states = states.float()
    if mask is None:
        mask = torch.ones(states.shape[:2], dtype=torch.long, device=states.device)
    if pooling == "first" and states.shape[1] == 1:  # all others were dropped before
        return states[:, 0]
    if mask.shape != states.shape[:2]:
        raise Refused(f"unsupported: the model gives states of {states.shape[1]} tokens, of {mask.shape[1]} it reads")
    if pooling in ("first", "last"):
        places = torch.arange(mask.shape[1], device=mask.device)
        at = mask.argmax(1) if pooling == "first" else (places * mask).argmax(1)
        return states[torch.arange(len(states), device=states.device), at]
    real = mask.to(torch.bool)
    if pooling == "max":
        return states.masked_fill(~real.unsqueeze(-1), -torch.inf).amax(1)
    if scores is None:
        weights = mask.to(states.dtype) / mask.sum(1, keepdim=True)
    else:
        weights = scores.float().masked_fill(~real, -torch.inf).softmax(1)
    return torch.bmm(weights.unsqueeze(1), states).squeeze(1)


class Layers(nn.Module):
    """A linear layer, behind a norm and a hidden layer with GELU if the head has them. (n, …, width) → (n, …, outputs)."""

    def __init__(self, width: int, n_outputs: int, head: Head, device: Any) -> None:
        super().__init__()
        self.norm, self.width = head.norm, width
        kind = {"device": device, "dtype": torch.float32}
        if head.hidden:
            self.hidden = nn.Linear(width, head.hidden, **kind)
        self.out = nn.Linear(head.hidden or width, n_outputs, **kind)

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        if self.norm:
            vectors = functional.layer_norm(vectors, (self.width,))
        if hasattr(self, "hidden"):
            vectors = functional.gelu(self.hidden(vectors))
        logits: torch.Tensor = self.out(vectors)
        return logits
