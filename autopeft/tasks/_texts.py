"""What tasks on texts share: a text or a pair of texts a row, as token ids."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from autopeft.tasks import Kind, Raw, Source, Split, input_columns
from autopeft.tasks._format import Format
from autopeft.tasks._tables import read_columns
from autopeft.tasks._text import encode_rows, model_config, tokenizer


class FromTables:
    """What a `Task` on words has in common: rows of tables, read by a tokenizer.

    Rows come from CSV, TSV, JSON, JSON Lines, Parquet, or a Hugging Face data set on disk or on the hub.
    """

    columns: Mapping[str, Kind]
    reads_folders = False

    def read_rows(self, file: Path, data: Mapping[str, Any]) -> Mapping[str, Sequence[Any]]:
        columns = list(input_columns(self, data))  # type: ignore[arg-type]  # half of a task
        return read_columns(file, columns, Format.of(data))

    def processor(self, source: Source) -> Any:
        """The model's tokenizer."""
        return tokenizer(source.model, source.options)


class Texts(FromTables):
    """The half of a `Task` that knows texts and no targets."""

    auto_class = "AutoModelForSequenceClassification"
    columns: Mapping[str, Kind] = {"text": "texts", "label": "target"}

    def encoder(self, source: Source, about: Mapping[str, Any]) -> Callable[[Raw], Split]:
        """Token ids, end to end; what is longer than `max_length` (or than the model takes) is cut."""
        tokens, config = self.processor(source), model_config(source.model, source.options)

        def encode(raw: Raw) -> Split:
            return Split(encode_rows(tokens, config, list(raw.inputs.values()), source.max_length), raw.targets)

        return encode
