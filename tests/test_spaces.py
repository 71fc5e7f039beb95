"""Reading a space for a model: what is fitted to it, and every fault that the grammar cannot know. The shipped spaces
are in test_search_spaces.py, the messages of whole configs in test_golden.py."""

from __future__ import annotations

from typing import Any

import pytest

from autopeft import plugins, spaces, testing
from autopeft.recipe import parts
from autopeft.space import Choice, Space, Subset

BERT = ("query", "key", "value", "output", "up", "down")


def read(lora: dict[str, Any], method: Any = "lora", n_layers: int = 4, **more: Any) -> tuple[Space | None, list[str]]:
    space, faults = spaces.read({"method": method, "lora": lora, **more}, n_layers, BERT)
    assert (space is None) == bool(faults)
    return space, [str(fault) for fault in faults]


def domain(lora: dict[str, Any], key: str) -> Any:
    space, faults = read(lora)
    assert space is not None, faults
    return space.dimensions[f"lora.{key}"]


@pytest.mark.parametrize(
    ("value", "options", "default"),
    [
        ("off", (False,), False),
        ({"choice": ["off", "on"], "default": "on"}, (False, True), True),
        ({"choice": ["no", True], "default": "yes"}, (False, True), True),
    ],
)
def test_switches_are_booleans(value: Any, options: Any, default: Any) -> None:
    found = domain({"dora": value}, "dora")
    assert found.domain == Choice(options)
    assert found.default is default


def test_a_condition_on_a_switch_is_a_boolean_too() -> None:
    lora = {
        "dora": {"choice": ["off", "on"], "default": "off"},
        "dropout": {"float": [0, 0.2], "default": 0, "when": {"dora": "off"}},
    }
    assert domain(lora, "dropout").when == {"lora.dora": (False,)}


def test_layers_of_a_default_are_put_in_order() -> None:
    found = domain({"layers": {"subset": "layers", "default": [3, 0]}}, "layers")
    assert (found.domain, found.default) == (Subset((0, 1, 2, 3)), [0, 3])


def test_a_rank_for_a_module_kind_is_a_key() -> None:
    assert domain({"rank.query": {"choice": [0, 4], "default": 4}}, "rank.query").default == 4


def test_a_rank_for_a_kind_that_the_model_lacks_falls_away() -> None:
    ranks = {f"rank.{kind}": {"choice": [0, 4], "default": 4} for kind in ("query", "qkv")}
    spec = {"method": ["lora"], "lora": {**ranks, "lr": 1e-3}, "head": {"lr": 1e-3}}
    for kinds, left in ((("query", "value"), "query"), (("qkv", "output"), "qkv")):
        space, faults = spaces.read(spec, 4, kinds)
        assert not faults
        assert space is not None
        assert [name for name in space.dimensions if ".rank." in name] == [f"lora.rank.{left}"]


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        ({"rank.quary": 4}, "lora.rank.quary: no module kind called 'quary'. Did you mean 'query'?"),
        ({"rank": 1.5}, "lora.rank: takes whole numbers from 0; got 1.5"),
        ({"rank": -1}, "lora.rank: takes whole numbers from 0; got -1"),
        ({"rank": {"float": [1, 8], "default": 2.0}}, "lora.rank: takes whole numbers: write {int: [low, high], …}"),
        ({"lr": {"float": [0, 1], "default": 0.1}}, "lora.lr: a learning rate is above 0; got 0"),
        ({"lr": "fast"}, "lora.lr: takes a number; got 'fast'"),
        ({"dropout": {"float": [0, 1], "default": 0}}, "lora.dropout: a dropout is from 0 to below 1; got 1"),
        ({"dora": {"choice": ["off", 1], "default": "off"}}, "lora.dora: is on or off; got 1"),
        ({"modules": "query"}, "lora.modules: is `all`, {subset: modules, default: all}, or a subset of kinds"),
        ({"modules": {"subset": ["quary"], "default": ["quary"]}}, "lora.modules: no module kind called 'quary'"),
        ({"layers": "second_2"}, "lora.layers: is {subset: layers, default: all}, or a choice among all, last_1"),
        ({"layers": "5-2"}, "lora.layers: a range of layers goes up: 2-5, not 5-2"),
        ({"layers": "2-5"}, "lora.layers: the model has layers 0 to 3, not 2-5"),
        ({"layers": {"choice": ["all", "first_5"], "default": "all"}}, "lora.layers: the model has 4 layers, not 5"),
        ({"rank.4": 8}, "lora.rank.4: the model has layers 0 to 3, not 4"),
        ({"rank.query.4": 8}, "lora.rank.query.4: the model has layers 0 to 3, not 4"),
        ({"rank.3": 1.5}, "lora.rank.3: takes whole numbers from 0; got 1.5"),
        ({"alpha.3": 8}, "lora.alpha.3: alpha of LoRA is one value for all module kinds and layers"),
        ({"layers": {"subset": [-1, 0], "default": [0]}}, "lora.layers: is a subset of layers by index from 0"),
        ({"layers": {"subset": "layers", "default": [4]}}, "lora.layers: the default [4] is not in"),
        (
            {"rank": {"choice": [1, 2], "default": 1}, "alpha": {"choice": [1, 2], "default": 1, "when": {"rank": 3}}},
            "lora.alpha: exists when lora.rank is 3, which lora.rank never is",
        ),
        (
            {"alpha": {"int": [1, 9], "default": 1, "when": "rank"}},
            "lora.alpha: expected when: {key: [values]}, got 'rank'",
        ),
        ({"rank": {"int": [1, 9], "default": 1, "log": 3}}, "lora.rank: log is true or false, got 3"),
        ({"layers": {"subset": "layers", "default": "all", "min_size": True}}, "min_size is a whole number, got True"),
    ],
    ids=str,
)
def test_faults_that_the_grammar_cannot_know(lora: dict[str, Any], message: str) -> None:
    _, faults = read(lora)
    assert any(message in fault for fault in faults), faults


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (["lora", "lora"], "'lora' stands there twice"),
        (["lora+lora"], "'lora+lora' has the component 'lora' twice: name them apart, lora@a+lora@b"),
        (["lora@a+lora@"], "'lora@a+lora@': what follows the @ of 'lora@' is a word of letters, digits and _"),
        (["lora+head@a"], "'lora+head@a': every recipe trains the head; leave it out of a joined one"),
        (["lora+head"], "'lora+head': every recipe trains the head; leave it out of a joined one"),
    ],
)
def test_faults_of_recipes(method: list[str], message: str) -> None:
    _, faults = read({}, method)
    assert faults == [f"method: {message}"]


