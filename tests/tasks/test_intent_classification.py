"""Intents and what is out of scope: the threshold against all others, and where it comes from."""

from __future__ import annotations

import json

import numpy as np
import pytest
from models import bert, write_intents

from autopeft import app
from autopeft.config import load
from autopeft.errors import ConfigError
from autopeft.tasks.intent_classification import IntentClassification
from tests.conftest import shared_path

ABOUT = {"label_names": ["day", "film", "oos"], "n_outputs": 3}


def kept_of(chances):
    return {"logits": np.log(np.asarray(chances, dtype=np.float64))}


def test_the_threshold_is_the_best_of_all():
    """Also where confidences tie: rows of one confidence are on one side."""
    rng, task = np.random.default_rng(0), IntentClassification()
    for _ in range(4):
        kept = kept_of(np.round(rng.dirichlet(np.ones(3), 40), 1) + 1e-6)
        targets = {"label": np.arange(40) % 3}
        choice = task.calibrate(kept, targets, ABOUT)
        found = task.score(kept, targets, {**ABOUT, **choice}).metrics["routing_score"]
        others = [
            task.score(kept, targets, {**ABOUT, "threshold": threshold}).metrics["routing_score"]
            for threshold in np.linspace(0, 1, 41)
        ]
        assert found == pytest.approx(max(others))


def test_scores_by_hand():
    task = IntentClassification()
    kept = kept_of([[0.8, 0.1, 0.1], [0.5, 0.4, 0.1], [0.1, 0.6, 0.3], [0.3, 0.3, 0.4], [0.7, 0.2, 0.1]])
    targets = {"label": np.array([0, 1, 1, 2, 2])}
    found = task.score(kept, targets, {**ABOUT, "threshold": 0.55}).metrics
    assert found == {
        "routing_score": pytest.approx((2 / 3 + 1 / 2) / 2), "in_scope_accuracy": pytest.approx(2 / 3),
        "out_of_scope_recall": 0.5, "out_of_scope_precision": 0.5, "accuracy": 0.6,
    }  # fmt: skip
    answers = task.answers(kept, {**ABOUT, "threshold": 0.55})
    assert answers["label"] == ["day", "oos", "film", "oos", "day"]
    assert answers["confidence"] == pytest.approx([0.8, 0.5, 0.6, 0.3, 0.7])
    assert "p(oos)" in answers


def test_trivial_rejects_all():
    train, scored = {"label": np.array([0, 0, 1, 2])}, {"label": np.array([0, 1, 2, 2])}
    found = IntentClassification().trivial(train, scored, ABOUT, dict).metrics
    assert (found["routing_score"], found["out_of_scope_recall"], found["in_scope_accuracy"]) == (0.5, 1.0, 0.0)


def read(folder, train, other, **options):
    files = {}
    for split, labels in (("train", train), ("validation", other), ("test", other)):
        rows = [{"text": f"text {row}", "label": label} for row, label in enumerate(labels)]
        (folder / f"{split}.json").write_text(json.dumps(rows))
        files[split] = str(folder / f"{split}.json")
    return IntentClassification().read({**files, **options}, 0)


def test_training_needs_no_row_out_of_scope(tmp_path):
    dataset = read(tmp_path, ["day", "film"] * 3, ["day", "oos"])
    assert dataset.about == ABOUT
    assert dataset.splits["validation"].targets["label"].tolist() == [0, 2]


@pytest.mark.parametrize(
    ("train", "other", "options", "expected"),
    [
        (["day", "film"] * 3, ["day", "film"], {}, "validation has no row out of scope"),
        (["day", "film", "oos"] * 3, ["oos", "oos"], {}, "validation has no row in scope"),
        ([0, 1] * 3, [0, 1], {"label_names": ["day", "film"]}, "no label is 'oos', the task's out_of_scope"),
    ],
)
def test_faults(tmp_path, train, other, options, expected):
    with pytest.raises(ConfigError, match=expected):
        read(tmp_path, train, other, **options)


def test_clinc150():
    folder = shared_path("data", "clinc150")
    data = {split: str(folder / f"{split}.parquet") for split in ("train", "validation", "test")}
    dataset = IntentClassification().read(data, 0)
    assert dataset.about["n_outputs"] == 151
    is_out = dataset.splits["test"].targets["label"] == dataset.about["label_names"].index("oos")
    assert (is_out.sum(), (~is_out).sum()) == (1000, 4500)


@pytest.mark.parametrize("executor", ["serial", {"name": "packed", "slots": 3}], ids=str)
def test_the_threshold_of_the_test_split_is_that_of_validation(tmp_path, executor):
    (tmp_path / "model").mkdir()
    config = {
        "model": bert(tmp_path / "model"), "task": "intent_classification", "executor": executor, "trackers": [],
        "data": {"train": str(write_intents(tmp_path / "train.csv", 80)), "test_share": 0.3, "validation_share": 0.3},
        "space": {"method": ["lora"], "lora": {"rank": 2, "lr": {"float": [1e-3, 1e-1], "log": True, "default": 1e-2}}},
        "training": {"steps": 8, "precision": "fp32", "attention": "eager"}, "keep": "all", "budget": {"trials": 2},
    }  # fmt: skip
    run = app.search(load(config), tmp_path / "run", quiet=True)
    asked = []
    calibrate = IntentClassification.calibrate

    def noted(self, kept, targets, about):
        asked.append((len(kept["logits"]), calibrate(self, kept, targets, about)))
        return asked[-1][1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(IntentClassification, "calibrate", noted)
        run.confirm(2, which=("best",), quiet=True)
    sizes = run.history.header["dataset"]["sizes"]
    assert sizes["validation"] != sizes["test"]
    assert {rows for rows, _ in asked} == {sizes["validation"]}
    confirmed = [c for c in run.history.confirmations if c.number is not None]
    assert [c.detail["calibration"] for c in confirmed] == [choice for _, choice in asked]
