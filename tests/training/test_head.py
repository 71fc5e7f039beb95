"""Heads that a configuration chooses: on each architecture they read what they say, and nothing above it is computed."""

import itertools

import numpy as np
import pytest
import torch
from architectures import MAKE, TEXT, inputs, make
from transformers import BertForTokenClassification, GPT2LMHeadModel

from autopeft import plugins, testing
from autopeft.errors import Refused, UsageError
from autopeft.recipe import OWN_HEAD, POOLINGS, Head
from autopeft.training import head as module
from autopeft.training.counter import Counter
from autopeft.training.head import PLAIN, fitted, headed, pooled, poolings
from autopeft.training.merge import merge
from autopeft.training.model import view
from autopeft.training.recipe import attach, count, resolve

IMAGES = ("vit", "deit", "mobilenet_v1", "mobilenet_v2")
SIZES = ("bert", "gpt2", "vit", "mobilenet_v2")
TEXTS = {
    "input_ids": torch.tensor([[2, 5, 6, 7], [2, 5, 0, 0]]),
    "attention_mask": torch.tensor([[1] * 4, [1, 1, 0, 0]]),
}


def batch(model):
    if "ImageClassification" in type(model).__name__:
        return inputs(model)
    pad = model.config.get_text_config().pad_token_id or 0
    mask = TEXTS["attention_mask"]
    return {"input_ids": TEXTS["input_ids"] * mask + pad * (1 - mask), "attention_mask": mask}


def states_of(model, parts, layer, given):
    """The output of a block, and of the norm above all blocks if the architecture has one: (tokens, width) of one row."""
    found = {}

    def keep(_, __, output):
        found["states"] = output[0] if isinstance(output, tuple) else output

    handle = model.get_submodule(parts.blocks[layer]).register_forward_hook(keep)
    with torch.no_grad():
        model(**given)
        handle.remove()
        states = found["states"]
        for name in parts.above:
            if "pooler" not in name and (states.ndim == 3 or layer == parts.n_layers - 1):
                states = model.get_submodule(name)(states)
    return (states.flatten(2).mT if states.ndim == 4 else states)[0]


def by_hand(pooling, states, scores):
    if pooling == "attention":
        weights = np.exp(states @ scores[0])
        return (weights[:, None] * states).sum(0) / weights.sum()
    return {"first": states[0], "last": states[-1], "mean": states.mean(0), "max": states.max(0)}[pooling]


@pytest.mark.parametrize("name", MAKE)
def test_each_pooling_of_each_block_is_what_it_says(name, monkeypatch):
    """Against one row at a time, without padding, pooled by numpy."""
    monkeypatch.setattr(module, "PLAIN", {})
    base = MAKE[name]()
    parts, given = view(base), batch(base)
    for pooling, layer in itertools.product(poolings(base, parts)[1:], range(parts.n_layers)):
        if 1 < layer < parts.n_layers - 2:
            continue
        model, seen = headed(base, parts, Head(pooling, layer=layer))
        head = model.get_submodule(seen.head[0])
        for parameter in head.parameters():
            torch.nn.init.normal_(parameter)
        with torch.no_grad():
            found = model(**given).logits.numpy()
        weight, bias = head.layers.out.weight.numpy(), head.layers.out.bias.numpy()
        scores = head.scores.weight.numpy() if pooling == "attention" else None
        for row in range(2):
            own = {key: value[row : row + 1] for key, value in given.items()}
            if "attention_mask" in own:
                own = {key: value[:, : int(own["attention_mask"].sum())] for key, value in own.items()}
            states = states_of(base, parts, layer, own).numpy()
            if name in ("vit", "deit") and pooling != "first":
                states = states[1 + (name == "deit") :]
            expected = weight @ by_hand(pooling, states, scores) + bias
            np.testing.assert_allclose(found[row], expected, rtol=1e-4, atol=1e-5, err_msg=f"{pooling} of {layer}")


def fully_trained(base, parts, given, pooling):
    """A step of full fine-tuning, its logits, and the parameters that no gradient reaches."""
    attached = attach(base, parts, {"method": "full", "head.pooling": pooling}, 0)
    logits = attached.model(**given).logits
    logits.sum().backward()
    parameters = dict(attached.model.named_parameters())
    return attached, logits, {name for name in attached.trained if parameters[name].grad is None}


@pytest.mark.parametrize("name", sorted(set(TEXT) - set(MAKE)))
def test_other_text_models_pool_the_states_of_their_tokens(name):
    """Or have their own head alone. Padding on the right changes nothing; each tensor that is counted is trained."""
    base = TEXT[name]()
    parts, given = view(base), batch(base)
    for pooling in poolings(base, parts)[1:]:
        attached, logits, waiting = fully_trained(base, parts, given, pooling)
        assert waiting <= fully_trained(base, parts, given, "own")[2], "as under its own head: of other tasks"
        with torch.no_grad():
            alone = attached.model(**{key: value[1:, :2] for key, value in given.items()}).logits
        assert torch.allclose(alone[0], logits[1], atol=1e-5), pooling
        if parts.n_layers > 1:
            with pytest.raises(Refused, match="not known to run one by one"):
                headed(base, parts, Head(pooling, layer=0))


