"""Each method is its formula: against a closed form or the mathematics written out."""

import math

import architectures
import pytest
import torch
import transformers

from autopeft import plugins, testing
from autopeft.errors import Refused
from autopeft.training.model import view
from autopeft.training.recipe import attach, count

HIDDEN, FEED, LAYERS = 16, 24, 3
SUBJECTS = {subject.name: subject for subject in testing.method_subjects()}
BERT, VIT = SUBJECTS["bert"], SUBJECTS["vit"]
QUERY = "bert.encoder.layer.1.attention.self.query"
X = torch.randn(5, HIDDEN, generator=torch.Generator().manual_seed(0))


def attached(params, subject=BERT):
    return attach(subject.base, subject.view, params, 1)


def fill(model, share=0.1):
    """Random values in all that trains, so that nothing is at its neutral beginning."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * share)


# ── sizes, as in the papers ─────────────────────────────────────────────────────────────────────────────────────────

BOTH = HIDDEN + FEED
PER_BLOCK_NORMS = 2 * 2 * HIDDEN
SIZES = [
    ({"method": "head"}, 0),
    ({"method": "lora"}, LAYERS * 2 * 8 * 2 * HIDDEN),
    ({"method": "lora", "lora.rank": 3, "lora.modules": ["up"], "lora.layers": [0, 2]}, 2 * 3 * BOTH),
    ({"method": "lora", "lora.rank": 4, "lora.modules": ["query", "up"], "lora.rank.up": 2},
     LAYERS * (4 * 2 * HIDDEN + 2 * BOTH)),
    ({"method": "lora", "lora.rank": 4, "lora.modules": ["query", "up"], "lora.rank.up": 0}, LAYERS * 4 * 2 * HIDDEN),
    ({"method": "lora", "lora.rank": 0, "lora.modules": ["query", "up"], "lora.rank.up": 2}, LAYERS * 2 * BOTH),
    ({"method": "lora", "lora.dora": True}, LAYERS * 2 * (8 * 2 * HIDDEN + HIDDEN)),
    ({"method": "lora", "lora.rslora": True, "lora.rank": 1}, LAYERS * 2 * 2 * HIDDEN),
    ({"method": "ia3"}, LAYERS * (2 * HIDDEN + FEED)),
    ({"method": "vera", "vera.rank": 64}, LAYERS * 2 * (64 + HIDDEN)),
    ({"method": "serial_adapter", "serial_adapter.size": 5}, LAYERS * (2 * HIDDEN * 5 + 5 + HIDDEN)),
    ({"method": "serial_adapter", "serial_adapter.size": 5, "serial_adapter.modules": ["output", "down"]},
     2 * LAYERS * (2 * HIDDEN * 5 + 5 + HIDDEN)),
    ({"method": "parallel_adapter", "parallel_adapter.size": 5}, LAYERS * (2 * HIDDEN * 5 + 5 + HIDDEN)),
    ({"method": "prefix", "prefix.size": 7}, LAYERS * 2 * 7 * HIDDEN),
    ({"method": "norm"}, LAYERS * PER_BLOCK_NORMS),
    ({"method": "bias"}, LAYERS * (5 * HIDDEN + FEED + 2 * HIDDEN)),
    ({"method": "bias", "bias.modules": ["query"]}, LAYERS * HIDDEN),
]  # fmt: skip


@pytest.mark.parametrize(("params", "size"), SIZES, ids=lambda value: str(value))
@pytest.mark.parametrize("subject", [BERT, VIT], ids=str)
def test_size(subject, params, size):
    head = 3 * HIDDEN + 3
    expected = {"trainable_parameters": size + head, "adapter_parameters": size, "head_parameters": head}
    assert count(subject.meta, subject.view, params) == expected
    recipe = attached(params, subject)
    assert sum(p.numel() for p in recipe.model.parameters() if p.requires_grad) == size + head


# ── formulas ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("rslora", "scale"), [(False, 16 / 4), (True, 16 / math.sqrt(4))])
def test_lora(rslora, scale):
    model = attached({"method": "lora", "lora.rank": 4, "lora.rslora": rslora}).model
    fill(model)
    layer, base = model.get_submodule(QUERY), BERT.base.get_submodule(QUERY)
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    assert torch.allclose(layer(X), base(X) + scale * X @ a.T @ b.T, atol=1e-6)


def test_lora_ranks_by_kind_have_their_own_scale():
    model = attached({"method": "lora", "lora.rank": 4, "lora.rank.value": 8}).model
    assert model.get_submodule(QUERY).scaling["default"] == 4
    assert model.get_submodule(QUERY.replace("query", "value")).scaling["default"] == 2


def test_dora():
    model = attached({"method": "lora", "lora.dora": True}).model
    fill(model)
    layer, base = model.get_submodule(QUERY), BERT.base.get_submodule(QUERY)
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    magnitude = layer.lora_magnitude_vector["default"].weight
    direction = base.weight + 2 * b @ a
    weight = magnitude[:, None] * direction / direction.norm(dim=1, keepdim=True)
    assert torch.allclose(layer(X), X @ weight.T + base.bias, atol=1e-5)


@pytest.mark.parametrize("dora", [False, True])
def test_lora_dropout_is_on_where_only_what_was_added_trains(dora):
    recipe = attached({"method": "lora", "lora.dropout": 0.5, "lora.dora": dora})
    fill(recipe.model)
    modules = dict(recipe.model.named_modules())
    expected = BERT.logits(recipe.model)
    assert torch.equal(BERT.logits(recipe.model), expected), "none in evaluation mode"
    for name in recipe.added:
        modules[name].train()
    assert not torch.allclose(BERT.logits(recipe.model), expected, atol=1e-4)


def test_ia3():
    model = attached({"method": "ia3"}).model
    fill(model, 0.5)
    key = QUERY.replace("query", "key")
    layer, base = model.get_submodule(key), BERT.base.get_submodule(key)
    assert torch.allclose(layer(X), base(X) * layer.ia3_l["default"].T, atol=1e-6)
    down = "bert.encoder.layer.1.output.dense"
    layer, base = model.get_submodule(down), BERT.base.get_submodule(down)
    x = torch.randn(5, FEED)
    assert torch.allclose(layer(x), base(x * layer.ia3_l["default"]), atol=1e-6)


def test_vera():
    model = attached({"method": "vera", "vera.rank": 6}).model
    fill(model)
    layer, base = model.get_submodule(QUERY), BERT.base.get_submodule(QUERY)
    a, b = layer.vera_A["default"][:, :HIDDEN], layer.vera_B["default"][:HIDDEN]
    d, scale = layer.vera_lambda_d["default"], layer.vera_lambda_b["default"]
    assert torch.allclose(layer(X), base(X) + scale * ((d * (X @ a.T)) @ b.T), atol=1e-6)
    other = model.get_submodule(QUERY.replace("layer.1", "layer.2"))
    assert torch.equal(other.vera_A["default"], layer.vera_A["default"]), "the projections are shared"


def bottleneck(adapter, x):
    inner = torch.nn.functional.gelu(x @ adapter.down.weight.T + adapter.down.bias)
    return inner @ adapter.up.weight.T + adapter.up.bias


def test_serial_adapter():
    model = attached({"method": "serial_adapter", "serial_adapter.size": 4, "serial_adapter.scale": 0.5}).model
    fill(model)
    name = "bert.encoder.layer.1.output.dense"
    x = torch.randn(5, FEED)
    h = BERT.base.get_submodule(name)(x)
    adapter = model.get_submodule(f"{name}_serial_adapter")
    assert torch.allclose(model.get_submodule(name)(x), h + 0.5 * bottleneck(adapter, h), atol=1e-6)


@pytest.mark.parametrize(("kind", "first", "last"), [
    ("down", "intermediate.dense", "output.dense"),
    ("output", "attention.self.query", "attention.output.dense"),
])  # fmt: skip
def test_parallel_adapter(kind, first, last):
    """The adapter reads the sub-layer's input, and adds to its output."""
    params = {"method": "parallel_adapter", "parallel_adapter.modules": [kind], "parallel_adapter.scale": 2.0}
    model = attached(params).model
    fill(model)
    first, last = (f"bert.encoder.layer.1.{name}" for name in (first, last))
    x, h = torch.randn(5, HIDDEN), torch.randn(5, FEED if kind == "down" else HIDDEN)
    model.get_submodule(first)(x)
    adapter = model.get_submodule(f"{last}_parallel_adapter")
    expected = BERT.base.get_submodule(last)(h) + 2 * bottleneck(adapter, x)
    assert torch.allclose(model.get_submodule(last)(h), expected, atol=1e-5)


