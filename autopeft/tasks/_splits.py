"""Makes train, validation and test: the official splits if they exist, else carved by seed and stratified."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from autopeft.errors import ConfigError, Fault
from autopeft.tasks import Raw
from autopeft.tasks._columns import picked
from autopeft.trial import derive_seed

REST = "what is left of train"


def complete(splits: Mapping[str, Raw], data: Mapping[str, Any], seed: int) -> tuple[dict[str, Raw], dict[str, str]]:
    """Makes train, validation and test from the splits that were read.

    The caller leaves out a test split without labels. If there is no test split, `test_share` carves one from train;
    without `test_share`, the official validation becomes the test. If there is no validation then, it is carved from
    train. `train_rows` keeps a stratified part of the rest of train.

    Returns:
        The splits, and for each a line that says how it was made.
    """
    out = dict(splits)
    made = dict.fromkeys(out, "as given")
    how = "drawn" if splits["train"].strata is None else "stratified"
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
            out["train"] = carve(out["train"], rows / have, derive_seed(seed, "train_rows"))[1]
            made["train"] = f"{rows:,} of {have:,} rows, {how}, by seed"
    empty = [name for name, raw in out.items() if not len(raw)]
    if empty:
        given = sum(len(raw) for raw in splits.values())
        raise ConfigError([Fault("data", f"{', '.join(empty)} would have no row, of {given:,} in all: give more rows")])
    return {name: out[name] for name in ("train", "validation", "test") if name in out}, made


def carve(raw: Raw, share: float, seed: int) -> tuple[Raw, Raw]:
    """Takes a share of each stratum's rows, chosen by seed. Returns (the rest, the part), both in the rows' order.

    The part has exactly `round(share · n_rows)` rows. The strata with the largest remainders are rounded up.
    """
    rng = np.random.default_rng(seed)
    strata = np.zeros(len(raw), dtype=np.int64) if raw.strata is None else raw.strata
    found, counts = np.unique(strata, return_counts=True)
    wanted = counts * share
    take = np.floor(wanted).astype(int)
    short = round(share * len(raw)) - int(take.sum())
    take[np.argsort(take - wanted, kind="stable")[: max(0, short)]] += 1
    part: list[int] = []
    for stratum, count in zip(found, take, strict=True):
        part += rng.permutation(np.flatnonzero(strata == stratum))[:count].tolist()
    chosen = np.zeros(len(raw), dtype=bool)
    chosen[part] = True
    return rows_of(raw, np.flatnonzero(~chosen)), rows_of(raw, np.flatnonzero(chosen))


def rows_of(raw: Raw, index: np.ndarray) -> Raw:
    """Returns some rows of a split."""
    inputs = {name: picked(column, index) for name, column in raw.inputs.items()}
    targets = {name: picked(column, index) for name, column in raw.targets.items()}
    return Raw(inputs, targets, raw.rows[index], None if raw.strata is None else raw.strata[index])
