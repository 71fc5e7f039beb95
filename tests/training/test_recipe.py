"""Recipes: resolved, composed, refused, counted, put back."""

import architectures
import pytest
import torch

from autopeft import plugins, spaces, testing
from autopeft import recipe as recipes
from autopeft.errors import Refused
from autopeft.training.model import view
from autopeft.training.recipe import attach, choose_kinds, count, load_trained, resolve, trained_state

SUBJECTS = {subject.name: subject for subject in testing.method_subjects()}
BERT, VIT, MOBILENET = SUBJECTS["bert"], SUBJECTS["vit"], SUBJECTS["mobilenet"]


def attached(params, subject=BERT, seed=1):
    return attach(subject.base, subject.view, params, seed)


@pytest.mark.parametrize(
    ("params", "reason"),
    [
        ({"method": "lora", "lora.rank": 0}, "no component is left"),
        ({"method": "lora", "lora.layers": []}, "no component is left"),
        ({"method": "lora", "lora.modules": []}, "no component is left"),
        ({"method": "lora", "lora.layers": "last_0"}, "no component is left"),
        (
            {"method": "lora", "lora.modules": ["query", "key"], "lora.rank.query": 0, "lora.rank.key": 0},
            "no component",
        ),
        ({"method": "last_layers", "last_layers.count": 0}, "no component is left"),
        ({"method": "serial_adapter+prefix", "serial_adapter.size": 0, "prefix.size": 0}, "no component is left"),
        ({"method": "lora", "lora.rnk": 8}, "has no key 'rnk'"),
        ({"method": "lora", "ia3.lr": 1e-3}, r"ia3\.lr: of no component of lora"),
        ({"method": "lora+lora"}, "twice: name them apart"),
        ({"method": "lora+head"}, "every recipe trains the head"),
        ({"method": "full+bias"}, "bias trains nothing here that the rest"),
        (
            {"method": "lora", "lora.modules": ["qkv"]},
            "no qkv to act on: this bert has query, key, value, output, up, down",
        ),
        ({"method": "lora", "lora.layers": [3]}, "layers 0 to 2, not 3"),
        ({"method": "lora", "lora.layers": "last_4"}, "3 layers, not 4"),
        ({"method": "lora", "lora.layers": "first"}, "'all', 'last_<k>'"),
        ({"method": "lora", "lora.layers": "1-3"}, "layers 0 to 2, not 1-3"),
        ({"method": "lora", "lora.layers": "2-1"}, "a range of layers goes up: 1-2, not 2-1"),
        ({"method": "lora", "lora.layers": "first_4"}, "3 layers, not 4"),
        ({"method": "lora", "lora.rank.3": 4}, "layers 0 to 2, not 3"),
        ({"method": "lora", "lora.rank.quary": 4}, "no module kind called 'quary'"),
        ({"method": "vera", "vera.rank.1": 4}, "rank of VeRA is one value"),
        ({"method": "lora", **{f"lora.rank.{layer}": 0 for layer in range(3)}}, "no component is left"),
        ({"method": "lora@a+lora@a"}, "twice: name them apart"),
        ({"method": "lora@+bias"}, "a word of letters"),
        ({"method": "prefix@a+prefix@b"}, "has a prefix already"),
        ({"method": "bias@a+bias@b"}, "bias@b trains nothing here that the rest"),
        (
            {"method": "parallel_adapter", "parallel_adapter.modules": ["query"]},
            "down, output or cross_output, not query",
        ),
    ],
)
def test_refused(params, reason):
    for on in (lambda: count(BERT.meta, BERT.view, params), lambda: attached(params)):
        with pytest.raises(Refused, match=reason):
            on()


def test_bias_of_modules_without_any_is_refused():
    with pytest.raises(Refused, match="have no bias"):
        attached({"method": "bias", "bias.modules": ["convolution"]}, MOBILENET)


def test_a_model_without_biases_is_refused_bitfit(tmp_path):
    from models import writer
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(writer(tmp_path, "llama"))
    with pytest.raises(Refused, match="this model has no biases"):
        attach(model, view(model), {"method": "bias"}, 0)


