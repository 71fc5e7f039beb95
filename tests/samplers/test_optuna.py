"""The space as Optuna's axes and back, how each record is told, and that a refilled study proposes what the live did."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState

from autopeft.history import Record
from autopeft.samplers._optuna import Axes
from autopeft.samplers.nsga2 import NSGA2Sampler
from autopeft.samplers.tpe import TPESampler
from autopeft.space import Choice, Dimension, Domain, Float, Int, Space, Subset
from autopeft.testing import OBJECTIVES, example_sizes, example_space
from autopeft.trial import Report, Status, Trial, derive_seed

SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 3), st.sampled_from([0.0, 1.0, 0.5]), st.text("ab", max_size=2)
)


def unique(values: list[Any]) -> tuple[Any, ...]:
    """Each value once, where 1, 1.0 and True are three."""
    return tuple({(type(value), value): value for value in values}.values())


@st.composite
def domains(draw: Any) -> Domain:
    kind = draw(st.sampled_from(["float", "int", "choice", "subset"]))
    log = draw(st.booleans())
    if kind == "float":
        low, high = sorted(draw(st.tuples(*[st.floats(1e-6, 1e6)] * 2)))
        return Float(low, high, log)
    if kind == "int":
        low, high = sorted(draw(st.tuples(*[st.integers(1, 200)] * 2)))
        return Int(low, high, log)
    if kind == "choice":
        return Choice(unique(draw(st.lists(SCALARS, min_size=1, max_size=6))))
    items = tuple(
        draw(st.lists(st.one_of(st.integers(0, 9), st.text("ab", max_size=2)), min_size=1, max_size=6, unique=True))
    )
    return Subset(items, draw(st.integers(0, len(items))))


@st.composite
def spaces(draw: Any) -> Space:
    """Two components, each with some dimensions; the last one may exist by another."""
    dimensions = {"method": Dimension(Choice(("a", "b", "a+b")), "a")}
    rng = np.random.default_rng(draw(st.integers(0, 2**31)))
    for index in range(draw(st.integers(1, 6))):
        domain = draw(domains())
        dimensions[f"{draw(st.sampled_from('ab'))}.{index}"] = Dimension(domain, domain.draw(rng))
    dimensions["a.switch"] = Dimension(Choice((False, True)), False)
    late = draw(domains())
    dimensions["a.late"] = Dimension(late, late.draw(rng), when={"a.switch": (True,)})
    return Space(dimensions)


def typed(value: Any) -> str:
    """Equal only where types are, too."""
    return json.dumps(value, sort_keys=True)


class Echo:
    """A trial of Optuna's that suggests given values by axis."""

    def __init__(self, values: dict[str, Any]) -> None:
        self.values, self.asked = values, set()

    def _one(self, axis: str, of: Any) -> Any:
        self.asked.add(axis)
        assert of._contains(of.to_internal_repr(self.values[axis])), (axis, of, self.values[axis])
        return self.values[axis]

    def suggest_float(self, axis: str, low: float, high: float, *, log: bool) -> float:
        return self._one(axis, FloatDistribution(low, high, log=log))

    def suggest_int(self, axis: str, low: int, high: int, *, log: bool) -> int:
        return self._one(axis, IntDistribution(low, high, log=log))

    def suggest_categorical(self, axis: str, choices: Any) -> Any:
        return self._one(axis, CategoricalDistribution(choices))


@settings(max_examples=200)
@given(spaces(), st.integers(0, 2**31))
def test_what_is_encoded_is_decoded_to_the_same(space: Space, seed: int) -> None:
    params = space.draw(np.random.default_rng(seed))
    axes = Axes(space)
    values, distributions = axes.encode(params)
    assert values.keys() == distributions.keys() <= axes.distributions.keys()
    echo = Echo(values)
    assert typed(axes.suggest(echo, seed)) == typed(params)  # type: ignore[arg-type]
    assert echo.asked == set(values), "every axis is asked for, and no other"