def test_all_faults_at_once() -> None:
    _, faults = read({"rank": 1.5, "lr": "fast", "layers": "5-2", "dora": {"choice": [1], "default": 1}, "rnak": 3})
    assert sorted(fault.split(":")[0] for fault in faults) == sorted(
        ["lora.rank", "lora.lr", "lora.layers", "lora.dora", "lora.rnak"]
    )


@pytest.mark.parametrize(
    ("component", "key", "message"),
    [
        ("vera", "rank.query", "rank of VeRA is one value for all module kinds and layers"),
        ("prefix", "size.query", "size of prefix may differ by layer (size.3), not by module kind"),
        ("last_layers", "count.1", "count of last layers is one value for all module kinds and layers"),
        ("shared", "d_initial.1", "d_initial of VeRA is one value for all module kinds and layers"),
    ],
)
def test_a_size_differs_by_what_its_method_says(component: str, key: str, message: str) -> None:
    spec = {"method": "last_layers+prefix+vera", component: {key: 4}}
    _, faults = spaces.read(spec, 4, BERT)
    assert [str(fault) for fault in faults if "takes" not in fault.message] == [f"{component}.{key}: {message}"]


def test_a_shared_size_is_right_where_one_method_reads_it() -> None:
    space, faults = spaces.read({"method": "serial_adapter+prefix", "shared": {"size.down": 4}}, 4, BERT)
    assert (space is not None, faults) == (True, [])


def test_sizes_by_layer_are_keys() -> None:
    lora = {"rank.3": {"choice": [0, 4], "default": 4}, "rank.query.3": 2, "rank": 8}
    space, faults = read(lora)
    assert space is not None, faults
    assert list(space.dimensions) == ["method", "lora.rank.3", "lora.rank.query.3", "lora.rank"]


def test_a_size_of_any_layer_is_right_while_the_model_is_not_at_hand() -> None:
    space, faults = spaces.read({"method": "lora", "lora": {"rank.40": 4, "layers": "2-40"}}, None)
    assert (space is not None, faults) == (True, [])


def test_a_size_of_a_kind_that_the_model_lacks_falls_away_in_each_layer() -> None:
    space, _ = read({"rank.qkv.3": 4, "rank.query.3": 4})
    assert space is not None
    assert list(space.dimensions) == ["method", "lora.rank.query.3"]


