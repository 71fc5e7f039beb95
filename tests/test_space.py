"""Spaces: draws are members, sizes are counted right, YAML faults are said."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autopeft import testing
from autopeft.space import Choice, Dimension, Float, Int, Space, Subset, parse

SPACE = testing.example_space()
KNOWN = {"head": ["lr"], "lora": ["rank", "layers", "rslora", "lr"], "shared": ["layers"]}


@given(st.integers(0, 2**31 - 1))
def test_a_draw_is_a_member(seed):
    params = SPACE.draw(np.random.default_rng(seed))
    assert SPACE.why_not(params) == ""
    assert SPACE.contains(params)


def test_defaults_are_members_one_a_method():
    assert [params["method"] for params in SPACE.defaults()] == list(SPACE.methods)
    assert all(SPACE.contains(params) for params in SPACE.defaults())


@pytest.mark.parametrize(
    ("change", "reason"),
    [({"method": "none"}, "is none of"), ({"head.lr": 9.0}, "is not in"), ({"lora.rank": 8}, "does not exist")],
)
def test_why_something_is_no_member(change, reason):
    assert reason in SPACE.why_not({"method": "head", "head.lr": 1e-3, **change})
    assert "head.lr is missing" in SPACE.why_not({"method": "head"})


def test_the_size_is_what_counting_gives():
    space = Space(
        {
            "method": Dimension(Choice(("a", "b", "a+b")), "a"),
            "a.flag": Dimension(Choice((False, True)), False),
            "a.size": Dimension(Int(1, 3), 1, when={"a.flag": (True,)}),
            "b.layers": Dimension(Subset((0, 1, 2), min_size=0), []),
            "b.lr": Dimension(Float(0.1, 1.0), 0.1),
        }
    )
    members = set()
    for seed in range(3000):
        params = space.draw(np.random.default_rng(seed))
        members.add(str({key: value for key, value in params.items() if key != "b.lr"}))
    assert space.size() == (len(members), 1) == (4 + 8 + 32, 1)


def test_a_subset_is_drawn_by_its_size_first():
    domain = Subset(tuple(range(12)))
    rng = np.random.default_rng(0)
    sizes = np.bincount([len(domain.draw(rng)) for _ in range(2400)], minlength=13)[1:]
    assert sizes.min() > 120


def test_a_logarithmic_integer_reaches_both_ends():
    rng = np.random.default_rng(0)
    drawn = [Int(1, 64, log=True).draw(rng) for _ in range(3000)]
    assert (min(drawn), max(drawn)) == (1, 64)
    assert np.median(drawn) < 16


def test_yaml_to_space():
    spec = {
        "method": ["head", "lora"],
        "lora": {"rank": {"int": [1, 8], "log": True, "default": 4}, "layers": {"subset": "layers", "default": "all"},
                 "rslora": True},
        "head": {"lr": {"float": [1e-4, 1e-2], "default": 1e-3}},
    }  # fmt: skip
    space, faults = parse(spec, {"layers": range(3)}, KNOWN)
    assert not faults
    assert space.defaults()[1] == {
        "method": "lora", "lora.rank": 4, "lora.layers": [0, 1, 2], "lora.rslora": True, "head.lr": 1e-3,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"method": ["lroa"]}, "Did you mean 'lora'"),
        ({"method": ["lora"], "lora": {"rnak": 3}}, "Did you mean 'rank'"),
        ({"method": ["lora"], "lora": {"rank": {"int": [9, 1], "default": 3}}}, "low <= high"),
        ({"method": ["lora"], "lora": {"rank": {"int": [1, 9]}}}, "default"),
        ({"method": ["lora"], "lora": {"rank": [1, 2]}}, "bare list"),
        ({"method": ["lora"], "ia3": {"lr": 1.0}}, "no recipe"),
    ],
)
def test_faults_of_a_space(spec, message):
    space, faults = parse(spec, {"layers": range(3)}, KNOWN)
    assert space is None
    assert any(message in str(fault) for fault in faults), list(map(str, faults))


def test_all_faults_at_once():
    spec = {"method": ["lora"], "lora": {"rnak": 1, "rank": {"int": [2, 1], "default": 2}}, "ia3": {}}
    _, faults = parse(spec, {}, KNOWN)
    assert len(faults) == 3


def test_combinations_of_booleans():
    assert len(list(itertools.product((False, True), repeat=3))) == int(Subset((1, 2, 3), min_size=0).size)


def test_one_and_true_are_not_the_same_item_or_condition():
    space = Space(
        {
            "method": Dimension(Choice(("a",)), "a"),
            "a.layers": Dimension(Subset((0, 1)), [0, 1]),
            "a.switch": Dimension(Choice((1, True, "1")), True),
            "a.late": Dimension(Choice((2, 3)), 2, when={"a.switch": (True,)}),
        }
    )
    base = {"method": "a", "a.layers": [0, 1]}
    assert space.contains({**base, "a.switch": True, "a.late": 2})
    assert space.contains({**base, "a.switch": 1}) and space.contains({**base, "a.switch": "1"})
    assert not space.contains({**base, "a.switch": 1, "a.late": 2}), "it exists where the switch is on"
    assert not space.contains({"method": "a", "a.layers": [0, True], "a.switch": 1})
    assert not space.contains({"method": "a", "a.layers": [0.0, 1], "a.switch": 1})


def test_whole_numbers_of_a_real_dimension_become_reals():
    space = Space(
        {"method": Dimension(Choice(("a",)), "a"), "a.x": Dimension(Float(0, 2), 1.0), "a.n": Dimension(Int(1, 2), 1)}
    )
    assert repr(space.typed({"method": "a", "a.x": 1, "a.n": 1})) == "{'method': 'a', 'a.x': 1.0, 'a.n': 1}"
