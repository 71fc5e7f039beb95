"""NSGA-II: who has children, how a child is made in a conditional space, and generations by the order of telling."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from autopeft.errors import UsageError
from autopeft.history import Record
from autopeft.samplers.nsga2 import NSGA2Sampler
from autopeft.testing import OBJECTIVES, example_sizes, example_space
from autopeft.trial import Status, Trial

SPACE = example_space()
LORA = {
    "method": "lora", "head.lr": 1e-3, "lora.rank": 4, "lora.layers": [1, 3], "lora.modules": ["query", "key"],
    "lora.dora": True, "lora.magnitude": 0.25, "lora.dropout": 0.1, "lora.init": 1, "lora.alpha": 16,
}  # fmt: skip
OTHER = {**LORA, "head.lr": 1e-2, "lora.rank": 32, "lora.layers": [0], "lora.dora": False, "lora.init": None}
del OTHER["lora.magnitude"]


def told(number: int, params: dict[str, Any], accuracy: float, status: Status = Status.COMPLETE) -> Record:
    known = {"trainable_parameters": 1000.0}
    error = "" if status in (Status.COMPLETE, Status.STOPPED) else "as asked"
    return Record(Trial(number, params, 0), known, [], status, {**known, "accuracy": accuracy}, error=error)


def population(first: dict[str, Any], second: dict[str, Any], **options: Any) -> NSGA2Sampler:
    """After one generation of two, neither of which dominates the other."""
    sampler = NSGA2Sampler(SPACE, OBJECTIVES, example_sizes, population_size=2, mutation=0.0, **options)
    for number, params in enumerate((first, second)):
        sampler.tell(told(number, params, 0.75))
    return sampler


def test_a_child_takes_each_dimension_from_a_parent_that_has_it() -> None:
    sampler = population(LORA, OTHER, crossover=1.0)
    mixed = set()
    for seed in range(60):
        child = sampler._asked(seed)
        for name, value in child.items():
            parents = [parent[name] for parent in (LORA, OTHER) if name in parent]
            if name != "lora.layers":  # an axis an item: a child may have layers of both
                assert value in parents, name
        layers = set(child["lora.layers"])
        assert layers <= {0, 1, 3} or len(layers) == 1, "of neither parent, where nothing came of either"
        mixed.add((child["lora.rank"], child["lora.dora"]))
    assert mixed == {(4, True), (4, False), (32, True), (32, False)}, "children of both parents"


def test_without_crossover_a_child_is_its_parent() -> None:
    sampler = population(LORA, OTHER, crossover=0.0)
    children = [dict(sampler._asked(seed)) for seed in range(20)]
    assert all(child in (LORA, OTHER) for child in children)
    assert LORA in children and OTHER in children


def test_a_mutation_draws_anew() -> None:
    sampler = NSGA2Sampler(SPACE, OBJECTIVES, example_sizes, population_size=2, mutation=1.0)
    for number in range(2):
        sampler.tell(told(number, LORA, 0.75))
    rates = {sampler._asked(seed)["head.lr"] for seed in range(10)}
    assert len(rates) == 10
    assert LORA["head.lr"] not in rates


@pytest.mark.parametrize("status", [Status.STOPPED, Status.FAILED, Status.OUT_OF_MEMORY])
def test_only_complete_trials_are_parents_and_take_a_place(status: Status) -> None:
    sampler = NSGA2Sampler(SPACE, OBJECTIVES, example_sizes, population_size=2, mutation=0.0)
    for number in range(6):
        sampler.tell(told(number, OTHER, 0.99, status))
    assert sampler.is_starting, "a generation has complete trials only"
    for number in range(6, 8):
        sampler.tell(told(number, LORA, 0.6))
    assert not sampler.is_starting
    assert [dict(sampler._asked(seed)) for seed in range(10)] == [LORA] * 10


def test_parents_are_the_best_of_the_generations_before_their_own() -> None:
    """Complete trials 0, 1 are generation 0, 2, 3 generation 1; the fifth is not yet a parent."""
    sampler = NSGA2Sampler(SPACE, OBJECTIVES, example_sizes, population_size=2, mutation=0.0)
    scores = [0.6, 0.6, 0.9, 0.9, 0.99]
    rng = np.random.default_rng(0)
    members = [{**SPACE.of_method("head").draw(rng)} for _ in scores]
    for number, (params, score) in enumerate(zip(members, scores)):
        sampler.tell(told(number, params, score))
    rates = {sampler._asked(seed)["head.lr"] for seed in range(30)}
    assert rates <= {members[2]["head.lr"], members[3]["head.lr"]}


def test_what_is_let_go_changes_no_parents() -> None:
    """Against the same sampler on a study that holds every trial."""
    size, rng = 4, np.random.default_rng(0)
    sampler = NSGA2Sampler(SPACE, OBJECTIVES, example_sizes, population_size=size)
    whole = sampler.new_study()
    for number in range(10 * size):
        known = {"trainable_parameters": float(10 ** rng.uniform(1, 5))}
        record = Record(Trial(number, SPACE.draw(rng), 0), known, [], Status.COMPLETE,
                        {**known, "accuracy": float(rng.uniform())})  # fmt: skip
        sampler.tell(record)
        whole.add_trial(sampler.as_trial(record))
        if (number + 1) % size == 0 and number + 1 > size:
            kept = {str(sorted(trial.params.items())) for trial in sampler.study.trials if trial.values}
            parents = sampler.sampler(0).get_parent_population(whole, (number + 1) // size)
            assert kept == {str(sorted(trial.params.items())) for trial in parents}
        assert len([trial for trial in sampler.study.trials if trial.values]) < 2 * size


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"population_size": 1}, "population_size is a whole number from 2, not 1"),
        ({"crossover": 1.5}, "crossover is a number between 0 and 1, not 1.5"),
        ({"mutation": True}, "mutation is a number between 0 and 1, not True"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        NSGA2Sampler(SPACE, OBJECTIVES, example_sizes, **options)
