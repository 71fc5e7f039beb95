"""Candidates of a user: which items are ranked beside the rated ones, and how good a ranking is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from autopeft.errors import Fault
from autopeft.tasks import Raw, named
from autopeft.tasks._targets import Numbers, is_missing, row_fault
from autopeft.trial import derive_seed


class Ratings(Numbers):
    """Who rated what, and how.

    Targets: `value`, the rating; `user` and `item`, their names.

    Args:
        data: The config's data section.
    """

    def __init__(self, data: Mapping[str, Any]) -> None:
        super().__init__(data)
        self.names = {key: named(data, key)[0] for key in ("user", "item")}
        self.columns = {**self.columns, **{column: key for key, column in self.names.items()}}

    def encode(
        self, table: Mapping[str, Sequence[Any]], split: str, about: Mapping[str, Any]
    ) -> tuple[dict[str, Any], np.ndarray | None, list[Fault]]:
        """The ratings as they are."""
        targets, strata, faults = super().encode(table, split, about)
        for key, column in self.names.items():
            missing = [row for row, value in enumerate(table[column]) if is_missing(value)]
            if missing:
                faults.append(row_fault(f"data.{key}", split, missing, f"without {column!r}"))
            targets[key] = [str(value) for value in table[column]]
        return targets, strata, faults


class Catalogue:
    """All items of a data set, and who rated them.

    Args:
        splits: The splits as `Ratings` reads them; the second input column has the text of an item.

    Attributes:
        items: Names of all items, in order.
        texts: Name → text of the item, in its first row.
    """

    def __init__(self, splits: Mapping[str, Raw]) -> None:
        self.texts: dict[str, str] = {}
        self._rated: dict[str, dict[str, set[str]]] = {}
        for split, raw in splits.items():
            of_split = self._rated.setdefault(split, {})
            texts = list(raw.inputs.values())[1]
            for user, item, text in zip(raw.targets["user"], raw.targets["item"], texts, strict=True):
                of_split.setdefault(user, set()).add(item)
                self.texts.setdefault(item, text)
        self.items = sorted(self.texts)

    def n_rated(self, user: str, split: str) -> int:
        """Returns how many items of a split a user rated."""
        return len(self._rated[split].get(user, ()))

    def unrated(self, user: str, splits: Sequence[str], count: int, seed: int) -> list[str]:
        """Draws items that a user did not rate in some splits; fewer than `count` if there are no more."""
        rated = {item for split in splits for item in self._rated[split].get(user, ())}
        rest = [item for item in self.items if item not in rated]
        return [str(item) for item in np.random.default_rng(seed).permutation(rest)[:count]]


def sampled(splits: Mapping[str, Raw], negatives: int, candidates: int, seed: int) -> dict[str, list[list[str]]]:
    """Chooses items without a rating beside those with one: split → the items that join each row.

    Each row of train gets `negatives` items that its user did not rate in train. In another split, a user who rated
    fewer than `candidates` of its items gets as many that he rated in no split, with his first row.
    """
    catalogue = Catalogue(splits)
    out: dict[str, list[list[str]]] = {}
    for split, raw in splits.items():
        seen: set[str] = set()
        out[split] = []
        for row, user in zip(raw.rows, raw.targets["user"], strict=True):
            few = user not in seen and catalogue.n_rated(user, split) < candidates
            seen.add(user)
            if split == "train":
                chosen = catalogue.unrated(user, ["train"], negatives, derive_seed(seed, "negatives", int(row)))
            elif few:
                chosen = catalogue.unrated(user, list(splits), candidates, derive_seed(seed, "candidates", split, user))
            else:
                chosen = []
            out[split].append(chosen)
    return out


def of_rankings(
    scores: np.ndarray, relevance: np.ndarray, users: np.ndarray, least: float, k: int
) -> tuple[dict[str, float], int]:
    """Computes means over users with a relevant item, and how many these are: `ndcg_at_k` and `recall_at_k`.

    The gain of an item is 2^relevance - 1, and its discount log2(1 + rank) (Burges et al., 2005). Items of equal scores
    share their places: each counts with the mean of its group.

    Args:
        scores, relevance, users: (n_items,), of all candidates of all users.
        least: Relevance from which on an item counts as relevant for the recall.
        k: Number of first items.
    """
    discounts = 1 / np.log2(np.arange(2, k + 2))
    found: dict[str, list[float]] = {"ndcg_at_k": [], "recall_at_k": []}
    order = np.lexsort((-scores, users))
    starts = np.flatnonzero(np.diff(users[order], prepend=users[order][:1] - 1))
    for own in np.split(order, starts[1:]):
        is_relevant = relevance[own] >= least
        if not is_relevant.any():
            continue
        gains = 2.0 ** relevance[own] - 1
        best = np.sort(gains)[::-1][:k]
        ideal = float(best @ discounts[: len(best)])
        group = np.cumsum(np.diff(scores[own], prepend=np.nan) != 0) - 1
        shared = (np.bincount(group, gains) / np.bincount(group))[group][:k]
        hits = (np.bincount(group, is_relevant) / np.bincount(group))[group][:k]
        found["ndcg_at_k"].append(float(shared @ discounts[: len(shared)]) / ideal)
        found["recall_at_k"].append(float(hits.sum() / is_relevant.sum()))
    count = len(found["recall_at_k"])
    return {name: float(np.mean(values)) if values else 0.0 for name, values in found.items()}, count
