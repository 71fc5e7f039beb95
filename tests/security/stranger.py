"""What a stranger hands over: pickles and modules that leave a mark if they run, a small search, what lies in a folder."""

from __future__ import annotations

import contextlib
import csv
import io
import pickle
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import yaml

from autopeft import cli
from tests.models import WORDS, bert


class Mark:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.path), "w")


def pickled(mark: Path) -> bytes:
    return pickle.dumps({"weight": Mark(mark)})


def module(path: Path, mark: Path) -> Path:
    """Writes a Python module that makes a file when it is imported."""
    path.write_text(f"open({str(mark)!r}, 'w').close()\n", encoding="utf-8")
    return path


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file under a folder, with its content."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def write_rows(
    path: Path, text: str = "text", label: str = "label", labels: tuple[str, ...] = ("sad", "glad"), tail: str = ""
) -> None:
    """Writes a CSV of short texts, 20 of each label."""
    rng = np.random.default_rng(0)
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([text, label])
        for index in range(20 * len(labels)):
            words = " ".join(rng.choice(WORDS, 4))
            writer.writerow([f"{words} {index}{tail}", labels[index % len(labels)]])


def write_search(folder: Path, **changes: Any) -> Path:
    """Writes a config of a search of two trials that trains next to nothing, its model beside it."""
    bert(folder / "model")
    content: Mapping[str, Any] = {
        "model": "model",
        "task": "text_classification",
        "data": {"train": "rows.csv", "text": "text", "label": "label", "validation_share": 0.3, "test_share": 0.2},
        "space": {"method": ["head", "lora"], "head": {"lr": 1e-2}, "lora": {"lr": 1e-2, "rank": 2}},
        "training": {"steps": 2, "batch_size": 8, "precision": "fp32", "attention": "eager", "layout": "padded"},
        "sampler": "random",
        "stopper": "never",
        "executor": "serial",
        "trackers": ["console"],
        "budget": {"trials": 2},
        **changes,
    }
    path = folder / "my.yaml"
    path.write_text(yaml.safe_dump(dict(content), allow_unicode=True), encoding="utf-8")
    return path


def call(*words: str | Path, cwd: Path) -> tuple[int, str]:
    """Runs a command in this process, whose imports are done. Returns its exit code, and all that it printed."""
    for name in [name for name in sys.modules if name.startswith("transformers_modules.")]:
        del sys.modules[name]  # a model's own code is imported anew, as in a new process
    said = io.StringIO()
    with (
        contextlib.chdir(cwd),
        contextlib.redirect_stdout(said),
        contextlib.redirect_stderr(said),
        mock.patch.object(sys, "argv", ["autopeft", *map(str, words)]),
    ):
        code = cli._run()
        for thread in threading.enumerate():  # a slow machine's MLflow writes on after the search, which waits 30 s
            if thread.name.startswith("autopeft-mlflow"):
                thread.join(600)
    return code, said.getvalue()
