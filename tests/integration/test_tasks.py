"""Each task from search to prediction, as a user types it: killed, resumed, confirmed, exported; by every executor alike.

A new task is a line in `SUBJECTS`, and what makes its rows.
"""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import soundfile
import yaml
from models import (
    bert,
    tone,
    wav2vec2,
    write_columns,
    write_intents,
    write_numbers,
    write_ratings,
    write_sets,
    write_tones,
    write_words,
)

from autopeft import app, wiring
from autopeft import ledger as ledgers
from autopeft.config import load
from autopeft.training import export
from autopeft.training.loop import Worker
from tests.commands import autopeft, start_autopeft
from tests.executors.conversations import events, outcome


@dataclass(frozen=True)
class Subject:
    """A task with something to learn.

    Attributes:
        write: Makes its rows: (path of a CSV, number of rows).
        model: Makes its model in a folder.
        columns: Of the config's `data`.
        score: The first objective.
        answer: A column of predictions.
        trivial: What its reports call the answer without learning.
        space: What may be tried.
        task: The config's `task`, if it is more than a name.
    """

    write: Callable[[Path, int], Path]
    columns: dict[str, Any]
    score: str
    answer: str
    trivial: str
    model: Callable[[Path], str] = bert
    space: dict[str, Any] = field(default_factory=lambda: SPACE)
    task: dict[str, Any] | None = None


SPACE = {
    "method": ["head", "norm", "lora"],
    "head": {"lr": {"float": [1e-3, 1e-1], "log": True, "default": 1e-2}},
    "norm": {"lr": {"float": [1e-3, 1e-1], "log": True, "default": 1e-2}},
    "lora": {
        "rank": {"int": [1, 8], "log": True, "default": 4},
        "modules": {"subset": ["query", "value"], "default": ["query", "value"]},
        "lr": {"float": [1e-3, 5e-2], "log": True, "default": 1e-2},
    },
}

LONGER = {"steps": 60, "precision": "fp32", "attention": "eager"}

SUBJECTS = {
    "token_classification": Subject(write_words, {"tokens": "words", "tags": "tags"}, "f1", "tags", "no entity"),
    "regression": Subject(write_numbers, {"label": "score"}, "mean_absolute_error", "value", "mean of train"),
}

# Tasks that add nothing to how trials are run, killed or resumed: once through, in this process.
ONCE = {
    "audio_classification": Subject(write_tones, {}, "accuracy", "label", "majority class", model=wav2vec2),
    "intent_classification": Subject(write_intents, {}, "routing_score", "label", "always out of scope"),
    "ranking": Subject(write_ratings, {"text": ["profile", "dish"]}, "ndcg_at_k", "score", "popularity in train"),
    "multilabel_classification": Subject(write_sets, {}, "micro_f1", "labels", "majority of each label"),
    "multioutput_classification": Subject(
        write_columns, {"labels": ["mood", "topic"]}, "mean_accuracy", "mood", "majority class of each column"
    ),
}


def config(folder: Path, task: str, **options: Any) -> dict[str, Any]:
    """A search of seconds."""
    subject = {**SUBJECTS, **ONCE}[task]
    if not (folder / "model").exists():
        (folder / "model").mkdir()
        subject.model(folder / "model")
        subject.write(folder / "train.csv", 120)
    return {
        "model": str(folder / "model"), "task": subject.task or task, "space": subject.space,
        "data": {"train": str(folder / "train.csv"), "test_share": 0.2, "validation_share": 0.2, **subject.columns},
        "objectives": [subject.score, "trainable_parameters"],
        "training": {"steps": 12, "precision": "fp32", "attention": "eager"},
        "executor": "serial", "trackers": [], "keep": "all", "budget": {"trials": 8}, **options,
    }  # fmt: skip


def told(folder: Path) -> list[int]:
    if not (folder / ledgers.NAME).exists():
        return []
    return [event["number"] for event in ledgers.read(folder / ledgers.NAME) if event["event"] == "tell"]


@pytest.fixture(scope="module", params=SUBJECTS)
def job(request, tmp_path_factory):
    """(the task, a folder with a search that was killed in its middle, resumed, and confirmed)."""
    folder = tmp_path_factory.mktemp(request.param)
    (folder / "job.yaml").write_text(yaml.safe_dump(config(folder, request.param), sort_keys=False))
    driver = start_autopeft("search", "job.yaml", "--name", "killed", cwd=folder, output=folder / "printed")
    run = folder / "runs" / "killed"
    until = time.monotonic() + 200
    while time.monotonic() < until and len(told(run)) < 3 and driver.is_alive():
        time.sleep(0.002)
    os.killpg(driver.pid, signal.SIGKILL)
    driver.join()
    before = told(run)
    assert 3 <= len(before) < 8, (folder / "printed.stderr").read_text()
    autopeft("resume", str(run), cwd=folder)
    assert told(run)[: len(before)] == before, "what was told is there, in its order"
    autopeft("confirm", str(run), "--seeds", "2", "--pick", "best", cwd=folder)
    return request.param, folder


def test_a_killed_search_ends_as_if_it_had_not_been(job, tmp_path):
    task, folder = job
    app.search(load(config(folder, task)), tmp_path / "whole", quiet=True)
    assert outcome(folder / "runs" / "killed") == outcome(tmp_path / "whole")
    assert "COMPLETE" in {event.get("status") for event in events(tmp_path / "whole")}