def test_a_component_of_size_0_is_not_there():
    params = {"method": "serial_adapter+parallel_adapter+prefix", "serial_adapter.size": 2, "parallel_adapter.size": 0,
              "prefix.size": 0, "shared.layers": [1, 2]}  # fmt: skip
    (part,) = resolve(BERT.view, params)
    assert part.name == "serial_adapter"
    assert part.scope.layers == (1, 2)
    assert [group.component for group in attached(params).groups] == ["serial_adapter", "head"]


def test_shared_keys_are_read_where_a_component_has_none_of_its_own():
    params = {
        "method": "lora+prefix",
        "shared.layers": [1],
        "prefix.layers": [2],
        "shared.size": 3,
        "shared.dropout": 0.5,
    }
    lora, prefix = resolve(BERT.view, params)
    assert (lora.scope.layers, prefix.scope.layers) == ((1,), (2,))
    assert lora.keys["dropout"] == 0.5
    assert prefix.keys["size"] == 3
    assert "size" not in lora.keys
    assert "dropout" not in prefix.keys


def test_groups_have_their_own_rates_and_the_head_comes_last():
    params = {"method": "lora+bias", "lora.lr": 1e-3, "bias.lr": 1e-2, "bias.weight_decay": 0.5, "head.lr": 1e-1}
    groups = attached(params).groups
    assert [(g.component, g.lr, g.weight_decay) for g in groups] == [
        ("lora", 1e-3, None), ("bias", 1e-2, 0.5), ("head", 1e-1, None)
    ]  # fmt: skip
    assert attached({"method": "lora"}).groups[-1].lr == plugins.load("methods", "head")().stock["lr"]


@pytest.mark.parametrize(
    "method",
    ["bias+lora", "norm+bias", "last_layers+lora", "lora+ia3", "ia3+lora", "vera+lora", "serial_adapter+lora",
     "serial_adapter+parallel_adapter+prefix", "prefix+lora+bias+norm"],
)  # fmt: skip
@pytest.mark.parametrize("subject", [BERT, VIT], ids=str)
def test_composed_recipes_keep_the_contract(method, subject, monkeypatch):
    monkeypatch.setattr(testing.methods, "method_recipes", lambda name: [{"method": name}])
    for check in testing.METHOD_CHECKS:
        if check is not testing.check_method_describes_itself:
            check(method, subject)


def test_each_component_trains_the_same_in_a_composition_whatever_the_order():
    """A base parameter that a peft layer wraps has another name, and is still the bias's to train."""
    one, other = attached({"method": "lora+bias"}), attached({"method": "bias+lora"})
    groups = [{group.component: set(group.names) for group in each.groups} for each in (one, other)]
    assert groups[0] == groups[1]
    assert "bert.encoder.layer.0.attention.self.query.base_layer.bias" in groups[0]["bias"]
    alone = attached({"method": "bias"}).groups[0].names
    assert len(groups[0]["bias"]) == len(alone)


