"""Greedy generation in static shapes: the next token of all rows is one launch.

Keys and values lie in caches of a fixed size (transformers' StaticCache). So a step reads and writes tensors that stay
where they are, and is launched as a step of training is. Whether all rows have ended is looked at now and then.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from autopeft.training.launch import READ, launcher_of

WIDTHS = 32  # what is read is as wide as a multiple of it, so that few sizes are captured
# What generation configs may have beside the values of an empty one: what is heeded here, and what only samplers heed.
KNOWN = frozenset({
    "do_sample", "num_beams", "max_new_tokens", "max_length", "pad_token_id", "eos_token_id", "bos_token_id",
    "decoder_start_token_id", "transformers_version", "_from_model_config", "use_cache",
    "temperature", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff",
})  # fmt: skip
# What asks for nothing where it is 1; anything asks for nothing where it is 0, False, empty or None.
NEUTRAL = frozenset({
    "repetition_penalty", "encoder_repetition_penalty", "length_penalty", "num_return_sequences", "num_beam_groups",
    "guidance_scale",
})  # fmt: skip


@contextmanager
def static_generation(model: nn.Module, device: torch.device, *, is_wanted: bool | None = None) -> Iterator[None]:
    """Lets `model.generate` work in static shapes meanwhile, where it is greedy and the model's caches can be static.

    The model's tensors must stay where they are.

    Args:
        is_wanted: None for where it pays: on a GPU.
    """
    is_wanted = device.type == "cuda" if is_wanted is None else is_wanted
    if not is_wanted or not takes_static_cache(model):
        yield
        return
    made: Any = model
    made.generate = Greedy(model, device)
    try:
        yield
    finally:
        del made.generate


def takes_static_cache(model: nn.Module) -> bool:
    """Whether a model writes token after token, and its caches of keys and values can be static."""
    return bool(getattr(model, "_can_compile_fullgraph", False)) and hasattr(model, "generate")


class Greedy:
    """Does what `model.generate` does, for several rows.

    Args:
        model: A causal language model, or an encoder with a decoder, of transformers, in evaluation mode.
        device: The model's device.
    """

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self.model: Any = model
        self.plain: Any = self.model.generate
        self.launcher = launcher_of(self._step, device)
        self.writing: Writing | None = None
        self.size: tuple[int, ...] = ()

    @torch.no_grad()
    def __call__(
        self, *, input_ids: torch.Tensor, attention_mask: torch.Tensor, generation_config: Any
    ) -> torch.Tensor:
        """Returns what `generate` returns: each row's prompt, or first token, and what was written after it.

        Args:
            input_ids: (n_rows, n_read).
            attention_mask: (n_rows, n_read), 0 where there is padding.
            generation_config: A GenerationConfig. If it asks for more than the likeliest token, the model's own `generate`
                does it.
        """
        if not is_greedy(generation_config, self.model.generation_config):
            given = {"input_ids": input_ids, "attention_mask": attention_mask, "generation_config": generation_config}
            own: torch.Tensor = self.plain(**given)
            return own
        writing = self.begin(input_ids, attention_mask, generation_config)
        done, most = 1, writing.written.shape[1]
        while done < most and not self.launcher.read(writing.is_over.all().view(1))[0]:
            more = min(READ, most - done)
            self.launcher.launch([self.size] * more)
            done += more
        self.launcher.wait()
        return torch.cat([writing.before(input_ids), writing.used(done)], dim=1)

    def begin(self, ids: torch.Tensor, mask: torch.Tensor, config: Any) -> Writing:
        """Reads rows (n_rows, n_read), and writes the first token of each."""
        writing_of = Answering if self.model.config.is_encoder_decoder else Continuing
        longest = getattr(self.model.config, "max_position_embeddings", None) or ids.shape[1] + WIDTHS
        width = max(ids.shape[1], min(-(-ids.shape[1] // WIDTHS) * WIDTHS, longest))
        size = (len(ids), width, int(config.max_new_tokens), int(config.pad_token_id), *_ends(config))
        if self.writing is None or size != self.size:
            self.launcher.forget()  # one size at a time: caches may be large
            self.writing, self.size = writing_of(self.model, len(ids), width, config, ids.device), size
        self.writing.begin(ids, mask)
        return self.writing

    def _step(self, size: Any) -> None:
        assert self.writing is not None, "rows were read"
        self.writing.step()


class Writing:
    """Rows that are written, side by side.

    Args:
        model: The model.
        n_rows: Number of rows.
        width: Tokens that are read of a row, with padding.
        config: Says how many tokens are written at most, what ends a row, and what follows an end.
        device: The model's device.

    Attributes:
        token: (n_rows, 1), the last token of each row.
        written: (n_rows, n_new), the new tokens.
        at: (1,), number of new tokens.
        is_over: (n_rows,) bool, whether a row has ended.
    """

    def __init__(self, model: Any, n_rows: int, width: int, config: Any, device: torch.device) -> None:
        self.model, self.width, self.device = model, width, device
        self.pad_id = int(config.pad_token_id)
        self.token, self.written = self.zeros(n_rows, 1), self.zeros(n_rows, int(config.max_new_tokens))
        self.at, self.is_over = self.zeros(1), torch.zeros(n_rows, dtype=torch.bool, device=device)
        self.pad = torch.tensor([self.pad_id], device=device)
        self.ends = torch.tensor(_ends(config), dtype=torch.int64, device=device)

    def zeros(self, *shape: int) -> torch.Tensor:
        """Returns zeros on the device: tokens, places or masks."""
        return torch.zeros(shape, dtype=torch.int64, device=self.device)

    def cache(self, longest: int) -> Any:
        """Returns an empty cache of keys and values."""
        from transformers import StaticCache

        return StaticCache(config=self.model.config, max_cache_len=longest)

    def begin(self, ids: torch.Tensor, mask: torch.Tensor) -> None:
        """Reads rows, and writes the first token of each."""
        for tensor in (self.at, self.is_over):
            tensor.zero_()
        self.written.fill_(self.pad_id)
        self._take(self.read(ids, mask))

    def step(self) -> None:
        """Writes the next token of each row."""
        self.advance()
        self._take(self.model(**self.inputs(), use_cache=True).logits)

    def advance(self) -> None:
        """Moves on what says where the next token is."""

    def _take(self, logits: torch.Tensor) -> None:
        """Takes the likeliest token of each row that has not ended."""
        token = torch.where(self.is_over, self.pad, logits[:, -1].float().argmax(1))
        self.token.copy_(token[:, None])
        self.written.index_copy_(1, self.at, token[:, None])
        self.is_over |= (token[:, None] == self.ends).any(1)
        self.at += 1

    def used(self, done: int) -> torch.Tensor:
        """Returns as many new tokens as the row needs that ends last."""
        written = self.written[:, :done]
        is_end = (written[..., None] == self.ends).any(2)
        return written[:, : int(torch.where(is_end.any(1), is_end.int().argmax(1) + 1, done).max())]

    def before(self, ids: torch.Tensor) -> torch.Tensor:
        """Returns what `generate` returns before the new tokens."""
        raise NotImplementedError

    def read(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Reads rows into the caches. Returns the logits of their first tokens (n_rows, 1, n_words)."""
        raise NotImplementedError

    def inputs(self) -> Mapping[str, Any]:
        """Returns the model's inputs for the next token: tensors that stay where they are."""
        raise NotImplementedError


