"""Rows end to end in one buffer, through transformers' own model code: no padding between the first and the last block.

The model gets rows in their padded form, so that embeddings, positions and heads are its own. Hooks pack all tensors
with a place for each token before a block, and unpack the last block's output. Between them a batch is one row of
tokens. Attention finds the rows' boundaries here, by a name of its own in transformers' registry of attention functions.

All shapes depend on the batch's `Size` only, and nothing waits for the device.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from autopeft.training import varlen
from autopeft.training.sizes import Size

FLAT = "autopeft_flat_"
PLAIN = ("eager", "sdpa")  # attentions that do no more than softmax(q k) v


class Layout:
    """Where the tokens of one pass lie: in M buffers with B rows each, T tokens each, L wide where padded.

    Args:
        lengths: (M, B) tokens a row; 0 for a filler row.
        size: Shape of a buffer. T is at least the sum of its rows' lengths.
        owner_rows: Number of rows of a member of the pass; B where each has a buffer of its own.

    Attributes:
        row: (M, T), the row of each token; B for filler.
        position: (M * T,), each token's place in its row; 0 for filler.
        index: (M * T,), each token's place in the padded form (M * B * L).
        token: (M * B * L,), the reverse. The padding of a row is its last token.
        first: (M * B,), each row's first token.
        owner: (M * T,), the member of the pass whose token it is; of filler, any.
        cu: (M * (B + F) + 1,) int32, the rows' boundaries. A buffer's filler are F rows of at most L tokens.
        is_real: (M * B, L) bool, which places of the padded form are tokens; the first place of a filler row, too.
        picked: (M * P,), places of the padded form whose outputs are wanted; None for all.
        picked_owner: (M * P,), the members whose places those are.
        was_read: Whether a model's blocks handed on what lies end to end.
    """

    def __init__(self, lengths: torch.Tensor, size: Size, owner_rows: int) -> None:
        members, n_rows = lengths.shape
        n_tokens, width, device = size.tokens, size.longest, lengths.device
        self.members, self.n_rows, self.n_tokens, self.width = members, n_rows, n_tokens, width
        ends = lengths.cumsum(1)
        starts = ends - lengths
        token = torch.arange(n_tokens, device=device).expand(members, -1)
        member = torch.arange(members, device=device)[:, None]
        self.row = torch.searchsorted(ends, token.contiguous(), right=True)
        is_filler, row = self.row == n_rows, self.row.clamp(max=n_rows - 1)
        position = (token - starts.gather(1, row)).masked_fill(is_filler, 0)
        row = row.masked_fill(is_filler, 0)
        self.position = position.flatten()
        self.owner = ((member * n_rows + row) // owner_rows).flatten()
        self.index = ((member * n_rows + row) * width + position).flatten()
        column = torch.minimum(torch.arange(width, device=device), (lengths - 1).clamp(min=0)[..., None])
        places = (starts[..., None] + column).clamp(max=n_tokens - 1) + (member * n_tokens)[..., None]
        self.token = places.flatten()
        self.first = places[..., 0].flatten()
        self.is_real = torch.arange(width, device=device) < lengths.clamp(min=1)[..., None]
        self.is_real = self.is_real.flatten(0, 1)
        filler = (ends[:, -1:] + width * torch.arange(1, -(-n_tokens // width) + 1, device=device)).clamp(max=n_tokens)
        ends = (torch.cat([ends, filler], 1) + member * n_tokens).flatten()
        self.cu = torch.nn.functional.pad(ends, (1, 0)).int()
        self.picked: torch.Tensor | None = None
        self.picked_owner: torch.Tensor | None = None
        self.was_read = False
        self._masks: dict[Any, torch.Tensor] = {}
        self._shares: dict[Any, torch.Tensor] = {}
        self._packed: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def pick(self, wanted: torch.Tensor, n_picked: int, unscored: int) -> torch.Tensor:
        """Picks the scored tokens of each buffer. Returns their targets (M * P,), `unscored` beyond the last.

        Args:
            wanted: (M, T), target of each token's output, `unscored` where there is none.
            n_picked: P, at least the number of scored tokens of a buffer.
        """
        is_scored = wanted != unscored
        place = is_scored.cumsum(1) - 1
        place = torch.where(is_scored, place, n_picked).clamp(max=n_picked)
        token = torch.arange(self.n_tokens, device=wanted.device).expand(self.members, -1)
        picked = wanted.new_zeros((self.members, n_picked + 1), dtype=torch.long).scatter(1, place, token)[:, :n_picked]
        is_used = torch.arange(n_picked, device=wanted.device) < is_scored.sum(1, keepdim=True)
        member = torch.arange(self.members, device=wanted.device)[:, None]
        tokens = (picked + member * self.n_tokens).flatten()
        self.picked, self.picked_owner = self.index[tokens], self.owner[tokens]
        return wanted.gather(1, picked).masked_fill(~is_used, unscored).flatten()

    def packed(self, value: Any) -> Any:
        """Returns a block's input with a place for each token, (B or 1, L, ...), as (1, M * T, ...); others as they are."""
        if isinstance(value, (tuple, list)):
            return type(value)(map(self.packed, value))
        if not isinstance(value, torch.Tensor) or not 2 <= value.ndim <= 3 or value.shape[1] != self.width:
            return value
        if value.shape[0] not in (1, self.members * self.n_rows):
            return value
        if id(value) in self._packed:
            return self._packed[id(value)][1]
        if value.shape[0] == self.members * self.n_rows:
            out = value.flatten(0, 1).index_select(0, self.index).unsqueeze(0)
        else:
            out = value[0].index_select(0, self.position).unsqueeze(0)
        if not value.requires_grad:  # the angles of rotary positions are the same for all blocks
            self._packed[id(value)] = (value, out)  # the value, too, so that its id stays its own
        return out

    def unpacked(self, states: torch.Tensor) -> torch.Tensor:
        """Returns the last block's output as the model above reads it: padded, or the first tokens."""
        n_rows, self.was_read = self.members * self.n_rows, True
        if states.shape[1] == n_rows:  # the first tokens only (`first_token`)
            return states.view(n_rows, 1, *states.shape[2:])
        return states[0].index_select(0, self.token).view(n_rows, self.width, *states.shape[2:])

    def of_picked(self, states: torch.Tensor) -> torch.Tensor:
        """Returns the picked places of padded states (M * B, L, width), as (1, M * P, width)."""
        assert self.picked is not None, "places were picked"
        return states.flatten(0, 1).index_select(0, self.picked).unsqueeze(0)

    def share(self, members: int, each: int, dtype: torch.dtype) -> torch.Tensor:
        """Returns (M * T, members * each): 1 where a column is one of the `each` of the token's member, else 0."""
        key = (members, each, dtype)
        if key not in self._shares:
            column = torch.arange(members * each, device=self.owner.device) // each
            self._shares[key] = (self.owner[:, None] == column).to(dtype)
        return self._shares[key]

    def padded(self, states: torch.Tensor) -> torch.Tensor:
        """Returns queries, keys or values, (1, heads, M * T, width), as (M * B, heads, L, width)."""
        rows = states[0].transpose(0, 1).index_select(0, self.token)
        return rows.view(-1, self.width, *rows.shape[1:]).transpose(1, 2)

    def mask(self, is_causal: bool, window: int | None, dtype: torch.dtype) -> torch.Tensor:
        """Returns which keys a query sees in the padded form, (M * B, 1, L, L): bool, or what is added to the scores.

        Args:
            window: Keys so many places away, or more, are not seen; None for no bound.
        """
        key = (is_causal, window, dtype)
        if key not in self._masks:
            place = torch.arange(self.width, device=self.is_real.device)
            away = place[:, None] - place[None, :]
            near = away >= 0 if is_causal else torch.ones_like(away, dtype=torch.bool)
            if window is not None:
                near &= away.abs() < window
            seen = self.is_real[:, None, None, :] & near
            if dtype != torch.bool:
                seen = torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(
                    ~seen, torch.finfo(dtype).min
                )
            self._masks[key] = seen
        return self._masks[key]


