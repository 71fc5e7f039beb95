"""The spaces that come with autopeft, and finding one."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest

from autopeft import plugins, spaces, yaml_file
from autopeft.errors import UnknownName
from autopeft.space import Float, Space, Subset, components

NAMES = sorted(spaces.shipped())
BERT = ("query", "key", "value", "output", "up", "down")
GPT2 = ("qkv", "output", "up", "down")
MOBILENET = ("convolution", "depthwise")


def shipped(name: str, n_layers: int = 12, kinds: tuple[str, ...] = BERT) -> Space:
    space, faults = spaces.read(yaml_file.read(spaces.shipped()[name]).content, n_layers, kinds)
    assert not faults
    assert space is not None
    return space


def test_these_come_with_autopeft() -> None:
    assert {"digits", "small", "lora", "all_methods", "language_model", "autopeft_tacl24"} <= set(NAMES)


@pytest.mark.parametrize("n_layers", [1, 4, 24])
@pytest.mark.parametrize("name", NAMES)
def test_draws_and_defaults_are_members(name: str, n_layers: int) -> None:
    space = shipped(name, n_layers)
    rng = np.random.default_rng(0)
    for params in [*space.defaults(), *(space.draw(rng) for _ in range(50))]:
        assert space.why_not(params) == ""


@pytest.mark.parametrize("name", NAMES)
def test_every_component_has_a_learning_rate(name: str) -> None:
    space = shipped(name)
    for method in space.methods:
        for component in {*components(method), "head"}:
            dimension = space.dimensions[f"{component}.lr"]
            assert 0 < dimension.default <= 1
            if isinstance(dimension.domain, Float):
                assert dimension.domain.log
                assert dimension.domain.high / dimension.domain.low >= 10


def test_learning_rate_ranges_are_each_methods_own() -> None:
    space = shipped("all_methods")
    ranges = {name: d.domain for name, d in space.dimensions.items() if name.endswith(".lr")}
    assert len({(domain.low, domain.high) for domain in ranges.values() if isinstance(domain, Float)}) >= 6


@pytest.mark.parametrize("name", ["small", "all_methods"])
def test_first_trials_are_the_stock_of_each_method_but_for_the_learning_rate(name: str) -> None:
    """Whose default is the README's, with its source. On all layers, and the module kinds that the method takes."""
    for params in shipped(name).defaults():
        for component in components(params["method"]):
            method = plugins.load("methods", component)
            stock = {**method.stock, "layers": list(range(12)), "modules": [k for k in BERT if k in method.modules]}
            given = {k.split(".", 1)[1]: v for k, v in params.items() if k.startswith(f"{component}.")}
            del given["lr"]
            assert given == {key: stock[key] for key in given}, component


@pytest.mark.parametrize(("kinds", "attention"), [(BERT, ["query", "value"]), (GPT2, ["qkv"])])
def test_a_language_model_is_adapted_in_all_its_linear_layers(kinds: tuple[str, ...], attention: list[str]) -> None:
    space = shipped("language_model", kinds=kinds)
    assert space.dimensions["lora.modules"].default == list(kinds)
    assert space.dimensions["vera.modules"].default == attention
    assert {"lora.rslora", "lora.dora", "lora.rank", "lora.layers", "lora_plus.ratio"} <= set(space.dimensions)


def test_small_heads_is_small_with_the_head_searched() -> None:
    small, with_heads = shipped("small"), shipped("small_heads")
    own = {name: d for name, d in with_heads.dimensions.items() if name not in ("head.pooling", "head.norm")}
    assert own == dict(small.dimensions) and with_heads.methods == small.methods
    assert all(params["head.pooling"] == "mean" and params["head.norm"] is True for params in with_heads.defaults())


def test_all_methods_has_all_methods() -> None:
    used = {part for method in shipped("all_methods").methods for part in components(method)}
    assert used == set(plugins.names("methods"))


def test_the_space_of_autopeft_has_5_451_776_configurations() -> None:
    assert shipped("autopeft_tacl24", 12).size() == (11**3 * 2**12, 0)
    assert 11**3 * 2**12 == 5_451_776


