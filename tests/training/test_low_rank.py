"""The fused low-rank update computes what autograd's chain and peft's own layers do."""

import copy

import pytest
import torch
from architectures import MAKE, inputs

from autopeft.training.low_rank import FusedLinear, fuse, updated
from autopeft.training.model import view
from autopeft.training.recipe import attach


def test_gradients_are_those_of_autograd():
    """Of the fused node, against the formula written out, in float64; of the base too, which may be trained."""
    torch.manual_seed(0)
    base = torch.nn.Linear(4, 6, dtype=torch.float64)
    shapes = {"x": (3, 5, 4), "a": (3, 2, 4), "b": (3, 6, 2)}
    given = {name: torch.randn(shape, dtype=torch.float64, requires_grad=True) for name, shape in shapes.items()}
    mask = (torch.rand(3, 5, 4, dtype=torch.float64) > 0.3) / 0.7
    for dropped in (None, mask):
        out = updated(given["x"], base, given["a"], given["b"], dropped)
        x = given["x"] if dropped is None else given["x"] * dropped
        plain = base(given["x"]) + x @ given["a"].mT @ given["b"].mT
        assert torch.allclose(out, plain)
        weights = torch.randn_like(plain)
        asked = [*given.values(), base.weight, base.bias]
        ours, theirs = (torch.autograd.grad((value * weights).sum(), asked) for value in (out, plain))
        assert all(torch.allclose(one, other) for one, other in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("autocast", [False, True])
def test_a_fused_model_is_pefts_own(autocast, dropout):
    """Logits and gradients of LoRA on every module of BERT; under autocast to bf16's rounding. Dropout draws the same."""
    base = MAKE["bert"]()
    params = {"method": "lora", "lora.modules": "all", "lora.dropout": dropout, "lora.lr": 1e-3, "head.lr": 1e-3}
    attached = attach(base, view(base), {**params, "lora.rslora": True}, 0)
    model = attached.model.train()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    fused = copy.deepcopy(model)
    fuse(fused)
    assert any(isinstance(module, FusedLinear) for module in fused.modules())
    found = []
    for each in (model, fused):
        torch.manual_seed(0)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            logits = each(**inputs(base)).logits
        logits.float().square().sum().backward()
        gradients = {name: p.grad for name, p in each.named_parameters() if p.requires_grad}
        found.append((logits.detach().float(), gradients))
    (logits, gradients), (own, others) = found
    tolerance = 0.1 if autocast else 1e-5
    assert (own - logits).abs().max() <= tolerance * logits.abs().max()
    for name, gradient in gradients.items():
        assert (others[name] - gradient).abs().max() <= tolerance * gradient.abs().max() + 1e-7, name


def test_what_peft_does_otherwise_stays_as_it_is():
    """DoRA, convolutions, and a LoRA around another adapter."""
    for name, params in (
        ("bert", {"method": "lora", "lora.dora": True}),
        ("mobilenet_v2", {"method": "lora", "lora.modules": ["convolution"]}),
        ("bert", {"method": "ia3+lora", "ia3.lr": 1e-3}),
        ("gpt2", {"method": "lora"}),
    ):
        base = MAKE[name]()
        model = attach(base, view(base), {"lora.lr": 1e-3, "head.lr": 1e-3, **params}, 0).model
        fuse(model)
        if name == "bert" and "ia3" in params["method"]:
            fused = [n for n, module in model.named_modules() if isinstance(module, FusedLinear)]
            assert not any("value" in n or "key" in n for n in fused), "there ia3 lies between"
        else:
            assert not any(isinstance(module, FusedLinear) for module in model.modules())


def test_rows_take_their_share_of_an_update():
    """Two trials' updates on one buffer of tokens, each token its own trial's: as each trial's rows by themselves."""
    torch.manual_seed(0)
    layer = torch.nn.Linear(5, 7).double().requires_grad_(False)
    x = torch.randn(6, 5, dtype=torch.double, requires_grad=True)
    a, b = (torch.randn(2, *shape, dtype=torch.double, requires_grad=True) for shape in ((3, 5), (7, 3)))
    owner = torch.tensor([0, 0, 1, 1, 1, 0])
    share = (owner[:, None] == torch.arange(6) // 3).double()[None]
    joined = updated(x[None], layer, a.reshape(1, 6, 5), b.transpose(0, 1).reshape(1, 7, 6), None, share)[0]
    plain = layer(x) + torch.stack([b[k] @ (a[k] @ row) for k, row in zip(owner.tolist(), x, strict=True)])
    assert torch.allclose(joined, plain)
    weight = torch.randn_like(plain)
    for one, other in zip(
        *(torch.autograd.grad((out * weight).sum(), (x, a, b)) for out in (joined, plain)), strict=True
    ):
        assert torch.allclose(one, other)