@pytest.mark.parametrize("option", [None, True, 1, 1.0, 0, False, 0.0, "1"], ids=repr)
def test_one_and_true_are_options_of_their_own(option: Any) -> None:
    choice = Choice((None, True, 1, 1.0, 0, False, 0.0, "1"))
    axes = Axes(Space({"method": Dimension(Choice(("a",)), "a"), "a.x": Dimension(choice, None)}))
    values, _ = axes.encode({"method": "a", "a.x": option})
    assert typed(axes.suggest(Echo(values), 0)["a.x"]) == typed(option)  # type: ignore[arg-type]


@settings(max_examples=30)
@given(spaces(), st.integers(0, 2**31))
def test_what_optuna_suggests_is_a_member(space: Space, seed: int) -> None:
    sampler = TPESampler(space, OBJECTIVES, example_sizes, n_startup_trials=0)
    for number in range(3):
        params = sampler.ask(number, seed + number)
        assert space.why_not(params) == ""
        known = {"trainable_parameters": 10.0}
        metrics = {**known, "accuracy": 0.5 + number / 10}
        sampler.tell(Record(Trial(number, params, 0), known, status=Status.COMPLETE, metrics=metrics))


@pytest.mark.parametrize(
    ("domain", "expected"),
    [
        (Choice((1, 4, 16)), {"a.x": IntDistribution(0, 2)}),  # neighbours are alike
        (Choice((16, 4, 1)), {"a.x": CategoricalDistribution((0, 1, 2))}),
        (Choice((False, True)), {"a.x": CategoricalDistribution((0, 1))}),
        (Choice((None, 1, 1.0)), {"a.x": CategoricalDistribution((0, 1, 2))}),
        (Choice((8,)), {}),
        (Int(1, 64, log=True), {"a.x": IntDistribution(1, 64, log=True)}),
        (Float(0.1, 1.0), {"a.x": FloatDistribution(0.1, 1.0)}),
        (Float(0.1, 0.1), {}),
        (Subset((0, "q")), {f"a.x={item!r}": CategoricalDistribution((False, True)) for item in (0, "q")}),
        (Subset((0, 1), min_size=2), {}),
    ],
    ids=str,
)
def test_axes_of_a_domain(domain: Domain, expected: dict[str, Any]) -> None:
    space = Space(
        {"method": Dimension(Choice(("a",)), "a"), "a.x": Dimension(domain, domain.draw(np.random.default_rng(0)))}
    )
    assert Axes(space).distributions == expected


def test_a_subset_that_comes_out_too_small_is_filled_up_by_the_seed() -> None:
    space = Space({"method": Dimension(Choice(("a",)), "a"), "a.x": Dimension(Subset(tuple(range(8)), 3), [0, 1, 2])})
    axes = Axes(space)
    values = {f"a.x={item}": item == 5 for item in range(8)}
    found = [axes.suggest(Echo(values), seed)["a.x"] for seed in range(20)]  # type: ignore[arg-type]
    assert all(len(layers) == 3 and 5 in layers and layers == sorted(layers) for layers in found)
    assert len({str(layers) for layers in found}) > 5
    assert found == [axes.suggest(Echo(values), seed)["a.x"] for seed in range(20)]  # type: ignore[arg-type]


