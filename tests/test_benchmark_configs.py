"""Each benchmark that is one config fits the data that it is for: no fault, every split read."""

from __future__ import annotations

import io
import json
import runpy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from models import bert
from PIL import Image

from autopeft import app, plugins
from autopeft.config import resolve
from autopeft.tasks import Source
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


def test_a_vision_transformer_learns_five_classes_and_the_rows_are_those_of_five_others(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What was saved loads as a classifier's base with its processor; no row of one side is on the other."""
    monkeypatch.setattr(sys, "path", [str(PROJECT / "benchmarks"), *sys.path])
    import vit
    from transformers import AutoModelForImageClassification

    assert not set(vit.SOURCE) & set(vit.TARGET)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(vit, "EPOCHS", 1)
    names = [*vit.TARGET, *vit.SOURCE]  # in another order than the file's, so that names count, not numbers
    folder = tmp_path / "data" / "cifar10_subset"
    write_pictures(folder, names, vit.SPLITS)
    images, labels = vit.pictures(folder / "train.parquet")
    assert images.shape == (15, 3, 32, 32)
    assert (images[:, 0, 0, 0] == labels * 10 + 100).all()
    of_target = vit.rows(tmp_path / "data")
    for split, file in of_target.items():
        assert (file.stem, set(pd.read_parquet(file)["label"])) == (split, set(vit.TARGET))
    made = vit.base(tmp_path / "data")
    assert vit.base(tmp_path / "data") == made, "once"
    model, info = AutoModelForImageClassification.from_pretrained(made, output_loading_info=True)
    assert not info["missing_keys"]
    assert list(model.config.id2label.values()) == list(vit.SOURCE)
    data = {split: str(file) for split, file in of_target.items()}
    task = plugins.make("tasks", "image_classification", {})
    dataset = task.read(data, 0)
    assert dataset.about["label_names"] == sorted(vit.TARGET)
    encode = task.encoder(Source(str(made), data=data), dataset.about)
    assert encode(dataset.splits["test"]).inputs["pixel_values"].shape == (15, 3, 32, 32)


def write_pictures(folder: Path, names: list[str], splits: tuple[str, ...]) -> None:
    """Three pictures a class and split, of a grey that tells both; the names beside, as the shared data has them."""
    folder.mkdir(parents=True)
    (folder / "dataset_info.json").write_text(json.dumps({"label_names": names}))
    for at, split in enumerate(splits):
        cells = []
        for label in range(len(names)):
            out = io.BytesIO()
            grey = np.full((32, 32, 3), 50 + 10 * label + at, dtype=np.uint8)
            Image.fromarray(grey).save(out, "PNG")
            cells += [{"image": {"bytes": out.getvalue(), "path": f"{label}.png"}, "label": label}] * 3
        pd.DataFrame(cells).to_parquet(folder / f"{split}.parquet")


@pytest.mark.parametrize("name", NAMES)
def test_reads_its_data(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    data = shared_path("data")
    monkeypatch.setenv("AUTOPEFT_SHARED", str(data.parent))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "path", [str(PROJECT / "benchmarks"), *sys.path])
    import shared

    found: list[tuple[Any, ...]] = []
    (tmp_path / "model").mkdir()
    for name_of_model in ("minilm", "smollm2", "chinese", "small_vit"):
        monkeypatch.setattr(shared, name_of_model, lambda: bert(tmp_path / "model"))
    monkeypatch.setattr(shared, "search_and_confirm", lambda *given, **_: found.append(given))
    runpy.run_path(str(PROJECT / "benchmarks" / name / "run.py"), run_name="__main__")
    config = app.check(*found[0][:2])
    assert config.budget.trials is not None and config.budget.trials >= 24
    task = plugins.make("tasks", config.task.name, config.task.options)
    dataset = task.read(resolve(config)["data"], config.seed)
    assert list(dataset.splits) == ["train", "validation", "test"]
