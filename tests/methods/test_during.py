"""Methods that do more than add trained tensors: a say during training, a changed base, data, rates of their own."""

import pytest
import torch

from autopeft import testing
from autopeft.testing.methods import attach_method, train_method
from autopeft.training.recipe import attach

BERT = {subject.name: subject for subject in testing.method_subjects()}["bert"]
QUERY = "bert.encoder.layer.1.attention.self.query"


def test_adalora_shrinks_to_its_rank_on_average_and_distributes_it():
    attached = attach_method(BERT, {"method": "adalora", "adalora.rank": 4, "adalora.lr": 1e-2}, seed=1)
    modules = [module for module in attached.model.modules() if hasattr(module, "lora_E")]
    train_method(BERT, attached, steps=10)
    ranks = [int((module.lora_E["default"] != 0).sum()) for module in modules]
    assert all(len(module.lora_E["default"]) == 6 for module in modules), "it began with half as much again"
    assert sum(ranks) == 4 * len(modules)
    assert len(set(ranks)) > 1


def test_adaloras_penalty_is_the_distance_of_p_and_q_from_orthogonal():
    attached = attach_method(BERT, {"method": "adalora", "adalora.orthogonality": 0.3}, seed=1)
    distances = []
    for module in attached.model.modules():
        if hasattr(module, "lora_E"):
            p, q = module.lora_B["default"], module.lora_A["default"]
            distances += [(p.T @ p - torch.eye(12)).norm(), (q @ q.T - torch.eye(12)).norm()]
    (during,) = attached.during
    assert float(during.penalty().detach()) == pytest.approx(0.3 * float(torch.stack(distances).mean()))
    parameters = [p for n, p in attached.model.named_parameters() if "lora_A" in n or "lora_B" in n]
    assert all(gradient is not None for gradient in torch.autograd.grad(during.penalty(), parameters))


@pytest.mark.parametrize("name", ["pissa", "olora"])
def test_what_begins_with_a_part_of_the_weight_gives_the_bases_logits(name):
    attached = attach_method(BERT, {"method": name}, seed=1)
    layer, base = attached.model.get_submodule(QUERY), BERT.base.get_submodule(QUERY)
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    assert torch.allclose(layer.base_layer.weight + 2.0 * b @ a, base.weight, atol=1e-5)
    assert not torch.allclose(layer.base_layer.weight, base.weight, atol=1e-2)
    assert f"{QUERY}.base_layer.weight" in set(attached.own) - set(attached.trained)
    if name == "pissa":
        largest = torch.linalg.svdvals(base.weight)[:8]
        assert torch.allclose(torch.linalg.svdvals(2.0 * b @ a)[:8], largest, rtol=1e-4)


def test_eva_begins_with_the_directions_in_which_its_inputs_vary_most():
    attached = attach_method(BERT, {"method": "eva", "eva.rank": 3}, seed=1)
    seen = []
    handle = BERT.base.get_submodule(QUERY).register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        BERT.logits(BERT.base)
    handle.remove()
    rows = seen[0][BERT.inputs["attention_mask"].bool()]  # no padding
    expected = torch.linalg.svd(rows, full_matrices=False).Vh[:3]
    a = attached.model.get_submodule(QUERY).lora_A["default"].weight
    assert torch.allclose((a @ expected.T).abs(), torch.eye(3), atol=1e-4)
    again = attach(BERT.base, BERT.view, {"method": "eva", "eva.rank": 3}, 1).model  # as for loading: no data
    assert not torch.allclose(again.get_submodule(QUERY).lora_A["default"].weight, a)


def test_lora_plus_has_two_rates_in_its_component():
    groups = attach_method(BERT, {"method": "lora_plus", "lora_plus.lr": 1e-4, "lora_plus.ratio": 4.0}, seed=1).groups
    rates = {group.lr: group.names for group in groups if group.component == "lora_plus"}
    assert set(rates) == {1e-4, 4e-4}
    assert all("lora_B" in name for name in rates[4e-4]) and all("lora_A" in name for name in rates[1e-4])


def test_lora_fa_has_a_frozen_tensor_of_its_own():
    attached = attach_method(BERT, {"method": "lora_fa"}, seed=1)
    frozen = set(attached.own) - set(attached.trained)
    assert frozen and all("lora_A" in name for name in frozen)


def test_tokens_are_the_most_frequent_ones():
    attached = attach_method(BERT, {"method": "tokens", "tokens.size": 2}, seed=1)
    layer = attached.model.get_input_embeddings()
    ids = BERT.inputs["input_ids"][BERT.inputs["attention_mask"].bool()]
    assert layer.chosen_tokens.tolist()[0] == ids.mode().values.item()
    with torch.no_grad():
        layer.chosen_shift.fill_(1.0)
    moved = (
        (layer(torch.arange(20)) - BERT.base.get_input_embeddings()(torch.arange(20))).abs().sum(1).nonzero().flatten()
    )
    assert sorted(moved.tolist()) == sorted(layer.chosen_tokens.tolist())
