"""Makes train, validation and test: the official splits if they exist, else carved by seed and stratified.

No class is carved out of train whole, and rows of one group stay in one split. What train lacks is in no other split.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from autopeft.errors import ConfigError, Fault
from autopeft.tasks import Raw
from autopeft.tasks._columns import picked
from autopeft.trial import derive_seed

REST = "what is left of train"
MOST_NAMES = 5  # of classes in one note


def complete(
    splits: Mapping[str, Raw],
    data: Mapping[str, Any],
    seed: int,
    names: Sequence[str] | None = None,
    may_lack: Sequence[str] = (),
) -> tuple[dict[str, Raw], dict[str, str], list[str]]:
    """Makes train, validation and test from the splits that were read.

    The caller leaves out a test split without labels. If there is no test split, `test_share` carves one from train;
    without `test_share`, the official validation becomes the test. If there is no validation then, it is carved from
    train. `train_rows` keeps a stratified part of the rest of train.

    Args:
        names: Names of the strata, if they are classes: then what train lacks is left out of the other splits.
        may_lack: Classes that other splits keep if train lacks them.

    Returns:
        The splits; for each a line that says how it was made; and notes on classes that a split lacks.
    """
    out = dict(splits)
    made = dict.fromkeys(out, "as given")
    how = "drawn" if splits["train"].strata is None else "stratified"
    if splits["train"].groups is not None:
        how += f", whole groups of {data['group']!r}"
    if "test" not in out:
        if data.get("test_share"):
            out["train"], out["test"] = carve(out["train"], data["test_share"], derive_seed(seed, "test"))
            made["test"] = f"{data['test_share']:g} of train, {how}, by seed"
            made["train"] = REST
        elif "validation" in out:
            out["test"] = out.pop("validation")
            made["test"] = "the validation split as given: the data has no labelled test"
    if "validation" not in out:
        share = data.get("validation_share", 0.1)
        out["train"], out["validation"] = carve(out["train"], share, derive_seed(seed, "validation"))
        made["validation"] = f"{share:g} of train, {how}, by seed"
        made["train"] = REST
    rows = data.get("train_rows")
    if rows is not None:
        have = len(out["train"])
        if rows > have:
            raise ConfigError([Fault("data.train_rows", f"asks for {rows:,} rows of a train split of {have:,}")])
        if rows < have:
            out["train"] = some_of(out["train"], rows, derive_seed(seed, "train_rows"))
            made["train"] = f"{rows:,} of {have:,} rows, stratified, by seed"
    notes = (
        []
        if names is None
        else _drop_unseen(out, made, names, [names.index(name) for name in may_lack if name in names])
    )
    empty = [name for name, raw in out.items() if not len(raw)]
    if empty:
        given = sum(len(raw) for raw in splits.values())
        raise ConfigError([Fault("data", _too_few(empty, given, out, data))])
    return {name: out[name] for name in ("train", "validation", "test") if name in out}, made, notes


def _too_few(empty: Sequence[str], given: int, out: Mapping[str, Raw], data: Mapping[str, Any]) -> str:
    message = f"{', '.join(empty)} would have no row, of {given:,} in all: give more rows"
    groups = out["train"].groups
    if groups is None:
        return message
    return f"{message}, or smaller groups: train has {len(np.unique(groups)):,} groups of {data['group']!r}"


def _drop_unseen(out: dict[str, Raw], made: dict[str, str], names: Sequence[str], may_lack: Sequence[int]) -> list[str]:
    """Takes rows of classes that train lacks out of the other splits. Returns what there is to say of classes."""
    known, notes = np.unique(_strata(out["train"])), []
    for name, raw in out.items():
        if name == "train":
            continue
        assert raw.strata is not None, "classes are strata"
        is_known = np.isin(raw.strata, [*known, *may_lack])
        if not is_known.all():
            gone = raw.strata[~is_known]
            out[name] = rows_of(raw, np.flatnonzero(is_known))
            said = f"{len(gone):,} rows of {_classes(np.unique(gone), names)} left out, as train has no row of them"
            made[name] += f"; {said}"
            notes.append(f"{name}: {said}")
        lacking = np.setdiff1d(known, raw.strata)
        if len(lacking) and made[name] != "as given":
            notes.append(f"{name} has no row of {_classes(lacking, names)}: too few rows to split")
    return notes


def _classes(strata: np.ndarray, names: Sequence[str]) -> str:
    n = "1 class" if len(strata) == 1 else f"{len(strata):,} classes"
    return (
        f"{n} ({', '.join(repr(names[at]) for at in strata[:MOST_NAMES])}{', …' if len(strata) > MOST_NAMES else ''})"
    )


def carve(raw: Raw, share: float, seed: int) -> tuple[Raw, Raw]:
    """Takes a share of each stratum's rows, chosen by seed. Returns (the rest, the part), both in the rows' order.

    The part has `round(share · n_rows)` rows if the strata allow it. The rest keeps a row or more of each stratum. The
    strata with the largest remainders are rounded up. Of rows in groups, whole groups are taken, so that the part has
    about its share of each stratum.
    """
    rng = np.random.default_rng(seed)
    strata = _strata(raw)
    found, counts = np.unique(strata, return_counts=True)
    if raw.groups is not None:
        chosen = _whole_groups(strata, raw.groups, counts * share, rng)
    else:
        # Rows that are all alike are no stratum that must not be emptied: `complete` says that a split has no row.
        most = counts if raw.strata is None else counts - 1
        chosen = _drawn(strata, found, _rounded(counts * share, round(share * len(raw)), most), rng)
    return rows_of(raw, np.flatnonzero(~chosen)), rows_of(raw, np.flatnonzero(chosen))


def some_of(raw: Raw, rows: int, seed: int) -> Raw:
    """Keeps a stratified part of the rows, by seed: a row or more of each stratum, if there are as many."""
    strata = _strata(raw)
    found, counts = np.unique(strata, return_counts=True)
    take = _rounded(counts * (rows / len(raw)), rows, counts)
    while rows >= len(found) and not take.all():
        take[np.argmin(take)] += 1
        take[np.argmax(take)] -= 1
    return rows_of(raw, np.flatnonzero(_drawn(strata, found, take, np.random.default_rng(seed))))


def _strata(raw: Raw) -> np.ndarray:
    return np.zeros(len(raw), dtype=np.int64) if raw.strata is None else raw.strata


def _rounded(wanted: np.ndarray, total: int, most: np.ndarray) -> np.ndarray:
    """Rounds numbers of rows to a total, the largest remainders up, each at most `most`."""
    take: np.ndarray = np.minimum(np.floor(wanted).astype(int), most)
    order = np.argsort(take - wanted, kind="stable")
    short = total - int(take.sum())
    while short > 0 and (take < most).any():
        up = [at for at in order if take[at] < most[at]][:short]
        take[up] += 1
        short -= len(up)
    return take


def _drawn(strata: np.ndarray, found: np.ndarray, take: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Marks the rows that are drawn: (n_rows,) bool."""
    chosen = np.zeros(len(strata), dtype=bool)
    for stratum, count in zip(found, take, strict=True):
        chosen[rng.permutation(np.flatnonzero(strata == stratum))[:count]] = True
    return chosen


