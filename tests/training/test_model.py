"""Loading, naming the parts of a model, cloning."""

import pytest
import torch
import transformers
from architectures import (
    MAKE,
    SIZE,
    TEXT,
    albert,
    bert,
    convnext,
    deberta,
    funnel,
    gpt2,
    inputs,
    make,
    modernbert,
    t5,
    xlnet,
)

from autopeft.errors import EnvironmentFault, UsageError
from autopeft.training.model import CHAINED, _by_name, _by_shape, clone_shared, load_model, meta_model, view
from autopeft.training.prefix_cache import Cut
from autopeft.training.setup import ModelSpec

SEQUENCE = "AutoModelForSequenceClassification"

# model → (blocks, the last module of each kind by its name in the last block, head, above, stem)
STANDARD = {"query": "attention.self.query", "key": "attention.self.key", "value": "attention.self.value",
            "output": "attention.output.dense", "up": "intermediate.dense", "down": "output.dense"}  # fmt: skip
PARTS = {
    "bert": ("bert.encoder.layer.1", STANDARD, ["classifier"], ["bert.pooler"], ["bert.embeddings"]),
    "roberta": ("roberta.encoder.layer.1", STANDARD, ["classifier"], [], ["roberta.embeddings"]),
    "electra": (
        "electra.encoder.layer.1", STANDARD, ["classifier"], [], ["electra.embeddings", "electra.embeddings_project"],
    ),
    "distilbert": (
        "distilbert.transformer.layer.1",
        {"query": "attention.q_lin", "key": "attention.k_lin", "value": "attention.v_lin",
         "output": "attention.out_lin", "up": "ffn.lin1", "down": "ffn.lin2"},
        ["pre_classifier", "classifier"], [], ["distilbert.embeddings"],
    ),
    # what norms the relative positions stands among the layers' siblings, but runs before them
    "deberta-v2": (
        "deberta.encoder.layer.1",
        STANDARD | {"query": "attention.self.query_proj", "key": "attention.self.key_proj",
                    "value": "attention.self.value_proj"},
        ["pooler", "classifier"], [],
        ["deberta.embeddings", "deberta.encoder.rel_embeddings", "deberta.encoder.LayerNorm"],
    ),
    "vit": (
        "vit.layers.1",
        {"query": "attention.q_proj", "key": "attention.k_proj", "value": "attention.v_proj",
         "output": "attention.o_proj", "up": "mlp.fc1", "down": "mlp.fc2"},
        ["classifier"], ["vit.layernorm"], ["vit.embeddings"],
    ),
    "llama": (
        "model.layers.1",
        {"query": "self_attn.q_proj", "key": "self_attn.k_proj", "value": "self_attn.v_proj",
         "output": "self_attn.o_proj", "up": "mlp.up_proj", "down": "mlp.down_proj"},
        ["score"], ["model.norm"], ["model.embed_tokens"],
    ),
    "gpt2": (
        "transformer.h.1",
        {"qkv": "attn.c_attn", "output": "attn.c_proj", "up": "mlp.c_fc", "down": "mlp.c_proj"},
        ["score"], ["transformer.ln_f"], ["transformer.wte", "transformer.wpe"],
    ),
    "mobilenet_v1": (
        "mobilenet_v1.layer.25", {"convolution": "convolution"}, ["classifier"], [], ["mobilenet_v1.conv_stem"],
    ),
    "mobilenet_v2": (
        "mobilenet_v2.layer.15",
        {"depthwise": "conv_3x3.convolution", "convolution": "reduce_1x1.convolution"},
        ["classifier"], ["mobilenet_v2.conv_1x1"], ["mobilenet_v2.conv_stem"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PARTS)
def test_parts(name):
    found, (block, kinds, head, above, stem) = view({**MAKE, "deberta-v2": deberta}[name]()), PARTS[name]
    assert found.blocks[-1] == block
    inside = {kind: names[-1] for kind, names in found.kinds.items() if names[-1].startswith(block)}
    last = {kind: name.removeprefix(f"{block}.") for kind, name in inside.items()}
    assert last == kinds
    assert (list(found.head), list(found.above), list(found.stem)) == (head, above, stem)
    assert not found.unknown, "every linear layer and convolution of the blocks has a kind"


def run(model, given, block):
    """(what a block gives, the logits)."""
    kept = []
    handle = model.get_submodule(block).register_forward_hook(lambda _, __, out: kept.append(out))
    expected = model(**given).logits
    handle.remove()
    return kept[0][0] if isinstance(kept[0], tuple) else kept[0], expected


@pytest.mark.parametrize("name", sorted(CHAINED))
def test_blocks_are_a_chain(name):
    """Blocks below a depth may be replaced by what they give: no block hands on anything else."""
    model = MAKE[name]()
    parts, given = view(model), inputs(model)
    assert parts.chain == parts.n_layers
    for depth in {1, parts.n_layers - 1, parts.n_layers}:
        hidden, expected = run(model, given, parts.blocks[depth - 1])
        clone = clone_shared(model, ())
        cut = Cut(clone, parts.stem, parts.blocks, depth)
        cut.hidden = hidden
        assert torch.equal(clone(**given).logits, expected)


@pytest.mark.parametrize("make", [t5, albert, deberta])
def test_blocks_that_are_no_chain_are_not_called_one(make):
    assert view(make()).chain == 0


def test_a_language_model_has_no_head():
    parts = view(gpt2(transformers.GPT2LMHeadModel))
    assert parts.head == ()
    assert "lm_head" not in parts.stem


@pytest.mark.parametrize(
    ("make_one", "embeddings", "output"),
    [
        (bert, ("bert.embeddings.word_embeddings",), ()),
        (lambda: gpt2(transformers.GPT2LMHeadModel), ("transformer.wte",), ("lm_head",)),
        (t5, ("transformer.shared",), ()),
        (MAKE["vit"], (), ()),
        (MAKE["mobilenet_v2"], (), ()),
    ],
)
def test_embeddings_and_output_layer_have_names(make_one, embeddings, output):
    parts = view(make_one())
    assert (parts.embeddings, parts.output) == (embeddings, output)


def test_unknown_modules_are_said():
    model = bert()
    model.bert.encoder.layer[0].strange = torch.nn.Linear(4, 4)
    assert view(model).unknown == ("bert.encoder.layer.0.strange",)
    assert view(model).unknown_inside == ("strange",)


def test_a_model_without_blocks_is_refused():
    with pytest.raises(UsageError, match="no list of like blocks"):
        view(torch.nn.Sequential(torch.nn.Linear(2, 2)))


@pytest.mark.parametrize(
    ("name", "block"),
    [
        ("bert.encoder.layer.1.output.dense.weight", 1),
        ("bert.embeddings.LayerNorm.bias", -1),
        ("bert.pooler.dense.bias", 2),
        ("classifier.weight", 2),
        ("bert.encoder.layer.10.x", -1),
    ],
)
def test_block_of(name, block):
    assert view(bert()).block_of(name) == block


# ── load ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bert")
    bert().save_pretrained(folder)
    return folder


def test_load_is_frozen_fp32_and_in_evaluation_mode(saved):
    model = load_model(ModelSpec(str(saved)), SEQUENCE, 3)
    assert not model.training
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert not any(p.requires_grad for p in model.parameters())
    assert model.config._attn_implementation == "eager"
    assert load_model(ModelSpec(str(saved), attention="sdpa"), SEQUENCE, 3).config._attn_implementation == "sdpa"


def test_load_leaves_the_random_state(saved):
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    load_model(ModelSpec(str(saved)), SEQUENCE, 7, seed=1)
    assert torch.equal(torch.rand(1), expected)


def test_a_head_of_another_size_is_replaced_the_same_for_a_seed(saved):
    models = [load_model(ModelSpec(str(saved)), SEQUENCE, 7, seed=seed) for seed in (1, 1, 2)]
    heads = [model.classifier.weight for model in models]
    assert heads[0].shape == (7, 16)
    assert models[0].config.num_labels == 7
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


def test_meta_model_has_the_same_parts_and_no_weights(saved):
    real, meta = load_model(ModelSpec(str(saved)), SEQUENCE, 7), meta_model(ModelSpec(str(saved)), SEQUENCE, 7)
    assert all(p.is_meta for p in meta.parameters())
    assert {n: p.shape for n, p in meta.named_parameters()} == {n: p.shape for n, p in real.named_parameters()}
    assert view(meta) == view(real)


def test_meta_model_keeps_ties(tmp_path):
    gpt2(transformers.GPT2LMHeadModel).save_pretrained(tmp_path)
    meta = meta_model(ModelSpec(str(tmp_path)), "AutoModelForCausalLM", 0)
    real = load_model(ModelSpec(str(tmp_path)), "AutoModelForCausalLM", 0)
    assert [n for n, _ in meta.named_parameters()] == [n for n, _ in real.named_parameters()]


def test_a_pooler_that_the_checkpoint_lacks_is_part_of_the_head(tmp_path):
    """As of a masked language model: its classifier's pooler is random, so a trial draws and trains it."""
    masked = make(transformers.BertForMaskedLM, vocab_size=20, max_position_embeddings=8, **SIZE)
    masked.save_pretrained(tmp_path)
    for load in (load_model, meta_model):
        parts = view(load(ModelSpec(str(tmp_path)), SEQUENCE, 3))
        assert parts.head == ("bert.pooler", "classifier")
        assert parts.above == ()


def test_a_checkpoint_without_a_layer_is_refused(tmp_path):
    config = bert().config
    config.num_hidden_layers = 1
    transformers.BertForSequenceClassification(config).save_pretrained(tmp_path)
    config.num_hidden_layers = 2
    config.save_pretrained(tmp_path)
    with pytest.raises(UsageError, match=r"lacks the weights of bert\.encoder\.layer\.1"):
        load_model(ModelSpec(str(tmp_path)), SEQUENCE, 3)


def test_a_model_that_is_not_there(tmp_path):
    with pytest.raises(EnvironmentFault, match="cannot be had"):
        load_model(ModelSpec(str(tmp_path / "none")), SEQUENCE, 3)


def test_decoders_get_a_padding_token(tmp_path):
    model = gpt2()
    model.config.pad_token_id = None
    model.save_pretrained(tmp_path)
    assert load_model(ModelSpec(str(tmp_path)), SEQUENCE, 3).config.pad_token_id == 1


# ── clone ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_clone_shares_what_it_does_not_own():
    model = bert()
    clone = clone_shared(model, ["classifier.weight"])
    theirs = dict(model.named_parameters())
    differing = [name for name, parameter in clone.named_parameters() if parameter is not theirs[name]]
    assert differing == ["classifier.weight"]
    assert torch.equal(clone.classifier.weight, model.classifier.weight)
    assert all(mine is not other for mine, other in zip(clone.modules(), model.modules(), strict=True))
    assert all(mine is not other for mine, other in zip(clone.buffers(), model.buffers(), strict=True))


def test_owned_parameters_stay_tied():
    model = gpt2(transformers.GPT2LMHeadModel)
    clone = clone_shared(model, ["transformer.wte.weight"])
    assert clone.lm_head.weight is clone.transformer.wte.weight is not model.transformer.wte.weight


def test_hooks_of_a_clone_are_its_own():
    model = bert()
    clone = clone_shared(model, ())
    clone.classifier.register_forward_hook(lambda *_: None)
    assert not model.classifier._forward_hooks


# ── kinds that no name tells ────────────────────────────────────────────────────────────────────────────────────────

SHAPED = {
    "modernbert": (modernbert, {"up": "mlp.Wi", "down": "mlp.Wo", "qkv": "attn.Wqkv", "output": "attn.Wo"}),
    "convnext": (convnext, {"up": "layers.1.pwconv1", "down": "layers.1.pwconv2", "depthwise": "layers.1.dwconv"}),
    "xlnet": (xlnet, {"up": "ff.layer_1", "down": "ff.layer_2"}),
    "funnel": (funnel, {"query": "0.attention.q_head", "output": "0.attention.post_proj", "up": "0.ffn.linear_1",
                        "down": "0.ffn.linear_2"}),
}  # fmt: skip


@pytest.mark.parametrize("name", SHAPED)
def test_feed_forwards_are_told_by_their_shapes(name):
    make_one, expected = SHAPED[name]
    parts = view(make_one())
    found = {kind: parts.kinds[kind][-1].removeprefix(f"{parts.blocks[-1]}.") for kind in expected}
    assert found == expected
    assert not parts.unknown


@pytest.mark.parametrize("name", sorted(TEXT))
def test_shapes_say_what_names_say(name):
    """Of each feed-forward whose names are known, the shapes alone tell the same, or nothing."""
    model = TEXT[name]()
    for block in view(model).blocks:
        layers = {
            name: module
            for name, module in model.get_submodule(block).named_modules()
            if isinstance(module, torch.nn.Linear) and _by_name(name, module) in ("up", "down")
        }
        assert {name: _by_name(name, layers[name]) for name in _by_shape(layers)} == _by_shape(layers)


def test_the_config_names_kinds(tmp_path):
    model = bert()
    model.bert.encoder.layer[0].strange = torch.nn.Linear(4, 4)
    model.autopeft_kinds = {"up": ("strange", "output.dense")}
    parts = view(model)
    assert parts.unknown == ()
    assert "bert.encoder.layer.0.strange" in parts.kinds["up"]
    assert "bert.encoder.layer.1.output.dense" in parts.kinds["up"]
    model.autopeft_kinds = {"up": ("nowhere",)}
    with pytest.raises(UsageError, match=r"no layer of a block is called nowhere; the last block has .*output\.dense"):
        view(model)
    bert().save_pretrained(tmp_path)
    spec = ModelSpec(str(tmp_path), kinds={"down": ("intermediate.dense",)})
    assert view(load_model(spec, SEQUENCE, 3)).kinds["down"][0] == "bert.encoder.layer.0.intermediate.dense"
