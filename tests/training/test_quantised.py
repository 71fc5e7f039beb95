"""Bases in 4 and 8 bits: true sizes, equal gradients, refusals before a trial, exports as stock libraries load them."""

import importlib.util
import itertools
import json
import re
from functools import partial

import pytest
import torch
from models import bert, translator, write_completions, writer

from autopeft import plugins
from autopeft.config import load as load_config
from autopeft.errors import ConfigError, EnvironmentFault, Refused, UsageError
from autopeft.quantisations import QUANTISATIONS
from autopeft.reports import card
from autopeft.training.counter import Counter
from autopeft.training.export import export, verify
from autopeft.training.loop import Worker
from autopeft.training.model import load_model, meta_model, view
from autopeft.training.network import as_trials_run
from autopeft.training.precision import Precision
from autopeft.training.quantised import dequantise, require_library
from autopeft.training.recipe import attach, count
from autopeft.training.setup import ModelSpec, Setup
from autopeft.trial import Trial

CAUSAL, SEQ2SEQ = "AutoModelForCausalLM", "AutoModelForSeq2SeqLM"


def needs(library):
    reason = f"{library} is not installed: pip install 'autopeft[{library}]'"
    return pytest.mark.skipif(importlib.util.find_spec(library) is None, reason=reason)


EACH = [pytest.param(name, marks=needs(entry.library)) for name, entry in QUANTISATIONS.items()]
# What acts on quantised layers, or beside them; all else trains, changes or reads their weights.
RUNS = ("adalora", "eva", "ia3", "lora", "lora_fa", "lora_plus", "norm", "parallel_adapter", "prefix", "serial_adapter",
        "tokens", "vera")  # fmt: skip
REFUSED = {
    "full": "full trains .*weight, which is quantised",
    "last_layers": "last_layers trains .*weight, which is quantised",
    "pissa": "pissa changes .*weight, which is quantised",
    "olora": "olora changes .*weight, which is quantised",
    "boft": "boft computes with the weight of .*, which is quantised",
    "hra": "hra computes with the weight",
    "shira": "shira computes with the weight",
    "loha": "loha computes with the weight",
    "lokr": "lokr computes with the weight",
    "head": "no head",
    "bias": "no bias",
}


def batch(model):
    ids = torch.randint(2, 17, (3, 12), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, 9:] = 0
    given = {"input_ids": ids, "attention_mask": mask}
    return given | {"decoder_input_ids": ids[:, :5]} if model.config.is_encoder_decoder else given


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made = {kind: writer(tmp_path_factory.mktemp(kind), kind) for kind in ("gpt2", "llama")}
    made["t5"] = str(tmp_path_factory.mktemp("t5"))
    translator("t5").save_pretrained(made["t5"])
    return made


def loaded(folders, kind, name):
    spec, auto_class = ModelSpec(folders[kind], quantisation=name), SEQ2SEQ if kind == "t5" else CAUSAL
    return load_model(spec, auto_class, 0), meta_model(spec, auto_class, 0)


def packed_in(model):
    """The layers whose weights are no plain fp32 tensors."""
    return {
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
        and (module.weight.dtype != torch.float32 or type(module.weight.data) is not torch.Tensor)
    }


@pytest.mark.parametrize("name", EACH)
@pytest.mark.parametrize("kind", ["gpt2", "llama", "t5"])
def test_sizes_and_parts_are_those_of_the_base_as_it_was(kind, name, folders):
    """4-bit weights are stored as half as many bytes: nothing counts those."""
    if (kind, name) == ("gpt2", "torchao_int8"):
        with pytest.raises(UsageError, match="torchao knows no Conv1D"):
            loaded(folders, kind, name)
        return
    model, meta = loaded(folders, kind, name)
    parts = view(model)
    assert parts == view(meta)
    assert packed_in(model) == set(parts.quantised) != set()
    whole = load_model(ModelSpec(folders[kind]), SEQ2SEQ if kind == "t5" else CAUSAL, 0)
    sizes = [sum(parameter.numel() for parameter in each.parameters()) for each in (meta, whole)]
    assert sizes[0] == sizes[1]
    difference = (model(**batch(model)).logits - whole(**batch(whole)).logits).abs().max()
    assert 0 < difference < 0.5 * whole(**batch(whole)).logits.abs().max()


