"""Trials of chosen heads: cached, packed and exported, each is what it is alone from the inputs."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from models import text_setup
from safetensors.torch import load_file

from autopeft.naming import describe
from autopeft.training.export import export, load, verify
from autopeft.training.loop import Worker
from autopeft.training.pack import Pack
from autopeft.training.prefix_cache import Reach
from autopeft.trial import Result, Status, Trial
from tests.training.test_pack import run, same, steady, tensors

HEADS = (
    {"head.pooling": "mean"},
    {"head.pooling": "mean", "head.hidden": 8},
    {"head.pooling": "mean", "head.hidden": 3},
    {"head.pooling": "attention", "head.norm": True},
    {"head.pooling": "max", "head.layer": 1, "head.norm": True, "head.hidden": 5},
    {"head.pooling": "last", "head.layer": 0},
    {"head.layer": 1},
    {"head.hidden": 4, "head.norm": True},
)


def trials(method="head", **more):
    return [Trial(n, {"method": method, **head, "head.lr": 1e-2, **more}, 50 + n) for n, head in enumerate(HEADS)]


@pytest.fixture(scope="module")
def setup(tmp_path_factory):
    return text_setup(tmp_path_factory.mktemp("heads"))


@pytest.fixture(scope="module")
def alone(setup):
    """Without any cache: (last event, tensors) by number."""
    own = setup.but(folder=f"{setup.folder}-alone", prefix_cache_bytes=0)
    worker = Worker(own)
    return {trial.number: (list(worker.evaluate(trial))[-1], tensors(own, trial.number)) for trial in trials()}


def test_from_the_caches_they_are_what_they_are_from_the_inputs(setup, alone, monkeypatch):
    passes, call = [], Reach.__call__

    def counted(reach, split, rows):
        if reach.below is None and len(rows) > 1:
            passes.append(len(rows))
        return call(reach, split, rows)

    monkeypatch.setattr(Reach, "__call__", counted)
    own = setup.but(folder=f"{setup.folder}-cached", cache=f"{setup.cache}-cached", encoded=None)
    worker = Worker(own)
    for trial in reversed(trials()):  # the lowest blocks first, the own head of the last block before them
        found = list(worker.evaluate(trial))[-1]
        assert isinstance(found, Result)
        assert found.status is Status.COMPLETE, found.error
        assert steady(found) == pytest.approx(steady(alone[trial.number][0]), rel=1e-3, abs=1e-3)
        same(alone[trial.number][1], tensors(own, trial.number), tolerance=1e-3)
        network = worker.network(trial)
        blocks = trial.params.get("head.layer", 2) + 1
        is_pooled = trial.params.get("head.pooling") != "attention"
        assert network.depth == blocks + is_pooled, "all that the head reads is cached"
    rows = sum(len(worker.data.splits[name]) for name in ("train", "validation"))
    kept = {path.name for path in worker.prefix.folder.glob("train-*") if path.is_dir()}
    assert kept == {"train-3-own", "train-2-own", "train-1", "train-1-last", "train-2", "train-2-max", "train-3",
                    "train-3-mean"}  # fmt: skip
    assert sum(passes) == 3 * rows, "of eight heads, three began at the inputs: the own ones and the lowest block's"


@pytest.mark.parametrize("method", ["head", "lora"])
def test_packed_they_are_what_they_are_alone(setup, alone, method):
    """Members of one pass have heads of one kind: the two widths of a hidden layer share one."""
    own = setup.but(folder=f"{setup.folder}-packed-{method}", epochs=4 if method == "head" else 1)
    worker, expected = Worker(own), dict(alone)
    if method == "lora":
        found = {trial.number: list(worker.evaluate(trial))[-1] for trial in trials("lora")}
        expected = {number: (event, tensors(own, number)) for number, event in found.items()}
    pack = Pack(worker)
    found = run(pack, trials(method))
    assert len(pack._together) == 7
    for number, (event, ours) in expected.items():
        last = found[number][-1]
        assert last.status is Status.COMPLETE, last.error
        assert steady(last) == pytest.approx(steady(event), rel=1e-3, abs=1e-3)
        same(ours, tensors(own, number), tolerance=1e-3)


@pytest.mark.parametrize("cache", [0, 2**30])
def test_of_rows_end_to_end_they_read_the_same(setup, cache):
    padded, flat = (Worker(setup.but(layout=layout, prefix_cache_bytes=cache)) for layout in ("padded", "flat"))
    rows = np.arange(7)
    for trial in trials("norm" if cache == 0 else "head"):
        with torch.no_grad():
            one, other = (worker.network(trial).logits("validation", rows) for worker in (padded, flat))
        assert torch.allclose(one, other, atol=1e-5 * float(one.abs().max())), trial.params
    assert flat.statics.form(flat.data) == "flat"


@pytest.mark.parametrize(
    "params",
    [
        {"method": "head", "head.pooling": "attention", "head.hidden": 4, "head.layer": 1},
        {"method": "lora", "head.pooling": "mean", "head.norm": True},
        {"method": "lora", "head.layer": 1},
    ],
)
def test_exported_they_load_and_answer(setup, params, tmp_path):
    """In our form; the code of the model card runs in a fresh process."""
    worker, trial = Worker(setup), Trial(70, {**params, "head.lr": 1e-2}, 3)
    list(worker.evaluate(trial))
    kept = Path(setup.folder) / "trials" / "00070" / "trained.safetensors"
    cards = []
    folder = export(
        setup=setup, params=trial.params, seed=trial.seed, tensors=kept, about=worker.data.about, to=tmp_path / "out",
        card=lambda about: cards.append(about) or "", facts={},
    )  # fmt: skip
    assert json.loads((folder / "autopeft.json").read_text())["form"] == "autopeft"
    logits, inputs = worker.sample(trial, kept)
    assert verify(folder, logits, inputs) < 1e-5
    exported = load(folder)
    assert not [name for name, _ in exported.model.named_parameters() if ".layer.2." in name and "head.layer" in params]
    answers = exported.predict({"text": ["good fine nice film", "bad awful dull day"]})
    assert set(answers["label"]) <= {"positive", "negative"}
    assert (
        not any(".layer.2." in name for name in load_file(folder / "trained.safetensors")) or "head.layer" not in params
    )


@pytest.mark.parametrize(
    ("params", "name"),
    [
        ({"method": "head", "head.pooling": "mean", "head.layer": 3, "head.hidden": 64, "head.norm": True, "head.lr": 1e-3},
         "head only, lr 1e-3, head: mean of layer 3, hidden 64, norm"),
        ({"method": "head", "head.pooling": "own", "head.layer": 5, "head.hidden": 0, "head.norm": False}, "head only"),
        ({"method": "head", "head.layer": "last", "head.pooling": "max"}, "head only, head: max"),
        ({"method": "head", "head.layer": 2}, "head only, head: own of layer 2"),
        ({"method": "norm", "head.norm": True}, "norms, head: norm"),
        ({"method": "lora", "lora.layers": [1, 2, 4], "head.layer": 2}, "LoRA rank 8 in layers 1–2, head: own of layer 2"),
        ({"method": "lora", "lora.layers": [0, 1, 4], "head.layer": 1}, "LoRA rank 8, head: own of layer 1"),
        ({"method": "lora+norm", "lora.layers": [4], "head.layer": 1}, "norms, head: own of layer 1"),
    ],
)  # fmt: skip
def test_they_have_names(params, name):
    assert describe(params, 6) == name
