"""A task of somebody else's, with an option of its own, from search to prediction: by the commands that a user types."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from models import bert, write_texts

PROJECT = Path(__file__).resolve().parents[2]

TASK = '''
"""First words: a label for the first words of a text."""

from dataclasses import replace

from autopeft.tasks.text_classification import TextClassification


class FirstWords(TextClassification):
    """Reads `window` words of a text."""

    def __init__(self, window: int = 3) -> None:
        self.window = window

    def encoder(self, source, about):
        encode = super().encoder(source, about)
        return lambda raw: encode(replace(raw, inputs={name: list(map(self.cut, c)) for name, c in raw.inputs.items()}))

    def cut(self, text):
        return " ".join(text.split()[: self.window])
'''


@pytest.fixture
def environment(tmp_path):
    """A package with an entry point, installed in a folder that Python looks into."""
    site = tmp_path / "site"
    info = site / "first_words-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "first_words.py").write_text(TASK)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: first-words\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[autopeft.tasks]\nfirst_words = first_words:FirstWords\n")
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(site), str(PROJECT)])}


def autopeft(environment, folder, *words):
    done = subprocess.run(
        [sys.executable, "-m", "autopeft", *words], cwd=folder, env=environment, capture_output=True, text=True
    )
    return done.returncode, done.stdout, done.stderr


def test_a_task_from_outside_with_an_option_of_its_own(environment, tmp_path):
    (tmp_path / "model").mkdir()
    bert(tmp_path / "model")
    write_texts(tmp_path / "rows.csv", 120)
    config = {
        "model": "model", "task": {"name": "first_words", "window": 1},
        "data": {"train": "rows.csv", "validation_share": 0.2, "test_share": 0.2},
        "space": {"method": ["head", "lora"]}, "training": {"epochs": 1, "precision": "fp32", "attention": "eager"},
        "executor": "serial", "trackers": ["console"], "budget": {"trials": 2}, "name": "mine",
    }  # fmt: skip
    (tmp_path / "mine.yaml").write_text(json.dumps(config))
    for words in (
        ("search", "mine.yaml"),
        ("confirm", "runs/mine", "--seeds", "1"),
        ("export", "runs/mine", "--pick", "best", "--to", "adapter"),
    ):
        code, _, said = autopeft(environment, tmp_path, *words)
        assert code == 0, said
    assert json.loads((tmp_path / "adapter" / "autopeft.json").read_text())["options"] == {"window": 1}
    (tmp_path / "new.csv").write_text("text\ngood\ngood bad bad bad\nbad\n")
    code, _, said = autopeft(environment, tmp_path, "predict", "adapter", "new.csv", "--output", "answers.csv")
    assert code == 0, said
    chances = pd.read_csv(tmp_path / "answers.csv").iloc[:, 1:].to_numpy()
    assert (chances[0] == chances[1]).all(), "the option was lost on the way: more than one word was read"
    assert (chances[0] != chances[2]).any()
    code, _, said = autopeft(environment, tmp_path, "check", "mine.yaml", "--set", "task.windw=5")
    assert code == 2
    assert "first_words has no option 'windw'. Did you mean 'window'?" in said
