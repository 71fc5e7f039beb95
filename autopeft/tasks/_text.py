"""Texts as token ids: which tokenizer, which padding, how long.

The padding token is decided here, for rows, models, exports and predictions alike. A decoder's classifier reads the
last token that is no padding. With two different padding tokens it would read the wrong token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from autopeft.errors import UsageError
from autopeft.tasks import Ragged
from autopeft.tasks._reading import lacks
from autopeft.tasks._targets import NESTED

NO_LIMIT = 10**9

# Names of the number of position embeddings in models' configs.
POSITIONS = (
    "max_position_embeddings", "max_encoder_position_embeddings", "max_decoder_position_embeddings", "max_seq_len",
)  # fmt: skip

# Model types whose positions begin after the padding token's id. `max_position_embeddings` counts the unused ones, too.
POSITIONS_BEHIND_PADDING = frozenset({
    "camembert", "data2vec-text", "esm", "ibert", "layoutlmv3", "lilt", "longformer", "luke", "markuplm", "mpnet",
    "roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod",
})  # fmt: skip

# Model types whose classifier reads the last end token, and needs the same number of end tokens in each row.
READS_END = frozenset({
    "bart", "bigbird_pegasus", "led", "mbart", "mt5", "mvp", "plbart", "t5", "umt5",
})  # fmt: skip

# Model types whose classifier reads the last position of a batch, even if it is padding. Rows are padded on the left.
READS_LAST = frozenset({"xlnet"})


def source(options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the model's revision, and whether code that comes with the model may run."""
    return {
        "revision": options.get("revision") or "main",
        "trust_remote_code": bool(options.get("trust_remote_code")),
    }


def model_config(model_path: str, options: Mapping[str, Any]) -> Any:
    """Loads the model's config.

    Raises:
        autopeft.errors.ConfigError: The model has none.
    """
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(model_path, **source(options))
    except (OSError, ValueError) as fault:
        raise lacks("config", model_path, fault) from fault


def tokenizer(model_path: str, options: Mapping[str, Any]) -> Any:
    """Loads the model's tokenizer. It pads as the model expects, and adds the end token that the model reads.

    Raises:
        autopeft.errors.ConfigError: The model has none.
        UsageError: Neither model nor tokenizer names a padding or end token.
    """
    from transformers import AutoTokenizer

    try:
        found = AutoTokenizer.from_pretrained(model_path, **source(options))
    except (OSError, ValueError) as fault:
        raise lacks("tokenizer", model_path, fault) from fault
    config = model_config(model_path, options)
    pad = found.convert_ids_to_tokens(padding(found, config, model_path))
    if pad is not None and found.pad_token != pad:
        found.pad_token = pad
    found.padding_side = "left" if config.model_type in READS_LAST else "right"
    if config.model_type in READS_END:
        _end_rows(found, config.eos_token_id)
    return found


def padding(tokenizer: Any, config: Any, model_path: str = "") -> int:
    """Returns the id of the padding token: the model's own, else its tokenizer's, else the end token's.

    Args:
        tokenizer: The model's tokenizer; None if it has none.

    Raises:
        UsageError: None of the three exists.
    """
    text = config.get_text_config()
    size = getattr(text, "vocab_size", None) or NO_LIMIT
    said = (getattr(text, "eos_token_id", None), getattr(tokenizer, "eos_token_id", None))
    ends = tuple(end[0] if isinstance(end, (list, tuple)) and end else end for end in said)
    for token in (getattr(text, "pad_token_id", None), getattr(tokenizer, "pad_token_id", None), *ends):
        if isinstance(token, int) and 0 <= token < size:
            return token
    raise UsageError(
        f"the model {model_path or config.name_or_path!r} names no padding token and no end token, so that rows of "
        "different lengths cannot share a batch: give one, pad_token_id in its config.json"
    )


def model_padding(config: Any, model_path: str, options: Mapping[str, Any]) -> int | None:
    """Returns the padding token of the model at a path, from its config; None for a model that reads no tokens.

    Raises:
        UsageError: Neither the model nor its tokenizer names one.
    """
    if getattr(config.get_text_config(), "vocab_size", None) is None:
        return None
    from transformers import AutoTokenizer

    size, own = config.get_text_config().vocab_size, config.get_text_config().pad_token_id
    if own is not None and 0 <= own < size:
        return int(own)  # most models name it: the tokenizer is not needed
    try:
        found = AutoTokenizer.from_pretrained(model_path, **source(options))
    except (OSError, ValueError):
        found = None
    return padding(found, config, model_path)


