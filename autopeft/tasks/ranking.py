"""Ranking: the candidates of a user in order, by how well the text of an item matches the text of the user."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from autopeft.errors import Fault, UsageError
from autopeft.objectives import Goal
from autopeft.tasks import Batch, Columns, Dataset, Kept, Kind, Raw, Scores, Source, Split, column_names
from autopeft.tasks._ranking import Catalogue, Ratings, of_rankings, sampled
from autopeft.tasks._reading import read_table
from autopeft.tasks._targets import nothing_wrong
from autopeft.tasks._texts import Texts

ROUNDING = 5  # digits of scores that rank: further ones depend on a batch's padding
SAMPLED = -1  # target `row` of an item that the user did not rate


class Ranking(Texts):
    """A score for each pair of a user and an item; the pairs of a user are his candidates.

    An item's relevance is its rating above the lowest of train; that of a sampled item, which its user did not rate,
    is 0. Targets: `relevance`; `share` of the highest relevance of train, which the model learns; `user` and `item`,
    numbers; `row`, the row of the data, or SAMPLED; `reader`, a hash of the user's text. Rows to be predicted have the
    last two only.

    Args:
        k: The first items of a ranking that count.
        candidates: A user who rated fewer items of a validation or test split is asked about as many sampled ones, too.
        negatives: Items that join each training row, sampled from those that its user did not rate.
        relevant: The lowest rating that counts for the recall; None for any above the lowest of train.
    """

    trivial_title = "popularity in train"
    metrics: Mapping[str, Goal] = {"ndcg_at_k": "maximize", "recall_at_k": "maximize", "loss": "minimize"}
    columns: Mapping[str, Kind] = {"text": "texts", "user": "target", "item": "target", "label": "target"}
    calls_model = False

    def __init__(self, k: int = 10, candidates: int = 20, negatives: int = 1, relevant: float | None = None) -> None:
        if k < 1 or candidates < 0 or negatives < 0:
            raise UsageError("task: k is 1 or more, candidates and negatives 0 or more")
        self.k, self.candidates, self.negatives, self.relevant = k, candidates, negatives, relevant

    def read(self, data: Mapping[str, Any], seed: int) -> Dataset:
        texts = column_names(self.columns, data, inputs_only=True)
        nothing_wrong(
            [] if len(texts) == 2 else [Fault("data.text", "expected two columns: [user's text, item's text]")]
        )
        dataset = read_table(data, texts, Ratings(data), seed)
        ratings = dataset.splits["train"].targets["value"]
        lowest, highest = float(ratings.min()), float(ratings.max())
        if self.relevant is not None:
            least = float(self.relevant)
        else:
            least = float(np.min(ratings, where=ratings > lowest, initial=highest))
        about = {**dataset.about, "lowest": lowest, "highest": highest, "least": least}
        nothing_wrong(self._faults(dataset.splits, about))
        return replace(dataset, splits=self._with_candidates(dataset.splits, seed), about=about)

    def _faults(self, splits: Mapping[str, Raw], about: Mapping[str, Any]) -> list[Fault]:
        lowest, highest, least = about["lowest"], about["highest"], about["least"]
        faults = []
        if not lowest < highest:
            faults.append(Fault("data.label", f"is {lowest:g} in each row of train"))
        if not lowest < least <= highest:
            faults.append(Fault("task.relevant", f"is {least:g}; ratings of train go from {lowest:g} to {highest:g}"))
        for split, raw in splits.items():
            values = raw.targets["value"]
            if values.min() < lowest or values.max() > highest:
                got = f"from {values.min():g} to {values.max():g}, and those of train from {lowest:g} to {highest:g}"
                faults.append(Fault("data.label", f"ratings of {split} go {got}"))
            if not (values >= least).any():
                faults.append(
                    Fault("data.label", f"{split} has no rating of {least:g} or more: nobody's ranking counts")
                )
        return faults

    def _with_candidates(self, splits: Mapping[str, Raw], seed: int) -> dict[str, Raw]:
        """Adds to the targets of each row its sampled items, by number and text; users and items become numbers."""
        catalogue = Catalogue(splits)
        users = sorted({user for raw in splits.values() for user in raw.targets["user"]})
        user_of, item_of = ({name: at for at, name in enumerate(names)} for names in (users, catalogue.items))
        more = sampled(splits, self.negatives, self.candidates, seed)
        out = {}
        for split, raw in splits.items():
            targets = {
                "value": raw.targets["value"],
                "user": np.array([user_of[user] for user in raw.targets["user"]], dtype=np.int64),
                "item": np.array([item_of[item] for item in raw.targets["item"]], dtype=np.int64),
                "sampled": [[item_of[item] for item in items] for items in more[split]],
                "sampled_texts": [[catalogue.texts[item] for item in items] for items in more[split]],
            }
            out[split] = replace(raw, targets=targets)
        return out

    def encoder(self, source: Source, about: Mapping[str, Any]) -> Callable[[Raw], Split]:
        """Pairs as token ids: those of a row, then those of the items sampled for it."""
        encode_texts = super().encoder(source, about)

        def encode(raw: Raw) -> Split:
            (user_column, users), (item_column, items) = raw.inputs.items()
            more = list(raw.targets["sampled_texts"]) if raw.targets else [[]] * len(raw)
            counts = [1 + len(texts) for texts in more]
            pairs = {
                user_column: [user for user, count in zip(users, counts, strict=True) for _ in range(count)],
                item_column: [text for item, texts in zip(items, more, strict=True) for text in (item, *texts)],
            }
            first = np.concatenate([[0], np.cumsum(counts)[:-1]]).astype(int)
            rows = np.full(sum(counts), SAMPLED, dtype=np.int64)
            rows[first] = raw.rows
            readers = np.array([_hash(str(user)) for user in pairs[user_column]], dtype=np.int64)
            targets: dict[str, Any] = {"row": rows, "reader": readers}
            if raw.targets:
                targets |= _of_ratings(raw.targets, counts, first, about)
            return Split(encode_texts(Raw(pairs, {}, rows)).inputs, targets)

        return encode

    def weights(self, targets: Columns) -> np.ndarray:
        """Each pair counts 1."""
        return np.ones(len(targets["row"]), dtype=np.float32)

    def loss(self, outputs: Any, targets: Mapping[str, Any]) -> Any:
        """Computes the binary cross entropy of each pair with its share of the highest relevance."""
        from torch.nn.functional import binary_cross_entropy_with_logits

        if "share" not in targets:
            return outputs.new_zeros(len(outputs))
        return binary_cross_entropy_with_logits(outputs[:, 0], targets["share"], reduction="none")

    def keep(self, outputs: Any, batch: Batch, model: Any) -> Mapping[str, Sequence[Any]]:
        """The score, and the row and the user that it is of."""
        scores: Sequence[Any] = outputs[:, 0]
        return {"score": scores, "row": batch.targets["row"], "reader": batch.targets["reader"]}

    def score(self, kept: Kept, targets: Columns, about: Mapping[str, Any]) -> Scores:
        """NDCG and recall of the first k, means over the users with a relevant item."""
        return self._of_scores(np.asarray(kept["score"], dtype=np.float64), targets, about)

    def trivial(self, train: Columns, targets: Columns, about: Mapping[str, Any], base: Callable[[], Kept]) -> Scores:
        """Ranks by popularity: how many training rows rate an item as relevant. Its loss is that of the mean share."""
        found = self._of_scores(_popularity(train, targets, about), targets, about)
        mean, shares = float(np.asarray(train["share"]).mean()), np.asarray(targets["share"], dtype=np.float64)
        loss = -(shares * np.log(mean) + (1 - shares) * np.log(1 - mean)).mean()
        return Scores({**found.metrics, "loss": float(loss)}, found.detail)

    def truths(self, kept: Kept, targets: Columns, about: Mapping[str, Any]) -> Mapping[str, Sequence[Any]]:
        """The true `score` of the rated items: their share of the highest relevance of train."""
        return {"score": np.asarray(targets["share"])[_own(targets)].tolist()}

    def trivial_answers(
        self, train: Columns, targets: Columns, about: Mapping[str, Any], base: Callable[[], Kept]
    ) -> Mapping[str, Any]:
        """Each item's popularity, as a share of the highest one, and the rank by it."""
        own, popularity = _own(targets), _popularity(train, targets, about)
        return _ranked(popularity[own] / max(float(popularity.max()), 1.0), np.asarray(targets["reader"])[own])

    def _of_scores(self, scores: np.ndarray, targets: Columns, about: Mapping[str, Any]) -> Scores:
        users, relevance = np.asarray(targets["user"]), np.asarray(targets["relevance"], dtype=np.float64)
        metrics, count = of_rankings(scores, relevance, users, about["least"] - about["lowest"], self.k)
        counts = {
            "users": len(np.unique(users)),
            "users_with_a_relevant_item": count,
            "candidates": len(users),
            "sampled": int((np.asarray(targets["row"]) == SAMPLED).sum()),
        }
        return Scores(metrics, {"rankings": counts})

    def answers(self, kept: Kept, about: Mapping[str, Any]) -> Mapping[str, Sequence[Any]]:
        """`score`, from 0 to 1, and `rank`, 1 for the best among the rows with the same text of a user; ties share it."""
        from scipy.special import expit

        own = _own(kept)
        scores = np.asarray(kept["score"], dtype=np.float64)[own]
        return {**_ranked(scores, np.asarray(kept["reader"])[own]), "score": expit(scores).tolist()}


