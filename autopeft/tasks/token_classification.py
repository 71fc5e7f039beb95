"""Token classification: a tag for each word of a text, such as the entities that it names."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from autopeft.errors import UsageError
from autopeft.objectives import Goal
from autopeft.tasks import (
    UNSCORED,
    Batch,
    Columns,
    Dataset,
    Kept,
    Kind,
    Ragged,
    Raw,
    Scores,
    Source,
    Split,
    column_names,
)  # fmt: skip
from autopeft.tasks._entities import OUTSIDE, Tags, counts
from autopeft.tasks._reading import read_table
from autopeft.tasks._targets import some_rows
from autopeft.tasks._text import READS_LAST, model_config
from autopeft.tasks._texts import FromTables
from autopeft.tasks._windows import Window, windows
from autopeft.tasks._words import WordTags, word_faults, words_of


class TokenClassification(FromTables):
    """Words and a tag each, in BIO. The tag stands at a word's first token.

    A long document has several windows. Targets: `tags`, one a token, UNSCORED for special tokens, further tokens of a
    word, and words of another window; `document`, the row of the data from which a window comes; `word`, for each token
    its word's index in the document (-1 for none). Rows to be predicted have no `tags`.
    """

    trivial_title = "no entity"
    auto_class = "AutoModelForTokenClassification"
    metrics: Mapping[str, Goal] = {
        "f1": "maximize",
        "precision": "maximize",
        "recall": "maximize",
        "accuracy": "maximize",
        "loss": "minimize",
    }
    columns: Mapping[str, Kind] = {"tokens": "text", "tags": "target"}
    calls_model = False
    token_target, foretells = "tags", False

    def read(self, data: Mapping[str, Any], seed: int) -> Dataset:
        columns = column_names(self.columns, data, inputs_only=True)
        return read_table(data, columns, WordTags(data), seed, input_faults=word_faults)

    def encoder(self, source: Source, about: Mapping[str, Any]) -> Callable[[Raw], Split]:
        """Encodes each window as a row. A document longer than `max_length` (or than the model takes) has several."""
        tokens, config = self.processor(source), model_config(source.model, source.options)
        is_left = config.model_type in READS_LAST
        pads = {"input_ids": tokens.pad_token_id, "token_type_ids": tokens.pad_token_type_id}

        def encode(raw: Raw) -> Split:
            documents = [words_of(cell) for cell in next(iter(raw.inputs.values()))]
            _require_words(documents)
            parts = [list(windows(tokens, config, words, source.max_length)) for words in documents]
            every = [window for part in parts for window in part]
            inputs = {
                name: Ragged.of([window.inputs[name] for window in every], np.int32, pads[name], is_left)
                for name in every[0].inputs
            }
            targets: dict[str, Ragged | np.ndarray] = {
                "document": np.repeat(np.asarray(raw.rows, dtype=np.int64), [len(part) for part in parts]),
                "word": Ragged.of([window.words for window in every], np.int32, -1, is_left),
            }
            if raw.targets:
                tags = [
                    _tags(window, of) for part, of in zip(parts, raw.targets["tags"], strict=True) for window in part
                ]
                targets["tags"] = Ragged.of(tags, np.int32, UNSCORED, is_left)
            return Split(inputs, targets)

        return encode

    def weights(self, targets: Columns) -> np.ndarray:
        """Counts the scored words of each row."""
        tags = targets["tags"]
        assert isinstance(tags, Ragged)
        scored = np.concatenate([[0], np.cumsum(tags.values != UNSCORED)])
        weights: np.ndarray = np.diff(scored[tags.offsets]).astype(np.float32)
        return weights

    def loss(self, outputs: Any, targets: Mapping[str, Any]) -> Any:
        """Computes the cross entropy, summed over the scored words of each row; 0 for rows to be predicted."""
        if "tags" not in targets:
            return outputs.new_zeros(len(outputs))
        losses = self.token_loss(outputs.flatten(0, 1), targets["tags"].flatten())
        return losses.view(len(outputs), -1).sum(dim=1)

    def token_loss(self, outputs: Any, wanted: Any) -> Any:
        """Computes the cross entropy of each token; 0 for one that is not scored."""
        from torch.nn.functional import cross_entropy

        return cross_entropy(outputs, wanted, reduction="none", ignore_index=UNSCORED)

    def keep(self, outputs: Any, batch: Batch, model: Any) -> Mapping[str, Sequence[Any]]:
        """Keeps for each window its document, its own words, and their likeliest tags."""
        words, tags = batch.targets["word"].cpu().numpy(), outputs.argmax(dim=-1).cpu().numpy()
        own = words >= 0
        rows = range(len(words))
        return {
            "document": batch.targets["document"],
            "words": [words[row][own[row]] for row in rows],
            "tags": [tags[row][own[row]] for row in rows],
        }

    def score(self, kept: Kept, targets: Columns, about: Mapping[str, Any]) -> Scores:
        """F1, precision and recall of entities, over all types; the share of words with the right tag."""
        documents, true, order = _scored(targets)
        found = np.concatenate(list(kept["tags"]))
        return of_tags(found[order], true, documents, about["label_names"])

    def trivial(self, train: Columns, targets: Columns, about: Mapping[str, Any], base: Callable[[], Kept]) -> Scores:
        """Scores `O` for each word: no entity at all. Its loss is that of the tags' frequencies as probabilities."""
        names = about["label_names"]
        documents, true, _ = _scored(targets)
        found = of_tags(np.full(len(true), names.index(OUTSIDE)), true, documents, names)
        seen = np.bincount(_scored(train)[1], minlength=len(names))
        chances = (seen + 1) / (seen.sum() + len(names))  # a tag that training lacks has a chance, too
        return Scores({**found.metrics, "loss": float(-np.log(chances[true]).mean())}, found.detail)

    def truths(self, kept: Kept, targets: Columns, about: Mapping[str, Any]) -> Mapping[str, Sequence[Any]]:
        """The true `tags` of each document, with spaces between them."""
        documents, true, _ = _scored(targets)
        return {"tags": [" ".join(about["label_names"][tag] for tag in tags) for tags in _by_document(documents, true)]}

    def trivial_answers(
        self, train: Columns, targets: Columns, about: Mapping[str, Any], base: Callable[[], Kept]
    ) -> Mapping[str, Sequence[Any]]:
        """`O`, for each word."""
        documents, true, _ = _scored(targets)
        return {"tags": [" ".join([OUTSIDE] * len(tags)) for tags in _by_document(documents, true)]}

    def answers(self, kept: Kept, about: Mapping[str, Any]) -> Mapping[str, Sequence[Any]]:
        """Returns the `tags` of each document with spaces between them, one for each word."""
        names = about["label_names"]
        found: dict[int, dict[int, int]] = {}
        for document, words, tags in zip(kept["document"], kept["words"], kept["tags"], strict=True):
            found.setdefault(int(document), {}).update(zip(words.tolist(), tags.tolist(), strict=True))
        return {"tags": [" ".join(names[tag] for _, tag in sorted(found[row].items())) for row in sorted(found)]}


