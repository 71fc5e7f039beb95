"""What a configuration means, without a model."""

import pytest

from autopeft.errors import Refused
from autopeft.recipe import layers, layers_fault, parts, qualifiers, size
from autopeft.space import method_of


def test_the_method_of_a_component_is_what_comes_before_the_at():
    assert [method_of(name) for name in ("lora", "lora@ffn")] == ["lora", "lora"]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("all", (0, 1, 2, 3)),
        ("last_1", (3,)),
        ("last_4", (0, 1, 2, 3)),
        ("last_0", ()),
        ("first_2", (0, 1)),
        ("first_0", ()),
        ("1-3", (1, 2, 3)),
        ("2-2", (2,)),
        ([2, 0], (0, 2)),
        ([2, 2], (2,)),
        ([], ()),
    ],
)
def test_layers(value, expected):
    assert layers(value, 4) == expected
    assert not layers_fault(value)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("last_5", "the model has 4 layers, not 5"),
        ("first_5", "the model has 4 layers, not 5"),
        ("2-4", "layers 0 to 3, not 2-4"),
        ([4, 1], "layers 0 to 3, not 4"),
        ([-1], "layers 0 to 3, not -1"),
        ("3-1", "a range of layers goes up: 1-3, not 3-1"),
        ("middle", "not 'middle'"),
        (3, "not 3"),
        (None, "not None"),
    ],
)
def test_layers_that_there_are_not(value, message):
    with pytest.raises(Refused, match=message):
        layers(value, 4)


@pytest.mark.parametrize(
    ("key", "expected"),
    [("rank", (None, None)), ("rank.query", ("query", None)), ("rank.3", (None, 3)), ("rank.query.3", ("query", 3))],
)
def test_qualifiers(key, expected):
    assert qualifiers(key) == expected


def test_the_most_specific_size_wins():
    (part,) = parts({"method": "lora", "lora.rank": 1, "lora.rank.query": 2, "lora.rank.3": 4, "lora.rank.query.3": 8})
    assert [size(part, kind, layer) for kind in ("query", "value") for layer in (2, 3)] == [2, 8, 1, 4]
    assert size(part) == 1


def test_a_method_without_a_size_is_there():
    (part,) = parts({"method": "ia3"})
    assert size(part) is None


def test_keys_are_own_then_shared_then_stock():
    params = {"method": "lora@a+lora@b+bias", "shared.rank": 4, "shared.lr": 1e-3, "lora@b.rank": 2}
    a, b, bias = parts(params)
    assert [(part.name, part.given) for part in (a, b, bias)] == [
        ("lora@a", {"rank": 4, "lr": 1e-3}),
        ("lora@b", {"rank": 2, "lr": 1e-3}),
        ("bias", {"lr": 1e-3}),
    ]
    assert (a.keys["alpha"], a.method.label) == (16, "LoRA")


def test_a_shared_size_of_a_kind_goes_to_those_whose_size_differs_by_kind():
    lora, vera = parts({"method": "lora+vera", "shared.rank.query": 2})
    assert lora.given == {"rank.query": 2}
    assert vera.given == {}


@pytest.mark.parametrize(
    "keys",
    [
        {"rank": 0},
        {"layers": []},
        {"layers": "last_0"},
        {"layers": "first_0"},
        {"modules": []},
        {"rank": 0, "rank.query": 0, "rank.3": 0},
        {"modules": ["query"], "rank.query": 0},
        {"layers": "1-2", "rank.1": 0, "rank.2": 0},
        {"layers": [1], "modules": ["query"], "rank.query.1": 0},
    ],
    ids=str,
)
def test_a_part_that_acts_nowhere_is_left_out(keys):
    params = {"method": "lora+bias", **{f"lora.{key}": value for key, value in keys.items()}}
    assert [part.name for part in parts(params)] == ["bias"]


@pytest.mark.parametrize(
    "keys",
    [
        {"rank": 0, "rank.query": 2},
        {"rank": 0, "rank.3": 2},
        {"rank.query": 0},
        {"modules": ["query", "key"], "rank.query": 0},
        {"layers": "1-3", "rank.1": 0, "rank.2": 0},
    ],
    ids=str,
)
def test_a_part_that_acts_somewhere_is_there(keys):
    assert parts({"method": "lora", **{f"lora.{key}": value for key, value in keys.items()}})
