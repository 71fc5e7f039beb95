"""TPE against random search, its default share of good trials against Optuna's, and what it makes of refusals.

Seeded, so one machine gives one answer. `./dev test-slow tests/statistical -s` prints the figures that
`autopeft/samplers/tpe.py` quotes; some minutes.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest

from autopeft.history import Record
from autopeft.samplers import Sampler
from autopeft.samplers.random import RandomSampler
from autopeft.samplers.tpe import TPESampler
from autopeft.trial import Status, Trial, derive_seed
from tests.statistical.surfaces import OBJECTIVES, SURFACES, volumes

SEEDS = 12
AT = (40, 70, 120)
SAMPLERS = {"random": RandomSampler, "a quarter": TPESampler, "a tenth": partial(TPESampler, good_share=0.1)}


@pytest.fixture(scope="module")
def measured() -> dict[str, dict[str, np.ndarray]]:
    """Surface → sampler → hypervolumes, (SEEDS, len(AT))."""
    found: dict[str, dict[str, np.ndarray]] = {}
    for name, surface in SURFACES.items():
        found[name] = {
            label: np.array([volumes(make, surface, AT, seed) for seed in range(SEEDS)])
            for label, make in SAMPLERS.items()
        }
        for label, table in found[name].items():
            error = table.std(axis=0, ddof=1) / SEEDS**0.5
            cells = [f"{mean:.3f} ± {wide:.3f}" for mean, wide in zip(table.mean(axis=0), error)]
            print(f"{name}, {label}, after {AT} trials, mean ± standard error: {', '.join(cells)}")
    return found


@pytest.mark.slow
def test_tpe_beats_random_search(measured: dict[str, dict[str, np.ndarray]]) -> None:
    for name, tables in measured.items():
        ahead = tables["a quarter"] - tables["random"]
        assert (ahead.mean(axis=0) > 0).all(), (name, ahead.mean(axis=0))


@pytest.mark.slow
def test_a_quarter_is_ahead_of_optunas_tenth_in_a_search_of_forty(measured: dict[str, dict[str, np.ndarray]]) -> None:
    """What the docstring says, and no more: later the two are level."""
    for name, tables in measured.items():
        ahead = (tables["a quarter"] - tables["a tenth"]).mean(axis=0)
        assert ahead[0] > 0, (name, ahead)
        assert np.abs(ahead[1:]).max() < 0.03, (name, ahead)


class Forgetful(TPESampler):
    """Told of refused records as Optuna's FAIL, which no sampler looks at."""

    def tell(self, record: Record) -> None:
        if not record.refusal:
            super().tell(record)


def proposed_though_refused(make: Any, seed: int, asks: int = 60) -> int:
    """How many of the asks propose `full` or `adapter`, which are refused, after ten trials of the rest."""
    surface = SURFACES["many methods"]
    sampler: Sampler = make(surface.space, OBJECTIVES, lambda params: None, n_startup_trials=10)
    rng = np.random.default_rng(seed)
    refused = trials = asked = number = 0
    while asked < asks:
        starts = trials < 10
        params = surface.space.draw(rng) if starts else sampler.ask(number, derive_seed(seed, number, "ask"))
        assert params is not None
        metrics, trial = surface.metrics(params), Trial(number, params, 0)
        may_run = params["method"] not in ("full", "adapter")
        if may_run:
            known = {"trainable_parameters": metrics["trainable_parameters"]}
            sampler.tell(Record(trial, known, status=Status.COMPLETE, metrics=metrics))
        else:
            sampler.tell(Record(trial, refusal="over the budget"))
        number += 1
        trials += may_run
        if not starts:
            asked += 1
            refused += not may_run
    return refused


def test_what_is_refused_is_not_proposed_again_and_again() -> None:
    """Two of five methods are refused. Told as FAIL, nothing is known of them, and TPE tries them most of the time."""
    counts = {make: [proposed_though_refused(make, seed) for seed in range(3)] for make in (TPESampler, Forgetful)}
    print({make.__name__: found for make, found in counts.items()})
    assert np.mean(counts[TPESampler]) < 0.5 * np.mean(counts[Forgetful]), counts
