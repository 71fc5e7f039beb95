"""Metrics of the user's own: what they get, when their code runs, how their faults are said."""

import json
import pickle

import numpy as np
import pytest
from models import bert, write_texts

from autopeft import app, config, ledger, plugins
from autopeft.errors import ConfigError, UsageError
from autopeft.history import TRIVIAL
from autopeft.tasks import _own_metrics as own
from autopeft.tasks._own_metrics import OwnMetric, metric_fault, scored_by
from autopeft.training.setup import TaskSpec

FUNCTIONS = """
import sys
from pathlib import Path

Path(__file__).with_suffix(".ran").touch()


def positives(predicted, true):
    return sum(label == "positive" for label in predicted) / len(predicted)


def right(predicted, true):
    return [float(a == b) for a, b in zip(predicted, true)]


def sure(predicted, true, answers):
    return float(max(answers["p(positive)"]))


def breaks(predicted, true):
    raise ValueError("no such price")


def says_nothing(predicted, true):
    return None


def divides(predicted, true):
    return float("nan")


def is_huge(predicted, true):
    return 1e308


def is_huge_for_a_row(predicted, true):
    return [0.0] * (len(true) - 1) + [-1e200]
"""
ABOUT = {"label_names": ["negative", "positive"], "n_outputs": 2}


@pytest.fixture
def scores(tmp_path):
    file = tmp_path / "scores.py"
    file.write_text(FUNCTIONS)
    return file


def task_with(file, *names):
    metrics = [OwnMetric.read(name, f"{file}:{name}", "maximize") for name in names]
    return scored_by(plugins.make("tasks", "text_classification"), metrics)


def test_a_function_gets_predictions_and_truths_and_all_columns_if_it_takes_three(scores):
    task = task_with(scores, "positives", "right", "sure")
    kept = {"logits": np.array([[0.0, 1.0], [0.0, 2.0], [1.0, 0.0], [0.0, 1.0]])}
    targets = {"label": np.array([1, 0, 0, 1])}
    found = task.score(kept, targets, ABOUT)
    assert found.metrics["positives"] == 0.75 and found.metrics["right"] == found.metrics["accuracy"] == 0.75
    assert found.metrics["sure"] == pytest.approx(1 / (1 + np.exp(-2)))
    said = found.detail["row_scores"]
    assert set(said) == {"right"} and said["right"]["rows"] == 4 and said["right"]["low"] < 0.75 < said["right"]["high"]
    trivial = task.trivial({"label": np.array([1, 1, 0])}, targets, ABOUT, dict)
    assert trivial.metrics["positives"] == 1.0 and trivial.metrics["right"] == 0.5
    assert next(iter(task.metrics)) == "accuracy" and task.metrics["sure"] == "maximize"
    assert isinstance(task, type(plugins.make("tasks", "text_classification")))


def test_nothing_runs_before_something_is_scored(scores):
    task_with(scores, "positives")
    assert metric_fault(f"{scores}:positives") is None
    assert not scores.with_suffix(".ran").exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("breaks", "ValueError: no such price"),
        ("says_nothing", "returns None"),
        ("divides", "returns nan: expected a finite number"),
        ("is_huge", r"returns 1e\+308: expected a finite number of at most 1e\+100"),
        ("is_huge_for_a_row", r"-1e\+200\]: expected a finite number"),
    ],
)
def test_a_function_that_fails_is_said_before_the_search(scores, name, message):
    task, targets = task_with(scores, name), {"label": np.array([1, 0])}
    with pytest.raises(UsageError, match=f"metrics.{name}: .*scores.py:{name}.* {message}"):
        task.trivial(targets, targets, ABOUT, dict)
    with pytest.raises(own.OwnMetricError, match=message):  # in a trial: how that trial ended
        task.score({"logits": np.eye(2)}, targets, ABOUT)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("scores.py", "expected file.py:function"),
        ("{file}:nothing", "has no 'nothing'"),
        ("{file}:positive", "Did you mean 'positives'"),
        ("{folder}/none.py:f", "there is no file 'none.py'"),
        ("no_such_package.scores:f", "there is no package 'no_such_package'"),
        (3, "expected file.py:function"),
    ],
)
def test_what_check_says(scores, function, message):
    given = function.format(file=scores, folder=scores.parent) if isinstance(function, str) else function
    assert message in metric_fault(given)


