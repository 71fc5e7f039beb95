"""Each benchmark that is one config fits the data that it is for: no fault, every split read."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
from models import bert

from autopeft import app, plugins
from autopeft.config import resolve
from tests.conftest import PROJECT, shared_path

NAMES = sorted(path.parent.name for path in (PROJECT / "benchmarks").glob("*/config.yaml"))


@pytest.mark.parametrize("name", NAMES)
def test_reads_its_data(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    data = shared_path("data")
    monkeypatch.setenv("AUTOPEFT_SHARED", str(data.parent))
    monkeypatch.setattr(sys, "path", [str(PROJECT / "benchmarks"), *sys.path])
    import shared

    found: list[tuple[Any, ...]] = []
    (tmp_path / "model").mkdir()
    for name_of_model in ("minilm", "smollm2"):
        monkeypatch.setattr(shared, name_of_model, lambda: bert(tmp_path / "model"))
    monkeypatch.setattr(shared, "search_and_confirm", lambda *given: found.append(given))
    runpy.run_path(str(PROJECT / "benchmarks" / name / "run.py"), run_name="__main__")
    config = app.check(*found[0][:2])
    assert config.budget.trials is not None and config.budget.trials >= 24
    task = plugins.make("tasks", config.task.name, config.task.options)
    dataset = task.read(resolve(config)["data"], config.seed)
    assert list(dataset.splits) == ["train", "validation", "test"]
