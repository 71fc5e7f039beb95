"""Rows end to end: what a model computes from them is what it computes from padded rows, up to rounding."""

import architectures
import numpy as np
import pytest
import torch
import transformers

from autopeft.tasks import UNSCORED, Ragged, Split
from autopeft.tasks._text import READS_LAST
from autopeft.training.batches import collate
from autopeft.training.first_token import read_first_token
from autopeft.training.flat import Flattening, Layout, attend
from autopeft.training.model import CHAINED, clone_shared, view
from autopeft.training.resident import Room
from autopeft.training.sizes import Size
from autopeft.training.static import StaticSplit, filled, form_of, inhabited
from tests.training.traces import traced

LENGTHS = (4, 2, 7, 1, 5)
ROWS = np.array([3, 0, 2, 4])
SIZE = Size(tokens=24, rows=6, longest=8, picked=16)  # 17 tokens, 4 rows, 7 wide: filler of each kind
DECODERS = {
    "llama": transformers.LlamaForCausalLM,
    "qwen2": transformers.Qwen2ForCausalLM,
    "gpt2": transformers.GPT2LMHeadModel,
    "opt": transformers.OPTForCausalLM,
    "gpt_neox": transformers.GPTNeoXForCausalLM,
}
# All chained architectures are among them, and all decoders of the list.
SAME = {*CHAINED, "albert", "bart", "esm", "gpt_neox", "modernbert", "opt", "qwen2"} & architectures.TEXT.keys()


class Classes:
    """A label a row."""

    def loss(self, outputs, targets):
        return torch.nn.functional.cross_entropy(outputs, targets["label"], reduction="none")


class Tokens:
    """A target a token, its own or the next one's."""

    token_target = "tags"

    def __init__(self, foretells):
        self.foretells = foretells

    def loss(self, outputs, targets):
        if self.foretells:
            outputs, targets = outputs[:, :-1], {"tags": targets["tags"][:, 1:]}
        losses = self.token_loss(outputs.flatten(0, 1), targets["tags"].flatten())
        return losses.view(len(outputs), -1).sum(1)

    def token_loss(self, outputs, wanted):
        return torch.nn.functional.cross_entropy(outputs, wanted, reduction="none", ignore_index=UNSCORED)


def split(model):
    """Rows of several lengths, padded as the model's classifier expects."""
    rng = np.random.default_rng(0)
    end = getattr(model.config, "eos_token_id", None)
    end = 2 if end is None else end
    ids = [[*rng.integers(10, 20, length - 1).tolist(), end] for length in LENGTHS]
    tags = [[UNSCORED if rng.random() < 0.4 else int(rng.integers(0, 3)) for _ in row] for row in ids]
    return Split(
        {"input_ids": Ragged.of(ids, np.int32, model.config.pad_token_id or 0, model.config.model_type in READS_LAST)},
        {"label": rng.integers(0, 3, len(ids)), "tags": Ragged.of(tags, np.int32, UNSCORED)},
    )


def on_device(of, task, form="flat"):
    return StaticSplit(of, np.ones(len(LENGTHS), np.float32), task, Room(torch.device("cpu")), form)


def near(one, other, tolerance=1e-5):
    return float((one - other).abs().max()) <= tolerance * float(other.abs().max())