def test_reports_speak_of_the_task(job):
    task, folder = job
    subject, run = SUBJECTS[task], folder / "runs" / "killed"
    for file in ("report.md", "report.html"):
        report = (run / file).read_text()
        assert subject.trivial in report
        assert "majority" not in report.partition("Resolved config")[0]
    front = json.loads((run / "front.json").read_text())
    scores = [entry["metrics"][subject.score] for entry in front["front"]]
    goal = front["objectives"][0]["goal"]
    assert scores == sorted(scores, reverse=goal == "maximize"), "the best comes first"
    best = (min if goal == "minimize" else max)(
        event["metrics"][subject.score] for event in events(run) if event["event"] == "tell" and event["metrics"]
        and event["status"] == "COMPLETE"
    )  # fmt: skip
    assert scores[0] == pytest.approx(best)
    confirmed = [event for event in events(run) if event["event"] == "confirm"]
    assert [event["status"] for event in confirmed] == ["COMPLETE"] * 3
    board = autopeft("leaderboard", str(run), cwd=folder).stdout
    assert f"without training: {subject.trivial}" in board


def test_export_and_predict(job, capsys, monkeypatch):
    """The answer for each row is that of the model card's folder; the card's own code runs."""
    task, folder = job
    subject, run = SUBJECTS[task], folder / "runs" / "killed"
    lora = next(
        event["number"] for event in events(run)
        if event["event"] == "ask" and event["params"]["method"] == "lora" and event["number"] in told(run)
        and (run / "trials" / f"{event['number']:05d}").exists()
    )  # fmt: skip
    autopeft("export", str(run), "--pick", f"trial={lora}", "--to", "adapter", cwd=folder)
    autopeft("predict", "adapter", "train.csv", "--output", "answers.csv", cwd=folder)
    given, found = pd.read_csv(folder / "train.csv"), pd.read_csv(folder / "answers.csv")
    assert len(found) == len(given)
    if task == "token_classification":
        assert [len(tags.split()) for tags in found["tags"]] == [len(words.split()) for words in given["words"]]
    else:
        assert np.isfinite(found[subject.answer]).all()
    monkeypatch.chdir(folder / "adapter")
    run_card(capsys)


def run_card(capsys):
    """Runs the code of the model card in this folder."""
    for code in re.findall(r"```python\n(.*?)```", Path("README.md").read_text(), re.DOTALL):
        exec(compile(code, "README.md", "exec"), {})  # noqa: S102  (our own card)
        assert capsys.readouterr().out


@pytest.mark.parametrize("task", ONCE)
def test_from_search_to_prediction(task, tmp_path, capsys, monkeypatch):
    """What was learned is better than the answer without learning, and the export's file of answers shows it."""
    subject = ONCE[task]
    run = app.search(load(config(tmp_path, task, budget={"trials": 3}, training=LONGER)), tmp_path / "run", quiet=True)
    assert [record.status for record in run.history.records] == ["COMPLETE"] * 3, run.history.records
    run.confirm(1, which=("best",), quiet=True)
    report = (run.folder / "report.md").read_text()
    assert subject.trivial in report
    (confirmed, trivial) = (
        next(c.metrics for c in run.history.confirmations if (c.number is None) is is_trivial)
        for is_trivial in (False, True)
    )
    assert set(confirmed) >= set(trivial), "all metrics, of the test split too"
    best = run.pick("best")
    assert best.metrics[subject.score] > run.history.objectives[0].reference
    if task != "audio_classification":  # inputs of a kind of their own; a fresh process takes seconds
        monkeypatch.setattr(export, "verify", lambda *_: 0.0)
    exported = run.export("best", tmp_path / "adapter")
    about = json.loads((exported / "autopeft.json").read_text())["about"]
    assert about.items() >= best.detail.get("calibration", {}).items(), "what was chosen on validation"
    given = pd.read_csv(tmp_path / "train.csv")
    found = app.predict(tmp_path / "adapter", tmp_path / "train.csv", tmp_path / "answers.csv")
    assert len(found) == len(given) == len(pd.read_csv(tmp_path / "answers.csv"))
    answered = found[subject.answer]
    if subject.answer in given:  # labels
        is_right = answered == given[subject.answer].fillna("")
        assert is_right.mean() > given[subject.answer].value_counts(normalize=True, dropna=False).max()
    else:
        assert np.isfinite(answered).all()
    monkeypatch.chdir(exported)
    if task == "audio_classification":
        soundfile.write("sound.wav", tone(440, 0.5, rate=4_000), 4_000)
    capsys.readouterr()
    run_card(capsys)


@pytest.mark.parametrize("task", SUBJECTS)
def test_serial_and_ray_write_the_same_ledger(task, tmp_path, ray_up):
    for name, options in {"serial": {}, "ray_tune": {"slots": 1}}.items():
        given = config(tmp_path, task, executor={"name": name, **options}, budget={"trials": 6})
        app.search(load(given), tmp_path / name, quiet=True)
    found, expected = (events(tmp_path / name)[1:] for name in ("ray_tune", "serial"))
    assert found == expected
    assert "COMPLETE" in {event.get("status") for event in expected}


@pytest.mark.parametrize("task", SUBJECTS)
def test_packed_gives_the_scores_of_serial(task, tmp_path, caplog):
    """But for rounding; a part's rows are padded to the longest of the whole pass."""
    given = config(tmp_path, task, executor={"name": "packed", "slots": 4}, stopper="never")
    run = app.search(load(given), tmp_path / "packed", quiet=True)
    assert "came apart" not in caplog.text
    setup = wiring.reopen_setup(run.config, run.history.header, run.folder)
    worker = Worker(setup.but(score_rungs=False, keep="none"))
    complete = [record for record in run.history.records if record.is_complete]
    for record in complete:
        *_, alone = worker.evaluate(record.trial)
        assert record.metrics["loss"] == pytest.approx(alone.metrics["loss"], rel=1e-3), record.params
    assert {"head", "lora"} <= {record.params["method"] for record in complete}
