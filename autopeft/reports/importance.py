"""Importance of parameters for the score, estimated from a search's own trials.

There are two views. *By method*: the range of scores of each method's complete trials, and the share of the variance
between methods (eta squared). *By parameter*: a random forest (Breiman, 2001) predicts the score from the
configuration. A parameter is shuffled among the trials that have it; its importance is how much worse the forest then
predicts held-out trials, as a share of the score's variance (permutation importance, five folds).

The report repeats the limits. A search prefers promising regions, so these are over-represented. Parameters that always
change together cannot be distinguished. With few trials a forest learns little; its held-out R² shows this. If R² is
below `LEAST_R2`, the report claims nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from autopeft.history import Record
from autopeft.recipe import layers
from autopeft.reports.facts import Facts

LEAST_TRIALS = 20
LEAST_R2 = 0.1
FEWEST = 8  # trials that a parameter needs to be judged
MOST_TRIALS = 2000  # of which a forest is grown; from there on it hardly learns more, and takes minutes
_FOLDS, _TREES, _SHUFFLES = 5, 100, 5


@dataclass(frozen=True, slots=True)
class MethodSpread:
    """Scores of one method's complete trials.

    Attributes:
        method: Name of the method.
        n: Number of trials.
        best, median, worst: Scores.
    """

    method: str
    n: int
    best: float
    median: float
    worst: float


@dataclass(frozen=True, slots=True)
class Importance:
    """One parameter.

    Attributes:
        name: Its key: `lora.rank`.
        share: Share of the score's variance that is lost if the parameter is shuffled among the trials that have it.
            0 or below: no importance.
        n: Number of trials that have it.
    """

    name: str
    share: float
    n: int


@dataclass(frozen=True)
class Importances:
    """Importances of methods and parameters.

    Attributes:
        methods: Best method first.
        between: Share of the score's variance between methods; None with one method or no variance.
        parameters: The most important first; empty if nothing can be claimed.
        r2: R² of the forest on held-out trials; None if there is no forest.
        why_not: Reason why nothing is claimed about parameters; else empty.
        sampled: Number of trials that were drawn for the forest by seed; None if it had all.
    """

    methods: tuple[MethodSpread, ...]
    between: float | None
    parameters: tuple[Importance, ...]
    r2: float | None
    why_not: str
    sampled: int | None = None


def importances(facts: Facts, seed: int = 0) -> Importances:
    """Computes importances from all complete trials of a search."""
    scores = np.array([facts.score(record) for record in facts.complete])
    methods, between = _by_method(facts, scores)
    if len(scores) < LEAST_TRIALS:
        why = f"{len(scores)} complete trials are too few: from {LEAST_TRIALS} on parameters are compared"
        return Importances(methods, between, (), None, why)
    if np.ptp(scores) < 1e-12:
        return Importances(methods, between, (), None, "all trials have the same score")
    records, sampled = facts.complete, None
    if len(records) > MOST_TRIALS:
        drawn = np.sort(np.random.default_rng(seed).permutation(len(records))[:MOST_TRIALS])
        records, scores, sampled = [records[index] for index in drawn], scores[drawn], MOST_TRIALS
    parameters, r2 = _by_parameter(records, int(facts.header.get("model", {}).get("n_layers", 0)), scores, seed)
    if r2 < LEAST_R2:
        why = f"the score cannot be predicted from the configuration (R² {r2:.2f} on held-out trials)"
        return Importances(methods, between, (), r2, why, sampled)
    return Importances(methods, between, parameters, r2, "", sampled)


def _by_method(facts: Facts, scores: np.ndarray) -> tuple[tuple[MethodSpread, ...], float | None]:
    groups: dict[str, list[float]] = {}
    for record, score in zip(facts.complete, scores, strict=True):
        groups.setdefault(str(record.params["method"]), []).append(float(score))
    best = max if facts.is_maximized else min
    worst = min if facts.is_maximized else max
    spreads = [
        MethodSpread(method, len(values), best(values), float(np.median(values)), worst(values))
        for method, values in groups.items()
    ]
    spreads.sort(key=lambda spread: -spread.best if facts.is_maximized else spread.best)
    total = float(((scores - scores.mean()) ** 2).sum()) if len(scores) else 0.0
    if len(groups) < 2 or total < 1e-24:
        return tuple(spreads), None
    between = sum(len(values) * (float(np.mean(values)) - float(scores.mean())) ** 2 for values in groups.values())
    return tuple(spreads), between / total


def _by_parameter(
    records: Sequence[Record], n_layers: int, scores: np.ndarray, seed: int
) -> tuple[tuple[Importance, ...], float]:
    """Returns importances, and R² on held-out trials."""
    from sklearn.ensemble import RandomForestRegressor
    from sklearn.model_selection import KFold

    columns, owners = encode(records, n_layers)
    has = {name: np.array([name in record.params for record in records]) for name in dict.fromkeys(owners)}
    lost = dict.fromkeys(has, 0.0)
    rng = np.random.default_rng(seed)
    missed = 0.0
    for train, test in KFold(_FOLDS, shuffle=True, random_state=seed).split(columns):
        forest = RandomForestRegressor(_TREES, min_samples_leaf=2, random_state=seed, n_jobs=1)
        forest.fit(columns[train], scores[train])
        errors = (forest.predict(columns[test]) - scores[test]) ** 2
        missed += float(errors.sum())
        held_out = {name: np.flatnonzero(has[name][test]) for name in lost}
        tries = [(name, rows) for name, rows in held_out.items() if len(rows) > 1 for _ in range(_SHUFFLES)]
        if not tries:
            continue
        shuffled = [_shuffle(columns[test][rows], np.array(owners) == name, rng) for name, rows in tries]
        predicted = np.split(forest.predict(np.vstack(shuffled)), np.cumsum([len(rows) for _, rows in tries])[:-1])
        for (name, rows), values in zip(tries, predicted, strict=True):
            lost[name] += float(((values - scores[test][rows]) ** 2 - errors[rows]).sum()) / _SHUFFLES
    r2 = 1 - missed / float(((scores - scores.mean()) ** 2).sum())
    found = []
    for name, total in lost.items():
        own = scores[has[name]]
        variance = float(((own - own.mean()) ** 2).sum())
        constant = len({repr(record.params[name]) for record in records if name in record.params}) < 2
        if not constant and variance > 1e-24 and len(own) >= FEWEST:
            found.append(Importance(name, total / variance, len(own)))
    found.sort(key=lambda importance: (-importance.share, importance.name))
    return tuple(found), r2


def _shuffle(columns: np.ndarray, mine: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Returns the rows with one parameter's columns shuffled together."""
    out = columns.copy()
    out[:, mine] = columns[rng.permutation(len(columns))][:, mine]
    return out


