"""What is decided when a config meets its machine."""

from types import SimpleNamespace

import pytest
import torch

from autopeft.config import load
from autopeft.errors import EnvironmentFault, UsageError
from autopeft.prepared import make_objective, require_gpu


def config(gpus, device):
    demo = {"model": "digits", "task": "digits", "data": {}, "space": "digits", "budget": {"trials": 1}}
    options = {"name": "ray_tune", "gpus_per_trial": gpus}
    return load({**demo, "executor": options, "training": {"device": device}})


def test_gpus_a_trial_that_no_device_would_use_are_a_fault(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(EnvironmentFault, match=r"executor\.gpus_per_trial is 0\.5, .* torch sees no GPU"):
        require_gpu(config(0.5, "auto"))


@pytest.mark.parametrize(("gpus", "device", "sees_gpu"), [(0.5, "auto", True), (0, "auto", False), (1, "cuda", False)])
def test_what_is_meant_is_let_through(monkeypatch, gpus, device, sees_gpu):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: sees_gpu)
    require_gpu(config(gpus, device))


@pytest.mark.parametrize("reference", [None, 0.1])
def test_a_metric_that_the_data_does_not_give_is_said_before_the_search(reference):
    entry = SimpleNamespace(metric="f1", goal=None, scale=None, reference=reference)
    with pytest.raises(UsageError, match=r"gives no f1, only accuracy, macro_f1 \(f1 is of two labels\)"):
        make_objective(entry, {"accuracy": 0.4, "macro_f1": 0.2}, 100)
