"""bf16 in its two kinds: what is cast, what is not, and that the logits stay near those of fp32."""

import numpy as np
import pytest
import torch
from models import bert, image_inputs, mobilenet, text_inputs, vit, write_texts
from torch import nn

from autopeft.training.loop import Worker
from autopeft.training.measure import TOLERANCE
from autopeft.training.model import load_model, view
from autopeft.training.precision import PRECISIONS, Precision
from autopeft.training.recipe import attach
from autopeft.training.setup import ModelSpec, Setup
from autopeft.trial import Status, Trial

CPU = torch.device("cpu")
MODELS = {
    "bert": (bert, "AutoModelForSequenceClassification", text_inputs()),
    "vit": (vit, "AutoModelForImageClassification", image_inputs(16)),
    "mobilenet": (mobilenet, "AutoModelForImageClassification", image_inputs(32)),
}


@pytest.fixture(scope="module", params=MODELS)
def loaded(request, tmp_path_factory):
    """(base, inputs) of a model."""
    make, auto_class, inputs = MODELS[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    make(folder)
    return load_model(ModelSpec(str(folder)), auto_class, 3), inputs


def lowered(base, params, name):
    """(precision, a clone with the recipe) as a worker makes them."""
    parts = view(base)
    precision, attached = Precision(name, CPU, parts), attach(base, parts, params, 0)
    precision.lower(attached.model)
    return precision, attached


def logits(precision, model, inputs):
    with torch.no_grad(), precision.context():
        return model(**inputs).logits.float()


def recipe(base, **keys):
    modules = "all" if "query" in view(base).kinds else ["convolution"]
    return {"method": "lora", "lora.modules": modules, **{f"lora.{key}": value for key, value in keys.items()}}


@pytest.mark.parametrize("name", PRECISIONS[1:])
def test_logits_are_near_those_of_fp32_and_gradients_are_fp32(loaded, name):
    base, inputs = loaded
    is_deep = "convolution" in view(base).kinds  # fifty layers of random weights: bf16 moves them by any amount
    precision, attached = lowered(base, recipe(base), "fp32")
    exact = logits(precision, attached.model, inputs)
    precision, attached = lowered(base, recipe(base), name)
    found = logits(precision, attached.model, inputs)
    assert 0 < (found - exact).abs().max() <= (torch.inf if is_deep else TOLERANCE) * exact.abs().max()
    with precision.context():
        attached.model(**inputs).logits.float().sum().backward()
    gradients = [p.grad for p in attached.model.parameters() if p.requires_grad]
    assert all(gradient is not None and gradient.dtype == torch.float32 for gradient in gradients)


def test_frozen_weights_are_cast_once_for_all_trials_but_those_that_dora_reads(loaded):
    base, _ = loaded
    precision = Precision("bf16", CPU, view(base))
    models = []
    for dora in (False, False, True):
        attached = attach(base, view(base), recipe(base, dora=dora), 0)
        precision.lower(attached.model)
        models.append(attached.model)
    weights = [
        {
            name: module.weight
            for name, module in model.named_modules()
            if isinstance(module, (nn.Linear, nn.Conv2d)) and not module.weight.requires_grad
        }
        for model in models
    ]
    adapted = {name for name in weights[0] if name.endswith("base_layer")}
    assert adapted
    assert {weight.dtype for weight in weights[0].values()} == {torch.bfloat16}
    assert all(weights[0][name] is weights[1][name] for name in weights[0])
    assert all(weights[2][name].dtype == torch.float32 for name in adapted)


def test_halved_weights_give_the_bits_of_autocast(loaded):
    base, inputs = loaded
    precision = Precision("bf16", CPU, view(base))
    model = attach(base, view(base), recipe(base), 0).model
    cast = logits(precision, model, inputs)
    precision.lower(model)
    assert torch.equal(logits(precision, model, inputs), cast)


def test_bf16_frozen_hands_bf16_from_block_to_block(loaded):
    base, inputs = loaded

    def seen(name):
        precision, attached = lowered(base, recipe(base), name)
        dtypes = []
        for block in view(base).blocks:
            attached.model.get_submodule(block).register_forward_pre_hook(lambda _, args: dtypes.append(args[0].dtype))
        logits(precision, attached.model, inputs)
        return set(dtypes)

    assert seen("bf16_frozen") == {torch.bfloat16}
    assert torch.bfloat16 not in seen("fp32")


def test_the_base_stays_fp32(loaded):
    base, inputs = loaded
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    for name in PRECISIONS:
        precision, attached = lowered(base, recipe(base), name)
        logits(precision, attached.model, inputs)
    after = base.state_dict()
    assert all(
        torch.equal(after[name], tensor) and after[name].dtype == tensor.dtype for name, tensor in before.items()
    )


@pytest.mark.parametrize("name", PRECISIONS[1:])
def test_a_search_in_bf16_scores_as_in_fp32_from_the_cache_and_without(tmp_path, name):
    (tmp_path / "model").mkdir()
    data = {"train": str(write_texts(tmp_path / "train.csv", 240)), "text": "text", "label": "label",
            "validation_share": 0.25, "test_share": 0.25}  # fmt: skip
    setup = Setup.of(
        model=bert(tmp_path / "model"), task="text_classification", data=data, folder=str(tmp_path / "run"),
        cache=str(tmp_path / "cache"), epochs=4, batch_size=16, keep="none",
    )  # fmt: skip
    trial = Trial(0, {"method": "last_layers", "last_layers.count": 1, "last_layers.lr": 5e-3, "head.lr": 1e-2}, 5)
    *_, exact = Worker(setup).evaluate(trial)
    workers = [Worker(setup.but(precision=name, prefix_cache_bytes=size)) for size in (2**30, 0)]
    networks = [worker.network(trial) for worker in workers]
    assert networks[0].depth > 0 == networks[1].depth
    cached, uncached = (w.answers(n, "validation").kept["logits"] for w, n in zip(workers, networks, strict=True))
    assert np.array_equal(cached, uncached)
    *_, result = workers[0].evaluate(trial)
    assert result.status is Status.COMPLETE, result.error
    assert abs(result.metrics["accuracy"] - exact.metrics["accuracy"]) <= 0.05


def test_a_name_that_is_none_is_refused():
    with pytest.raises(ValueError, match="fp32, bf16, bf16_frozen"):
        Precision("bf15", CPU, None)


def test_a_tensor_of_a_trial_has_no_other_trials_half(tmp_path):
    """A trial's own frozen weights (of methods that change the base) die with it, and their numbers are given again."""
    bert(tmp_path)
    base = load_model(ModelSpec(str(tmp_path)), "AutoModelForSequenceClassification", 3)
    precision = Precision("bf16", CPU, view(base))
    name = "bert.encoder.layer.0.attention.self.query.weight"
    for trial in range(20):
        model = attach(base, view(base), {"method": "head"}, 0).model
        layer = model.get_submodule(name.removesuffix(".weight"))
        own = torch.full_like(layer.weight, float(trial))
        layer.weight = nn.Parameter(own, requires_grad=False)
        precision.lower(model)
        assert torch.equal(layer.weight, own.to(torch.bfloat16))
        del model, layer
    shared = {id(half) for half in precision._halves.values()}
    linear = sum(isinstance(module, nn.Linear) for module in base.bert.modules())
    assert len(shared) == linear - 1, "of the base alone, but for the one that was never its own"