def encode(records: Sequence[Record], n_layers: int) -> tuple[np.ndarray, list[str]]:
    """Encodes configurations as numbers for trees: a number as it is, a choice one-hot, a subset by item and size.

    A parameter that a configuration does not have is -1, which is below every code.

    Args:
        records: Trials.
        n_layers: Layers of the model, for `all`, `last_3` and `2-5`.

    Returns:
        (n_records, n_columns), and the parameter of each column.
    """
    names = sorted({name for record in records for name in record.params})
    columns: list[np.ndarray] = []
    owners: list[str] = []
    for name in names:
        values = [
            list(layers(record.params[name], n_layers))
            if name.endswith(".layers") and name in record.params
            else record.params.get(name)
            for record in records
        ]
        for column in _columns(values):
            columns.append(column)
            owners.append(name)
    return np.stack(columns, axis=1) if columns else np.empty((len(records), 0)), owners


def _columns(values: Sequence[Any]) -> list[np.ndarray]:
    present = [value for value in values if value is not None]
    if any(isinstance(value, (list, tuple)) for value in present):
        lists = [None if value is None else value if isinstance(value, (list, tuple)) else [value] for value in values]
        items = sorted({item for value in lists if value is not None for item in value}, key=repr)
        out = [np.array([-1.0 if value is None else float(len(value)) for value in lists])]
        return out + [np.array([-1.0 if value is None else float(item in value) for value in lists]) for item in items]
    if all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in present):
        return [np.array([-1.0 if value is None else float(value) for value in values])]
    codes = [None if value is None else repr(value) for value in values]
    options = sorted({code for code in codes if code is not None})
    return [np.array([-1.0 if code is None else float(code == option) for code in codes]) for option in options]
