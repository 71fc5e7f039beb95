"""Entities in BIO tags, found and counted as seqeval does by default, and conlleval.

`B-person I-person` is one entity. An `I-person` after a tag of another type, or after `O`, begins an entity, too. An
entity is right if its first word, its last word and its type are right.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

OUTSIDE = "O"


@dataclass(frozen=True)
class Tags:
    """What tags mean.

    Args:
        names: Of the tags, by index: `O`, `B-person`, `I-person`.

    Attributes:
        types: Names of the entity types, in order.
        type_of: (n_tags,) index of each tag's type; -1 for `O`.
        begins: (n_tags,) whether a tag begins an entity wherever it stands.
    """

    names: Sequence[str]

    @property
    def types(self) -> list[str]:
        return sorted({name[2:] for name in self.names if name != OUTSIDE})

    @property
    def type_of(self) -> np.ndarray:
        types = self.types
        return np.array([-1 if name == OUTSIDE else types.index(name[2:]) for name in self.names])

    @property
    def begins(self) -> np.ndarray:
        return np.array([name.startswith("B-") for name in self.names])


def spans(tags: np.ndarray, documents: np.ndarray, known: Tags) -> np.ndarray:
    """Finds entities. Returns (n_entities, 3): place of the first word, place of the last word, type.

    Args:
        tags: (n_words,) of all documents, end to end.
        documents: (n_words,) which one each word is in.
    """
    types, begins = known.type_of[tags], known.begins[tags]
    inside = types >= 0
    differs = np.ones(len(tags), dtype=bool)
    differs[1:] = (types[1:] != types[:-1]) | (documents[1:] != documents[:-1])
    starts = np.flatnonzero(inside & (begins | differs))
    leaves = np.flatnonzero(np.append(~inside, True))  # the end counts as outside
    nexts = np.append(starts[1:], len(tags))
    ends = np.minimum(leaves[np.searchsorted(leaves, starts)], nexts) - 1
    return np.stack([starts, ends, types[starts]], axis=1)


def counts(found: np.ndarray, true: np.ndarray, documents: np.ndarray, known: Tags) -> dict[str, list[int]]:
    """Counts entities by type: true ones (`rows`), found ones (`predicted`), and those that are both (`correct`)."""
    theirs, ours = (spans(tags, documents, known) for tags in (found, true))
    both = {tuple(span) for span in theirs.tolist()} & {tuple(span) for span in ours.tolist()}
    counted = {
        "rows": ours[:, 2],
        "predicted": theirs[:, 2],
        "correct": np.array([span[2] for span in both], dtype=int),
    }
    return {name: np.bincount(of, minlength=len(known.types)).tolist() for name, of in counted.items()}