@pytest.mark.parametrize(
    "layers", ["all", "first_2", "last_3", "1-3", "2-2", {"choice": ["0-1", "2-3"], "default": "2-3"}]
)
def test_layers_by_name(layers: Any) -> None:
    assert domain({"layers": layers}, "layers")


def test_one_method_several_times() -> None:
    rank = {"choice": [1, 2], "default": 2}
    space, faults = read({}, ["lora@attn+lora@ffn"], **{"lora@attn": {"rank": rank}, "lora@ffn": {"rank": rank}})
    assert [fault.split(":")[0] for fault in faults] == ["lora"], "which no recipe has"
    spec = {"method": ["lora@attn+lora@ffn", "lora"], "lora@attn": {"rank": rank, "dora": "on"}, "lora": {"rank": 4}}
    space, _ = spaces.read(spec, 4, BERT)
    assert space is not None
    assert space.defaults() == [
        {"method": "lora@attn+lora@ffn", "lora@attn.rank": 2, "lora@attn.dora": True},
        {"method": "lora", "lora.rank": 4},
    ]


def test_the_keys_of_a_component_are_those_of_its_method() -> None:
    spec = {"method": ["lora@attn+lroa@ffn"], "lora@attn": {"rnk": 4, "lr": "fast"}}
    _, faults = spaces.read(spec, 4, BERT)
    found = [str(fault) for fault in faults]
    assert "method: no method called 'lroa'. Did you mean 'lora'?" in found
    assert any(fault.startswith("lora@attn.rnk: lora@attn has no key 'rnk'. Did you mean 'rank'?") for fault in found)
    assert "lora@attn.lr: takes a number; got 'fast'" in found


@pytest.mark.parametrize("name", ["random", "tpe", "nsga2"])
def test_samplers_draw_one_method_several_times(name: str) -> None:
    rank = {"int": [0, 8], "default": 4}
    layers = {"choice": ["first_2", "1-2"], "default": "1-2"}
    spec = {"method": ["lora", "lora@a+lora@b"], "lora@a": {"rank": rank, "rank.2": 2}, "lora@b": {"layers": layers}}
    space, faults = spaces.read(spec, 4, BERT)
    assert space is not None, faults
    sampler = plugins.make("samplers", name, None, space, testing.OBJECTIVES, testing.example_sizes)
    for number in range(20):
        params = sampler.ask(number, number)
        assert not space.why_not(params)
        assert parts(params)


def test_a_head_may_read_each_block_of_the_model() -> None:
    space, faults = read({}, head={"layer": {"choice": "layers", "default": "last"}, "pooling": "mean"})
    assert space is not None, faults
    assert space.dimensions["head.layer"].domain == Choice((0, 1, 2, 3))
    assert space.dimensions["head.layer"].default == 3
    space, faults = read({}, head={"layer": {"choice": ["last", 1], "default": "last"}, "norm": "on"})
    assert space is not None, faults
    assert space.dimensions["head.norm"].default is True


@pytest.mark.parametrize(
    ("head", "fault"),
    [
        ({"pooling": "men"}, "head.pooling: is one of own, first, mean, max, last, attention, not 'men'. Did you mean"),
        ({"pooling": {"choice": ["own", "cls"], "default": "own"}}, "head.pooling: is one of own"),
        ({"pooling": {"subset": ["own"], "default": "all"}}, "head.pooling: is one value or a {choice"),
        ({"layer": {"choice": ["last", 4], "default": "last"}}, "head.layer: is from 0 to 3 in this model, not 4"),
        ({"layer": {"int": [0, 9], "default": 3}}, "head.layer: is from 0 to 3 in this model, not 9"),
        ({"layer": "first"}, "head.layer: is the index of a block, from 0, or 'last', not 'first'"),
        ({"hidden": -2}, "head.hidden: takes whole numbers from 0; got -2"),
        ({"norm": "layer"}, "head.norm: is on or off; got 'layer'"),
        ({"poling": "mean"}, "head.poling: head has no key 'poling'. Did you mean 'pooling'?"),
    ],
)  # fmt: skip
def test_faults_of_a_head(head: dict[str, Any], fault: str) -> None:
    _, faults = read({}, head=head)
    assert len(faults) == 1
    assert faults[0].startswith(fault)


def test_keys_of_the_head_are_not_shared() -> None:
    _, faults = read({}, shared={"pooling": "mean"})
    assert faults[0].startswith("shared.pooling: shared has no key 'pooling'")
