"""How train, validation and test come about: official where they exist, else carved by seed and stratified."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from autopeft.errors import ConfigError, Fault
from autopeft.tasks import Raw
from autopeft.trial import derive_seed

REST = "what is left of train"


def complete(splits: Mapping[str, Raw], data: Mapping[str, Any], seed: int) -> tuple[dict[str, Raw], dict[str, str]]:
    """Train, validation and test from the splits that were read.

    A test split without labels is no test split: leave it out. Where there is no test, `test_share` carves one from
    train; else the official validation becomes the test. Validation that is missing then is carved from train.
    `train_rows` draws a stratified part of what train is left with.

    Returns:
        The splits, and a line on each: how it was made.
    """
    out = dict(splits)
    made = dict.fromkeys(out, "as given")
    if "test" not in out:
        if data.get("test_share"):
            out["train"], out["test"] = carve(out["train"], data["test_share"], derive_seed(seed, "test"))
            made["test"] = f"{data['test_share']:g} of train, stratified, by seed"
            made["train"] = REST
        elif "validation" in out:
            out["test"] = out.pop("validation")
            made["test"] = "the validation split as given: the data has no labelled test"
    if "validation" not in out:
        share = data.get("validation_share", 0.1)
        out["train"], out["validation"] = carve(out["train"], share, derive_seed(seed, "validation"))
        made["validation"] = f"{share:g} of train, stratified, by seed"
        made["train"] = REST
    rows = data.get("train_rows")
    if rows is not None:
        have = len(out["train"].labels)
        if rows > have:
            raise ConfigError([Fault("data.train_rows", f"asks for {rows:,} rows of a train split of {have:,}")])
        if rows < have:
            out["train"] = carve(out["train"], rows / have, derive_seed(seed, "train_rows"))[1]
            made["train"] = f"{rows:,} of {have:,} rows, stratified, by seed"
    empty = [name for name, raw in out.items() if not len(raw.labels)]
    if empty:
        given = sum(len(raw.labels) for raw in splits.values())
        raise ConfigError([Fault("data", f"{', '.join(empty)} would have no row, of {given:,} in all: give more rows")])
    return {name: out[name] for name in ("train", "validation", "test") if name in out}, made


def carve(raw: Raw, share: float, seed: int) -> tuple[Raw, Raw]:
    """(the rest, the part): a share of each label's rows, chosen by seed, both in the rows' order.

    Exactly `round(share · n_rows)` rows: what rounding leaves goes to the labels with the largest remainders.
    """
    rng = np.random.default_rng(seed)
    labels, counts = np.unique(raw.labels, return_counts=True)
    wanted = counts * share
    take = np.floor(wanted).astype(int)
    short = round(share * len(raw.labels)) - int(take.sum())
    take[np.argsort(take - wanted, kind="stable")[: max(0, short)]] += 1
    part: list[int] = []
    for label, count in zip(labels, take, strict=True):
        part += rng.permutation(np.flatnonzero(raw.labels == label))[:count].tolist()
    chosen = np.zeros(len(raw.labels), dtype=bool)
    chosen[part] = True
    return rows_of(raw, np.flatnonzero(~chosen)), rows_of(raw, np.flatnonzero(chosen))


def rows_of(raw: Raw, index: np.ndarray) -> Raw:
    """Some rows of a split."""
    inputs = {
        name: column[index] if isinstance(column, np.ndarray) else [column[i] for i in index]
        for name, column in raw.inputs.items()
    }
    return Raw(inputs, raw.labels[index], raw.rows[index])