def _own(columns: Mapping[str, Any]) -> np.ndarray:
    """Returns where the rows of the data are, in their order: not those of sampled items."""
    rows = np.asarray(columns["row"])
    own = np.flatnonzero(rows != SAMPLED)
    return own[np.argsort(rows[own], kind="stable")]


def _ranked(scores: np.ndarray, readers: np.ndarray) -> dict[str, Sequence[Any]]:
    from scipy.stats import rankdata

    ranks = np.empty(len(scores), dtype=np.int64)
    for reader in np.unique(readers):
        of_reader = readers == reader
        ranks[of_reader] = rankdata(-scores[of_reader].round(ROUNDING), method="min")
    return {"score": scores.tolist(), "rank": ranks.tolist()}


def _popularity(train: Columns, targets: Columns, about: Mapping[str, Any]) -> np.ndarray:
    """Counts for the item of each pair the training rows that rate it as relevant."""
    is_relevant = np.asarray(train["relevance"]) >= about["least"] - about["lowest"]
    items, rated = np.asarray(targets["item"]), np.asarray(train["item"])
    counts = np.bincount(rated, is_relevant, minlength=1 + max(int(items.max()), int(rated.max())))
    popularity: np.ndarray = counts[items]
    return popularity


def _of_ratings(
    targets: Mapping[str, Any], counts: Sequence[int], first: np.ndarray, about: Mapping[str, Any]
) -> dict[str, np.ndarray]:
    """Returns the targets of pairs: at `first` those of the rows, behind each those of its sampled items."""
    relevance = np.zeros(sum(counts), dtype=np.float32)
    relevance[first] = np.asarray(targets["value"]) - about["lowest"]
    items = [item for own, more in zip(targets["item"], targets["sampled"], strict=True) for item in (own, *more)]
    return {
        "relevance": relevance,
        "share": relevance / np.float32(about["highest"] - about["lowest"]),
        "user": np.repeat(np.asarray(targets["user"]), counts),
        "item": np.array(items, dtype=np.int64),
    }


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


plugin = Ranking
