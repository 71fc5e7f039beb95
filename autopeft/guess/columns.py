"""What the columns of a table hold: texts, labels, numbers, tags, pictures, sounds. Values tell, then names."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from autopeft.tasks._entities import OUTSIDE
from autopeft.tasks._separated import NUMBER
from autopeft.tasks._sounds import SOUNDS
from autopeft.tasks._targets import is_missing, label_name
from autopeft.tasks.image_classification import PICTURES

Kind = Literal[
    "text", "label", "number", "lists", "tags", "conversation", "picture", "sound", "identifier", "empty", "other"
]  # fmt: skip

LOOKED_AT = 20_000  # first rows of a table
MOST_CLASSES = 1_000
MOST_GRADES = 20  # different whole numbers that are classes; more are measurements
LONG = 40  # characters; the names of classes are shorter on average
PAIRS = (
    ("text_a", "text_b"), ("sentence1", "sentence2"), ("premise", "hypothesis"), ("question1", "question2"),
    ("text1", "text2"), ("sentence_a", "sentence_b"), ("query", "passage"), ("query", "document"), ("a", "b"),
)  # fmt: skip
COMPLETIONS = (
    ("prompt", "completion"), ("question", "answer"), ("instruction", "output"), ("instruction", "response"),
    ("prompt", "response"), ("input", "output"), ("source", "target"), ("document", "summary"), ("article", "highlights"),
)  # fmt: skip
TEXTS = (
    "text",
    "sentence",
    "review",
    "content",
    "message",
    "comment",
    "question",
    "title",
    "body",
    "description",
    "utterance",
)
TARGETS = (
    "label", "labels", "class", "category", "target", "intent", "sentiment", "topic", "type", "tag", "y", "rating", "score",
    "stars", "grade",
)  # fmt: skip
RATINGS = ("rating", "score", "stars", "grade", "similarity", "value", "price")
GROUPS = (
    "user",
    "user_id",
    "speaker",
    "speaker_id",
    "author",
    "author_id",
    "patient",
    "patient_id",
    "subject_id",
    "group",
)
IDENTIFIERS = ("id", "idx", "index", "row", "guid", "uuid", "unnamed: 0", "")


@dataclass(frozen=True)
class Column:
    """What a column holds, by its first rows.

    Attributes:
        n_rows: Rows that were looked at, without missing ones.
        values: Different values as text → how often; empty for a column of other things.
        length: Mean number of characters.
        tokens: About how many tokens 95 of 100 texts have at most.
    """

    name: str
    kind: Kind
    n_rows: int
    values: Mapping[str, int] = field(default_factory=dict)
    length: float = 0.0
    tokens: int = 0

    @property
    def plain(self) -> str:
        return self.name.strip().lower()


def described(table: Mapping[str, Sequence[Any]]) -> dict[str, Column]:
    """Describes each column of a table."""
    return {name: _described(name, list(itertools.islice(iter(table[name]), LOOKED_AT))) for name in table}


def _described(name: str, values: Sequence[Any]) -> Column:
    known = [value for value in values if not is_missing(value)]
    if not known:
        return Column(name, "empty", 0)
    medium = _medium(known)
    if medium is not None:
        return Column(name, medium, len(known))
    if all(isinstance(value, (list, tuple, np.ndarray)) for value in known):
        if all(isinstance(item, Mapping) and "role" in item for value in known for item in value):
            return Column(name, "conversation", len(known))
        found = Counter(str(item) for value in known for item in value)
        return Column(name, "tags" if _are_tags(found) else "lists", len(known), found)
    if not all(isinstance(value, (str, int, float, np.number, bool, np.bool_)) for value in known):
        return Column(name, "other", len(known))
    texts = [label_name(value) for value in known]
    found, length = Counter(texts), float(np.mean([len(text) for text in texts]))
    tokens = int(np.percentile([_tokens(text) for text in texts], 95))
    return Column(name, _kind(name.strip().lower(), found, len(known), length), len(known), found, length, tokens)


def _tokens(text: str) -> float:
    """Returns about how many tokens a text has: a word has a few, as has a long one; a character that is no Latin one."""
    return max(1.4 * len(text.split()), len(text) / (4.5 if text.isascii() else 1.5))


def _kind(name: str, found: Mapping[str, int], n: int, length: float) -> Kind:
    if name in IDENTIFIERS or name.endswith(("_id", "_idx")):
        return "identifier"
    if name in TEXTS and length > 3:
        return "text"
    if all(map(NUMBER.fullmatch, found)):
        are_whole = all(float(value).is_integer() for value in found)
        if are_whole and len(found) <= MOST_GRADES:
            return "label"
        if are_whole and name in TARGETS and name not in RATINGS and len(found) <= min(MOST_CLASSES, n / 2):
            return "label"
        return "identifier" if are_whole and len(found) == n else "number"
    if _are_tags(Counter(word for text in found for word in text.split())):
        return "tags"
    if len(found) <= max(2, min(MOST_CLASSES, n / 3)) and (length <= LONG or name in TARGETS):
        return "label"
    has_spaces = sum(" " in text for text in found) > len(found) / 10
    is_foreign = sum(map(str.isascii, found)) < len(found) / 2  # such as Chinese, which has no spaces
    return "text" if has_spaces or length > LONG or is_foreign else "identifier"


def _are_tags(found: Mapping[str, int]) -> bool:
    """Whether these are tags in BIO: `O`, `B-person`, `I-person`."""
    return len(found) > 1 and OUTSIDE in found and all(tag == OUTSIDE or tag[:2] in ("B-", "I-") for tag in found)


def _medium(known: Sequence[Any]) -> Kind | None:
    """Returns `picture` or `sound` for a column of files, by their endings or first bytes."""
    kinds = {_medium_of(value) for value in known[:50]}
    return kinds.pop() if len(kinds) == 1 else None


def _medium_of(value: Any) -> Kind | None:
    if isinstance(value, Mapping) and ("bytes" in value or "path" in value):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, str):
        ending = Path(value).suffix.lower()
        return "picture" if ending in PICTURES else "sound" if ending in SOUNDS else None
    if isinstance(value, bytes):
        if value[:4] in (b"fLaC", b"OggS") or value[:3] == b"ID3" or (value[:4] == b"RIFF" and value[8:12] == b"WAVE"):
            return "sound"
        return "picture"
    return None


def by_name(columns: Sequence[Column], names: Sequence[str]) -> list[Column]:
    """Returns columns of these names, in the names' order."""
    return [column for name in names for column in columns if column.plain == name]
