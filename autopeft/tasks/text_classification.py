"""Text classification: a label for a text, or for a pair of texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from autopeft.tasks import Dataset, Raw, Split
from autopeft.tasks._classification import Classification
from autopeft.tasks._reading import read_table
from autopeft.tasks._tables import read_columns
from autopeft.tasks._text import encode_rows, model_config, tokenizer


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
        return tokenizer(model_path, options)

    def encode(self, raw: Raw, model_path: str, options: Mapping[str, Any]) -> Split:
        """Token ids, end to end; what is longer than `max_length` (or than the model takes) is cut."""
        columns = list(raw.inputs.values())
        config = model_config(model_path, options)
        return Split(
            encode_rows(tokenizer(model_path, options), config, columns, options.get("max_length")), raw.labels
        )


def text_columns(data: Mapping[str, Any]) -> list[str]:
    """One column, or the two of a pair."""
    text = data.get("text") or "text"
    return [text] if isinstance(text, str) else list(text)


plugin = TextClassification
