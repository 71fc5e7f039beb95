"""Merged exports: a stock transformers folder with the trained model's logits; what cannot be merged is said."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from models import writer
from safetensors.torch import save_file

from autopeft.errors import UsageError
from autopeft.tasks import Raw
from autopeft.training.batches import collate
from autopeft.training.export import NAME, export, load, verify
from autopeft.training.merge import merge, refuse_unmergeable
from autopeft.training.model import load_model, view
from autopeft.training.recipe import attach, trained_state
from autopeft.training.setup import ModelSpec, Setup

AUTO = "AutoModelForCausalLM"
STOCK = """
import json, sys, peft, torch, transformers
texts = []
for folder in sys.argv[1:]:
    tokens = transformers.AutoTokenizer.from_pretrained(folder)
    loader = transformers.AutoModelForCausalLM if "merged" in folder else peft.AutoPeftModelForCausalLM
    model = loader.from_pretrained(folder, attn_implementation="eager").eval()
    given = tokens(["good fine day", "bad"], return_tensors="pt", padding=True, padding_side="left")
    given = {name: given[name] for name in ("input_ids", "attention_mask")}
    config = transformers.GenerationConfig.from_pretrained(folder)
    written = model.generate(**given, generation_config=config, do_sample=False, max_new_tokens=8)
    chat = tokens.apply_chat_template([{"role": "user", "content": "good"}], tokenize=False)
    ids = torch.tensor([[2, 5, 6, 7, 3], [2, 8, 3, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    with torch.no_grad():
        texts.append([tokens.batch_decode(written), chat, model(input_ids=ids, attention_mask=mask).logits.tolist()])
print(json.dumps(texts))
"""


def trained(model, params):
    """A clone of a language model, every trained tensor of which has moved."""
    base = load_model(ModelSpec(str(model)), AUTO, 0)
    attached = attach(base, view(base), params, seed=1)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in attached.model.named_parameters():
            if name in attached.trained:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return base, attached


def inputs():
    return {"input_ids": torch.tensor([[2, 5, 6, 7, 3], [2, 8, 3, 0, 0]]),
            "attention_mask": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])}  # fmt: skip


def logits(model):
    with torch.no_grad():
        return model(**inputs()).logits


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize(
    "params",
    [
        {"method": "lora+norm"},
        {"method": "lora@a+lora@b", "lora@b.rank": 3, "lora@a.modules": "all"},
        {"method": "lora+ia3"},
        {"method": "ia3+lora"},
        {"method": "full"},
        {"method": "lora", "lora.dora": True, "lora.modules": "all"},
    ],
    ids=str,
)
def test_logits_are_those_of_the_trained_model(kind, params, tmp_path):
    base, attached = trained(writer(tmp_path, kind), params)
    before = logits(base)
    expected = logits(attached.model)
    merged = merge(attached, view(base), params)
    assert (logits(merged) - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert (expected - before).abs().max() > 1e-3
    assert torch.equal(logits(base), before), "the base is as it was"
    assert merged.state_dict().keys() == base.state_dict().keys()


@pytest.mark.parametrize(
    ("params", "reason"),
    [
        ({"method": "serial_adapter"}, "serial adapter cannot be merged: .* beside the base's layers"),
        ({"method": "lora+prefix"}, "^prefix cannot be merged"),
        ({"method": "parallel_adapter+prefix"}, "^parallel adapter, prefix cannot"),
    ],
)
def test_what_computes_beside_the_layers_is_refused(params, reason):
    with pytest.raises(UsageError, match=reason):
        refuse_unmergeable(params)


def test_tokens_that_the_output_layer_shares_are_refused(tmp_path):
    params = {"method": "tokens", "tokens.size": 3}
    base, attached = trained(writer(tmp_path / "tied"), params)
    with pytest.raises(UsageError, match="output layer has the same weight"):
        merge(attached, view(base), params)
    base, attached = trained(writer(tmp_path / "apart", "llama"), params)
    expected = logits(attached.model)
    merged = merge(attached, view(base), params)
    assert torch.allclose(logits(merged), expected, rtol=0, atol=1e-6)
    assert not any(hasattr(module, "chosen_shift") for module in merged.modules())


def test_stock_libraries_load_both_forms_in_a_fresh_process(tmp_path):
    """Equal logits (as `verify` checks), equal greedy text, chat template and generation config with it."""
    import transformers

    folder = writer(tmp_path / "base")
    tokens = transformers.AutoTokenizer.from_pretrained(folder)
    tokens.chat_template = "{% for message in messages %}{{ message['content'] }} {% endfor %}"
    tokens.save_pretrained(folder)
    settings = transformers.GenerationConfig.from_pretrained(folder)
    settings.do_sample, settings.top_k, settings.eos_token_id = True, 7, 5
    settings.save_pretrained(folder)
    params = {"method": "lora", "lora.modules": "all", "lora.alpha": 64}
    _, attached = trained(folder, params)
    save_file(trained_state(attached), tmp_path / "trained.safetensors")
    setup = Setup.of(model=folder, task="causal_language_modelling", data={}, folder="", cache="")
    given = {"setup": setup, "params": params, "seed": 1, "tensors": tmp_path / "trained.safetensors",
             "about": {"n_outputs": 0}, "card": lambda about: f"# {about['form']}\n", "facts": {}}  # fmt: skip
    adapter = export(**given, to=tmp_path / "adapter")
    merged = export(**given, to=tmp_path / "merged", merged=True)
    expected = logits(attached.model).numpy()
    assert verify(merged, expected, inputs()) < 1e-5
    assert json.loads((merged / NAME).read_text())["form"] == "merged"
    assert not (merged / "adapter_config.json").exists() and not (adapter / "model.safetensors").exists()
    done = subprocess.run([sys.executable, "-c", STOCK, adapter, merged], capture_output=True, text=True, check=True)
    found, again = json.loads(done.stdout.splitlines()[-1])
    assert found[:2] == again[:2]
    assert found[1] == "good "
    assert np.array_equal(found[2], expected), "the adapter's logits"
    for folder in (adapter, merged):  # the end that is learned, and the base's own
        settings = json.loads((folder / "generation_config.json").read_text())
        assert (settings["top_k"], settings["eos_token_id"][:2]) == (7, [0, 5])
    ours = load(merged)  # the base is not needed any more
    task, source = ours.task, ours.source
    split = task.encoder(source, {"n_outputs": 0})(Raw({"prompt": ["good fine day"]}, {}, np.arange(1)))
    assert torch.allclose(ours.model(**collate(split, np.arange(1))).logits,
                          attached.model(**collate(split, np.arange(1))).logits, atol=1e-5)  # fmt: skip