def test_these_text_models_have_their_own_head_alone():
    own_alone = {name for name in TEXT if len(poolings(base := TEXT[name](), view(base))) == 1}
    assert own_alone == {"bart", "funnel", "longformer", "t5"}


@pytest.mark.parametrize("name", PLAIN)
def test_a_pooling_that_is_the_own_heads_is_the_own_head(name, monkeypatch):
    base = MAKE[name]()
    parts, given = view(base), batch(base)
    same = Head(PLAIN[name])
    assert headed(base, parts, same) == (base, parts), "stock code holds it"
    monkeypatch.setattr(module, "PLAIN", {})
    model, seen = headed(base, parts, same)
    layer, own = model.get_submodule(seen.head[0]).layers.out, base.get_submodule(parts.head[0])
    layer.weight.copy_(own.weight)
    layer.bias.zero_() if own.bias is None else layer.bias.copy_(own.bias)
    with torch.no_grad():
        assert torch.allclose(model(**given).logits, base(**given).logits, atol=1e-6)


@pytest.mark.parametrize("name", MAKE)
def test_defaults_are_the_model_as_it_is(name):
    base = MAKE[name]()
    parts = view(base)
    for head in (OWN_HEAD, Head(layer=parts.n_layers - 1)):
        assert headed(base, parts, head) == (base, parts)


@pytest.mark.parametrize("name", [name for name in MAKE if not name.startswith("mobilenet")])
def test_the_own_head_reads_a_lower_block_too(name):
    """As if the model had no block above it."""
    base = MAKE[name]()
    parts, given = view(base), batch(base)
    model, seen = headed(base, parts, Head(layer=0))
    short = MAKE[name]()
    entries = short.get_submodule(parts.blocks[0].rpartition(".")[0])
    del entries[1:]
    short.config.num_hidden_layers = 1
    with torch.no_grad():
        assert torch.equal(model(**given).logits, short(**given).logits)
    assert (seen.n_layers, seen.left_out) == (1, 1)


def draws(base, parts, number=40):
    rng = np.random.default_rng(0)
    kinds = ["lora", "head", "full", "norm", "last_layers", "lora+bias"]
    for _ in range(number):
        params = {"method": str(rng.choice(kinds)), "head.pooling": str(rng.choice(POOLINGS)),
                  "head.hidden": int(rng.choice([0, 5])), "head.norm": bool(rng.integers(2)),
                  "head.layer": int(rng.integers(parts.n_layers))}  # fmt: skip
        if params["method"] in ("lora", "lora+bias"):
            params["lora.layers"] = sorted({int(layer) for layer in rng.integers(parts.n_layers, size=2)})
        yield params


def outcome(call):
    try:
        return call()
    except Refused as fault:
        return str(fault)


@pytest.mark.parametrize("name", SIZES)
def test_counted_by_formula_is_attached_is_trained(name):
    base = MAKE[name]()
    meta, parts, given = MAKE[name]().to("meta"), view(base), batch(base)
    counter, whole, refused = Counter(meta, view(meta)), 0, set()
    for params in draws(base, parts):
        exact = outcome(lambda params=params: count(meta, parts, params))
        assert outcome(lambda params=params: counter(params)) == exact, params
        if isinstance(exact, str):
            refused.add(exact)
            continue
        attached, whole = attach(base, parts, params, 1), whole + 1
        trained = {n: p for n, p in attached.model.named_parameters() if p.requires_grad}
        assert sum(parameter.numel() for parameter in trained.values()) == exact["trainable_parameters"]
        assert sum(trained[n].numel() for n in attached.head) == exact["head_parameters"]
        attached.model(**given).logits.pow(2).sum().backward()
        assert not [n for n, parameter in trained.items() if parameter.grad is None], params
    assert whole > 8
    assert refused


@pytest.mark.parametrize("subject", testing.method_subjects(), ids=str)
def test_each_method_trains_what_it_counts_below_a_chosen_head(subject):
    counter, whole = Counter(subject.meta, subject.view), 0
    for name in plugins.names("methods"):
        params = {"method": name, "head.pooling": "mean", "head.layer": 1, "head.hidden": 3}
        exact = outcome(lambda params=params: count(subject.meta, subject.view, params))
        assert outcome(lambda params=params: counter(params)) == exact, params
        if isinstance(exact, str):
            continue
        attached, whole = testing.methods.attach_method(subject, params, 1), whole + 1
        subject.loss(attached.model).backward()
        parameters = dict(attached.model.named_parameters())
        assert sum(parameters[n].numel() for n in attached.trained) == exact["trainable_parameters"]
        assert not [n for n in attached.trained if parameters[n].grad is None], params
    assert whole > 10


