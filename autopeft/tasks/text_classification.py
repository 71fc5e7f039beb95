"""Text classification: a label for a text, or for a pair of texts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from autopeft.tasks import Dataset, column_names
from autopeft.tasks._classification import Classification
from autopeft.tasks._reading import read_table
from autopeft.tasks._targets import Labels
from autopeft.tasks._texts import Texts


class TextClassification(Texts, Classification):
    """A label a row."""

    def read(self, data: Mapping[str, Any], seed: int) -> Dataset:
        return read_table(data, column_names(self.columns, data, inputs_only=True), Labels(data), seed)


plugin = TextClassification
