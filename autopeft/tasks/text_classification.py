"""Text classification: a label for a text, or for a pair of texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from autopeft.tasks import Dataset, Ragged, Raw, Split
from autopeft.tasks._classification import Classification
from autopeft.tasks._reading import lacks, read_table
from autopeft.tasks._tables import read_columns


class TextClassification(Classification):
    """Rows from CSV, TSV, JSON, JSON Lines, Parquet, or a Hugging Face data set on disk or on the hub."""

    auto_class = "AutoModelForSequenceClassification"
    reads_folders = False

    def read(self, data: Mapping[str, Any], seed: int) -> Dataset:
        return read_table(data, dict.fromkeys(text_columns(data), "text"), seed)

    def read_rows(self, file: Path, data: Mapping[str, Any]) -> Mapping[str, Sequence[Any]]:
        return read_columns(file, text_columns(data))

    def processor(self, model_path: str, options: Mapping[str, Any]) -> Any:
        """The model's tokenizer."""
        from transformers import AutoTokenizer

        try:
            return AutoTokenizer.from_pretrained(model_path, **_source(options))
        except (OSError, ValueError) as fault:
            raise lacks("tokenizer", model_path, fault) from fault

    def encode(self, raw: Raw, model_path: str, options: Mapping[str, Any]) -> Split:
        """Token ids, end to end; what is longer than `max_length` (or than the model takes) is cut."""
        from transformers import AutoConfig

        tokenizer = self.processor(model_path, options)
        try:
            config = AutoConfig.from_pretrained(model_path, **_source(options))
        except (OSError, ValueError) as fault:
            raise lacks("config", model_path, fault) from fault
        longest = min(options.get("max_length") or 10**9, longest_input(tokenizer, config))
        texts = [[str(value) for value in column] for column in raw.inputs.values()]
        encoded = tokenizer(*texts, truncation=True, max_length=longest, return_attention_mask=False)
        pads = {"input_ids": tokenizer.pad_token_id or 0, "token_type_ids": tokenizer.pad_token_type_id}
        columns: dict[str, Ragged | np.ndarray] = {}
        for name in ("input_ids", "token_type_ids"):
            if name in encoded:
                lengths = [len(row) for row in encoded[name]]
                values = np.fromiter((token for row in encoded[name] for token in row), np.int32, sum(lengths))
                columns[name] = Ragged(values, np.concatenate([[0], np.cumsum(lengths)]), pads[name])
        return Split(columns, raw.labels)


def _source(options: Mapping[str, Any]) -> dict[str, Any]:
    """Which revision of the model, and whether code that came with it may run."""
    return {
        "revision": options.get("revision") or "main",
        "trust_remote_code": bool(options.get("trust_remote_code")),
    }


def text_columns(data: Mapping[str, Any]) -> list[str]:
    """One column, or the two of a pair."""
    text = data.get("text") or "text"
    return [text] if isinstance(text, str) else list(text)


def longest_input(tokenizer: Any, config: Any) -> int:
    """Tokens that the model takes at most, by its tokenizer and its position embeddings."""
    positions = getattr(config, "max_position_embeddings", None) or 10**9
    if config.model_type in ("roberta", "xlm-roberta", "camembert"):
        positions -= 2  # their positions begin behind the padding's
    return int(min(tokenizer.model_max_length, positions))


plugin = TextClassification