def with_noise(model):
    """All parameters as they are after training: not 0, not 1."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
        parameter.requires_grad_(True)
    return model


def padded_and_flat(model, task):
    """(logits of all real places, gradients) of padded rows, and of the same rows end to end."""
    out, parts = [], view(model)
    data = split(model)
    source = on_device(data, task)
    for layout in ("padded", "flat"):
        own = with_noise(clone_shared(model, [name for name, _ in model.named_parameters()])).eval()
        read_first_token(own, parts)
        targets = {"label": torch.as_tensor(data.targets["label"][ROWS])}
        if layout == "padded":
            inputs = collate(data, ROWS)
            logits = own(**inputs).logits
            if hasattr(task, "token_loss"):
                targets = {"tags": source.targets(torch.as_tensor(ROWS), Size(0, 4, 7))["tags"]}
                logits_of = logits[inputs["attention_mask"].bool()]
            else:
                logits_of = logits
            loss = task.loss(logits.float(), targets).sum() / 4
        else:
            rows = source.send(filled([ROWS], SIZE.rows), SIZE)
            flattening = Flattening(own, parts.blocks, next(iter(parts.output), None))
            layout = source.layout(rows, SIZE)
            flattening.read(layout)
            inputs = source.inputs(inhabited(rows).flatten(), SIZE)
            logits_of = own(**inputs).logits[:4]
            if hasattr(task, "token_loss"):
                logits_of = logits_of[inputs["attention_mask"][:4].bool()]
                spots = source.pick(rows, SIZE, layout)
                picked = own(**inputs).logits
                assert not parts.output or picked.shape[:2] == (1, SIZE.picked), "logits of the scored places only"
                loss = (source.losses(flattening.picked(picked), rows, SIZE, spots) / source.weight(rows)).sum()
            else:
                loss = (source.losses(own(**inputs).logits, rows, SIZE) / source.weight(rows)).sum()
        loss.backward()
        out.append((logits_of.detach(), {n: p.grad for n, p in own.named_parameters() if p.grad is not None}))
    return out


def assert_same(model, task):
    (logits, gradients), (theirs, others) = padded_and_flat(model, task)
    assert near(theirs, logits)
    assert gradients.keys() == others.keys()
    largest = max(float(gradient.abs().max()) for gradient in gradients.values())
    for name, gradient in gradients.items():
        assert float((others[name] - gradient).abs().max()) <= 1e-5 * largest, name


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("name", sorted(SAME))
def test_a_classifier_computes_the_same_end_to_end(name, attention):
    """Logits, and the gradients of all parameters."""
    model = architectures.TEXT[name]()
    model.set_attn_implementation(attention)
    assert form_of(model, view(model), Classes(), split(model)) == "flat"
    assert_same(model, Classes())


@pytest.mark.parametrize("name", DECODERS)
def test_a_language_model_computes_the_same_for_its_scored_tokens(name):
    own = architectures.TEXT[name]().config
    own.num_labels = 2
    torch.manual_seed(0)
    model = DECODERS[name](own).eval().requires_grad_(False)
    assert form_of(model, view(model), Tokens(True), split(model)) == "flat"
    assert_same(model, Tokens(True))


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_window_of_attention_is_kept(attention):
    model = architectures.make(
        transformers.MistralForCausalLM, vocab_size=20, num_key_value_heads=1, pad_token_id=0, sliding_window=3,
        **{**architectures.SIZE, "num_labels": 2},
    )  # fmt: skip
    model.set_attn_implementation(attention)
    assert form_of(model, view(model), Tokens(True), split(model)) == "flat"
    assert_same(model, Tokens(True))


@pytest.mark.parametrize("name", ["bert", "distilbert"])
def test_a_tagger_computes_the_same_for_its_scored_tokens(name):
    own = architectures.TEXT[name]().config
    torch.manual_seed(0)
    model = transformers.AutoModelForTokenClassification.from_config(own).eval().requires_grad_(False)
    assert form_of(model, view(model), Tokens(False), split(model)) == "flat"
    assert_same(model, Tokens(False))


@pytest.mark.parametrize("name", sorted(architectures.TEXT.keys() - SAME))
def test_a_model_that_computes_otherwise_end_to_end_is_found_out(name):
    model = architectures.TEXT[name]()
    assert form_of(model, view(model), Classes(), split(model)) == "padded"


def test_a_model_whose_outputs_padding_changes_has_no_static_shapes():
    """XLNet, padded on the wrong side, reads padding."""
    model = architectures.TEXT["xlnet"]()
    rows = split(model)
    ids = rows.inputs["input_ids"]
    wrong = Split({"input_ids": Ragged(ids.values, ids.offsets, ids.pad)}, rows.targets)
    assert form_of(model, view(model), Classes(), wrong) is None


def passes(model, task, batches):
    """The operations of a forward and backward pass of each batch, all of one size."""
    parts, source = view(model), on_device(split(model), task)
    own = with_noise(clone_shared(model, [name for name, _ in model.named_parameters()])).eval()
    read_first_token(own, parts)
    flattening = Flattening(own, parts.blocks, next(iter(parts.output), None))

    def step(rows):
        layout = source.layout(rows, SIZE)
        picked = source.pick(rows, SIZE, layout) if source.picks else None
        flattening.read(layout)
        outputs = own(**source.inputs(inhabited(rows).flatten(), SIZE)).logits
        outputs = outputs if picked is None else flattening.picked(outputs)
        source.losses(outputs, rows, SIZE, picked).sum().backward()

    out = []
    for batch in batches:
        out.append(traced(lambda batch=batch: step(source.send(filled([np.array(batch)], SIZE.rows), SIZE))))
        own.zero_grad(set_to_none=True)
    return out


@pytest.mark.parametrize("name", sorted(SAME - {"bart"}))  # it looks for end tokens, and waits to complain of none
def test_a_classifiers_pass_is_the_same_operations_for_each_batch(name):
    one, other = passes(architectures.TEXT[name](), Classes(), [ROWS, [1, 4]])
    assert one == other


@pytest.mark.parametrize("name", DECODERS)
def test_a_language_models_pass_is_the_same_operations_for_each_batch(name):
    torch.manual_seed(0)
    model = DECODERS[name](architectures.TEXT[name]().config).eval().requires_grad_(False)
    one, other = passes(model, Tokens(True), [ROWS, [1, 4]])
    assert one == other


# ── on a GPU ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.gpu
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize(("heads", "key_heads"), [(4, 4), (4, 2)])
def test_attention_by_boundaries_is_that_of_padded_rows(is_causal, window, heads, key_heads):
    """Flash attention in bf16 and its gradients, beside the general way in fp32; filler takes no part."""
    torch.manual_seed(0)
    lengths, width = torch.tensor([[40, 1, 17, 0]], device="cuda"), 32
    layout = Layout(lengths, Size(64, 4, 48), 4)
    module = Attention(is_causal, heads // key_heads, layout)
    states = [torch.randn(1, n, 64, width, device="cuda", requires_grad=True) for n in (heads, key_heads, key_heads)]
    real, found = layout.row[0] < 4, []
    for dtype in (torch.float32, torch.bfloat16):
        query, key, value = (tensor.to(dtype) for tensor in states)
        out, _ = attend(module, query, key, value, None, scaling=0.2, dropout=0.0, sliding_window=window)
        assert out.shape == (1, 64, heads, width)
        own = out[0][real].float()
        found.append([own.detach(), *torch.autograd.grad(own.square().sum(), states)])
    for one, other in zip(*found, strict=True):
        assert float((one - other).abs().max()) <= 0.03 * float(one.abs().max())


class Attention(torch.nn.Module):
    """What attention reads of a module: eager attention of LLaMA's code, with a layout."""

    def __init__(self, is_causal, groups, layout):
        super().__init__()
        self.is_causal = is_causal
        self.config = transformers.LlamaConfig(attn_implementation="sdpa")
        self.config._attn_implementation_internal = "autopeft_flat_sdpa"
        self.num_key_value_groups = groups
        self.__dict__["autopeft_flattening"] = type("Given", (), {"layout": layout})()


@pytest.mark.gpu
@pytest.mark.parametrize("name", DECODERS)
def test_a_language_model_computes_the_same_on_a_gpu(name):
    torch.manual_seed(0)
    model = DECODERS[name](architectures.TEXT[name]().config).eval().requires_grad_(False).cuda()
    assert form_of(model, view(model), Tokens(True), split(model)) == "flat"