def test_an_adapter_sees_what_lora_gives():
    """In any order of the recipe's components, the adapter's input is the layer's output with its LoRA."""
    params = {"serial_adapter.modules": ["query"], "lora.modules": ["query"], "lora.layers": [0]}
    name = "bert.encoder.layer.0.attention.self.query"
    outputs = []
    for method in ("lora+serial_adapter", "serial_adapter+lora"):
        model = attached({"method": method, **params}).model
        layer = model.get_submodule(name)
        x = torch.randn(2, 16, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            layer.lora_B["default"].weight.fill_(0.1)
            adapter = model.get_submodule(f"{name}_serial_adapter")
            adapter.up.weight.fill_(0.1)
            expected = layer.forward(x)  # without hooks
            assert torch.equal(layer(x), expected + adapter(expected))
            outputs.append(layer(x))
    assert torch.equal(*outputs)


def test_stand_ins():
    """A convolutional net has no query and value: a method's usual modules are its convolutions."""
    (part,) = resolve(MOBILENET.view, {"method": "lora"})
    assert list(part.scope.modules) == ["convolution"]
    (part,) = resolve(BERT.view, {"method": "lora"})
    assert list(part.scope.modules) == ["query", "value"]
    (part,) = resolve(BERT.view, {"method": "lora", "lora.modules": "all"})
    assert list(part.scope.modules) == list(BERT.view.kinds)


@pytest.mark.parametrize("method", ["lora+bias", "ia3+norm"])
def test_composed_recipes_on_a_convolutional_net(method, monkeypatch):
    monkeypatch.setattr(testing.methods, "method_recipes", lambda name: [{"method": name}])
    for check in testing.METHOD_CHECKS:
        if check is not testing.check_method_describes_itself:
            check(method, MOBILENET)


@pytest.mark.parametrize("layers", [[0], [2], [0, 2], "last_1"])
@pytest.mark.parametrize("subject", SUBJECTS.values(), ids=str)
def test_layers_are_those_that_were_asked_for(subject, layers):
    view = subject.view
    recipe = attached({"method": "lora", "lora.layers": layers}, subject)
    blocks = {view.block_of(name) for name in recipe.trained} - {view.n_layers}
    assert blocks == (set(layers) if isinstance(layers, list) else {view.n_layers - 1})
    assert recipe.lowest == min(blocks)


def test_each_method_documents_formula_and_source():
    for name in plugins.names("methods"):
        module = __import__(f"autopeft.methods.{name}", fromlist=["plugin"])
        assert module.__doc__
        assert set(module.plugin.keys) <= {*module.plugin.stock}
        if name not in ("head", "full"):
            assert "arXiv" in module.__doc__, name


def test_lowest():
    table = [
        ({"method": "head"}, 3),
        ({"method": "lora"}, 0),
        ({"method": "lora", "lora.layers": [1, 2]}, 1),
        ({"method": "lora+bias", "lora.layers": [2], "bias.layers": [1]}, 1),
        ({"method": "last_layers"}, 2),
        ({"method": "full"}, 0),
        ({"method": "full", "full.layers": [2]}, 2),
    ]
    for params, lowest in table:
        assert attached(params).lowest == lowest, params


def test_last_layers_train_what_is_above_them_too():
    names = attached({"method": "last_layers"}).groups[0].names
    assert {name.split(".layer.")[0] for name in names} == {
        "bert.encoder",
        "bert.pooler.dense.weight",
        "bert.pooler.dense.bias",
    }
    assert {name.split(".")[3] for name in names if ".layer." in name} == {"2"}


def test_full_trains_everything():
    assert set(attached({"method": "full"}).trained) == {name for name, _ in BERT.base.named_parameters()}


def test_the_same_seed_gives_the_same_beginning_after_any_randomness():
    first = trained_state(attached({"method": "lora+prefix"}))
    torch.rand(7)
    second = trained_state(attached({"method": "lora+prefix"}))
    other = trained_state(attached({"method": "lora+prefix"}, seed=2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["classifier.weight"], other["classifier.weight"])


def test_a_component_begins_the_same_in_every_composition():
    alone, joined = trained_state(attached({"method": "lora"})), trained_state(attached({"method": "lora+prefix"}))
    assert all(torch.equal(alone[name], joined[name]) for name in alone)


def test_added_modules_are_those_with_a_training_mode():
    recipe = attached({"method": "lora+serial_adapter", "lora.dropout": 0.5, "serial_adapter.dropout": 0.5})
    dropouts = {n for n, m in recipe.model.named_modules() if isinstance(m, torch.nn.Dropout) and m.p == 0.5}
    assert dropouts
    assert dropouts <= set(recipe.added)
    assert "bert.encoder.layer.0.attention.self.query" in recipe.added  # DoRA asks its layer whether it trains
    assert "bert.embeddings.dropout" not in recipe.added
    assert "bert.encoder.layer.0.attention.self.query.base_layer" not in recipe.added


def test_load_trained_wants_its_own_tensors():
    recipe = attached({"method": "lora"})
    state = trained_state(recipe)
    with pytest.raises(ValueError, match="of another recipe"):
        load_trained(attached({"method": "ia3"}), state)
    state["classifier.bias"] = torch.zeros(4)
    with pytest.raises(ValueError, match=r"classifier\.bias"):
        load_trained(recipe, state)


def test_convolutions_with_a_peft_layer_show_what_model_code_reads():
    """MobileNet's TensorFlow padding reads stride, kernel size and dilation of its convolutions."""
    assert MOBILENET.base.config.tf_padding
    recipe = attached({"method": "lora"}, MOBILENET)
    assert torch.allclose(
        MOBILENET.logits(recipe.model), MOBILENET.logits(attached({"method": "head"}, MOBILENET).model)
    )


def test_batch_norms_keep_their_statistics():
    before = testing.checksum(MOBILENET.base)
    recipe = attached({"method": "norm"}, MOBILENET)
    running = {n: b.clone() for n, b in recipe.model.named_buffers()}
    testing.train_method(MOBILENET, recipe, steps=2)
    assert all(torch.equal(running[n], b) for n, b in recipe.model.named_buffers())
    assert testing.checksum(MOBILENET.base) == before


# ── one method several times ────────────────────────────────────────────────────────────────────────────────────────

TWICE = [
    {"method": "lora@attn+lora@ffn", "lora@attn.modules": ["query"], "lora@attn.rank": 2, "lora@attn.lr": 1e-4,
     "lora@ffn.modules": ["up", "down"], "lora@ffn.rank": 3, "lora@ffn.lr": 1e-3, "lora@ffn.layers": "1-2"},
    {"method": "lora@a+lora@b", "lora@a.rank": 2, "lora@b.rank": 3},  # one around the other
    {"method": "lora@a+ia3+lora@b", "ia3.modules": ["query"], "lora@b.layers": [1], "lora@b.rank": 1},
    {"method": "ia3@a+ia3@b"},
    {"method": "vera@a+vera@b", "vera@a.rank": 4, "vera@b.rank": 8},
    {"method": "lora@a+lora@b", "lora@b.dora": True, "lora@b.rank": 2},
    {"method": "serial_adapter@a+serial_adapter@b", "serial_adapter@b.size": 3},
    {"method": "parallel_adapter@a+parallel_adapter@b"},
]  # fmt: skip


APART = [
    {"method": "prefix@a+prefix@b", "prefix@a.layers": "first_1", "prefix@b.layers": [1, 2], "prefix@b.size": 3},
    {"method": "bias@a+bias@b", "bias@a.layers": [0], "bias@b.layers": [2]},
]  # fmt: skip


@pytest.mark.parametrize("params", TWICE, ids=lambda params: params["method"])
@pytest.mark.parametrize("subject", [BERT, VIT], ids=str)
def test_one_method_twice_keeps_the_contract(params, subject, monkeypatch):
    for name in ("method_recipes", "method_pairs"):
        monkeypatch.setattr(testing.methods, name, lambda name: [params])
    for check in testing.METHOD_CHECKS:
        if check is not testing.check_method_describes_itself:
            check(params["method"], subject)


@pytest.mark.parametrize("params", APART, ids=lambda params: params["method"])
def test_one_method_twice_where_each_layer_holds_it_once(params, monkeypatch):
    monkeypatch.setattr(testing.methods, "method_recipes", lambda name: [params])
    for check in (testing.check_method_count_is_exact, testing.check_method_trains_its_own):
        check(params["method"], BERT)


def test_one_method_twice_has_two_groups_with_sizes_and_rates_of_their_own():
    recipe = attached(TWICE[0])
    sizes = {name: parameter.numel() for name, parameter in recipe.model.named_parameters()}
    found = {g.component: (g.lr, sum(sizes[name] for name in g.names)) for g in recipe.groups[:-1]}
    assert found == {"lora@attn": (1e-4, 3 * 2 * (16 + 16)), "lora@ffn": (1e-3, 2 * 2 * 3 * (16 + 24))}
    layers = {g.component: {BERT.view.block_of(name) for name in g.names} for g in recipe.groups}
    assert (layers["lora@attn"], layers["lora@ffn"]) == ({0, 1, 2}, {1, 2})


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_two_updates_of_one_layer_are_added(dropout):
    """W x + s_1 B_1 A_1 x + s_2 B_2 A_2 x, and both are trained."""
    params = {"method": "lora@a+lora@b", "lora@a.rank": 2, "lora@b.rank": 4, "lora@b.dropout": dropout}
    recipe = attached(params)
    outer = recipe.model.get_submodule("bert.encoder.layer.1.attention.self.query")
    inner, x = outer.base_layer, torch.randn(5, 16)
    with torch.no_grad():
        expected = inner.base_layer(x)
        for layer, scale in ((inner, 16 / 2), (outer, 16 / 4)):
            a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight.normal_()
            expected = expected + scale * x @ a.T @ b.T
        assert torch.allclose(outer(x), expected, atol=1e-5)
    drops = [module for module in recipe.model.modules() if isinstance(module, torch.nn.Dropout) and module.p == 0.5]
    assert bool(drops) is bool(dropout)


# ── sizes by layer ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("params", "sizes"),
    [
        ({"method": "lora", "lora.rank": 4, "lora.rank.1": 2}, {("query", 1): 2, ("value", 1): 2}),
        ({"method": "lora", "lora.rank": 4, "lora.rank.query": 3, "lora.rank.1": 2, "lora.rank.query.2": 1},
         {("query", 0): 3, ("query", 1): 2, ("value", 1): 2, ("query", 2): 1}),
        ({"method": "lora", "lora.rank": 4, "lora.rank.0": 0, "lora.rank.value.1": 0},
         {("query", 0): 0, ("value", 0): 0, ("value", 1): 0}),
        ({"method": "lora", "lora.rank": 0, "lora.rank.query.2": 4},
         {(kind, layer): 0 for kind in ("query", "value") for layer in range(3) if (kind, layer) != ("query", 2)}),
    ],
)  # fmt: skip
def test_sizes_by_layer(params, sizes):
    ranks = {(kind, layer): sizes.get((kind, layer), 4) for kind in ("query", "value") for layer in range(3)}
    expected = 32.0 * sum(ranks.values())
    assert count(BERT.meta, BERT.view, params)["adapter_parameters"] == expected
    recipe = attached(params)
    for (kind, layer), rank in ranks.items():
        module = recipe.model.get_submodule(f"bert.encoder.layer.{layer}.attention.self.{kind}")
        assert (module.lora_A["default"].weight.shape[0] if hasattr(module, "lora_A") else 0) == rank
    assert recipe.lowest == min(layer for (_, layer), rank in ranks.items() if rank)


@pytest.mark.parametrize("method", ["serial_adapter", "parallel_adapter", "prefix", "lora"])
def test_every_method_whose_size_differs_by_layer_has_it_there(method):
    key = plugins.load("methods", method).size
    of_each = [
        count(BERT.meta, BERT.view, {"method": method, f"{method}.{key}": size, f"{method}.layers": [layer]})
        for layer, size in enumerate((2, 5, 3))
    ]
    params = {"method": method, f"{method}.{key}": 2, f"{method}.{key}.1": 5, f"{method}.{key}.2": 3}
    assert count(BERT.meta, BERT.view, params)["adapter_parameters"] == sum(n["adapter_parameters"] for n in of_each)
    one = {"method": method, f"{method}.{key}": 2, f"{method}.{key}.0": 0, f"{method}.{key}.2": 0}
    alone = {"method": method, f"{method}.{key}": 2, f"{method}.layers": [1]}
    assert count(BERT.meta, BERT.view, one) == count(BERT.meta, BERT.view, alone)


def test_a_parallel_adapter_of_size_0_on_one_kind_of_a_layer_leaves_the_other():
    params = {"method": "parallel_adapter", "parallel_adapter.modules": ["down", "output"],
              "parallel_adapter.size": 2, "parallel_adapter.size.down.1": 0}  # fmt: skip
    assert "bert.encoder.layer.1.output.dense_parallel_adapter" not in attached(params).added
    assert "bert.encoder.layer.1.attention.output.dense_parallel_adapter" in attached(params).added


def test_all_modules_are_the_same_for_a_space_and_a_recipe():
    """Not the grouped convolutions, which a configuration names."""
    parts = view(architectures.mobilenet_v2())
    assert "depthwise" in parts.kinds
    (part,) = recipes.parts({"method": "lora", "lora.modules": "all"})
    assert tuple(choose_kinds(parts, part.method, "all")) == ("convolution",)
    space, faults = spaces.read(
        {"method": ["lora"], "lora": {"modules": {"subset": "modules", "default": "all"}}}, 16, list(parts.kinds)
    )
    assert not faults
    assert list(space.defaults()[0]["lora.modules"]) == ["convolution"]
