"""The default executor: by the GPUs that trials may use."""

import pytest
import torch

from autopeft.config import load
from autopeft.errors import ConfigError
from autopeft.executors.auto import Auto
from autopeft.executors.packed import Packed
from autopeft.executors.ray_tune import RayTune
from autopeft.wiring import make_executor

DEMO = {"model": "digits", "task": "digits", "data": {}, "space": "digits", "budget": {"trials": 1}}


@pytest.mark.parametrize(
    ("n_gpus", "device", "kind", "pack"),
    [
        (0, "auto", RayTune, 1),
        (1, "auto", Packed, 16),
        (2, "auto", RayTune, 16),
        (2, "cuda", RayTune, 16),
        (2, "cuda:1", Packed, 16),
        (2, "cpu", RayTune, 1),
    ],
)
def test_the_default_is_by_the_gpus(monkeypatch, n_gpus, device, kind, pack):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: n_gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: n_gpus)
    executor = make_executor(load({**DEMO, "training": {"device": device}}))
    assert isinstance(executor, Auto) and isinstance(executor.chosen, kind)
    assert (executor.pack, executor.processes) == (pack, executor.chosen.processes)


def test_slots_are_those_of_the_chosen_one():
    assert Auto(3, n_gpus=1).chosen.slots == 3
    assert Auto(3, n_gpus=0).processes == 3
    assert Auto(n_gpus=1).chosen.slots == "auto"


def test_a_user_cannot_say_how_many_gpus_there_are():
    with pytest.raises(ConfigError, match="auto has no option 'n_gpus'"):
        load({**DEMO, "executor": {"name": "auto", "n_gpus": 2}})


@pytest.mark.parametrize("slots", ["many", 0])
def test_slots_of_packed_are_a_number_or_auto(slots):
    with pytest.raises(ConfigError, match="slots"):
        load({**DEMO, "executor": {"name": "packed", "slots": slots}})
    assert load({**DEMO, "executor": {"name": "packed", "slots": "auto"}}).executor.options == {"slots": "auto"}