@pytest.mark.parametrize("method", [name for name in plugins.names("methods") if name != "prefix"])
@pytest.mark.parametrize("subject", SUBJECTS.values(), ids=str)
def test_begins_as_the_frozen_model(method, subject):
    """All methods but the prefix are nothing at first: the logits are the head-only trial's, but for rounding.

    A reflection and its inverse, which HRA begins with, leave more rounding than others do: it is compared in fp64.
    """
    dtype = torch.float64 if method == "hra" else torch.float32
    inputs = {name: x.to(dtype) if x.is_floating_point() else x for name, x in subject.inputs.items()}
    expected = attached({"method": "head"}, subject).model.to(dtype)(**inputs).logits
    try:
        found = attached({"method": method}, subject).model.to(dtype)(**inputs).logits
    except Refused:
        pytest.skip("not for this model")
    assert torch.allclose(found, expected, rtol=0, atol=1e-5 * expected.abs().max().item())


# ── prefix ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def text_model(name, attention, **more):
    size = {"vocab_size": 20, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4,
            "intermediate_size": 24, "num_labels": 3, "initializer_range": 0.3}  # fmt: skip
    architecture = getattr(transformers, f"{name}ForSequenceClassification")
    config = architecture.config_class(**size, **more)
    config._attn_implementation = attention
    inputs = {
        "input_ids": torch.tensor([[2, 5, 6, 7, 8, 9], [2, 9, 4, 0, 0, 0]]),
        "attention_mask": torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0]]),
    }
    return testing.make_method_subject(name, architecture, config, inputs)


