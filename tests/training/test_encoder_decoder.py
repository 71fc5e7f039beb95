"""Encoder-decoder models: both stacks are layers, attention to the encoder has kinds of its own, methods act on all."""

import itertools

import pytest
import torch
import transformers
from architectures import bart, t5

from autopeft import plugins, spaces
from autopeft.errors import Refused
from autopeft.training.model import view
from autopeft.training.recipe import attach, choose_kinds, count
from tests.models import translator

KINDS = {"query", "key", "value", "output", "up", "down", "cross_query", "cross_key", "cross_value", "cross_output"}
CROSS = {"t5": "layer.1.EncDecAttention.q", "bart": "encoder_attn.q_proj"}


def batch():
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 19, (3, 6), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, 4:] = 0
    return {"input_ids": ids, "attention_mask": mask, "decoder_input_ids": ids[:, :5]}


@pytest.fixture(scope="module", params=["t5", "bart"])
def made(request):
    base = translator(request.param).eval().requires_grad_(False)
    with torch.device("meta"):
        meta = translator(request.param).eval().requires_grad_(False)
    return request.param, base, meta


def test_layers_are_the_encoders_then_the_decoders(made):
    name, base, meta = made
    parts = view(base)
    assert parts == view(meta)
    assert parts.n_layers == 4
    assert ["decoder" in block for block in parts.blocks] == [False, False, True, True]
    assert set(parts.kinds) == KINDS and not parts.unknown
    assert [parts.block_of(module) for module in parts.kinds["cross_query"]] == [2, 3]
    assert parts.kinds["cross_query"][-1] == f"{parts.blocks[-1]}.{CROSS[name]}"
    assert [parts.block_of(module) for module in parts.kinds["query"]] == [0, 1, 2, 3]
    assert not any("encoder" in part for part in parts.above), "the encoder's last norm runs before the decoder"
    assert parts.head == () and parts.chain == 0
    every = {name for name, _ in base.named_parameters()}
    named = (*parts.blocks, *parts.stem, *parts.above, *parts.output)
    assert {n for n in every if any(n.startswith(f"{part}.") for part in named)} == every


@pytest.mark.parametrize("make", [bart, t5])
def test_a_classifiers_layers_are_those_of_both_stacks(make):
    parts = view(make())
    assert parts.n_layers == 4
    assert set(parts.kinds) == KINDS
    assert parts.head == ("classification_head",)


def test_usual_modules_have_those_of_the_attention_to_the_encoder_beside_them(made):
    _, base, _ = made
    parts = view(base)
    lora = plugins.load("methods", "lora")()
    assert choose_kinds(parts, lora, None) == ("query", "cross_query", "value", "cross_value")
    assert choose_kinds(parts, lora, ["query"]) == ("query",), "a list is taken as it stands"
    given = {"method": "lora", "lora": {"modules": {"subset": "modules", "default": ["query", "value"]}}}
    space, faults = spaces.read(given, 4, list(parts.kinds))
    assert not faults
    assert set(space.defaults()[0]["lora.modules"]) == {"query", "value", "cross_query", "cross_value"}
    space, _ = spaces.read(given, 4, ["query", "key", "value", "output", "up", "down"])
    assert space.defaults()[0]["lora.modules"] == ["query", "value"]


@pytest.mark.parametrize("method", plugins.names("methods"))
def test_a_method_trains_what_it_counts(method, made):
    """In both stacks: gradients reach each counted tensor, and what is generated uses the method."""
    name, base, meta = made
    parts, params = view(base), {"method": method}
    if method == "head" or (method, name) == ("bias", "t5"):
        with pytest.raises(Refused, match=r"no head to train|no bias"):
            count(meta, parts, params)
        return
    attached = attach(base, parts, params, 0, 5, lambda: itertools.repeat(batch()))
    trained = {n: p for n, p in attached.model.named_parameters() if p.requires_grad}
    assert count(meta, parts, params)["trainable_parameters"] == sum(p.numel() for p in trained.values())
    optimizer, reached = torch.optim.SGD(trained.values(), lr=0.1), set()
    for _ in range(3):
        attached.model(**batch()).logits.logsumexp(-1).sum().backward()
        reached |= {n for n, p in trained.items() if p.grad is not None}
        optimizer.step()
        optimizer.zero_grad()
    assert reached == set(attached.trained)
    if method != "last_layers":
        stacks = {"decoder" in name for name in reached if "shared" not in name}
        assert stacks == {False, True} or method == "tokens"


def test_trained_tokens_reach_encoder_and_decoder(made):
    """Each stack reads the shared weight through an embedding of its own."""
    _, base, _ = made
    attached = attach(base, view(base), {"method": "tokens", "tokens.size": 4}, 0, 5, lambda: itertools.repeat(batch()))
    (shift,) = (p for p in attached.model.parameters() if p.requires_grad)
    given, chosen = batch(), attached.model.get_input_embeddings().chosen_tokens[0]
    for key in ("input_ids", "decoder_input_ids"):
        others = torch.where(given[key] == chosen, 3 if chosen != 3 else 4, given[key])
        other = "decoder_input_ids" if key == "input_ids" else "input_ids"
        one = {**given, key: others, other: torch.full_like(given[other], int(chosen))}
        before = attached.model(**one).logits
        with torch.no_grad():
            shift[0] += 1
            assert not torch.allclose(attached.model(**one).logits, before)
            shift[0] -= 1


def test_a_prefix_of_the_attention_to_the_encoder_serves_generation(made):
    _, base, _ = made
    params = {"method": "prefix", "prefix.modules": ["cross_key", "cross_value"], "prefix.size": 3}
    attached = attach(base, view(base), params, 0)
    given = batch()
    settings = transformers.GenerationConfig(max_new_tokens=5, do_sample=False, pad_token_id=1, eos_token_id=2)
    ids = {name: given[name][:1] for name in ("input_ids", "attention_mask")}
    written = attached.model.generate(**ids, generation_config=settings, use_cache=True)
    without = attached.model.generate(**ids, generation_config=settings, use_cache=False)
    assert torch.equal(written, without)
