"""Every method keeps its family's contract by existing."""

from typing import ClassVar

import pytest
import torch

from autopeft import plugins, testing
from autopeft.errors import Refused
from autopeft.methods import Method

SUBJECTS = {subject.name: subject for subject in testing.method_subjects()}
# Which methods are not for which model; all others must run. A new method runs on all until it is written here.
REFUSED = {
    ("vera", "mobilenet"),  # peft's VeRA knows linear layers only
    ("parallel_adapter", "mobilenet"),  # no sub-layers
    ("prefix", "mobilenet"),  # no attention
    ("tokens", "vit"),  # no tokens
    ("tokens", "mobilenet"),
    *((name, "mobilenet") for name in ("eva", "olora", "pissa", "shira")),  # linear layers only
}


@pytest.mark.parametrize("check", testing.METHOD_CHECKS, ids=lambda check: check.__name__.removeprefix("check_method_"))
@pytest.mark.parametrize("subject", SUBJECTS)
@pytest.mark.parametrize("name", plugins.names("methods"))
def test_contract(name, subject, check):
    if (name, subject) in REFUSED and check is not testing.check_method_describes_itself:
        with pytest.raises(Refused) as refusal:
            check(name, SUBJECTS[subject])
        pytest.skip(str(refusal.value))
    check(name, SUBJECTS[subject])


# ── the contract finds what it is there to find ─────────────────────────────────────────────────────────────────────


class Wrong(Method):
    """A method that does one thing wrong: its subclasses say which."""

    label = "wrong"
    keys: ClassVar = {}
    stock: ClassVar = {"lr": 1e-2}
    modules = ("down",)

    def attach(self, model, site):
        for name in site.scope.names:
            self.add(model, name)

    def add(self, model, name):
        layer = model.get_submodule(name)
        layer.extra = torch.nn.Parameter(torch.zeros(layer.out_features, device=layer.weight.device))
        layer.register_forward_hook(lambda module, _, output: output + module.extra)


class MixesTokens(Wrong):
    """What it adds is of all tokens of a row, padding included."""

    def add(self, model, name):
        layer = model.get_submodule(name)
        layer.extra = torch.nn.Parameter(torch.zeros(layer.out_features, device=layer.weight.device))
        layer.register_forward_hook(lambda module, _, output: output + output.mean(1, keepdim=True) * module.extra)


class ChangesTheBase(Wrong):
    def add(self, model, name):
        super().add(model, name)
        if not model.get_submodule(name).weight.is_meta:
            model.get_submodule(name).weight.data.mul_(1.01)


class HooksTheWrongBlock(Wrong):
    def attach(self, model, site):
        shift = torch.nn.Parameter(torch.zeros(16, device=model.classifier.weight.device))
        model.get_submodule(site.scope.names[-1]).shift = shift
        model.bert.embeddings.register_forward_hook(lambda _, __, output: output + shift)


class HasUntrainedParameters(Wrong):
    def add(self, model, name):
        super().add(model, name)
        layer = model.get_submodule(name)
        layer.unused = torch.nn.Parameter(torch.zeros(3, device=layer.weight.device))


class KeepsStateOutsideItsParameters(Wrong):
    draws = torch.Generator().manual_seed(0)

    def add(self, model, name):
        super().add(model, name)
        if not model.get_submodule(name).weight.is_meta:
            drawn = torch.rand(16, generator=self.draws)  # another one each time
            model.get_submodule(name).register_forward_hook(lambda _, __, output: output + drawn)


class CountsOtherwiseOnMeta(Wrong):
    def add(self, model, name):
        layer = model.get_submodule(name)
        width = 1 if layer.weight.is_meta else layer.out_features
        layer.extra = torch.nn.Parameter(torch.zeros(width, device=layer.weight.device))
        layer.register_forward_hook(lambda module, _, output: output + module.extra)


class SaysNothingOfAKey(Wrong):
    stock: ClassVar = {"lr": 1e-2, "size": 3}


@pytest.mark.parametrize(
    ("wrong", "check"),
    [
        (ChangesTheBase, testing.check_method_leaves_the_base),
        (HooksTheWrongBlock, testing.check_method_lowest_is_right),
        (HasUntrainedParameters, testing.check_method_trains_its_own),
        (KeepsStateOutsideItsParameters, testing.check_method_saves_all_it_trains),
        (MixesTokens, testing.check_method_takes_rows_end_to_end),
        (CountsOtherwiseOnMeta, testing.check_method_count_is_exact),
        (SaysNothingOfAKey, testing.check_method_describes_itself),
    ],
)
def test_contract_finds(wrong, check, monkeypatch):
    load = plugins.load
    monkeypatch.setattr(plugins, "load", lambda kind, name: wrong if name == "wrong" else load(kind, name))
    subject = next(s for s in testing.method_subjects() if s.name == "bert")  # a base of its own: some spoil it
    with pytest.raises(AssertionError):
        check("wrong", subject)


@pytest.mark.parametrize("check", testing.METHOD_CHECKS)
def test_contract_lets_a_right_method_pass(check, monkeypatch):
    load = plugins.load
    monkeypatch.setattr(plugins, "load", lambda kind, name: Wrong if name == "wrong" else load(kind, name))
    check("wrong", SUBJECTS["bert"])