MODELS = {
    "bert": lambda attention: text_model("Bert", attention, max_position_embeddings=6),
    "llama": lambda attention: text_model("Llama", attention, num_key_value_heads=2, pad_token_id=0),
}


@pytest.mark.parametrize("model", MODELS)
def test_prefix_agrees_between_attentions(model):
    """Also where the input is as long as the model takes, rows are padded, heads grouped and the mask causal."""
    results = []
    for attention in ("eager", "sdpa"):
        subject = MODELS[model](attention)
        recipe = attached({"method": "prefix", "prefix.size": 3}, subject)
        fill(recipe.model, 0.5)
        results.append(subject.logits(recipe.model))
    assert torch.allclose(*results, atol=1e-5)
    without = attached({"method": "head"}, subject)
    fill(without.model, 0.5)
    assert not torch.allclose(subject.logits(without.model), results[1], atol=1e-2), "the prefix has an effect"


def test_prefix_is_attention_with_more_keys_and_values():
    recipe = attached({"method": "prefix", "prefix.size": 3, "prefix.layers": [1]})
    fill(recipe.model, 0.5)
    module = recipe.model.bert.encoder.layer[1].attention.self
    x = torch.randn(2, 4, HIDDEN)

    def heads(tensor):
        return tensor.view(tensor.shape[0], -1, 2, HIDDEN // 2).transpose(1, 2)

    keys = torch.cat([module.prefix_key.expand(2, -1, -1), module.key(x)], dim=1)
    values = torch.cat([module.prefix_value.expand(2, -1, -1), module.value(x)], dim=1)
    scores = heads(module.query(x)) @ heads(keys).transpose(2, 3) / math.sqrt(HIDDEN // 2)
    expected = (scores.softmax(-1) @ heads(values)).transpose(1, 2).reshape(2, 4, HIDDEN)
    assert torch.allclose(module(x)[0], expected, atol=1e-6)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_prefix_of_a_causal_model_shows_no_future(attention):
    subject = MODELS["llama"](attention)
    recipe = attached({"method": "prefix", "prefix.size": 3}, subject)
    fill(recipe.model, 0.5)
    ids = torch.tensor([[2, 5, 6, 7, 8, 9], [2, 5, 6, 9, 9, 9]])  # no padding: sdpa gets no mask
    hidden = recipe.model.model(input_ids=ids).last_hidden_state
    assert torch.allclose(hidden[0, :3], hidden[1, :3], atol=1e-6)
    assert not torch.allclose(hidden[0, 3:], hidden[1, 3:], atol=1e-2)


def test_prefix_acts_in_its_layers_only():
    recipe = attached({"method": "prefix", "prefix.layers": [1]})
    layers = recipe.model.bert.encoder.layer
    assert [hasattr(layer.attention.self, "prefix_key") for layer in layers] == [False, True, False]
    assert layers[0].attention.self.config._attn_implementation == BERT.base.config._attn_implementation
    assert recipe.model.config._attn_implementation == BERT.base.config._attn_implementation


def test_prefix_needs_an_attention_that_can_be_extended():
    config = transformers.DebertaV2Config(vocab_size=20, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                                          intermediate_size=24, num_labels=3)  # fmt: skip
    model = transformers.DebertaV2ForSequenceClassification
    subject = testing.make_method_subject("deberta", model, config, BERT.inputs)
    with pytest.raises(Refused, match="attention interface"):
        attached({"method": "prefix"}, subject)


# ── what is unfrozen ────────────────────────────────────────────────────────────────────────────────────────────────


def test_norms_are_found_by_their_class_name():
    names = attached({"method": "norm", "norm.layers": [0]}, SUBJECTS["mobilenet"]).groups[0].names
    assert names
    assert all(".normalization." in name for name in names)
    names = attached({"method": "norm", "norm.layers": [0]}).groups[0].names
    assert {name.rpartition(".")[0].removeprefix("bert.encoder.layer.0.") for name in names} == {
        "attention.output.LayerNorm", "output.LayerNorm"
    }  # fmt: skip


def test_describe():
    table = {
        ("lora", "rank", 4): "LoRA rank 4",
        ("vera", "rank", 64): "VeRA rank 64",
        ("serial_adapter", "size", 3): "serial adapter of 3",
        ("prefix", "size", 3): "prefix of 3",
        ("last_layers", "count", 1): "last layer",
        ("last_layers", "count", 2): "last 2 layers",
    }
    for (name, key, value), expected in table.items():
        method = plugins.load("methods", name)()
        assert method.describe({**method.stock, key: value}) == expected


# ── sub-layers with two inputs ──────────────────────────────────────────────────────────────────────────────────────


def test_a_parallel_adapter_beside_debertas_attention_is_refused():
    """Its query layer reads the relative positions, too."""
    base = architectures.deberta()
    with pytest.raises(Refused, match="the attention of deberta-v2 reads two inputs"):
        attach(base, view(base), {"method": "parallel_adapter", "parallel_adapter.modules": ["output"]}, 0)


def test_a_layer_that_reads_a_second_input_is_found_when_it_runs():
    model = attached({"method": "parallel_adapter", "parallel_adapter.modules": ["output"]}).model
    attention = model.bert.encoder.layer[0].attention
    inputs = {"input_ids": torch.tensor([[2, 5, 6]])}
    attention.self.query(X)  # what a pass left that did not come to its end
    model(**inputs)

    def twice(module, args):
        module.self.query(X)

    attention.register_forward_pre_hook(twice)
    with pytest.raises(Refused, match="the sub-layer reads two inputs"):
        model(**inputs)