def of_tags(found: np.ndarray, true: np.ndarray, documents: np.ndarray, names: Sequence[str]) -> Scores:
    """Scores tags (n_words,), with documents end to end. Detail: entities by type."""
    known = Tags(names)
    of_types = counts(found, true, documents, known)
    rows, predicted, correct = (sum(of_types[name]) for name in ("rows", "predicted", "correct"))
    metrics = {
        "f1": 2 * correct / max(rows + predicted, 1),
        "precision": correct / max(predicted, 1),
        "recall": correct / max(rows, 1),
        "accuracy": float((found == true).mean()) if len(true) else 0.0,
    }
    return Scores(metrics, {"of": "entity type", "names": known.types, **of_types})


def _scored(targets: Columns) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns documents and tags of all words, end to end, and the order that sorts the words so."""
    words, tags = targets["word"], targets["tags"]
    assert isinstance(words, Ragged)
    assert isinstance(tags, Ragged)
    own = words.values >= 0
    documents = np.repeat(np.asarray(targets["document"]), np.diff(words.offsets))[own]
    order = np.lexsort((words.values[own], documents))
    return documents[order], np.asarray(tags.values)[own][order], order


def _by_document(documents: np.ndarray, tags: np.ndarray) -> list[np.ndarray]:
    """Splits the tags of all words, end to end, by document."""
    return np.split(tags, np.flatnonzero(np.diff(documents)) + 1)


def _tags(window: Window, tags: Sequence[int]) -> list[int]:
    return [UNSCORED if word < 0 else tags[word] for word in window.words]


def _require_words(documents: Sequence[Sequence[str]]) -> None:
    """Raises UsageError for a document that has no word, or an empty one."""
    empty = [row for row, words in enumerate(documents) if not words or not all(word.strip() for word in words)]
    if empty:
        raise UsageError(f"no word, or an empty one, in {some_rows(empty)}")


plugin = TokenClassification