class Flattening:
    """Lets a clone of the base read batches end to end.

    Args:
        model: The clone, with its recipe and cut.
        blocks: Full names of its blocks, in order of running.
        output: Full name of a language model's output layer, which then computes the picked places only; None if the
            model has no such layer.

    Attributes:
        layout: The batch of the passes that follow; None for a padded batch.
    """

    def __init__(self, model: nn.Module, blocks: tuple[str, ...], output: str | None = None) -> None:
        self.layout: Layout | None = None
        self._configs = _attention_configs(model)
        for module in model.modules():
            module.__dict__["autopeft_flattening"] = self
        for name in blocks:
            model.get_submodule(name).register_forward_pre_hook(self._enter, with_kwargs=True)
        model.get_submodule(blocks[-1]).register_forward_hook(self._leave)
        self.picks_inside = output is not None
        if output is not None:
            model.get_submodule(output).register_forward_pre_hook(self._pick)

    def read(self, layout: Layout | None) -> None:
        """Sets the layout of the passes that follow, and with it the attention of all modules."""
        if (layout is None) != (self.layout is None):
            for config, name in self._configs:
                config._attn_implementation_internal = name if layout is None else _registered(name)
        self.layout = layout

    def _enter(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        layout = self.layout
        if layout is None:
            return None
        packed = {name: None if "mask" in name else layout.packed(value) for name, value in kwargs.items()}
        return layout.packed(args), packed

    def _leave(self, module: nn.Module, args: Any, output: Any) -> Any:
        if self.layout is None:
            return output
        if isinstance(output, tuple):
            return (self.layout.unpacked(output[0]), *output[1:])
        return self.layout.unpacked(output)

    def _pick(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if self.layout is None or self.layout.picked is None:
            return None
        return (self.layout.of_picked(args[0]), *args[1:])

    def picked(self, outputs: torch.Tensor) -> torch.Tensor:
        """Returns a model's outputs of the picked places (M * P, n_outputs)."""
        assert self.layout is not None, "a pass was made"
        return (outputs if self.picks_inside else self.layout.of_picked(outputs))[0]


def layout_of(module: nn.Module) -> Layout | None:
    """Returns the layout of the batch that a module of a flattened model reads; None if the batch is padded."""
    flattening = module.__dict__.get("autopeft_flattening")
    return None if flattening is None else flattening.layout


def _attention_configs(model: nn.Module) -> list[tuple[Any, str]]:
    """Returns the configs that name the attention of the model's modules, and these names."""
    found: dict[int, Any] = {}
    for module in model.modules():
        config = module.__dict__.get("config")
        if config is not None and getattr(config, "_attn_implementation_internal", None) is not None:
            found[id(config)] = config
    return [(config, str(config._attn_implementation_internal)) for config in found.values()]


def _registered(name: str) -> str:
    """Returns the name of the flat form of an attention, known to transformers. It has no mask function: needs none."""
    if FLAT + name not in ALL_ATTENTION_FUNCTIONS:
        ALL_ATTENTION_FUNCTIONS.register(FLAT + name, attend)
    return FLAT + name


@torch.compiler.disable  # type: ignore[untyped-decorator]  # a kernel, or the model's own, between compiled parts
def attend(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: Any, **options: Any
) -> tuple[torch.Tensor, None]:
    """Attention within rows: query (1, heads, M * T, width), key and value (1, key heads, M * T, width).

    Flash attention by the rows' boundaries where it can; elsewhere the module's own attention, on padded rows.

    Returns:
        (1, M * T, heads, width), and no weights.
    """
    layout = layout_of(module)
    assert layout is not None, "read set the layout, and with it this attention"
    name = module.config._attn_implementation_internal.removeprefix(FLAT)
    is_causal = options.get("is_causal")
    is_causal = bool(getattr(module, "is_causal", True) if is_causal is None else is_causal)
    if query.is_cuda and torch.is_autocast_enabled("cuda"):  # angles of positions in fp32 widen queries and keys
        half = torch.get_autocast_dtype("cuda")
        query, key, value = (states.to(half) for states in (query, key, value))
    reach = -1 if options.get("sliding_window") is None else options["sliding_window"] - 1
    window = (reach, 0 if is_causal else reach)
    if name in PLAIN and varlen.takes(query, value, options, window):
        out = varlen.attention(
            query[0], key[0], value[0], layout.cu, layout.width, window, scaling=options.get("scaling")
        )
        return out.unsqueeze(0), None
    own = ALL_ATTENTION_FUNCTIONS.get_interface(
        name, getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    )
    is_sum = name.endswith("eager")  # eager adds its mask to the scores
    mask = layout.mask(is_causal, options.get("sliding_window"), query.dtype if is_sum else torch.bool)
    query, key, value = (layout.padded(states) for states in (query, key, value))
    out = own(module, query, key, value, mask, **options)[0]
    return out.flatten(0, 1).index_select(0, layout.index).unsqueeze(0), None
