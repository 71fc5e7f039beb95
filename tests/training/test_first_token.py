"""Leaving out what no head reads changes neither the logits nor a gradient."""

import pytest
import torch
import transformers
from models import text_inputs

from autopeft.testing import method_recipes
from autopeft.training.first_token import TOKEN_BY_TOKEN, read_first_token
from autopeft.training.model import view
from autopeft.training.recipe import attach

SIZES = {
    "vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32,
    "max_position_embeddings": 32, "type_vocab_size": 2, "pad_token_id": 0, "num_labels": 3,
}  # fmt: skip
NAMES = {"dim": 16, "n_layers": 3, "n_heads": 2, "hidden_dim": 32}  # as DistilBERT calls its sizes


def model_of(model_type):
    torch.manual_seed(0)
    own = NAMES if model_type == "distilbert" else {}
    config = transformers.AutoConfig.for_model(model_type, **{**SIZES, **own}, attn_implementation="eager")
    return transformers.AutoModelForSequenceClassification.from_config(config).eval().requires_grad_(False)


def run(model, trained):
    logits = model(**text_inputs()).logits
    torch.nn.functional.cross_entropy(logits, torch.tensor([0, 1, 2, 0])).backward()
    parameters = dict(model.named_parameters())
    return logits.detach(), {name: parameters[name].grad for name in trained}


def near(one, other):
    return (one - other).abs().max() <= 1e-5 * other.abs().max()


@pytest.mark.parametrize("method", ["full", "lora", "norm", "ia3", "serial_adapter", "parallel_adapter", "prefix"])
@pytest.mark.parametrize("model_type", TOKEN_BY_TOKEN)
def test_logits_and_gradients_are_those_of_all_tokens(model_type, method):
    base = model_of(model_type)
    parts = view(base)
    for params in method_recipes(method):
        whole, short = (attach(base, parts, params, 0) for _ in range(2))
        read_first_token(short.model, parts)
        seen = []
        last = short.model.get_submodule(parts.blocks[-1])
        last.register_forward_hook(lambda _, __, output, seen=seen: seen.append(output.shape))
        logits, gradients = run(whole.model, whole.trained)
        found, own = run(short.model, short.trained)
        assert near(found, logits)
        for name, gradient in gradients.items():
            if gradient is None:  # a pooler that the head does not read
                assert own[name] is None
            else:
                assert own[name] is not None, name
                assert near(own[name], gradient) or gradient.abs().max() < 1e-7, name
        if method == "lora":
            assert [shape[1] for shape in seen] == [1], "else nothing is saved"


def test_a_model_that_reads_every_token_is_left_alone():
    config = transformers.AutoConfig.for_model("bert", **SIZES)
    model = transformers.AutoModelForTokenClassification.from_config(config).eval()
    read_first_token(model, view(model))
    assert model(**text_inputs()).logits.shape == (4, 7, 3)
