"""Text classification: a label for a text, or for a pair of texts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from autopeft.tasks import Dataset, Raw, Source, Split, column_names
from autopeft.tasks._classification import Classification
from autopeft.tasks._reading import read_table
from autopeft.tasks._targets import Labels
from autopeft.tasks._texts import Texts


class TextClassification(Texts, Classification):
    """A label a row."""

    def read(self, data: Mapping[str, Any], seed: int) -> Dataset:
        columns = column_names(self.columns, data, inputs_only=True)
        return self.weighted(read_table(data, columns, Labels(data), seed))

    def encoder(self, source: Source, about: Mapping[str, Any]) -> Callable[[Raw], Split]:
        """Texts as token ids, and the weight of each row if classes have weights."""
        return self.weighing(super().encoder(source, about), about)


plugin = TextClassification
