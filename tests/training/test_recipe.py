"""Recipes, composed ones too, on a text model, a vision transformer and a convolutional net."""

import pytest
import torch
from models import bert, image_inputs, mobilenet, text_inputs, vit

from autopeft import plugins
from autopeft.errors import Refused
from autopeft.naming import describe
from autopeft.training.model import load_model, meta_model, view
from autopeft.training.recipe import attach, count, load_trained, trained_state

COMPOSED = ("lora+bias", "serial_adapter+parallel_adapter+prefix", "ia3+norm")
METHODS = (*plugins.names("methods"), *COMPOSED)
# Which methods a convolutional net has no place for; the rest must work on all three.
NOT_FOR_CONVOLUTIONS = {"parallel_adapter", "prefix", "vera", "serial_adapter+parallel_adapter+prefix"}
MODELS = {
    "bert": (bert, "AutoModelForSequenceClassification", text_inputs),
    "vit": (vit, "AutoModelForImageClassification", lambda: image_inputs(16)),
    "mobilenet": (mobilenet, "AutoModelForImageClassification", lambda: image_inputs(32)),
}


class Case:
    def __init__(self, kind, folder):
        make, auto_class, inputs = MODELS[kind]
        path = make(folder)
        self.kind, self.inputs = kind, inputs()
        self.base = load_model(path, auto_class, 3)
        self.meta = meta_model(path, auto_class, 3)
        self.view = view(self.base)
        self.before = {name: tensor.clone() for name, tensor in self.base.state_dict().items()}

    def params(self, method, **more):
        params = {"method": method, "head.lr": 1e-2}
        if self.kind == "mobilenet":
            for part in method.split("+"):
                if part in ("lora", "ia3", "vera", "serial_adapter"):
                    params[f"{part}.modules"] = ["convolution"]
        return {**params, **more}

    def train(self, attached, steps=2):
        parameters = [p for p in attached.model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(parameters, lr=1e-2)
        for _ in range(steps):
            logits = attached.model(**self.inputs).logits
            torch.nn.functional.cross_entropy(logits, torch.tensor([0, 1, 2, 0])).backward()
            optimizer.step()
            optimizer.zero_grad()

    def logits(self, attached):
        with torch.no_grad():
            return attached.model.eval()(**self.inputs).logits


@pytest.fixture(scope="module", params=MODELS)
def case(request, tmp_path_factory):
    return Case(request.param, tmp_path_factory.mktemp(request.param))


def attached_or_refused(case, method, **more):
    params = case.params(method, **more)
    if case.kind == "mobilenet" and method in NOT_FOR_CONVOLUTIONS:
        with pytest.raises(Refused):
            count(case.meta, case.view, params)
        pytest.skip("refused, as it should be: no place for it in a convolutional net")
    return attach(case.base, case.view, params, 7), params


@pytest.mark.parametrize("method", METHODS)
def test_the_count_on_meta_is_what_trains(case, method):
    attached, params = attached_or_refused(case, method)
    sizes = {name: p.numel() for name, p in attached.model.named_parameters() if p.requires_grad}
    counts = count(case.meta, case.view, params)
    assert counts["trainable_parameters"] == sum(sizes.values())
    assert counts["head_parameters"] == sum(sizes[name] for name in attached.head)
    assert counts["adapter_parameters"] == counts["trainable_parameters"] - counts["head_parameters"]
    assert (counts["adapter_parameters"] > 0) == (method != "head")
    assert set(attached.trained) == set(sizes)
    assert sorted(name for group in attached.groups for name in group.names) == sorted(sizes)


@pytest.mark.parametrize("method", METHODS)
def test_training_moves_its_own_parameters_and_leaves_the_base_alone(case, method):
    attached, _ = attached_or_refused(case, method)
    first = {name: tensor.clone() for name, tensor in trained_state(attached).items()}
    before = case.logits(attached)
    case.train(attached)
    assert torch.isfinite(before).all()
    assert not torch.equal(before, case.logits(attached))
    moved = {name for name, tensor in trained_state(attached).items() if not torch.equal(tensor, first[name])}
    # A key's bias drops out of the softmax; a later one may have no gradient in two steps, but each group moves.
    for group in attached.groups:
        assert moved & set(group.names), group.component
    for name, tensor in case.base.state_dict().items():
        assert torch.equal(tensor, case.before[name]), name
    assert not any(parameter.requires_grad for parameter in case.base.parameters())


@pytest.mark.parametrize("method", METHODS)
def test_saved_tensors_put_back_give_the_same_logits(case, method):
    attached, params = attached_or_refused(case, method)
    case.train(attached)
    again = attach(case.base, case.view, params, 7)
    load_trained(again, {name: tensor.clone() for name, tensor in trained_state(attached).items()})
    assert torch.equal(case.logits(again), case.logits(attached))


@pytest.mark.parametrize("method", METHODS)
def test_two_trials_side_by_side_train_as_if_alone(case, method):
    attached, params = attached_or_refused(case, method)
    case.train(attached)
    alone = case.logits(attached)
    first, second = attach(case.base, case.view, params, 7), attach(case.base, case.view, params, 8)
    case.train(first, steps=1)
    case.train(second, steps=1)
    again = attach(case.base, case.view, params, 7)
    case.train(again)
    assert torch.equal(case.logits(again), alone)
    assert not torch.equal(case.logits(first), case.logits(second))


@pytest.mark.parametrize("method", METHODS)
def test_below_the_lowest_trained_block_nothing_changes(case, method):
    attached, _ = attached_or_refused(case, method)
    case.train(attached)
    index = attached.lowest
    if index == 0:
        return
    seen = {}
    name = case.view.blocks[index - 1]
    for key, model in (("base", case.base), ("trained", attached.model)):
        handle = model.get_submodule(name).register_forward_hook(lambda m, a, out, key=key: seen.update({key: out}))
        with torch.no_grad():
            model(**case.inputs)
        handle.remove()
    assert torch.equal(seen["base"], seen["trained"])


@pytest.mark.parametrize("method", METHODS)
def test_it_has_a_name_for_a_person(case, method):
    text = describe(case.params(method), case.view.n_layers)
    assert text
    assert "_" not in text


def test_the_head_of_a_seed_is_the_same_whatever_the_recipe(case):
    heads = [
        {name: dict(attach(case.base, case.view, case.params(m), 3).model.named_parameters())[name] for name in attach(
            case.base, case.view, case.params(m), 3).head}
        for m in ("head", "lora", "full")
    ]  # fmt: skip
    for other in heads[1:]:
        assert all(torch.equal(tensor, other[name]) for name, tensor in heads[0].items())


@pytest.mark.parametrize("layers", [[0], [2], [0, 2], "last_1"])
def test_layers_are_those_that_were_asked_for(case, layers):
    attached, _ = attached_or_refused(case, "lora", **{"lora.layers": layers})
    blocks = {case.view.block_of(name) for name in attached.trained} - {case.view.n_layers}
    assert blocks == (set(layers) if isinstance(layers, list) else {case.view.n_layers - 1})
    assert attached.lowest == min(blocks)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"method": "lora", "lora.rank": 0}, "empty"),
        ({"method": "lora", "lora.layers": []}, "empty"),
        ({"method": "lora", "lora.layers": [99]}, "layers 0 to"),
        ({"method": "serial_adapter", "serial_adapter.modules": ["nothing"]}, "nothing to act on"),
        ({"method": "last_layers", "last_layers.count": 99}, "layers, not 99"),
    ],
)
def test_what_cannot_run_is_refused_with_its_reason(tmp_path, params, message):
    case = Case("bert", tmp_path)
    with pytest.raises(Refused, match=message):
        count(case.meta, case.view, params)


def test_each_method_documents_formula_and_source():
    for name in plugins.names("methods"):
        module = __import__(f"autopeft.methods.{name}", fromlist=["plugin"])
        assert module.__doc__
        assert "lr" in module.plugin.stock
        assert set(module.plugin.keys) <= {*module.plugin.stock}
        if name not in ("head", "full"):
            assert "arXiv" in module.__doc__, name