def _whole_groups(strata: np.ndarray, groups: np.ndarray, wanted: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Marks the rows of the groups that are taken: (n_rows,) bool.

    The groups come in a random order. One is taken if the part then is nearer to what is wanted of each stratum (by the
    sum of squares), and if the rest keeps a row or more of each of the group's strata. If all groups are too large for
    the share, the smallest one is taken that leaves such a rest.
    """
    _, strata = np.unique(strata, return_inverse=True)
    order = np.argsort(groups, kind="stable")
    bounds = np.flatnonzero(np.diff(groups[order])) + 1
    left, taken = np.bincount(strata).astype(int), np.zeros(len(wanted))
    chosen = np.zeros(len(strata), dtype=bool)
    members = np.split(order, bounds)
    spare: list[np.ndarray] = []
    for at in rng.permutation(len(members)):
        own, counts = np.unique(strata[members[at]], return_counts=True)
        before = taken[own] - wanted[own]
        if not (left[own] > counts).all():
            continue
        spare.append(members[at])
        if ((before + counts) ** 2).sum() < (before**2).sum():
            chosen[members[at]] = True
            taken[own] += counts
            left[own] -= counts
    if spare and not chosen.any():
        chosen[min(spare, key=len)] = True
    return chosen


def rows_of(raw: Raw, index: np.ndarray) -> Raw:
    """Returns some rows of a split."""
    inputs = {name: picked(column, index) for name, column in raw.inputs.items()}
    targets = {name: picked(column, index) for name, column in raw.targets.items()}
    parts = (None if part is None else part[index] for part in (raw.strata, raw.groups))
    return Raw(inputs, targets, raw.rows[index], *parts)
