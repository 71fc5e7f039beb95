"""Counting by formulas gives what attaching gives, and refuses what it refuses."""

import numpy as np
import pytest
from architectures import MAKE

from autopeft import spaces, yaml_file
from autopeft.errors import Refused
from autopeft.training import counter as module
from autopeft.training.counter import Counter
from autopeft.training.model import view
from autopeft.training.recipe import count


def outcome(call, params):
    try:
        return call(params)
    except Refused:
        return "refused"


@pytest.mark.parametrize("name", ["bert", "gpt2", "mobilenet_v2"])
def test_it_counts_what_is_attached(name):
    base = MAKE[name]()
    meta, parts = base.to("meta"), view(base)
    content = yaml_file.read(spaces.shipped()["all_methods"]).content
    space, faults = spaces.read(content, parts.n_layers, list(parts.kinds))
    assert not faults
    counter, rng, found = Counter(meta, parts), np.random.default_rng(0), []
    for params in [*space.defaults(), *(space.draw(rng) for _ in range(60))]:
        found.append(outcome(counter, params))
        assert found[-1] == outcome(lambda given: count(meta, parts, given), params), params
    assert len({str(each) for each in found}) > 10


def test_linear_layers_are_counted_without_attaching(monkeypatch):
    base = MAKE["bert"]()
    meta, parts = base.to("meta"), view(base)
    space, _ = spaces.read(yaml_file.read(spaces.shipped()["all_methods"]).content, parts.n_layers, list(parts.kinds))
    whole = []
    monkeypatch.setattr(module, "count", lambda meta, view, params: whole.append(params["method"]) or {})
    counter, rng = Counter(meta, parts), np.random.default_rng(0)
    for _ in range(200):
        outcome(counter, space.draw(rng))
    assert not whole


@pytest.mark.parametrize(
    "method", ["boft+bias", "lora+boft", "hra+last_layers", "full+shira", "boft+lora", "shira+head"]
)
def test_what_attaching_refuses_is_refused_when_counted(method):
    """A layer that computes with the base's weight hides what else is trained in it: no trial is spent on that."""
    from autopeft.training.recipe import attach

    base = MAKE["bert"]()
    parts, params = view(base), {"method": method}
    attached = outcome(lambda given: attach(base, parts, given, 0), params)
    meta = MAKE["bert"]().to("meta")
    counted = outcome(Counter(meta, view(meta)), params)
    assert (attached == "refused") == (counted == "refused")
