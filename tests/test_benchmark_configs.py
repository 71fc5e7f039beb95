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


def test_a_character_bert_learns_chinese(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Each character is a token, rare ones and Latin words too; what was saved loads as a classifier's base."""
    monkeypatch.setattr(sys, "path", [str(PROJECT / "benchmarks"), *sys.path])
    import chinese
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    rows = ["今天天气很好,iPhone也好", "天气不好", "今天的iphone很好"] * 4
    chinese.pretrain(rows, tmp_path, steps=3)
    tokens = AutoTokenizer.from_pretrained(tmp_path)
    assert tokens.tokenize("今天 iPhone好") == ["今", "天", "i", "##p", "##h", "##o", "##n", "##e", "好"]
    ids = tokens(rows)["input_ids"]
    assert not any(tokens.unk_token_id in row for row in ids)
    _, info = AutoModelForSequenceClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert {name.split(".")[-2] for name in info["missing_keys"]} <= {"classifier", "dense"}, "the head, and the pooler"
    batch, labels = chinese.masked(ids, len(tokens))
    assert (batch == tokens.mask_token_id).sum() > 0
    assert ((labels == -100) | (labels >= len(chinese.SPECIAL))).all()


@pytest.mark.parametrize("name", NAMES)
def test_reads_its_data(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    data = shared_path("data")
    monkeypatch.setenv("AUTOPEFT_SHARED", str(data.parent))
    monkeypatch.setattr(sys, "path", [str(PROJECT / "benchmarks"), *sys.path])
    import shared

    found: list[tuple[Any, ...]] = []
    (tmp_path / "model").mkdir()
    for name_of_model in ("minilm", "smollm2", "chinese"):
        monkeypatch.setattr(shared, name_of_model, lambda: bert(tmp_path / "model"))
    monkeypatch.setattr(shared, "search_and_confirm", lambda *given, **_: found.append(given))
    runpy.run_path(str(PROJECT / "benchmarks" / name / "run.py"), run_name="__main__")
    config = app.check(*found[0][:2])
    assert config.budget.trials is not None and config.budget.trials >= 24
    task = plugins.make("tasks", config.task.name, config.task.options)
    dataset = task.read(resolve(config)["data"], config.seed)
    assert list(dataset.splits) == ["train", "validation", "test"]
