"""The memory of a trial as an objective: refused where it is not the trial's own, searched and shown where it is."""

from __future__ import annotations

import re

import pytest

from autopeft import app, wiring
from autopeft.config import load
from autopeft.errors import ConfigError, UsageError
from autopeft.training import loop
from autopeft.trial import Result
from tests.models import bert, write_texts


def config(folder, **options):
    (folder / "model").mkdir()
    return {
        "model": bert(folder / "model"), "task": "text_classification",
        "data": {"train": str(write_texts(folder / "train.csv", 120)), "validation_share": 0.25, "test_share": 0.25},
        "space": {"method": ["head", "bias", "lora"]}, "objectives": ["accuracy", "peak_memory_bytes"],
        "training": {"steps": 4, "precision": "fp32", "attention": "eager"}, "stopper": "never", "sampler": "random",
        "budget": {"trials": 3}, "trackers": [], "executor": "serial", **options,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"training": {"device": "cpu"}}, "peak_memory_bytes is of a GPU: on a CPU only the peak of the whole process"),
        ({"training": {"layout": "flat"}}, "leave out training.layout"),
        ({"stopper": "dominated"}, "'peak_memory_bytes' is not known before training"),
        ({"objectives": ["peak_memory_bytes", "trainable_parameters"]}, "the first objective is the score"),
    ],
)
def test_a_config_that_cannot_know_it_is_wrong(options, said, tmp_path):
    with pytest.raises(ConfigError, match=re.escape(said)):
        load(config(tmp_path, **options))


def test_without_a_gpu_it_is_refused_before_anything_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(wiring, "choose_device", lambda name: "cpu")
    with pytest.raises(UsageError, match="torch sees none here"):
        app.search(load(config(tmp_path)), tmp_path / "run", quiet=True)


def test_trials_side_by_side_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(wiring, "choose_device", lambda name: "cuda")
    given = load(config(tmp_path, executor={"name": "packed", "slots": 4}))
    with pytest.raises(UsageError, match="packed runs several in one process: take `executor: serial`"):
        wiring.require_own_memory(given, wiring.make_executor(given))
    monkeypatch.setattr(wiring, "choose_layout", lambda name, device: "flat")
    assert wiring.make_setup(given, tmp_path / "run").machine.layout == "padded"


def test_a_search_by_accuracy_and_memory(tmp_path, monkeypatch):
    """With the readings of a GPU that is not here: each method has a peak of its own, and the device has 8 GiB."""
    peaks = {"head": 1 << 30, "bias": 3 << 30, "lora": 2 << 30}
    evaluate = loop.Worker._evaluate

    def measured(self, trial, *more):
        for event in evaluate(self, trial, *more):
            if isinstance(event, Result):
                event.metrics["peak_memory_bytes"] = float(peaks[trial.params["method"]])
            yield event

    monkeypatch.setattr(loop.Worker, "_evaluate", measured)
    monkeypatch.setattr(wiring, "require_own_memory", lambda config, executor: None)
    monkeypatch.setattr(wiring, "device_memory", lambda device: 8 << 30)
    run = app.search(load(config(tmp_path)), tmp_path / "run", quiet=True)
    _, memory = run.history.objectives
    assert (memory.metric, memory.goal, memory.reference, memory.scale) == (
        "peak_memory_bytes",
        "minimize",
        8 << 30,
        "log10",
    )
    assert {record.metrics["peak_memory_bytes"] for record in run.history.records} == {float(v) for v in peaks.values()}
    least = min(run.front, key=lambda record: record.metrics["peak_memory_bytes"])
    assert least.params["method"] == "head", "what takes the least is on the front"
    assert "peak_memory_bytes" in (tmp_path / "run" / "front.csv").read_text()
    assert (tmp_path / "run" / "report.md").exists()


@pytest.mark.gpu
def test_a_search_on_a_gpu_measures_it(tmp_path):
    import torch

    run = app.search(load(config(tmp_path)), tmp_path / "run", quiet=True)
    total = torch.cuda.get_device_properties("cuda").total_memory
    assert run.history.objectives[1].reference == total
    assert all(0 < record.metrics["peak_memory_bytes"] < total for record in run.history.records if record.is_complete)
