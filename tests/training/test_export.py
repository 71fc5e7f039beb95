"""Exported folders load in a fresh process, with stock libraries where peft can hold what was found."""

import json

import numpy as np
import pytest
import torch
from models import bert, write_texts
from safetensors.torch import load_file, save_file

from autopeft.errors import AutoPEFTError, UsageError
from autopeft.training.export import NAME, TENSORS, export, load, verify
from autopeft.training.loop import Worker
from autopeft.training.setup import Setup
from autopeft.trial import Result, Status, Trial


@pytest.fixture(scope="module")
def worker(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export")
    (folder / "model").mkdir()
    data = {"train": str(write_texts(folder / "train.csv", 160)), "text": "text", "label": "label",
            "validation_share": 0.25, "test_share": 0.25}  # fmt: skip
    setup = Setup(
        model=bert(folder / "model"), task="text_classification", data=data, folder=str(folder / "run"),
        cache=str(folder / "cache"), epochs=4, batch_size=16, keep="all", prefix_cache_bytes=0, rungs=(),
    )  # fmt: skip
    return Worker(setup)


def trained(worker, method, number):
    trial = Trial(number, {"method": method, f"{method.split('+')[0]}.lr": 5e-3, "head.lr": 1e-2}, 5)
    (result,) = list(worker.evaluate(trial))
    assert isinstance(result, Result)
    assert result.status is Status.COMPLETE, result.error
    return trial, f"{worker.setup.folder}/trials/{number:05d}/{TENSORS}"


def exported(worker, method, number, to):
    trial, tensors = trained(worker, method, number)
    export(
        setup=worker.setup, params=trial.params, seed=trial.seed, tensors=tensors, to=to, card="# a card\n",
        label_names=list(worker.data.label_names), facts={"trial": number},
    )  # fmt: skip
    return verify(to, *worker.sample(trial, tensors))


@pytest.mark.parametrize("method", ["lora", "ia3", "vera"])
def test_stock_peft_loads_what_it_can_hold(worker, method, tmp_path):
    assert exported(worker, method, 1, tmp_path / "out") <= 1e-6
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "README.md", NAME, "tokenizer_config.json"} <= names
    assert not [name for name in names if name.endswith((".bin", ".pt", ".pkl"))]


@pytest.mark.parametrize("method", ["head", "bias", "last_layers", "serial_adapter", "serial_adapter+prefix"])
def test_the_rest_is_loaded_by_one_call_of_ours(worker, method, tmp_path):
    assert exported(worker, method, 2, tmp_path / "out") <= 1e-6
    assert (tmp_path / "out" / TENSORS).exists()


def test_it_predicts_rows_and_files(worker, tmp_path):
    exported(worker, "full", 3, tmp_path / "out")
    found = load(tmp_path / "out")
    frame = found.predict({"text": ["good nice day", "bad dull film"]})
    assert frame["label"].tolist() == ["positive", "negative"]
    chances = frame[["p(negative)", "p(positive)"]].to_numpy()
    np.testing.assert_allclose(chances.sum(axis=1), 1, rtol=1e-5)
    (tmp_path / "new.csv").write_text("text\nfine nice song\n")
    assert found.predict_file(tmp_path / "new.csv")["label"].tolist() == ["positive"]


def test_a_missing_column_is_said(worker, tmp_path):
    exported(worker, "lora", 4, tmp_path / "out")
    (tmp_path / "new.csv").write_text("texts\nfine\n")
    with pytest.raises(UsageError, match=r"no such column.*Did you mean 'texts'"):
        load(tmp_path / "out").predict_file(tmp_path / "new.csv")


def test_a_damaged_export_does_not_verify(worker, tmp_path):
    trial, tensors = trained(worker, "bias", 5)
    exported(worker, "bias", 5, tmp_path / "out")
    state = load_file(tmp_path / "out" / TENSORS)
    noisy = {name: tensor + 0.5 * torch.randn_like(tensor) for name, tensor in state.items()}
    save_file(noisy, tmp_path / "out" / TENSORS)
    with pytest.raises(AutoPEFTError, match="other logits"):
        verify(tmp_path / "out", *worker.sample(trial, tensors))


def test_what_is_no_export_or_newer_is_refused(tmp_path):
    with pytest.raises(UsageError, match="is no exported adapter"):
        load(tmp_path)
    (tmp_path / NAME).write_text(json.dumps({"schema": 99}))
    with pytest.raises(UsageError, match="upgrade autopeft"):
        load(tmp_path)