def test_the_sizes_of_autopeft() -> None:
    """As in the authors' code: 768 over 2⁰ … 2⁹, the last one rounded to 1, and none."""
    expected = sorted({0, 1, *(768 // 2**k for k in range(9))})
    for component in ("serial_adapter", "parallel_adapter", "prefix"):
        assert sorted(shipped("autopeft_tacl24").dimensions[f"{component}.size"].domain.options) == expected  # type: ignore[union-attr]


def test_lora_searches_what_it_promises() -> None:
    space = shipped("lora")
    searched = {name for name, dimension in space.dimensions.items() if dimension.domain.size > 1}
    assert {"lora.alpha", "lora.layers", "lora.rslora", "lora.dora", "lora.lr"} <= searched
    assert {name for name in searched if ".rank." in name} == {f"lora.rank.{kind}" for kind in BERT}
    assert space.defaults()[0]["lora.dora"] is False  # `off` is False, not text


def test_lora_has_stock_ranks_where_query_key_and_value_are_one_matrix() -> None:
    defaults = shipped("lora", kinds=GPT2).defaults()[0]
    assert {key: value for key, value in defaults.items() if ".rank." in key} == {
        "lora.rank.qkv": 8, "lora.rank.output": 0, "lora.rank.up": 0, "lora.rank.down": 0
    }  # fmt: skip


@pytest.mark.parametrize(
    ("kinds", "items", "default"),
    [
        (BERT, BERT, ["query", "value"]),
        (GPT2, GPT2, ["qkv"]),
        (MOBILENET, ("convolution",), ["convolution"]),  # depthwise ones only where a space names them
    ],
)
def test_modules_are_those_of_the_model(kinds: tuple[str, ...], items: tuple[str, ...], default: list[str]) -> None:
    dimension = shipped("small", kinds=kinds).dimensions["lora.modules"]
    assert isinstance(dimension.domain, Subset)
    assert dimension.domain.items == items
    assert dimension.default == default


def test_listed_modules_are_taken_as_they_stand() -> None:
    spec = {"method": ["lora"], "lora": {"modules": {"subset": ["query", "value"], "default": ["value", "query"]}}}
    space, faults = spaces.read(spec, 2, MOBILENET)
    assert not faults
    assert space is not None
    assert space.dimensions["lora.modules"].default == ["query", "value"]  # in the items' order


def test_a_packaged_space_is_found_by_name_and_a_file_by_path(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("method: [head]")
    assert spaces.find("mine.yaml", tmp_path) == tmp_path / "mine.yaml"
    assert spaces.find("small", tmp_path) == spaces.folder() / "small.yaml"
    with pytest.raises(UnknownName, match=r"Did you mean 'mine\.yaml'\?"):
        spaces.find("mime.yaml", tmp_path)


def test_inside_a_wheel_the_spaces_lie_in_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "search_spaces").mkdir()
    monkeypatch.setattr(spaces, "__file__", str(tmp_path / "spaces.py"))
    assert spaces.folder() == tmp_path / "search_spaces"


def test_the_readme_says_what_the_files_say() -> None:
    """Its table of learning rates against all_methods.yaml and small.yaml; its table of spaces against the folder."""
    text = (spaces.folder() / "README.md").read_text(encoding="utf-8")
    general, of_language_models = text.split("`language_model` has ranges of its own")
    assert {name for name, *_ in _rates(general)} == {*plugins.names("methods")}
    for part, names in ((general, ("all_methods", "small")), (of_language_models, ("language_model",))):
        for name, *rates in _rates(part):
            for space in map(shipped, names):
                if f"{name}.lr" in space.dimensions:
                    dimension = space.dimensions[f"{name}.lr"]
                    assert isinstance(dimension.domain, Float)
                    found = (dimension.domain.low, dimension.domain.high, dimension.default)
                    assert all(map(math.isclose, found, map(float, rates))), name
    table = text.split("| space | for |")[1].split("\n\n")[0]
    assert set(re.findall(r"^\| `(\w+)`", table, flags=re.M)) == set(NAMES)


def _rates(text: str) -> list[tuple[str, ...]]:
    """Returns (method, low, high, default) of each row of a table of learning rates."""
    return re.findall(r"^\| `(\w+)` \| ([\d.e-]+) – ([\d.e-]+) \| ([\d.e-]+) \|", text, flags=re.M)


def test_the_examples_of_the_readme_are_spaces() -> None:
    text = (spaces.folder() / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```yaml\n(.*?)```", text, flags=re.S)
    assert blocks
    for block in blocks:
        space, faults = spaces.read(yaml_file.value(block), 6)
        assert not faults
        assert space is not None
        assert "lora+bias" in space.methods
