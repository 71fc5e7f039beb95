"""Greedy generation in static shapes: after the prompts, the next token of all rows is one launch.

Keys and values lie in a cache of a fixed size (transformers' StaticCache). So a step reads and writes tensors that stay
where they are, and is launched as a step of training is. Whether all rows have ended is looked at now and then.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from autopeft.training.launch import READ, launcher_of

WIDTHS = 32  # prompts are as wide as a multiple of it, so that few sizes are captured
# What a generation config may have beside the values of an empty one.
KNOWN = frozenset({
    "do_sample", "num_beams", "max_new_tokens", "max_length", "pad_token_id", "eos_token_id", "bos_token_id",
    "transformers_version", "_from_model_config",
})  # fmt: skip


@contextmanager
def static_generation(model: nn.Module, device: torch.device, *, is_wanted: bool | None = None) -> Iterator[None]:
    """Lets `model.generate` work in static shapes meanwhile, where it is greedy and the model's cache can be static.

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
    """Whether a model writes token after token, and its cache of keys and values can be static."""
    config: Any = getattr(model, "config", None)
    return bool(
        config is not None
        and not getattr(config, "is_encoder_decoder", False)
        and getattr(model, "_can_compile_fullgraph", False)
        and hasattr(model, "generate")
    )


@dataclass
class Writing:
    """The state of rows that are being written, padded on the left.

    Attributes:
        cache: Keys and values.
        token: (n_rows, 1), the last token of each row.
        position: (n_rows, 1), its place in its row.
        mask: (n_rows, width), 1 for what a row has; width is that of prompts and new tokens.
        at: (1,), the place of the next token in the mask.
        written: (n_rows, n_new), the new tokens.
        is_over: (n_rows,) bool, whether a row has ended.
        ends: (n_ends,), the tokens that end a row.
        pad: (1,), what follows an end.
    """

    cache: Any
    token: torch.Tensor
    position: torch.Tensor
    mask: torch.Tensor
    at: torch.Tensor
    written: torch.Tensor
    is_over: torch.Tensor
    ends: torch.Tensor
    pad: torch.Tensor


class Greedy:
    """Does what `model.generate` does, of rows of several tokens each.

    Args:
        model: A causal language model of transformers, in evaluation mode.
        device: The model's device.
    """

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self.model: Any = model
        self.device = device
        self.plain: Any = self.model.generate
        self.launcher = launcher_of(self._step, device)
        self._writing: Writing | None = None
        self._size: tuple[int, ...] = ()

    @torch.no_grad()
    def __call__(
        self, *, input_ids: torch.Tensor, attention_mask: torch.Tensor, generation_config: Any
    ) -> torch.Tensor:
        """Returns the prompts and what was written after them (n_rows, n_prompt + n_new).

        Args:
            input_ids: (n_rows, n_prompt), padded on the left.
            attention_mask: (n_rows, n_prompt), 0 where there is padding.
            generation_config: A GenerationConfig. If it asks for more than the likeliest token, the model's own `generate`
                does it.
        """
        if not is_greedy(generation_config):
            given = {"input_ids": input_ids, "attention_mask": attention_mask, "generation_config": generation_config}
            own: torch.Tensor = self.plain(**given)
            return own
        n_new = int(generation_config.max_new_tokens)
        writing = self._begin(input_ids, attention_mask, n_new, generation_config)
        done = 1
        while done < n_new and not self.launcher.read(writing.is_over.all().view(1))[0]:
            more = min(READ, n_new - done)
            self.launcher.launch([self._size] * more)
            done += more
        self.launcher.wait()
        written = writing.written[:, :done]
        is_end = (written[..., None] == writing.ends).any(2)
        # As many as the row needs that ends last
        used = torch.where(is_end.any(1), is_end.int().argmax(1) + 1, done).max()
        return torch.cat([input_ids, written[:, : int(used)]], dim=1)

    def _begin(self, ids: torch.Tensor, mask: torch.Tensor, n_new: int, config: Any) -> Writing:
        """Reads the prompts, and writes the first token of each row."""
        n_rows, n_prompt = ids.shape
        width = -(-n_prompt // WIDTHS) * WIDTHS
        ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
        size = (n_rows, width, n_new, int(config.pad_token_id), *ends)
        ids = nn.functional.pad(ids, (width - n_prompt, 0), value=int(config.pad_token_id))
        mask = nn.functional.pad(mask, (width - n_prompt, 0))
        if self._writing is None or size != self._size:
            self.launcher.forget()  # one size at a time: a cache may be large
            self._writing, self._size = self._empty(n_rows, width, n_new, ends, config), size
        writing = self._writing
        writing.cache.reset()
        writing.mask.zero_()
        writing.mask[:, :width] = mask
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        writing.position.copy_(positions[:, -1:])
        writing.at.fill_(width)
        writing.is_over.zero_()
        writing.written.fill_(int(config.pad_token_id))
        logits = self.model(
            input_ids=ids, attention_mask=writing.mask, position_ids=positions, past_key_values=writing.cache,
            use_cache=True, logits_to_keep=1,
        ).logits  # fmt: skip
        self._take(writing, logits)
        return writing

    def _empty(self, n_rows: int, width: int, n_new: int, ends: list[int], config: Any) -> Writing:
        from transformers import StaticCache

        def zeros(*shape: int, dtype: torch.dtype = torch.int64) -> torch.Tensor:
            return torch.zeros(shape, dtype=dtype, device=self.device)

        return Writing(
            StaticCache(config=self.model.config.get_text_config(), max_cache_len=width + n_new),
            zeros(n_rows, 1), zeros(n_rows, 1), zeros(n_rows, width + n_new), zeros(1), zeros(n_rows, n_new),
            zeros(n_rows, dtype=torch.bool), torch.tensor([end for end in ends if end is not None], device=self.device),
            torch.tensor([int(config.pad_token_id)], device=self.device),
        )  # fmt: skip

    def _step(self, size: Any) -> None:
        """Writes the next token of each row."""
        writing = self._writing
        assert writing is not None, "prompts were read"
        logits = self.model(
            input_ids=writing.token, attention_mask=writing.mask, position_ids=writing.position,
            past_key_values=writing.cache, use_cache=True,
        ).logits  # fmt: skip
        self._take(writing, logits)

    def _take(self, writing: Writing, logits: torch.Tensor) -> None:
        """Takes the likeliest token of each row that has not ended."""
        token = torch.where(writing.is_over, writing.pad, logits[:, -1].float().argmax(1))
        writing.token.copy_(token[:, None])
        width = writing.mask.shape[1] - writing.written.shape[1]
        writing.written.index_copy_(1, writing.at - width, token[:, None])
        writing.mask.index_fill_(1, writing.at, 1)
        writing.at += 1
        writing.position += 1
        writing.is_over |= (token[:, None] == writing.ends).any(1)


def is_greedy(config: Any) -> bool:
    """Whether a generation config asks for the likeliest token, up to a number of new tokens, and for no more."""
    given = {name for name, value in config.to_diff_dict().items() if value is not None}
    return not config.do_sample and (config.num_beams or 1) == 1 and bool(config.max_new_tokens) and given <= KNOWN