def test_it_travels_to_a_worker_with_its_text(scores):
    """As a setup does: the worker's machine need not have the file."""
    spec = TaskSpec(
        "text_classification", own_metrics=(OwnMetric.read("positives", f"{scores}:positives", "maximize"),)
    )
    given = pickle.dumps(spec)
    scores.rename(scores.with_name("moved.py"))
    task = pickle.loads(given).make()  # noqa: S301
    found = task.score({"logits": np.eye(2)}, {"label": np.array([0, 1])}, ABOUT)
    assert found.metrics["positives"] == 0.5


def test_a_module_is_imported():
    assert OwnMetric("share", "math:fsum", "maximize").load() is __import__("math").fsum
    with pytest.raises(UsageError, match="math has no function 'nothing'"):
        OwnMetric("share", "math:nothing", "maximize").load()


def settings(folder, metrics, **more):
    (folder / "model").mkdir()
    return {
        "model": bert(folder / "model"), "task": "text_classification",
        "data": {"train": str(write_texts(folder / "train.csv", 80)), "test_share": 0.2, "validation_share": 0.2},
        "space": {"method": ["bias"]}, "metrics": metrics,
        "training": {"steps": 3, "precision": "fp32", "attention": "eager"}, "sampler": "random", "stopper": "never",
        "executor": "serial", "budget": {"trials": 1}, "trackers": [], "keep": "none", **more,
    }  # fmt: skip


def test_faults_of_a_config(tmp_path, scores):
    metrics = {
        "accuracy": f"{scores}:right",
        "a b": f"{scores}:right",
        "c": {"function": f"{scores}:nope", "goal": "up"},
    }
    with pytest.raises(ConfigError) as caught:
        config.load(settings(tmp_path, metrics, objectives=["right", "trainable_parameters"]))
    said = str(caught.value)
    assert "the task has a metric 'accuracy'" in said and "letters, digits" in said
    assert "metrics.c.goal: expected maximize or minimize" in said and not scores.with_suffix(".ran").exists()


def test_a_search_by_a_metric_of_ones_own(tmp_path, scores):
    """Its file may be gone for a report and an export; for a confirmation it must be what it was."""
    metrics = {"right": {"function": str(scores) + ":right"}, "positives": f"{scores}:positives"}
    objectives = ["right", "trainable_parameters"]
    run = app.search(config.load(settings(tmp_path, metrics, objectives=objectives)), tmp_path / "run", quiet=True)
    (told,) = run.front
    assert told.metrics["right"] == told.metrics["accuracy"] and 0 <= told.metrics["positives"] <= 1
    assert told.detail["row_scores"]["right"]["interval"] == "bootstrap"
    header = ledger.read(run.folder / ledger.NAME)[0]
    assert header["metrics"]["right"]["digest"].startswith("sha256:") and "right" in header["baselines"][TRIVIAL]
    run.confirm(1, quiet=True)
    assert "right" in app.open_run(run.folder).history.confirmations[0].metrics
    scores.write_text(FUNCTIONS + "\n# other")
    with pytest.raises(UsageError, match=r"scores\.py:right has changed since this search began"):
        app.open_run(run.folder).confirm(1, quiet=True)
    scores.unlink()
    scores.with_suffix(".ran").unlink()
    run = app.open_run(run.folder)
    run.report()
    folder = run.export("best", tmp_path / "adapter")
    assert json.loads((folder / "autopeft.json").read_text())["metrics"]["right"] == told.metrics["right"]
    assert not scores.with_suffix(".ran").exists()
    with pytest.raises(UsageError, match=r"metrics\.right: .* cannot be read"):
        run.confirm(1, quiet=True)