def encode_rows(
    tokenizer: Any, config: Any, columns: Sequence[Sequence[Any]], max_length: int | None = None
) -> dict[str, Ragged]:
    """Encodes rows of one text or of two: token ids end to end, and token types if the model has them.

    A row is cut if it is longer than `max_length`, or longer than the model takes. Its special tokens stay. A control
    token that is written in a text (`</s>`) is read as plain text.

    Args:
        tokenizer, config: The model's, as `tokenizer` and `model_config` return them.
        columns: One text a row, or the two of a pair.
        max_length: Most tokens of a row; None for as many as the model takes.

    Raises:
        UsageError: `max_length` leaves no room for a text.
    """
    longest = longest_row(tokenizer, config, max_length, len(columns))
    nested = next(
        ((row, value) for column in columns for row, value in enumerate(column) if isinstance(value, NESTED)), None
    )
    if nested is not None:
        raise UsageError(f"expected a text, got a {type(nested[1]).__name__} in row {nested[0]}")
    texts = [[str(value) for value in column] for column in columns]
    rows = _tokens(tokenizer, texts, longest)
    pads = {"input_ids": padding(tokenizer, config), "token_type_ids": tokenizer.pad_token_type_id}
    is_left = config.model_type in READS_LAST
    return {name: Ragged.of(values, np.int32, pads[name], is_left) for name, values in rows.items()}


def _tokens(tokenizer: Any, texts: list[list[str]], longest: int) -> dict[str, list[list[int]]]:
    """Returns `input_ids`, and `token_type_ids` if the tokenizer gives them. Each row has at least one token."""
    words = {
        getattr(tokenizer, f"{name}_token_id"): token
        for name in ("bos", "eos", "sep", "cls", "pad")
        if (token := getattr(tokenizer, f"{name}_token")) is not None
    }
    options = {"truncation": True, "max_length": longest, "return_attention_mask": False}
    encoded = tokenizer(*texts, **options)
    rows = {name: encoded[name] for name in ("input_ids", "token_type_ids") if name in encoded}
    for index, row in enumerate(zip(*texts, strict=True)):
        if any(word in text for text in row for word in words.values()):
            plain = tokenizer(*row, **options, split_special_tokens=True, return_special_tokens_mask=True)
            added = plain["special_tokens_mask"]
            kept = [at for at, token in enumerate(plain["input_ids"]) if added[at] or token not in words]
            for name in rows:
                rows[name][index] = [plain[name][at] for at in kept]
        if not rows["input_ids"][index]:
            for name in rows:
                rows[name][index] = [tokenizer.pad_token_id if name == "input_ids" else 0]
    return rows


def longest_row(tokenizer: Any, config: Any, max_length: int | None, n_texts: int = 1) -> int:
    """Returns how many tokens a row of one text or of two may have.

    Raises:
        UsageError: So few tokens leave no room for a text.
    """
    longest = min(max_length or NO_LIMIT, longest_input(tokenizer, config))
    special = tokenizer.num_special_tokens_to_add(pair=n_texts == 2)
    if longest <= special + n_texts - 1:
        raise UsageError(
            f"a text of {longest} tokens has no room beside {special} special ones: raise training.max_length"
        )
    return longest


def special_tokens(tokenizer: Any) -> tuple[list[int], list[int]]:
    """Returns the special tokens that the tokenizer puts before a text, and those behind it."""
    found = tokenizer("a", return_special_tokens_mask=True)
    ids, added = found["input_ids"], found["special_tokens_mask"]
    first, last = added.index(0), len(added) - added[::-1].index(0)
    return list(ids[:first]), list(ids[last:])


def encode_texts(tokenizer: Any, texts: Sequence[Any]) -> list[list[int]]:
    """Returns the token ids of each text, uncut and without special tokens; at least one a text."""
    before, behind = map(len, special_tokens(tokenizer))
    rows = _tokens(tokenizer, [[str(text) for text in texts]], NO_LIMIT)["input_ids"]
    return [row[before : len(row) - behind] or [tokenizer.pad_token_id] for row in rows]


def longest_input(tokenizer: Any, config: Any) -> int:
    """Returns the most tokens that the tokenizer and the position embeddings allow; `NO_LIMIT` for no bound."""
    text = config.get_text_config()
    limits = [value for name in POSITIONS if isinstance(value := getattr(text, name, None), int) and value > 0]
    positions = min(limits, default=NO_LIMIT)
    if text.model_type in POSITIONS_BEHIND_PADDING and positions < NO_LIMIT:
        positions -= (1 if text.model_type == "mpnet" else text.pad_token_id) + 1
    return int(min(tokenizer.model_max_length, positions, NO_LIMIT))


def _end_rows(tokenizer: Any, end_id: int) -> None:
    """Makes a tokenizer end each row with the model's end token, if it does not do so already."""
    end = tokenizer.convert_ids_to_tokens(end_id)
    if end is None or not tokenizer.is_fast:
        raise UsageError(
            f"the classifier of {tokenizer.name_or_path!r} reads the end token, {end_id}, which its tokenizer lacks"
        )
    if tokenizer.eos_token != end:
        tokenizer.eos_token = end
    if tokenizer("")["input_ids"][-1:] != [end_id]:
        from tokenizers.processors import TemplateProcessing

        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single=f"$A {end}", pair=f"$A {end} $B {end}", special_tokens=[(end, end_id)]
        )