HEAD = {"method": "head", "head.lr": 1e-3}
KNOWN = {"trainable_parameters": 1000.0}
SCORED = {**KNOWN, "accuracy": 0.75}
WAYS = {
    "complete": (Record(Trial(0, HEAD, 0), KNOWN, status=Status.COMPLETE, metrics=SCORED), TrialState.COMPLETE, False),
    "stopped": (
        Record(Trial(0, HEAD, 0), KNOWN, [Report(5, {"accuracy": 0.9})], Status.STOPPED, {**KNOWN, "accuracy": 0.9}),
        TrialState.PRUNED,
        False,
    ),
    "failed": (Record(Trial(0, HEAD, 0), KNOWN, status=Status.FAILED, error="nan"), TrialState.PRUNED, False),
    "out of memory": (
        Record(Trial(0, HEAD, 0), KNOWN, status=Status.OUT_OF_MEMORY, error="oom"), TrialState.PRUNED, True,
    ),
    "refused": (Record(Trial(0, HEAD, 0), refusal="over the budget"), TrialState.PRUNED, True),
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_how_each_record_is_told(way: str) -> None:
    record, state, infeasible = WAYS[way]
    sampler = TPESampler(example_space(), OBJECTIVES, example_sizes)
    sampler.tell(record)
    (told,) = sampler.study.trials
    assert told.state == state
    assert told.params == {"method": 0, "head.lr": 1e-3}
    assert told.values == ([-0.75, 3.0] if way == "complete" else None), "losses, the parameters on log10"
    assert told.intermediate_values == {}, "no partial score is taken as final"
    assert any(violation > 0 for violation in told.constraints.values()) == infeasible
    assert (sampler.ran, sampler.completed) == (way != "refused", way == "complete")


def test_what_the_machine_cost_is_not_told_and_lost_twice_it_has_failed() -> None:
    sampler = TPESampler(example_space(), OBJECTIVES, example_sizes)
    sampler.tell(Record(Trial(0, HEAD, 0), KNOWN, status=Status.FAILED, error="died", fault="machine", lost=1))
    assert (sampler.study.trials, sampler.ran) == ([], 0)
    sampler.tell(Record(Trial(0, HEAD, 0), KNOWN, status=Status.FAILED, error="died", fault="machine", lost=2))
    (told,) = sampler.study.trials
    assert (told.state, sampler.ran) == (TrialState.PRUNED, 1)


def test_what_is_not_in_the_space_is_not_placed() -> None:
    sampler = TPESampler(example_space(), OBJECTIVES, example_sizes)
    sampler.tell(Record(Trial(0, {**HEAD, "head.lr": 9.0}, 0), refusal="not in the space"))
    assert sampler.study.trials == []


def test_a_stopped_trial_is_never_among_the_good() -> None:
    """However good its last report looked, and though a quarter of few complete trials leaves room."""
    space = example_space()
    sampler = TPESampler(space, OBJECTIVES, example_sizes, n_startup_trials=0, good_share=1.0)
    rng = np.random.default_rng(0)
    for number in range(12):
        trial = Trial(number, space.draw(rng), 0)
        status = Status.COMPLETE if number < 3 else Status.STOPPED
        sampler.tell(Record(trial, KNOWN, status=status, metrics={**KNOWN, "accuracy": 0.5 + number / 100}))
    assert sampler.sampler(0)._gamma(12) == 3  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "make",
    [TPESampler, partial(TPESampler, n_startup_trials=0), NSGA2Sampler, partial(NSGA2Sampler, population_size=2)],
)
def test_what_was_told_is_not_proposed_again(make: Any) -> None:
    space = Space(
        {
            "method": Dimension(Choice(("a",)), "a"),
            "a.x": Dimension(Choice((1, 2, 3)), 1),
            "a.y": Dimension(Choice((1, 2, 3)), 1),
        }
    )
    sampler, asked = make(space, OBJECTIVES, example_sizes), []
    for number in range(9):
        params = sampler.ask(number, derive_seed(number))
        asked.append(typed(params))
        record = Record(Trial(number, params, 0), KNOWN, status=Status.COMPLETE, metrics=SCORED)
        sampler.tell(record if number % 2 else Record(Trial(number, params, 0), refusal="over the budget"))
    assert len(set(asked)) == 9
    assert space.contains(sampler.ask(9, 0)), "and where nothing is left, something is proposed, and refused"


@pytest.mark.parametrize("make", [TPESampler, NSGA2Sampler])
def test_what_runs_is_not_proposed_again(make: Any) -> None:
    space = Space({"method": Dimension(Choice(("a",)), "a"), "a.x": Dimension(Choice(tuple(range(6))), 1)})
    sampler = make(space, OBJECTIVES, example_sizes)
    asked = set()
    for number in range(6):
        params = sampler.ask(number, derive_seed(number))
        asked.add(typed(params))
        sampler.begin(Record(Trial(number, params, 0), KNOWN))
    assert len(asked) == 6, "six trials at once, none of them told"