def trained(base, parts, params):
    """(clone, its first gradients, its logits) of three steps."""
    attached = attach(base, parts, params, 0, 5, lambda: itertools.repeat(batch(base)))
    as_trials_run(attached.model, parts, Precision("fp32", torch.device("cpu"), parts))
    tensors = dict(attached.model.named_parameters())
    optimizer = torch.optim.AdamW([tensors[n] for n in attached.trained], lr=1e-2)
    gradients, reached, given = {}, set(), batch(base)
    for _ in range(3):
        logits = attached.model(**given).logits
        torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), given["input_ids"][:, : logits.shape[1]].flatten()
        ).backward()
        reached |= {n for n in attached.trained if tensors[n].grad is not None}
        gradients = gradients or {n: tensors[n].grad.clone() for n in attached.trained if tensors[n].grad is not None}
        optimizer.step()
        optimizer.zero_grad()
    assert reached == set(attached.trained)
    with torch.no_grad():
        return attached, gradients, attached.model(**given).logits


@pytest.mark.parametrize("name", EACH)
@pytest.mark.parametrize("method", RUNS)
def test_methods_train_on_it_as_on_the_weights_that_it_stands_for(method, name, folders):
    model, meta = loaded(folders, "llama", name)
    parts, params = view(model), {"method": method}
    if method == "eva":
        params["eva.rank"] = 2
    counted = count(meta, parts, params)["trainable_parameters"]
    with torch.no_grad():
        before = model(**batch(model)).logits
    attached, gradients, logits = trained(model, parts, params)
    sizes = {n: p.numel() for n, p in attached.model.named_parameters()}
    assert counted == sum(sizes[n] for n in attached.trained)
    assert not any("absmax" in n or "SCB" in n or "quant" in n for n in attached.own), (
        "scales are the base's, not saved"
    )
    with torch.no_grad():
        assert torch.equal(model(**batch(model)).logits, before), "the base is as it was"
    if QUANTISATIONS[name].merges and method != "eva":
        plain, _ = loaded(folders, "llama", name)
        dequantise(plain, name, parts.quantised)
        _, theirs, same = trained(plain, view(plain), params)
        for n, gradient in gradients.items():
            assert torch.allclose(gradient, theirs[n], rtol=1e-4, atol=1e-5 * float(theirs[n].abs().max() + 1e-9)), n
        assert torch.allclose(logits, same, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", sorted(set(plugins.names("methods")) - set(RUNS)))
def test_what_needs_the_weights_is_refused_before_a_trial(method, folders):
    """The library need not be there: the model on the meta device says it."""
    meta = meta_model(ModelSpec(folders["llama"], quantisation="nf4"), CAUSAL, 0)
    for counting in (partial(count, meta, view(meta)), Counter(meta, view(meta))):
        with pytest.raises(Refused, match=REFUSED[method]):
            counting({"method": method})
    if method == "last_layers":
        with pytest.raises(Refused, match="quantised"):
            count(meta, view(meta), {"method": "lora+last_layers"})


def test_a_missing_library_is_said(folders, monkeypatch):
    monkeypatch.setattr("autopeft.quantisations.find_spec", lambda name: None)
    with pytest.raises(
        EnvironmentFault, match=re.escape("nf4 needs bitsandbytes: pip install 'autopeft[bitsandbytes]'")
    ):
        require_library("nf4")
    with pytest.raises(ConfigError, match=re.escape("model.quantisation: int8 needs bitsandbytes")):
        load_config(config(folders["llama"], "int8"))
    with pytest.raises(ConfigError, match="expected null, or one of nf4, int8, torchao_int8, got 'int3'"):
        load_config(config(folders["llama"], "int3"))


def config(model, quantisation):
    return {
        "model": {"path": model, "quantisation": quantisation},
        "task": "causal_language_modelling", "data": {"hub": "x"}, "space": {"method": ["lora"]},
        "budget": {"trials": 1},
    }  # fmt: skip


def causal_setup(tmp_path, model, **values):
    data = {"train": str(write_completions(tmp_path / "train.csv", 60)), "validation_share": 0.2}
    return Setup.of(
        model=model, task="causal_language_modelling", options={"generate_rows": 2, "new_tokens": 4}, data=data,
        folder=str(tmp_path), cache=str(tmp_path / "cache"), steps=6, batch_size=8, keep="all", **values,
    )  # fmt: skip


@pytest.mark.parametrize("name", EACH)
def test_a_trial_is_exported_and_merged(name, folders, tmp_path):
    """The adapter says the quantisation of its base, as stock libraries take it; merged weights are dequantised."""
    setup = causal_setup(tmp_path, folders["llama"], quantisation=name)
    worker = Worker(setup)
    params = {"method": "lora", "lora.modules": "all", "lora.lr": 3e-2, "lora.alpha": 64}
    result = list(worker.evaluate(Trial(0, params, 7)))[-1]
    assert (
        result.metrics["trainable_parameters"]
        == count(meta_model(setup.model, CAUSAL, 0), view(worker.base), params)["trainable_parameters"]
    )
    tensors = tmp_path / "trials" / "00000" / "trained.safetensors"
    logits, inputs = worker.sample(Trial(0, params, 7), tensors)
    given = {"setup": setup, "params": params, "seed": 7, "tensors": tensors, "about": {"n_outputs": 0},
             "card": lambda about: "\n".join(card._stock(about)), "facts": {}}  # fmt: skip
    adapter = export(**given, to=tmp_path / "adapter")
    assert verify(adapter, logits, inputs) <= 1e-5
    about = json.loads((adapter / "autopeft.json").read_text())
    assert about["quantisation"] == name
    assert "AutoQuantizationConfig" in (adapter / "README.md").read_text()
    compile((adapter / "README.md").read_text(), "card", "exec")
    if not QUANTISATIONS[name].merges:
        with pytest.raises(UsageError, match="cannot be merged into: it rounds activations"):
            export(**given, to=tmp_path / "merged", merged=True)
        assert not (tmp_path / "merged").exists()
        return
    merged = export(**given, to=tmp_path / "merged", merged=True)
    assert verify(merged, logits, inputs) <= 1e-5
    about = json.loads((merged / "autopeft.json").read_text())
    assert (about["quantisation"], about["dequantised"]) == (None, name)
    assert "quantization_config" not in json.loads((merged / "config.json").read_text())


@needs("bitsandbytes")
@pytest.mark.parametrize("name", ["nf4", "int8"])
def test_a_classifier_keeps_its_head_whole(name, tmp_path):
    spec = ModelSpec(bert(tmp_path), quantisation=name)
    model = load_model(spec, "AutoModelForSequenceClassification", 5)
    parts = view(model)
    assert parts == view(meta_model(spec, "AutoModelForSequenceClassification", 5))
    attached = attach(model, parts, {"method": "bias+lora"}, 0)
    inputs = {"input_ids": torch.tensor([[2, 6, 7, 3]]), "attention_mask": torch.ones(1, 4, dtype=torch.long)}
    attached.model(**inputs).logits.sum().backward()
    without = [n for n, p in attached.model.named_parameters() if n in attached.trained and p.grad is None]
    assert not without
    assert attached.model.classifier.weight.dtype == torch.float32
    for precision in ("bf16", "bf16_frozen"):
        lowered = attach(model, parts, {"method": "lora"}, 0)
        as_trials_run(lowered.model, parts, Precision(precision, torch.device("cpu"), parts))
        with torch.autocast("cpu", torch.bfloat16):
            lowered.model(**inputs).logits.sum().backward()


@pytest.mark.gpu
@pytest.mark.parametrize("name", EACH)
def test_on_a_gpu_a_step_reaches_all_that_trains(name, folders):
    model = load_model(ModelSpec(folders["llama"], quantisation=name), CAUSAL, 0, device="cuda")
    parts = view(model)
    assert packed_in(model) == set(parts.quantised)
    assert {parameter.device.type for parameter in model.parameters()} == {"cuda"}
    for precision in ("fp32", "bf16"):
        attached = attach(model, parts, {"method": "lora", "lora.modules": "all"}, 0)
        as_trials_run(attached.model, parts, Precision(precision, torch.device("cuda"), parts))
        given = {key: value.cuda() for key, value in batch(model).items()}
        with torch.autocast("cuda", torch.bfloat16, enabled=precision == "bf16"):
            attached.model(**given).logits.float().sum().backward()
        tensors = dict(attached.model.named_parameters())
        assert all(torch.isfinite(tensors[n].grad).all() for n in attached.trained)
