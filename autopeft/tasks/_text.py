"""Texts as token ids: which tokenizer, which padding, how long.

The padding token is decided here, for rows, models, exports and predictions alike: a decoder's classifier reads the last
token that is no padding, so that two opinions on what padding is give it another token to read.
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

# The names that configurations have for the number of their position embeddings.
POSITIONS = (
    "max_position_embeddings", "max_encoder_position_embeddings", "max_decoder_position_embeddings", "max_seq_len",
)  # fmt: skip

# Model types whose first position stands behind the padding's: `max_position_embeddings` counts those before it, too.
POSITIONS_BEHIND_PADDING = frozenset({
    "camembert", "data2vec-text", "esm", "ibert", "layoutlmv3", "lilt", "longformer", "luke", "markuplm", "mpnet",
    "roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod",
})  # fmt: skip

# Model types whose classifier reads the last end token, and wants as many of them in each row.
READS_END = frozenset({
    "bart", "bigbird_pegasus", "led", "mbart", "mt5", "mvp", "plbart", "t5", "umt5",
})  # fmt: skip

# Model types whose classifier reads the last place of a batch, whatever stands there: their rows are padded on the left.
READS_LAST = frozenset({"xlnet"})


def source(options: Mapping[str, Any]) -> dict[str, Any]:
    """Which revision of the model, and whether code that came with it may run."""
    return {
        "revision": options.get("revision") or "main",
        "trust_remote_code": bool(options.get("trust_remote_code")),
    }


def model_config(model_path: str, options: Mapping[str, Any]) -> Any:
    """The model's config.

    Raises:
        autopeft.errors.ConfigError: The model has none.
    """
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(model_path, **source(options))
    except (OSError, ValueError) as fault:
        raise lacks("config", model_path, fault) from fault


def tokenizer(model_path: str, options: Mapping[str, Any]) -> Any:
    """The model's tokenizer. It pads as the model has it, and adds the end token that the model reads.

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
    """The id of the padding token: the model's own, else its tokenizer's, else the end token's.

    Args:
        tokenizer: None for a model that has none.

    Raises:
        UsageError: There is none of these.
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
    """The padding token of the model at a path, by its config; None for a model that reads no tokens.

    Raises:
        UsageError: It names none, and its tokenizer neither.
    """
    if getattr(config.get_text_config(), "vocab_size", None) is None:
        return None
    from transformers import AutoTokenizer

    size, own = config.get_text_config().vocab_size, config.get_text_config().pad_token_id
    if own is not None and 0 <= own < size:
        return int(own)  # without a look at the tokenizer: most models say it
    try:
        found = AutoTokenizer.from_pretrained(model_path, **source(options))
    except (OSError, ValueError):
        found = None
    return padding(found, config, model_path)


def encode_rows(
    tokenizer: Any, config: Any, columns: Sequence[Sequence[Any]], max_length: int | None = None
) -> dict[str, Ragged]:
    """The model's inputs for rows of one text or of two: token ids end to end, and token types where it has them.

    A row that is longer than `max_length`, or than the model takes, is cut; its special tokens stay. A control token
    that is written out in a text (`</s>`) is text: it ends nothing.

    Args:
        tokenizer, config: Of the model, as `tokenizer` and `model_config` give them.
        columns: One text a row, or the two of a pair.
        max_length: Tokens a row at most; None for what the model takes.

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
    """`input_ids` and, where the tokenizer gives them, `token_type_ids`; a row has one token at least."""
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
    """Tokens that a row of one text or of two may have.

    Raises:
        UsageError: They leave no room for a text.
    """
    longest = min(max_length or NO_LIMIT, longest_input(tokenizer, config))
    special = tokenizer.num_special_tokens_to_add(pair=n_texts == 2)
    if longest <= special + n_texts - 1:
        raise UsageError(
            f"a text of {longest} tokens has no room beside {special} special ones: raise training.max_length"
        )
    return longest


def special_tokens(tokenizer: Any) -> tuple[list[int], list[int]]:
    """What the tokenizer puts before a text, and behind it."""
    found = tokenizer("a", return_special_tokens_mask=True)
    ids, added = found["input_ids"], found["special_tokens_mask"]
    first, last = added.index(0), len(added) - added[::-1].index(0)
    return list(ids[:first]), list(ids[last:])


def encode_texts(tokenizer: Any, texts: Sequence[Any]) -> list[list[int]]:
    """The token ids of each text, whole, without what the tokenizer puts around it; at least one each."""
    before, behind = map(len, special_tokens(tokenizer))
    rows = _tokens(tokenizer, [[str(text) for text in texts]], NO_LIMIT)["input_ids"]
    return [row[before : len(row) - behind] or [tokenizer.pad_token_id] for row in rows]


def longest_input(tokenizer: Any, config: Any) -> int:
    """Tokens that the model takes at most, by its tokenizer and its position embeddings; `NO_LIMIT` for no bound."""
    text = config.get_text_config()
    limits = [value for name in POSITIONS if isinstance(value := getattr(text, name, None), int) and value > 0]
    positions = min(limits, default=NO_LIMIT)
    if text.model_type in POSITIONS_BEHIND_PADDING and positions < NO_LIMIT:
        positions -= (1 if text.model_type == "mpnet" else text.pad_token_id) + 1
    return int(min(tokenizer.model_max_length, positions, NO_LIMIT))


def _end_rows(tokenizer: Any, end_id: int) -> None:
    """Lets a tokenizer end each row with the model's end token, where it does not do so already."""
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