class Continuing(Writing):
    """Rows that a causal language model goes on with, padded on the left.

    Attributes:
        mask: (n_rows, width + n_new), 1 for what a row has.
        position: (n_rows, 1), the last token's place in its row.
    """

    def __init__(self, model: Any, n_rows: int, width: int, config: Any, device: torch.device) -> None:
        super().__init__(model, n_rows, width, config, device)
        longest = width + self.written.shape[1]
        self.states, self.mask, self.position = self.cache(longest), self.zeros(n_rows, longest), self.zeros(n_rows, 1)

    def before(self, ids: torch.Tensor) -> torch.Tensor:
        return ids

    def read(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        more = self.width - ids.shape[1]
        ids = nn.functional.pad(ids, (more, 0), value=self.pad_id)
        mask = nn.functional.pad(mask, (more, 0))
        self.states.reset()
        self.mask.zero_()
        self.mask[:, : self.width] = mask
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        self.position.copy_(positions[:, -1:])
        found: torch.Tensor = self.model(
            input_ids=ids, attention_mask=self.mask, position_ids=positions, past_key_values=self.states,
            use_cache=True, logits_to_keep=1,
        ).logits  # fmt: skip
        return found

    def advance(self) -> None:
        self.mask.index_fill_(1, self.width + self.at - 1, 1)  # the last token
        self.position += 1

    def inputs(self) -> Mapping[str, Any]:
        return {
            "input_ids": self.token, "attention_mask": self.mask, "position_ids": self.position,
            "past_key_values": self.states,
        }  # fmt: skip


class Answering(Writing):
    """Rows that a decoder writes after an encoder has read others, padded on the right.

    Attributes:
        seen: (n_rows, 1, 1, width), which of the tokens read are there, as the attention takes it: bool, or what is added
            to the scores.
        hidden: What the encoder made of the rows.
    """

    def __init__(self, model: Any, n_rows: int, width: int, config: Any, device: torch.device) -> None:
        super().__init__(model, n_rows, width, config, device)
        from transformers import EncoderDecoderCache

        longest = self.written.shape[1] + 1  # the decoder reads its first token, too
        self.states = EncoderDecoderCache(self.cache(longest), self.cache(width))
        self.first, self.own = int(config.decoder_start_token_id), self.zeros(n_rows, longest).fill_(1)
        is_sum = model.config._attn_implementation == "eager"
        kind = model.dtype if is_sum else torch.bool
        self.seen = torch.zeros((n_rows, 1, 1, width), dtype=kind, device=device)
        self.hidden: torch.Tensor | None = None

    def before(self, ids: torch.Tensor) -> torch.Tensor:
        return torch.full_like(ids[:, :1], self.first)

    def read(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        more = self.width - ids.shape[1]
        ids, mask = nn.functional.pad(ids, (0, more), value=self.pad_id), nn.functional.pad(mask, (0, more))
        self.states.reset()
        seen = mask.bool()[:, None, None, :]
        if self.seen.dtype != torch.bool:
            seen = torch.zeros_like(self.seen).masked_fill(~seen, torch.finfo(self.seen.dtype).min)
        self.seen.copy_(seen)
        hidden: torch.Tensor = self.model.get_encoder()(input_ids=ids, attention_mask=mask)[0]
        if self.hidden is None:
            self.hidden = torch.empty_like(hidden)
        self.hidden.copy_(hidden)
        self.token.fill_(self.first)
        found: torch.Tensor = self.model(**self.inputs(), use_cache=True).logits
        return found

    def inputs(self) -> Mapping[str, Any]:
        return {
            "decoder_input_ids": self.token, "decoder_attention_mask": self.own, "encoder_outputs": (self.hidden,),
            "attention_mask": self.seen, "past_key_values": self.states,
        }  # fmt: skip


def is_greedy(config: Any, of_model: Any) -> bool:
    """Whether generation is of the likeliest token, up to a number of new tokens, and no more is asked for.

    Args:
        config: What is asked for, as a GenerationConfig.
        of_model: The model's own, which says what `config` leaves open.
    """
    given = {
        name
        for each in (config, of_model)
        for name, value in each.to_diff_dict().items()
        if value and not (name in NEUTRAL and value == 1)
    }
    is_one = config.do_sample is False and config.num_beams == 1
    return is_one and bool(config.max_new_tokens) and given <= KNOWN


def _ends(config: Any) -> list[int]:
    """Returns the tokens that end a row."""
    ends = config.eos_token_id
    return [] if ends is None else [int(end) for end in ends] if isinstance(ends, list) else [int(ends)]