def test_blocks_above_are_neither_there_nor_trained():
    base = MAKE["bert"]()
    parts = view(base)
    full = attach(base, parts, {"method": "full", "head.pooling": "mean", "head.layer": 0}, 0)
    assert not [n for n, _ in full.model.named_parameters() if n.startswith(("bert.encoder.layer.1.", "bert.pooler."))]
    seen = headed(base, parts, Head("mean", layer=0))[1]
    assert resolve(seen, {"method": "lora", "lora.layers": [0, 1]})[0].scope.layers == (0,)
    for layers, reason in (([1], "no component is left"), ("last_2", "the model has 1 layers, not 2")):
        with pytest.raises(Refused, match=reason):
            attach(base, parts, {"method": "lora", "lora.layers": layers, "head.layer": 0}, 0)


def test_a_head_leaves_the_base_and_equal_seeds_draw_equal_heads():
    base = MAKE["bert"]()
    parts, before = view(base), testing.methods.checksum(base)
    params = {"method": "norm", "head.pooling": "attention", "head.hidden": 4}
    one, other, third = (attach(base, parts, params, seed) for seed in (1, 1, 2))
    tensors = [{n: p for n, p in each.model.named_parameters() if n in each.head} for each in (one, other, third)]
    assert len(tensors[0]) == 5
    assert all(torch.equal(tensors[0][n], tensors[1][n]) for n in tensors[0])
    assert not torch.equal(tensors[0]["classifier.scores.weight"], tensors[2]["classifier.scores.weight"])
    assert testing.methods.checksum(base) == before
    assert type(base) is not type(one.model)


def test_padding_on_the_left_is_no_token_either():
    states, mask = torch.randn(3, 5, 4), torch.tensor([[0, 0, 1, 1, 1], [1] * 5, [0, 0, 0, 0, 1]])
    for pooling in POOLINGS[1:]:
        scores = torch.randn(3, 5) if pooling == "attention" else None
        found = pooled(pooling, states, mask, scores)
        for row, length in enumerate((3, 5, 1)):
            own = (states[row : row + 1, -length:], None, None if scores is None else scores[row : row + 1, -length:])
            assert torch.allclose(found[row], pooled(pooling, *own)[0], atol=1e-6)


@pytest.mark.parametrize(
    ("name", "head", "reason"),
    [
        ("bert", Head("mean", layer=2), r"head\.layer is from 0 to 1 in this model, not 2"),
        ("vit", Head("last"), "ViTForImageClassification allows own, first, mean, max, attention"),
        ("mobilenet_v2", Head("first"), "MobileNetV2ForImageClassification allows own, mean, max, attention"),
        ("mobilenet_v2", Head(layer=3), "choose another pooling: mean, max, attention"),
        ("roberta", Head(hidden=4), r"head\.hidden with pooling own: .* has layers of its own"),
        ("deberta-v2", Head(layer=0), "not known to run one by one"),
        ("t5", Head("mean"), "T5ForSequenceClassification allows own"),
    ],
)  # fmt: skip
def test_what_an_architecture_does_not_allow_is_refused(name, head, reason):
    base = {**MAKE, **TEXT}[name]()
    with pytest.raises(Refused, match=reason):
        fitted(base, view(base), head)


def test_outputs_that_are_not_one_a_row_keep_their_own_pooling():
    """A tagger may have a hidden layer or read a lower block; a language model has no head."""
    size = {
        "vocab_size": 20,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 24,
    }
    tagger = make(BertForTokenClassification, num_labels=3, **size)
    attached = attach(tagger, view(tagger), {"method": "head", "head.hidden": 4, "head.layer": 0}, 0)
    assert attached.model(**TEXTS).logits.shape == (2, 4, 3)
    writer = make(GPT2LMHeadModel, vocab_size=20, n_embd=16, n_layer=2, n_head=2, bos_token_id=1, eos_token_id=1)
    for model, head in (
        (tagger, Head("mean")),
        (writer, Head("mean")),
        (writer, Head(hidden=4)),
        (writer, Head(layer=0)),
    ):
        with pytest.raises(Refused, match="unsupported"):
            fitted(model, view(model), head)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"pooling": "men"}, r"head\.pooling is one of own, .*, not 'men'\. Did you mean 'mean'\?"),
        ({"hidden": -1}, r"head\.hidden is a width"),
        ({"norm": 1}, r"head\.norm is on or off"),
        ({"layer": -1}, r"head\.layer is the index of a block"),
        ({"layer": True}, r"head\.layer is the index of a block"),
    ],
)
def test_a_wrong_head_cannot_exist(values, reason):
    with pytest.raises(Refused, match=reason):
        Head(**values)
    with pytest.raises(Refused, match=reason):
        Head.of({"method": "lora", **{f"head.{key}": value for key, value in values.items()}})


def test_a_stock_model_holds_none_of_them():
    base = MAKE["bert"]()
    parts, params = view(base), {"method": "norm", "head.pooling": "mean"}
    with pytest.raises(UsageError, match="a stock model has its own head"):
        merge(attach(base, parts, params, 0), parts, params)
