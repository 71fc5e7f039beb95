"""Words as tokens, and long documents as overlapping windows, so that no entity is lost at a cut.

Each word belongs to one window: the one in which its first token has most context. The word is trained, scored and
answered in this window only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from autopeft.errors import UsageError
from autopeft.tasks._text import longest_row

OVERLAP = 4  # a quarter of a window overlaps with the next one


@dataclass(frozen=True, slots=True)
class Window:
    """Some tokens of a document, as the model reads them.

    Attributes:
        inputs: `input_ids` and, where the tokenizer gives them, `token_type_ids`.
        words: One entry a token. For the first token of a word that belongs here: the word's index. Else -1.
    """

    inputs: dict[str, list[int]]
    words: list[int]


def windows(tokenizer: Any, config: Any, words: Sequence[str], max_length: int | None) -> Iterator[Window]:
    """Yields a document's windows; a single one if the model takes the whole document.

    Args:
        tokenizer, config: The model's.
        words: Words of the document. They are read as one text with spaces between the words.
        max_length: Most tokens of a window; None for as many as the model takes.

    Raises:
        UsageError: The tokenizer does not return the positions of its tokens in a text.
    """
    before, tokens, after, owners = _tokens(tokenizer, words)
    size = longest_row(tokenizer, config, max_length) - len(before["input_ids"]) - len(after["input_ids"])
    starts = _starts(len(owners), size)
    firsts = np.flatnonzero(np.diff(owners, prepend=-1))
    home = _homes(firsts, starts, size, len(owners))
    for index, start in enumerate(starts):
        inside = np.full(len(owners[start : start + size]), -1)
        own = firsts[home == index]
        inside[own - start] = owners[own]
        yield Window(
            {name: [*before[name], *tokens[name][start : start + size], *after[name]] for name in tokens},
            [*[-1] * len(before["input_ids"]), *inside.tolist(), *[-1] * len(after["input_ids"])],
        )


def _tokens(tokenizer: Any, words: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any], np.ndarray]:
    """Returns special tokens before, tokens, and special tokens behind, by input name; and the word of each token."""
    if not tokenizer.is_fast:
        raise UsageError(
            f"the tokenizer of {tokenizer.name_or_path!r} does not say which word its tokens are of: give a model with a "
            "fast tokenizer"
        )
    encoded = tokenizer(
        " ".join(words), return_offsets_mapping=True, return_special_tokens_mask=True, return_attention_mask=False,
        split_special_tokens=True, verbose=False,
    )  # fmt: skip
    added = np.flatnonzero(np.asarray(encoded["special_tokens_mask"]) == 0)
    first, end = (int(added[0]), int(added[-1]) + 1) if len(added) else (len(encoded["input_ids"]), None)
    names = [name for name in ("input_ids", "token_type_ids") if name in encoded]
    control = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.sep_token_id, tokenizer.cls_token_id,
               tokenizer.pad_token_id}  # fmt: skip
    ends = np.cumsum([len(word) + 1 for word in words])  # end of each word, its space included
    ids: list[int] = []
    owners: list[int] = []
    for token, (_, stop) in zip(encoded["input_ids"][first:end], encoded["offset_mapping"][first:end], strict=True):
        if token in control or stop == 0:  # a control token that is written in the text
            continue
        owner = int(np.searchsorted(ends, stop - 1, side="right"))
        _fill(tokenizer, ids, owners, owner)
        ids.append(token)
        owners.append(max(owner, owners[-1] if owners else 0))
    _fill(tokenizer, ids, owners, len(words))
    kind = encoded["token_type_ids"][first] if len(added) and "token_type_ids" in names else 0
    tokens = {name: ids if name == "input_ids" else [kind] * len(ids) for name in names}
    before = {name: encoded[name][:first] for name in names}
    after = {name: encoded[name][end:] if end is not None else [] for name in names}
    return before, tokens, after, np.array(owners)


def _fill(tokenizer: Any, ids: list[int], owners: list[int], until: int) -> None:
    """Adds an unknown token for each word without tokens, so that each word has an answer."""
    for word in range(owners[-1] + 1 if owners else 0, until):
        unknown = tokenizer.unk_token_id if tokenizer.unk_token_id is not None else tokenizer.pad_token_id
        ids.append(unknown)
        owners.append(word)


def _starts(n_tokens: int, size: int) -> np.ndarray:
    """Returns where windows begin. The last window ends at the end of the document."""
    if n_tokens <= size:
        return np.zeros(1, dtype=int)
    step = max(1, size - size // OVERLAP)
    return np.append(np.arange(0, n_tokens - size, step), n_tokens - size)


def _homes(firsts: np.ndarray, starts: np.ndarray, size: int, n_tokens: int) -> np.ndarray:
    """Returns the window of each word: the one whose nearer cut is farthest from the word's first token.

    The begin and the end of a document are no cuts.
    """
    left = np.where(starts == 0, n_tokens, firsts[:, None] - starts)
    right = np.where(starts + size >= n_tokens, n_tokens, starts + size - 1 - firsts[:, None])
    is_inside = (firsts[:, None] >= starts) & (firsts[:, None] < starts + size)
    homes: np.ndarray = np.where(is_inside, np.minimum(left, right), -1).argmax(axis=1)
    return homes
