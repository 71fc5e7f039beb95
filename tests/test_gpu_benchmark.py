"""benchmarks/gpu: both sides train the same configurations, and a search needs no Ray, MLflow, Optuna or `datasets`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from models import bert

from tests.conftest import PROJECT

GPU = PROJECT / "benchmarks" / "gpu"


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The benchmark's modules have plain names: they are forgotten again."""
    before = set(sys.modules)
    monkeypatch.setattr(sys, "path", [str(GPU), *sys.path])
    yield
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) and str(GPU) in str(sys.modules[name].__file__):
            del sys.modules[name]


def test_the_lists_are_in_the_spaces_and_methods_take_turns(tmp_path: Path) -> None:
    from configurations import LORA_SPACE, MIXED, MIXED_SPACE, lora_trials, mixed

    from autopeft.config import build_space, load

    data = tmp_path / "rows.csv"
    data.write_text("text,label\na,0\nb,1\n")
    config = {"model": bert(tmp_path), "task": "text_classification", "budget": {"trials": 1},
              "data": {"train": str(data), "text": "text", "label": "label"}}  # fmt: skip
    kinds = ["query", "key", "value", "output", "up", "down"]
    for content, members in ((MIXED_SPACE, mixed(32, 6, 0)), (LORA_SPACE, lora_trials(16))):
        space = build_space(load({**config, "space": content}), 6, kinds)
        assert [space.why_not(member) for member in members] == [""] * len(members)
    assert [member["method"] for member in mixed(12, 6, 0)] == [*MIXED, *MIXED]
    assert mixed(12, 6, 0) == mixed(32, 6, 0)[:12], "a shorter list is the beginning of a longer one"


def test_plain_trains_the_parameters_that_ours_does(tmp_path: Path) -> None:
    """By number, for one configuration of each method, against the product's own counts."""
    from configurations import mixed
    from plain import adapt
    from transformers import AutoModelForSequenceClassification

    from autopeft.training.setup import Setup
    from autopeft.wiring import Model

    folder = bert(tmp_path)
    ours = Model(Setup.of(model=folder, task="text_classification"), 2)
    for params in mixed(12, 3, 1):
        model = adapt(AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2), params)
        plain = sum(p.numel() for p in model.parameters() if p.requires_grad)
        assert plain == ours.check(params)["trainable_parameters"], params


def test_seconds_in_which_a_trial_trains_count_once() -> None:
    from ours import covered

    assert covered([(0.0, 2.0), (1.0, 3.0), (1.5, 1.75), (5.0, 6.0)]) == 4.0


def test_plain_trials_are_as_many_of_each_method() -> None:
    from configurations import mixed
    from run import spread

    trials = mixed(32, 6, 0)
    assert [t["method"] for t in spread(trials, 6)] == ["head", "bias", "norm", "last_layers", "lora", "full"]
    assert spread(trials, 40) == trials and len(spread(trials, 16)) == 16


def test_a_step_that_fails_costs_no_other_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import run

    def fails(bench: run.Bench) -> None:
        raise RuntimeError("CUDA error")

    def ends(bench: run.Bench) -> None:
        bench.figures["pictures"] = 4.25

    monkeypatch.setattr(run, "STEPS", {"lora_1b": fails, "pictures": ends})
    bench = run.Bench(tmp_path, tmp_path, run.SMALL, "cpu", True, {"name": "packed"})
    for name in run.STEPS:
        run.take(bench, name)
    assert bench.figures == {"pictures": 4.25}
    assert bench.details == {"lora_1b": {"fault": "RuntimeError: CUDA error"}}


def test_a_process_over_its_limit_is_ended(tmp_path: Path) -> None:
    import run

    sizes = run.Sizes(limit=0)
    bench = run.Bench(tmp_path, tmp_path, sizes, "cpu", True, {"name": "packed"})
    started = run.Started("plain.py", {"kind": "none"}, bench)
    with pytest.raises(run.OverLimit):
        started.result()
    assert started.process.poll() is not None


WITHOUT = """
import json, sys
for name in ("ray", "mlflow", "datasets", "optuna", "sqlalchemy", "alembic", "sentence_transformers"):
    sys.modules[name] = None
sys.argv = ["ours.py", sys.argv[1]]
import ours
ours.main()
"""


def test_a_search_needs_no_ray_mlflow_optuna_or_datasets(tmp_path: Path) -> None:
    """As on a machine that lacks them: importing any of them is an error."""
    import pandas as pd
    from configurations import MIXED_SPACE, mixed

    rows = pd.DataFrame({"text": ["good day", "bad night"] * 12, "label": [0, 1] * 12})
    rows.to_parquet(tmp_path / "rows.parquet")
    files = dict.fromkeys(("train", "validation", "test"), str(tmp_path / "rows.parquet"))
    (tmp_path / "model").mkdir()
    config = {
        "model": bert(tmp_path / "model"), "task": "text_classification", "space": MIXED_SPACE, "trackers": [],
        "data": {**files, "text": "text", "label": "label"}, "sampler": {"name": "fixed", "params": mixed(6, 3, 0)},
        "training": {"steps": 4, "precision": "fp32", "attention": "eager", "batch_size": 4}, "keep": "none",
        "stopper": {"name": "never", "rungs": [0.25, 0.75], "signal": "train_loss"}, "budget": {"trials": 6},
        "executor": {"name": "packed", "slots": 4},
    }  # fmt: skip
    job = {"config": config, "folder": str(tmp_path / "run"), "tokens_a_step": 16.0}
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(GPU), str(PROJECT)])}
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, json.dumps(job)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found["trials"]) == 6 and found["tokens_a_second"] > 0 and found["seconds"] >= found["search_seconds"]


@pytest.mark.slow
def test_all_of_it_in_miniature(minilm: str, smollm2: str, shared: Path, tmp_path: Path) -> None:
    """Every step ends without a fault, and the last line has its figure."""
    command = [sys.executable, str(GPU / "run.py"), "--rehearse", "--details", str(tmp_path / "details.json")]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(PROJECT)})
    assert done.returncode == 0, done.stderr[-2000:]
    line = json.loads(done.stdout.splitlines()[-1])
    assert line["mode"] == "rehearsal" and line["device"] == "cpu" and line["faults"] == {}
    assert [name for name in line["bars"] if line[name] is None] == ["busy"], "there is no card"
    assert json.loads((tmp_path / "details.json").read_text())["details"]["pictures"]["plain"]["trials"]
